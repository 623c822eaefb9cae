//! Removing a cgroup tree that may still hold frozen or running processes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{LabError, Result, failed};

/// How long a killed process may take to leave its group (a large one needs time to free its memory).
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// A lab's tree is three levels deep plus what daemons make; deeper is not ours to walk.
const MAX_DEPTH: usize = 16;

/// All groups of the tree at `root`, deepest first. Empty if there is none.
fn groups(root: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            if depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), depth + 1, found);
            }
        }
        found.push(dir.into());
    }
    let mut found = Vec::new();
    walk(root, 0, &mut found);
    found
}

/// Pids in a group. Those of other pid namespaces read as 0 and are left out.
fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Whether any process is in the tree at `root`.
pub(crate) fn is_populated(root: &Path) -> bool {
    groups(root).iter().any(|group| !members(group).is_empty())
}

/// Removes the tree at `root`; thaws and kills what is inside. The caller, if inside, is moved out instead of killed.
pub(crate) fn remove_tree(root: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut busy = Vec::new();
        for group in groups(root) {
            empty(&group, root);
            match fs::remove_dir(&group) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::ResourceBusy => busy.push(group),
                Err(error) => return Err(failed(format!("removing the cgroup {}", group.display()))(error)),
            }
        }
        if busy.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let left = busy.iter().flat_map(|group| members(group)).collect::<Vec<_>>();
            let first = busy.first().map(|path| path.display().to_string()).unwrap_or_default();
            return Err(LabError::Remains(format!("cgroup {first} is busy; processes in it: {left:?}")));
        }
        sleep(PAUSE);
    }
}

/// Thaws a group and kills what is in it.
fn empty(group: &Path, root: &Path) {
    let pids = members(group);
    if pids.is_empty() {
        return;
    }
    let own = std::process::id();
    for pid in pids {
        if u32::try_from(pid) == Ok(own) {
            // To the group above the lab's, where it most likely came from.
            let above = root.parent().unwrap_or(root).join("cgroup.procs");
            let _ = fs::write(above, pid.to_string());
        } else {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    // A killed process of a frozen group dies only when thawed (version 1), and thawing does no harm (version 2).
    for (file, text) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
        if group.join(file).exists() {
            let _ = fs::write(group.join(file), text);
        }
    }
}
