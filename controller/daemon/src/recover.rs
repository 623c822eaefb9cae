//! After a crash of this daemon: what it left frozen is let go, or ended if the commit log says that its copy ran elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use mosix_criu::freezer::Freezer;
use mosix_engine::commit::Record;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Clears the freezers and image folders of the run before.
///
/// # Errors
/// A folder that cannot be read or made; a process that cannot be let go is told in the log instead.
pub(crate) fn run(freezer_root: &Path, state_dir: &Path, last: &BTreeMap<u64, (u32, Record)>) -> Result<()> {
    std::fs::create_dir_all(freezer_root).with_context(|| format!("cannot make the cgroup {}", freezer_root.display()))?;
    for entry in std::fs::read_dir(freezer_root)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(group) = name.strip_prefix("home-").and_then(|text| u64::from_str_radix(text, 16).ok()) {
            release(freezer_root, &entry.path(), last.get(&group).is_some_and(|(_, record)| *record != Record::Aborted))?;
        } else if name.starts_with("guest-") {
            // Its agent ended with the old daemon, and all in its namespace with it.
            Freezer::create(entry.path())?.remove();
        }
    }
    let images = state_dir.join("images");
    if images.exists() {
        std::fs::remove_dir_all(&images).with_context(|| format!("cannot clear {}", images.display()))?;
    }
    std::fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))
}

fn release(root: &Path, dir: &Path, committed: bool) -> Result<()> {
    let freezer = Freezer::create(dir)?;
    for pid in freezer.members() {
        if committed {
            tracing::error!(pid, "its copy was running elsewhere when this daemon died, and is gone with it: the frozen body is ended");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        } else {
            tracing::warn!(pid, "was left frozen by a daemon that died: it runs on");
        }
    }
    if let Err(error) = freezer.thaw() {
        tracing::error!("{error}");
    }
    for pid in freezer.members() {
        // The root of the hierarchy: where it was before is not known any more.
        let _ = std::fs::write(root.parent().unwrap_or(root).join("cgroup.procs"), pid.to_string());
    }
    freezer.remove();
    Ok(())
}
