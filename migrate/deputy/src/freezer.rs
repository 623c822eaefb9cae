//! The cgroup-v2 freezer of one group.
//!
//! Unlike SIGSTOP it is invisible to the parent, and a frozen thread still answers ptrace: it reports its
//! stop without ever going back to its program.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One cgroup directory.
#[derive(Debug, Clone)]
pub(crate) struct Freezer {
    dir: PathBuf,
}

impl std::fmt::Display for Freezer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dir.display().fmt(f)
    }
}

impl Freezer {
    pub(crate) fn new(dir: &Path) -> Freezer {
        Freezer { dir: dir.to_path_buf() }
    }

    /// Whether all tasks in it have come to rest.
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        self.has_line("cgroup.events", "frozen 1")
    }

    /// Whether other cgroups hang below it, which freeze and thaw with it.
    pub(crate) fn has_children(&self) -> io::Result<bool> {
        Ok(!self.has_line("cgroup.stat", "nr_descendants 0")?)
    }

    fn has_line(&self, file: &str, wanted: &str) -> io::Result<bool> {
        Ok(std::fs::read_to_string(self.dir.join(file))?.lines().any(|line| line == wanted))
    }

    /// Processes in it.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let text = std::fs::read_to_string(self.dir.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    pub(crate) fn thaw(&self) -> io::Result<()> {
        std::fs::write(self.dir.join("cgroup.freeze"), "0")
    }

    /// Returns when every task is *marked*: none returns to its program any more, though some may not yet be at rest.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        std::fs::write(self.dir.join("cgroup.freeze"), "1")
    }

    /// Waits until all tasks are at rest; false if they are not within `limit`.
    pub(crate) fn wait_frozen(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        while !self.is_frozen()? {
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }
}
