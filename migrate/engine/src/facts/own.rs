//! What the caller is: the yardstick for "outside of our world".

use std::io;

use serde::{Deserialize, Serialize};

use super::{FactsError, Namespaces, Proc, parse};

/// The judge's own world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The caller's namespaces: only processes of the same ones can move.
    pub namespaces: Namespaces,
    /// The caller, its ancestors and its helpers: they never move.
    pub pids: Vec<i32>,
}

impl Own {
    /// Reads the caller's namespaces and ancestors; `helpers` are further pids that must stay (agents, stubs, CRIU).
    pub fn collect(helpers: &[i32]) -> Result<Self, FactsError> {
        let mut proc = Proc { pid: nix::unistd::getpid().as_raw() };
        let namespaces = namespaces(&proc)?;
        let mut pids = helpers.to_vec();
        // Ancestors end at a process whose parent is outside of our pid namespace (0).
        while proc.pid > 0 && !pids.contains(&proc.pid) {
            pids.push(proc.pid);
            let text = proc.text("stat")?;
            proc.pid = parse::stat(&text).ok_or_else(|| proc.odd("stat", &text))?.ppid;
        }
        Ok(Self { namespaces, pids })
    }
}

/// All links of `/proc/PID/ns`.
pub(super) fn namespaces(proc: &Proc) -> Result<Namespaces, FactsError> {
    let mut found = Namespaces::default();
    let entries = std::fs::read_dir(proc.path("ns")).map_err(|source| proc.io("ns", source))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let link = proc.link(&format!("ns/{name}"))?;
        found.0.insert(name, link);
    }
    Ok(found)
}

/// Time since boot in clock ticks, on the clock of `/proc/PID/stat`'s start time.
pub(super) fn uptime_ticks() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
    Ok(seconds * ticks_per_s() + nanoseconds * ticks_per_s() / 1_000_000_000)
}

/// Clock ticks in a second; 100 wherever it cannot be asked.
pub(super) fn ticks_per_s() -> u64 {
    let asked = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    asked.ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).filter(|&ticks| ticks > 0).unwrap_or(100)
}

/// Our host name, empty if there is none.
pub(super) fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
