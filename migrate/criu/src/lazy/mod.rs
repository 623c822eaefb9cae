//! A restore with an unpatched CRIU whose blackout does not depend on the size: pages that are here already come after the start.
//!
//! CRIU restores a process without the pages that the page map marks as lazy, and hands its userfaultfd to a server that listens at `lazy-pages.socket`.
//! This is that server. All pages lie in a local file (the store of [`crate::images::parent`]), so a page that is touched early is there after about
//! 20 us, and the rest follows as fast as memory can be copied. Pages never come over the network: a process that has started can always go on.
//!
//! `plan` decides which pages come later ([`mark`]), `missing` keeps the account of them, `memory` serves one process, `socket` speaks with CRIU, `server`
//! is the loop, `sys` the system calls.
//!
//! # Use
//!
//! At the source: [`crate::kerndat::prepare_plain`] once, [`crate::images::parent::write`] with `Contents::None`, and a dump with
//! [`crate::Skeleton::Plain`]. The pages travel as for a patched CRIU, but every one of them into the store.
//!
//! At the destination, when the images and all pages are here, for each process:
//! ```ignore
//! let mut map = PageMap::read(&pagemap)?;             // and merge(), and a check that nothing is missing
//! let runs = lazy::mark(&mut map, &mm, lazy::BIG_PAGES);
//! map.write(&pagemap)?;
//! processes.push(LazyProcess { pid, store, runs });
//! ```
//! Then, where the restore is started:
//! ```ignore
//! let filling = lazy::serve(&images_dir, processes, limit)?;
//! let options = RestoreOptions { lazy_pages: true, ..RestoreOptions::default() };
//! criu.restore_with(&request, &options, deadline, on_stage)?;   // at PostRestore: filling.begin(); on error: drop(filling)
//! match filling.join() {                                        // the guest runs meanwhile
//!     Ok(report) => {}                                          // all is in; the store can go
//!     Err(unfinished) => { kill_the_guest(); unfinished.close() } // in this order
//! }
//! ```
//! An unpatched CRIU probes the kernel at each start (35-50 ms of the blackout) unless it finds its cache: the restore should be started in a mount namespace
//! where `/run` is a tmpfs in which `criu check` has been run before.
//!
//! While pages are missing the process must not be dumped again, and the store must not be changed: parts of it are given back as they are used.
//!
//! # What must not happen
//!
//! When the last copy of a userfaultfd is closed the kernel gives the process zeros for what is missing, without a word. So a server that fails keeps
//! the descriptors ([`Unfinished`]) until its caller has killed the guest. And it should run in a process with which the guest dies: the init of the
//! guest's pid namespace, or one that this init waits for and that the guest does not outlive.
//!
//! # Events
//!
//! The mappings of a process that runs may change at any time. The kernel tells of munmap, mremap, madvise and fork, lets the caller wait until that was read, and
//! refuses to place pages meanwhile. One thread reads everything before it places anything, so the account is right whenever a page is placed.
//! The kernel's interface has two gaps, which CRIU's own server has as well: MADV_GUARD_INSTALL is not told of (when the guard is removed again while the fill goes
//! on, the old contents may come back instead of zeros), and of two threads, one of which unmaps a range while the other moves memory to the same place, the events may come in the wrong order.
//!
//! Pages that processes of a tree shared are not shared afterwards.
//!
//! Sources: `criu/uffd.c` of CRIU 4.2.1; Documentation/admin-guide/mm/userfaultfd.rst and fs/userfaultfd.c of Linux.

mod memory;
mod missing;
mod plan;
mod server;
mod socket;
mod sys;

use std::fmt;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use missing::{Missing, Piece};
pub use plan::{BIG_PAGES, mark};
use server::{Expected, Loop};

use crate::images::PAGE_BYTES;
use crate::images::pagemap::Run;

/// A process with pages that come later. Processes of the images without such pages must be told of, too, with no runs.
#[derive(Debug, Clone)]
pub struct LazyProcess {
    /// Pid in the images.
    pub pid: i32,
    /// File with its pages, at offset = address.
    pub store: PathBuf,
    /// From [`mark`].
    pub runs: Vec<Run>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Pages copied, for all processes.
    pub copied_pages: u64,
    /// Times that a thread had to wait for a page.
    pub faults: u64,
    /// Pages of zeros supplied where nothing was.
    pub zero_pages: u64,
    /// Forks while pages were missing.
    pub forks: u64,
    /// Pages whose mapping had gone without notice.
    pub vanished_pages: u64,
    /// From CRIU's word that all is restored until everything was in.
    pub filled_in: Duration,
}

