//! The calls of libpvm3 that we need, declared by hand and loaded at run time, so that nothing of PVM is needed to build.
//!
//! All unsafe code of this crate is here. PVM's library keeps its state in global variables and is not made for threads:
//! [`Pvm`] is neither `Send` nor `Sync`, and only one exists per process.

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::{Library, Symbol};

/// Names of the library, the versioned one first: the other comes with the development package.
const LIBRARIES: [&str; 2] = ["libpvm3.so.3", "libpvm3.so"];
/// `PvmDataRaw`: all nodes of a lab are the same machine.
const DATA_RAW: c_int = 1;
/// `PvmTaskDefault`: PVM chooses the host.
const TASK_DEFAULT: c_int = 0;
/// `PvmTaskExit` of `pvm_notify`.
const NOTIFY_EXIT: c_int = 1;
/// Most tasks of one spawn.
pub const MAX_TASKS: usize = 4096;

/// Errors of PVM.
#[derive(Debug, thiserror::Error)]
pub enum PvmError {
    /// The library is not there.
    #[error("cannot load libpvm3: {0}; install PVM (Debian: libpvm3, pvm)")]
    NoLibrary(String),
    /// A call failed.
    #[error("{call} failed with {code} ({meaning})")]
    Call {
        /// Which.
        call: &'static str,
        /// PVM's error number.
        code: i32,
        /// In words, for the usual ones.
        meaning: &'static str,
    },
    /// [`Pvm::load`] was called a second time.
    #[error("libpvm3 is already in use in this process")]
    Twice,
    /// A string or a number that PVM cannot take.
    #[error("PVM cannot take {0}")]
    Argument(String),
}

/// A host of the virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Task id of its daemon.
    pub tid: i32,
    /// Its name.
    pub name: String,
}

/// `struct pvmhostinfo`.
#[repr(C)]
struct HostInfo {
    tid: c_int,
    name: *const c_char,
    arch: *const c_char,
    speed: c_int,
    signature: c_int,
}

/// The library.
#[derive(Debug)]
pub struct Pvm {
    library: Library,
    /// Not for threads.
    _single: PhantomData<*const ()>,
}

static LOADED: AtomicBool = AtomicBool::new(false);

type Call0 = unsafe extern "C" fn() -> c_int;
type Call1 = unsafe extern "C" fn(c_int) -> c_int;
type Call2 = unsafe extern "C" fn(c_int, c_int) -> c_int;
type Multicast = unsafe extern "C" fn(*const c_int, c_int, c_int) -> c_int;
type Pack = unsafe extern "C" fn(*const f64, c_int, c_int) -> c_int;
type Unpack = unsafe extern "C" fn(*mut f64, c_int, c_int) -> c_int;
type UnpackInt = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type BufInfo = unsafe extern "C" fn(c_int, *mut c_int, *mut c_int, *mut c_int) -> c_int;
type Spawn = unsafe extern "C" fn(*const c_char, *const *const c_char, c_int, *const c_char, c_int, *mut c_int) -> c_int;
type Config = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut *mut HostInfo) -> c_int;
type Notify = unsafe extern "C" fn(c_int, c_int, c_int, *const c_int) -> c_int;

impl Pvm {
    /// Loads the library and enrols this process as a PVM task.
    ///
    /// # Errors
    /// Without the library, or without a running PVM daemon on this host.
    pub fn load() -> Result<Self, PvmError> {
        if LOADED.swap(true, Ordering::SeqCst) {
            return Err(PvmError::Twice);
        }
        let mut problem = String::new();
        for name in LIBRARIES {
            // SAFETY: libpvm3's initialisers only set up its own variables.
            match unsafe { Library::new(name) } {
                Ok(library) => {
                    let pvm = Self { library, _single: PhantomData };
                    pvm.call0("pvm_mytid")?;
                    return Ok(pvm);
                }
                Err(error) => problem = error.to_string(),
            }
        }
        Err(PvmError::NoLibrary(problem))
    }

