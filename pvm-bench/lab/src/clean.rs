//! Removing a lab: one that is up, one that crashed, or what is left of one. Doing it twice does no harm.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Hierarchy;
use crate::error::{LabError, Result, failed};
use crate::lock::{self, LabLock};
use crate::state::{ProcessId, State};

/// How long killed holders, or an owner that was asked to go, may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Removes all that `state` names.
pub(crate) fn remove(state: &State) -> Result<()> {
    let holders: Vec<ProcessId> = state.all().filter_map(|node| node.holder).collect();
    for holder in holders.iter().filter(|holder| holder.is_alive()) {
        let _ = kill(Pid::from_raw(holder.pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + PATIENCE;
    while let Some(left) = holders.iter().find(|holder| holder.is_alive()) {
        if Instant::now() > deadline {
            return Err(LabError::Remains(format!("pid {} does not die", left.pid)));
        }
        sleep(PAUSE);
    }
    state.hierarchy.remove_all(&state.id)?;
    remove_dir(&state.dir)
}

/// Unmounts what may be mounted below a lab's folder and removes it.
fn remove_dir(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed("reading /proc/self/mountinfo"))?;
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(mount).starts_with(dir) {
            umount2(mount, MntFlags::MNT_DETACH).map_err(failed(format!("unmounting {mount}")))?;
        }
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(format!("removing {}", dir.display()))(error)),
        _ => Ok(()),
    }
}

/// Before `up`, with the lock held: removes a crashed lab of this id; refuses if one was kept and lives.
pub(crate) fn make_room(id: &str, lab_dir: &Path, hierarchy: &Hierarchy) -> Result<()> {
    let recorded = lock::recorded_dir(id);
    for dir in recorded.as_deref().into_iter().chain([lab_dir]) {
        match State::load(dir) {
            Ok(state) if state.id != id => {}
            Ok(state) if state.keep && state.all().any(|node| node.holder.is_some_and(|h| h.is_alive())) => {
                return Err(lock::busy(id, format!("kept, in {}", dir.display())));
            }
            Ok(state) => remove(&state)?,
            Err(LabError::NotUp(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if hierarchy.is_populated(id) {
        return Err(lock::busy(id, "processes are in its cgroup, but its state file is gone"));
    }
    hierarchy.remove_all(id)?;
    let empty = fs::read_dir(lab_dir).map(|mut entries| entries.next().is_none()).unwrap_or(true);
    if empty {
        return Ok(());
    }
    Err(LabError::Spec(format!("{} exists and is not a lab's folder", lab_dir.display())))
}

/// Takes down the lab `id`, whoever runs it; an owner that lives is asked to go first. `false` if there was none.
pub(crate) fn take_down(id: &str, lab_dir: &Path) -> Result<bool> {
    let dir = lock::recorded_dir(id).unwrap_or_else(|| lab_dir.to_path_buf());
    let deadline = Instant::now() + PATIENCE;
    let mut asked = false;
    let lock = loop {
        if let Some(lock) = LabLock::try_take(id)? {
            break lock;
        }
        if !asked && let Ok(state) = State::load(&dir) {
            asked = true;
            if state.owner.is_alive() && u32::try_from(state.owner.pid) != Ok(std::process::id()) {
                let _ = kill(Pid::from_raw(state.owner.pid), Signal::SIGTERM);
            }
        }
        if Instant::now() > deadline {
            return Err(lock::busy(id, "its owner did not react to SIGTERM"));
        }
        sleep(PAUSE * 4);
    };
    let found = match State::load(&dir) {
        Ok(state) => remove(&state).map(|()| true)?,
        Err(LabError::NotUp(_)) => {
            Hierarchy::detect()?.remove_all(id)?;
            asked
        }
        Err(error) => return Err(error),
    };
    lock.forget();
    Ok(found)
}
