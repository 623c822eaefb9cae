//! A cgroup-v2 group that can hold still what is in it, and the dump that ends with the tree held there.
//!
//! Why the freezer and not SIGSTOP: it is invisible to the parent's wait(2) and to the program. Why in CRIU's `post-dump`
//! stage: CRIU's own stop ends when the dump ends; freezing while CRIU still holds the tasks means that the original executes
//! not one instruction after the state that was dumped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::swrk::{CriuError, Reply, Stage};
use crate::{Criu, DumpOptions, DumpRequest};

/// One cgroup-v2 folder used as a freezer.
#[derive(Debug, Clone)]
pub struct Freezer {
    dir: PathBuf,
}

impl Freezer {
    /// A freezer at an existing or new cgroup folder; makes it if it is missing.
    ///
    /// # Errors
    /// From mkdir(2).
    pub fn create(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        match fs::create_dir_all(&dir) {
            Ok(()) => Ok(Self { dir }),
            Err(error) => Err(io::Error::new(error.kind(), format!("cannot make the cgroup {}: {error}", dir.display()))),
        }
    }

    /// The cgroup folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a process with all its threads into the group.
    ///
    /// # Errors
    /// From the kernel; the process stays where it was.
    pub fn enter(&self, pid: i32) -> io::Result<()> {
        enter_cgroup(&self.dir, pid)
    }

    /// Holds everything in the group; returns at once, the hold takes effect as each task leaves the kernel (or CRIU's stop).
    ///
    /// # Errors
    /// From the kernel.
    pub fn freeze(&self) -> io::Result<()> {
        self.write("1")
    }

    /// Lets everything go.
    ///
    /// # Errors
    /// From the kernel.
    pub fn thaw(&self) -> io::Result<()> {
        self.write("0")
    }

    /// Pids in the group.
    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes the empty group; a group that is still emptying is tried for a short time.
    pub fn remove(&self) {
        for _ in 0..50 {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }

    fn write(&self, value: &str) -> io::Result<()> {
        let path = self.dir.join("cgroup.freeze");
        fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot write {value} to {}: {error}", path.display())))
    }
}

/// Moves a process into a cgroup folder of either version.
///
/// # Errors
/// From the kernel, with the folder's name.
pub fn enter_cgroup(dir: &Path, pid: i32) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), pid.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("cannot move process {pid} to {}: {error}", dir.display())))
}

/// A tree that has been dumped and is held.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// When CRIU had stopped it: nothing of it has run since.
    pub since: Instant,
}

/// Where a dump is, for whoever works beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// CRIU has been started and has touched nothing.
    Before,
    /// All threads are stopped; CRIU waits for the answer, so it should come soon.
    Stopped,
    /// The images are complete and the tree is frozen. CRIU still holds it, and lets go after the answer.
    Held {
        /// When CRIU had stopped it.
        since: Instant,
    },
}

/// Dumps `request.pid`, which must be in `freezer` already, and leaves it frozen there. `beside` is called at each [`Moment`]; an error of it is
/// a veto.
///
/// From just before the stop the process is in `dump_cgroups`, so that a CPU quota does not stretch the blackout while CRIU runs code of its
/// own in it; the caller moves it back if the move is given up.
///
/// Once [`Moment::Held`] has been answered with yes the dump counts as done, whatever becomes of the rest of CRIU's run: others may have
/// started the copy by then, so the original must not run.
///
/// # Errors
/// The process runs on: the freezer is thawed.
pub fn dump_and_hold(
    criu: &Criu,
    request: &DumpRequest<'_>,
    options: &DumpOptions<'_>,
    freezer: &Freezer,
    dump_cgroups: &[PathBuf],
    deadline: Duration,
    beside: &mut dyn FnMut(Moment) -> Result<(), String>,
) -> Result<Held, CriuError> {
    let (mut since, mut is_held) = (Instant::now(), false);
    let result = criu.dump_with(request, options, deadline, &mut |stage| {
        let done = match stage {
            // The kernel may take ten milliseconds for each change of a group: not in the blackout.
            Stage::PreDump => {
                let entered = dump_cgroups.iter().try_for_each(|dir| enter_cgroup(dir, request.pid));
                entered.map_err(|error| error.to_string()).and_then(|()| beside(Moment::Before))
            }
            Stage::QueryExtFiles => {
                since = Instant::now();
                beside(Moment::Stopped)
            }
            Stage::PostDump => {
                let held = freezer.freeze().map_err(|error| error.to_string()).and_then(|()| beside(Moment::Held { since }));
                is_held = held.is_ok();
                held
            }
            _ => Ok(()),
        };
        match done {
            Ok(()) => Reply::Continue,
            Err(reason) => Reply::Veto(reason),
        }
    });
    match result {
        Ok(()) => Ok(Held { since }),
        Err(_) if is_held => Ok(Held { since }),
        Err(error) => {
            // Best effort on the way out; if even this write fails the group has gone, and with it the hold.
            let _ = freezer.thaw();
            Err(error)
        }
    }
}
