//! Everything that decides whether and how a process can move, read from `/proc` in one go.
//!
//! [`collect`] takes a snapshot of a process that goes on running: what it says may be stale at once. Therefore a mover
//! collects twice: before it asks anybody (to refuse early), and again when the process is frozen. Only the second
//! snapshot is binding; if its plan differs from the first, the move is off.
//!
//! Who else holds an open file description is answered by the kernel (`kcmp`), not guessed from names: one pass over
//! `/proc/*/fd` picks the descriptors with the same link text, and `kcmp` settles each. The same pass asks whether anybody
//! shares the address space, the descriptor table or the working directory. Descriptions in flight in a Unix
//! socket's queue cannot be seen by anyone; sockets themselves are refused by [`crate::eligible`].
//!
//! A process that ends meanwhile is [`FactsError::Gone`]. A pid that was reused meanwhile is the same: the start time is read
//! first and last.

mod fds;
mod fingerprint;
mod own;
mod parse;
mod share;
mod sys;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use fingerprint::Fingerprint;
pub use own::Own;
pub use parse::{Device, Mapping};

/// More open files than this are not looked at: the answer would take longer than a move.
pub const MAX_FDS: usize = 1024;
/// More threads than this are not looked at.
pub const MAX_THREADS: usize = 4096;
/// Longest file of `/proc` that is read, in bytes: the kernel's default limit of 65530 mappings fits.
const MAX_PROC_BYTES: u64 = 16 << 20;

/// Why the facts of a process could not be had. None of these changes anything.
#[derive(Debug, Error)]
pub enum FactsError {
    /// It ended (or its pid is another process by now).
    #[error("process {pid} has ended: there is nothing to move")]
    Gone {
        /// The pid asked for.
        pid: i32,
    },
    /// The kernel does not let us look.
    #[error("may not read {what} of process {pid}: run as root, outside of any container")]
    Denied {
        /// The pid asked for.
        pid: i32,
        /// The file or call.
        what: String,
    },
    /// It has more of something than is looked at.
    #[error("process {pid} has more than {limit} {what}: it stays, because checking them would take longer than a move")]
    TooMany {
        /// The pid asked for.
        pid: i32,
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The kernel's text is not what this version knows.
    #[error("{what} of process {pid} is not as this version knows it: {text:?}; please report the kernel version")]
    Odd {
        /// The pid asked for.
        pid: i32,
        /// The file.
        what: &'static str,
        /// The start of what was read.
        text: String,
    },
    /// Anything else.
    #[error("cannot read {what} of process {pid}: {source}")]
    Io {
        /// The pid asked for.
        pid: i32,
        /// The file or call.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The namespaces of a process by name (`mnt`, `pid_for_children`, ...), each as the text of its link (`mnt:[4026531832]`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces(pub BTreeMap<String, String>);

/// One thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Who traces it; 0 is nobody.
    pub tracer_pid: i32,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp_mode: u32,
    /// It has left the descriptor table of its process (`unshare(CLONE_FILES)`).
    pub own_files: bool,
}

/// A path that `/proc` shows as a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The link's text.
    pub path: String,
    /// The path leads to the very object that the process holds: not deleted, replaced, or hidden by a mount.
    pub leads_there: bool,
}

/// What is shared with another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedWhat {
    /// The address space.
    Memory,
    /// The table of open files.
    Files,
    /// Working directory, root and umask.
    Directory,
}

/// Another process that shares something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedWith {
    /// The other process.
    pub pid: i32,
    /// What it shares.
    pub what: SharedWhat,
}

/// A descriptor of another process that matters to one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The other process.
    pub pid: i32,
    /// Its descriptor.
    pub fd: i32,
    /// It is the same open file description (offset and flags are shared), not just the same pipe.
    pub same_description: bool,
    /// It can read through it.
    pub reads: bool,
    /// It can write through it.
    pub writes: bool,
}