/// Why pages cannot be supplied.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// From the system.
    #[error("cannot supply pages: {0}")]
    Io(#[from] io::Error),
    /// CRIU ended before everything was restored.
    #[error("the restore was given up before its end")]
    Abandoned,
    /// The caller dropped [`Filling`] before everything was restored.
    #[error("the restore was cancelled")]
    Cancelled,
    /// The restore did not come to its end.
    #[error("the restore did not finish within {0:?}")]
    Deadline(Duration),
    /// A task that the caller did not tell of.
    #[error("CRIU restores process {0}, whose pages are not known")]
    Unexpected(i32),
    /// No task for pages.
    #[error("CRIU did not restore process {0}, which has pages that come later")]
    Absent(i32),
}

/// A server that failed. Processes that miss pages wait for them for ever, until they are killed or, by [`Self::close`], read zeros. When this value is merely
/// dropped the descriptors stay open for the life of the calling process: better a guest that hangs than one that computes with zeros.
#[derive(Debug)]
pub struct Unfinished {
    /// Why.
    pub error: LazyError,
    /// Of the processes that may run and miss pages.
    descriptors: ManuallyDrop<Vec<OwnedFd>>,
}

impl Unfinished {
    /// How many processes may run that miss pages; none if the restore had not come to its end.
    pub fn processes(&self) -> usize {
        self.descriptors.len()
    }

    /// Closes the descriptors. Kill the processes first.
    pub fn close(self) {
        drop(ManuallyDrop::into_inner(self.descriptors));
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// A server at work, on a thread of its own. Dropped before the restore is finished it ends; later it goes on to the end by itself, but of an error nobody
/// hears, and the processes wait for ever: [`Self::join`] it.
#[derive(Debug)]
pub struct Filling {
    thread: JoinHandle<Result<Report, Box<Unfinished>>>,
    /// Our word to begin; its end means that we give up.
    order: UnixStream,
}

/// Listens in the folder of the images, and serves the restore that is going to be started from it. `limit` is for the time until everything is
/// restored, and includes what the caller's [`crate::Stage::PostRestore`] takes. The folder must be accessible for the caller and CRIU only.
///
/// # Errors
/// A store or the socket cannot be opened.
pub fn serve(images_dir: &Path, processes: Vec<LazyProcess>, limit: Duration) -> Result<Filling, LazyError> {
    let mut expected = Expected::new();
    for process in processes {
        let mut missing = Missing::default();
        for run in &process.runs {
            missing.insert(Piece { start: run.start, length_bytes: run.pages * PAGE_BYTES, source: run.start });
        }
        expected.insert(process.pid, (memory::Store::open(&process.store)?, missing));
    }
    let listener = socket::listen(images_dir)?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut work = Loop::new(listener, theirs, expected, limit);
    let run = move || match work.run() {
        Ok(report) => Ok(report),
        Err(error) => Err(Box::new(Unfinished { error, descriptors: ManuallyDrop::new(work.give_up()) })),
    };
    Ok(Filling { thread: std::thread::Builder::new().name("lazy-pages".into()).spawn(run)?, order: ours })
}

impl Filling {
    /// All mappings exist: fills them from now on instead of from the moment when the restore is finished. To be called at
    /// [`crate::Stage::PostRestore`], when the wait for the decision to go on begins.
    ///
    /// # Errors
    /// The server has ended; [`Self::join`] tells why.
    pub fn begin(&self) -> io::Result<()> {
        (&self.order).write_all(&[1])
    }

    /// Whether it has ended, well or not.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until everything is in.
    ///
    /// # Errors
    /// Processes may be left that miss pages; see [`Unfinished`].
    pub fn join(self) -> Result<Report, Box<Unfinished>> {
        let lost =
            |_| Err(Box::new(Unfinished { error: io::Error::other("the server broke down").into(), descriptors: ManuallyDrop::default() }));
        self.thread.join().unwrap_or_else(lost)
    }
}