    /// Looks up a function. `T` must be its type in `pvm3.h`.
    fn function<T>(&self, name: &'static str) -> Result<Symbol<'_, T>, PvmError> {
        // SAFETY: callers below pass the type that pvm3.h declares for this name.
        unsafe { self.library.get(name.as_bytes()) }.map_err(|error| PvmError::NoLibrary(error.to_string()))
    }

    fn call0(&self, name: &'static str) -> Result<i32, PvmError> {
        let function = self.function::<Call0>(name)?;
        // SAFETY: takes nothing; see the type for the threads' side.
        check(name, unsafe { function() })
    }

    fn call1(&self, name: &'static str, first: c_int) -> Result<i32, PvmError> {
        let function = self.function::<Call1>(name)?;
        // SAFETY: takes one number by value.
        check(name, unsafe { function(first) })
    }

    fn call2(&self, name: &'static str, first: c_int, second: c_int) -> Result<i32, PvmError> {
        let function = self.function::<Call2>(name)?;
        // SAFETY: takes two numbers by value.
        check(name, unsafe { function(first, second) })
    }

    /// The task that spawned this one; `None` if it was not spawned.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn parent(&self) -> Result<Option<i32>, PvmError> {
        const NO_PARENT: i32 = -23;
        match self.call0("pvm_parent") {
            Err(PvmError::Call { code: NO_PARENT, .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Leaves PVM.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn exit(self) -> Result<(), PvmError> {
        self.call0("pvm_exit").map(drop)
    }

    /// Starts `count` tasks where PVM's default placement wants them, all in one call as the paper's programs did.
    ///
    /// # Errors
    /// If not all could be started; those that were go on.
    pub fn spawn(&self, program: &str, args: &[&str], count: usize) -> Result<Vec<i32>, PvmError> {
        let text = |text: &str| CString::new(text).map_err(|_| PvmError::Argument(format!("{text:?}")));
        let wanted = c_int::try_from(count).ok().filter(|_| count <= MAX_TASKS);
        let wanted = wanted.ok_or_else(|| PvmError::Argument(format!("{count} tasks")))?;
        let name = text(program)?;
        let args = args.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
        let mut tids: Vec<c_int> = vec![0; count];
        let spawn = self.function::<Spawn>("pvm_spawn")?;
        // SAFETY: the strings live until the call returns, the list of arguments ends with NULL, and `tids` has room for `wanted`.
        let started = unsafe { spawn(name.as_ptr(), pointers.as_ptr(), TASK_DEFAULT, std::ptr::null(), wanted, tids.as_mut_ptr()) };
        if started == wanted {
            return Ok(tids);
        }
        let first_error = tids.iter().copied().find(|tid| *tid < 0).unwrap_or(started.min(-1));
        check("pvm_spawn", first_error).map(|_| tids)
    }

    /// All hosts.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn hosts(&self) -> Result<Vec<Host>, PvmError> {
        let (mut count, mut formats, mut list) = (0, 0, std::ptr::null_mut());
        let config = self.function::<Config>("pvm_config")?;
        // SAFETY: three pointers to live variables.
        check("pvm_config", unsafe { config(&raw mut count, &raw mut formats, &raw mut list) })?;
        let count = usize::try_from(count).unwrap_or(0);
        if list.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: PVM gives an array of `count` entries, which it keeps until the next pvm_config.
        let entries = unsafe { std::slice::from_raw_parts(list, count) };
        let host = |entry: &HostInfo| Host {
            tid: entry.tid,
            // SAFETY: a NUL-terminated string of the same lifetime as the array.
            name: unsafe { CStr::from_ptr(entry.name) }.to_string_lossy().into_owned(),
        };
        Ok(entries.iter().filter(|entry| !entry.name.is_null()).map(host).collect())
    }

    /// The daemon (its task id) of the host on which a task runs.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn host_of(&self, tid: i32) -> Result<i32, PvmError> {
        self.call1("pvm_tidtohost", tid)
    }

    /// Asks for a message with `tag` when any of these tasks ends.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn notify_exit(&self, tids: &[i32], tag: i32) -> Result<(), PvmError> {
        let notify = self.function::<Notify>("pvm_notify")?;
        let count = c_int::try_from(tids.len()).map_err(|_| PvmError::Argument("so many tasks".into()))?;
        // SAFETY: the list is alive and has `count` entries.
        check("pvm_notify", unsafe { notify(NOTIFY_EXIT, tag, count, tids.as_ptr()) }).map(drop)
    }

    /// Sends one number to tasks.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn send(&self, tids: &[i32], tag: i32, value: f64) -> Result<(), PvmError> {
        self.call1("pvm_initsend", DATA_RAW)?;
        let pack = self.function::<Pack>("pvm_pkdouble")?;
        // SAFETY: one number, one entry.
        check("pvm_pkdouble", unsafe { pack(&raw const value, 1, 1) })?;
        if let [tid] = tids {
            return self.call2("pvm_send", *tid, tag).map(drop);
        }
        let multicast = self.function::<Multicast>("pvm_mcast")?;
        let count = c_int::try_from(tids.len()).map_err(|_| PvmError::Argument("so many tasks".into()))?;
        // SAFETY: the list is alive and has `count` entries.
        check("pvm_mcast", unsafe { multicast(tids.as_ptr(), count, tag) }).map(drop)
    }

    /// Waits for a message from anyone with any tag; sender and tag.
    ///
    /// # Errors
    /// If PVM fails.
    pub fn receive(&self) -> Result<(i32, i32), PvmError> {
        let buffer = self.call2("pvm_recv", -1, -1)?;
        let (mut length, mut tag, mut tid) = (0, 0, 0);
        let info = self.function::<BufInfo>("pvm_bufinfo")?;
        // SAFETY: three pointers to live variables.
        check("pvm_bufinfo", unsafe { info(buffer, &raw mut length, &raw mut tag, &raw mut tid) })?;
        Ok((tid, tag))
    }

    /// The task named in the notice received last (see [`Self::notify_exit`]).
    ///
    /// # Errors
    /// If the last message is no notice.
    pub fn gone(&self) -> Result<i32, PvmError> {
        let mut tid = 0;
        let unpack = self.function::<UnpackInt>("pvm_upkint")?;
        // SAFETY: room for one number.
        check("pvm_upkint", unsafe { unpack(&raw mut tid, 1, 1) })?;
        Ok(tid)
    }

    /// The number in the message received last.
    ///
    /// # Errors
    /// If there is none in it.
    pub fn unpack(&self) -> Result<f64, PvmError> {
        let mut value = 0.0;
        let unpack = self.function::<Unpack>("pvm_upkdouble")?;
        // SAFETY: room for one number.
        check("pvm_upkdouble", unsafe { unpack(&raw mut value, 1, 1) })?;
        Ok(value)
    }
}

/// Negative results are errors. (Task ids of PVM are positive.)
fn check(call: &'static str, code: c_int) -> Result<i32, PvmError> {
    if code >= 0 {
        return Ok(code);
    }
    let meaning = match code {
        -2 => "bad parameter",
        -7 => "no such file: is the program's path right on every node?",
        -10 => "out of memory",
        -14 => "no PVM daemon on this host",
        -22 => "no such host",
        -23 => "no parent",
        -27 => "out of resources",
        -31 => "no such task",
        _ => "see PVM's pvm3.h",
    };
    Err(PvmError::Call { call, code, meaning })
}