/// One open descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    /// Its number.
    pub fd: i32,
    /// Text of `/proc/PID/fd/N`: a path, `pipe:[7]`, `anon_inode:[eventfd]`.
    pub link: String,
    /// `O_*` flags without `O_CLOEXEC`.
    pub flags: i32,
    /// Closed by exec.
    pub cloexec: bool,
    /// Offset.
    pub pos: i64,
    /// The mount it was opened on.
    pub mnt_id: i32,
    /// It is a path on a mount that the process itself does not have: opened in another mount namespace and handed over.
    pub foreign_mount: bool,
    /// Device of the inode.
    pub dev: u64,
    /// The inode.
    pub inode: u64,
    /// The device that it is, if it is one.
    pub rdev: u64,
    /// `st_mode`.
    pub mode: u32,
    /// The link is a path that leads to this inode.
    pub leads_there: bool,
    /// `fdinfo`'s lock lines: file locks and leases held through it.
    pub locks: Vec<String>,
    /// Protocol, for a socket.
    pub socket: Option<String>,
    /// The lowest descriptor of this process with the same open file description, itself if there is none lower.
    /// Found for regular files only.
    pub description: i32,
    /// Who else holds the description, or (pipes) any end. Empty for devices and sockets: not asked.
    pub holders: Vec<Holder>,
}

/// Everything that is known about a process. Of a kernel thread or zombie only what `stat` tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Its pid, as the caller sees it.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// State letter of `/proc/PID/stat`.
    pub state: char,
    /// It is a thread of the kernel.
    pub kernel_thread: bool,
    /// Its controlling terminal.
    pub tty: Option<Device>,
    /// The terminal's foreground process group; -1 without terminal.
    pub tpgid: i32,
    /// Start time, in clock ticks since boot: together with the pid it names the process for ever.
    pub start_time_ticks: u64,
    /// Time since its start, in ms.
    pub age_ms: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// It has a real-time or deadline scheduling policy.
    pub realtime: bool,
    /// Its threads, the leader among them.
    pub threads: Vec<Thread>,
    /// Real, effective, saved, file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system gid.
    pub gids: [u32; 4],
    /// Its pid in each pid namespace, outermost first.
    pub ns_pids: Vec<i32>,
    /// Signals that are pending, for the process and for its leader (bit 0 is signal 1).
    pub pending_signals: u64,
    /// Short name.
    pub comm: String,
    /// Arguments.
    pub cmdline: Vec<String>,
    /// Its program.
    pub exe: Link,
    /// Its working directory.
    pub cwd: Link,
    /// Its root directory.
    pub root: String,
    /// Host name of its UTS namespace if that is the caller's.
    pub hostname: String,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its children.
    pub children: Vec<i32>,
    /// Its descriptors, by number.
    pub fds: Vec<Fd>,
    /// Mappings that are shared, or of something else than an existing file or plain anonymous memory.
    pub maps: Vec<Mapping>,
    /// It waits for a file lock now.
    pub waits_for_lock: bool,
    /// Processes that share its memory, descriptor table or directory.
    pub shared_with: Vec<SharedWith>,
    /// Processes that the kernel did not let us look into: what they share is unknown.
    pub opaque: Vec<i32>,
}

/// Reads the facts of `pid`. Changes nothing; needs root (or ptrace permission over everything) for a full answer.
pub fn collect(pid: i32) -> Result<Facts, FactsError> {
    let proc = Proc { pid };
    let stat = read_stat(&proc)?;
    let mut facts = stat.clone();
    if !facts.kernel_thread && facts.state != 'Z' && facts.state != 'X' {
        own_facts(&proc, &mut facts)?;
        share::survey(&proc, &mut facts)?;
    }
    // The pid may have changed hands while we read: then the facts are a mixture.
    let again = read_stat(&proc)?;
    if again.start_time_ticks != stat.start_time_ticks {
        return Err(FactsError::Gone { pid });
    }
    facts.state = again.state;
    Ok(facts)
}

fn read_stat(proc: &Proc) -> Result<Facts, FactsError> {
    let text = proc.text("stat")?;
    let mut facts = parse::stat(&text).ok_or_else(|| proc.odd("stat", &text))?;
    let uptime_ticks = own::uptime_ticks().map_err(|source| proc.io("the clock", source))?;
    let ticks_per_s = own::ticks_per_s();
    facts.age_ms = uptime_ticks.saturating_sub(facts.start_time_ticks).saturating_mul(1000) / ticks_per_s;
    Ok(facts)
}

/// What the process's own directory tells.
fn own_facts(proc: &Proc, facts: &mut Facts) -> Result<(), FactsError> {
    let text = proc.text("status")?;
    parse::status(&text, facts).ok_or_else(|| proc.odd("status", &text))?;
    facts.cmdline = parse::cmdline(&proc.bytes("cmdline")?);
    facts.exe = proc.checked_link("exe")?;
    facts.cwd = proc.checked_link("cwd")?;
    facts.root = proc.link("root")?;
    facts.hostname = own::hostname();
    facts.namespaces = own::namespaces(proc)?;
    facts.threads = threads(proc, &text)?;
    facts.children = children(proc, &facts.threads)?;
    facts.maps = parse::maps(&proc.text("maps")?);
    facts.fds = fds::read(proc)?;
    facts.waits_for_lock = waits_for_lock(proc, &facts.threads)?;
    Ok(())
}

fn threads(proc: &Proc, leader_status: &str) -> Result<Vec<Thread>, FactsError> {
    let tids = proc.numbers("task")?;
    if tids.len() > MAX_THREADS {
        return Err(FactsError::TooMany { pid: proc.pid, what: "threads", limit: MAX_THREADS });
    }
    let mut threads = Vec::with_capacity(tids.len());
    for tid in tids {
        let mut thread = Thread { tid, ..Thread::default() };
        let text = if tid == proc.pid {
            leader_status.to_owned()
        } else {
            match proc.text(&format!("task/{tid}/status")) {
                Ok(text) => text,
                // A thread may end at any time; if the whole process did, the last read of stat says so.
                Err(FactsError::Gone { .. }) => continue,
                Err(error) => return Err(error),
            }
        };
        parse::thread_status(&text, &mut thread);
        thread.own_files = tid != proc.pid && share::threads_differ(proc, tid)?;
        threads.push(thread);
    }
    Ok(threads)
}

fn children(proc: &Proc, threads: &[Thread]) -> Result<Vec<i32>, FactsError> {
    let mut children = Vec::new();
    for thread in threads {
        match proc.text(&format!("task/{}/children", thread.tid)) {
            Ok(text) => children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // Without CONFIG_PROC_CHILDREN the file is missing for a thread that exists; ask everybody for their parent.
            Err(FactsError::Gone { .. }) if Path::new(&proc.path(&format!("task/{}/stat", thread.tid))).exists() => {
                return share::children_by_parent(proc);
            }
            Err(FactsError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    children.sort_unstable();
    Ok(children)
}

fn waits_for_lock(proc: &Proc, threads: &[Thread]) -> Result<bool, FactsError> {
    // Held locks are in fdinfo, exactly; only those who wait must be looked up in the common list.
    let text = std::fs::read_to_string("/proc/locks").map_err(|source| proc.io("/proc/locks", source))?;
    Ok(parse::lock_waiters(&text).any(|waiter| threads.iter().any(|thread| thread.tid == waiter)))
}

/// A process's directory in `/proc`.
pub(crate) struct Proc {
    pub(crate) pid: i32,
}

impl Proc {
    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    fn io(&self, what: &str, source: io::Error) -> FactsError {
        let pid = self.pid;
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => FactsError::Gone { pid },
            Some(libc::EPERM | libc::EACCES) => FactsError::Denied { pid, what: what.to_owned() },
            _ => FactsError::Io { pid, what: what.to_owned(), source },
        }
    }

    fn odd(&self, what: &'static str, text: &str) -> FactsError {
        FactsError::Odd { pid: self.pid, what, text: text.chars().take(80).collect() }
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, FactsError> {
        use std::io::Read;
        let mut bytes = Vec::with_capacity(2048);
        std::fs::File::open(self.path(name))
            .and_then(|file| file.take(MAX_PROC_BYTES).read_to_end(&mut bytes))
            .map_err(|source| self.io(name, source))?;
        if bytes.len() as u64 == MAX_PROC_BYTES {
            return Err(FactsError::TooMany { pid: self.pid, what: "bytes of /proc text", limit: bytes.len() });
        }
        Ok(bytes)
    }

    fn text(&self, name: &str) -> Result<String, FactsError> {
        // Names of programs and files may hold any byte; what cannot be shown is replaced and leads nowhere.
        self.bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn link(&self, name: &str) -> Result<String, FactsError> {
        std::fs::read_link(self.path(name)).map(|path| path.to_string_lossy().into_owned()).map_err(|source| self.io(name, source))
    }

    fn checked_link(&self, name: &str) -> Result<Link, FactsError> {
        let path = self.link(name)?;
        let held = nix::sys::stat::stat(self.path(name).as_str()).map_err(|errno| self.io(name, errno.into()))?;
        let leads_there = fds::leads_to(&path, held.st_dev, held.st_ino);
        Ok(Link { path, leads_there })
    }

    fn numbers(&self, name: &str) -> Result<Vec<i32>, FactsError> {
        let entries = std::fs::read_dir(self.path(name)).map_err(|source| self.io(name, source))?;
        let mut numbers: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
