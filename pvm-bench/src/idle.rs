//! What the daemons of an idle cluster cost.

use std::time::{Duration, Instant};

use mosix_lab::{Lab, StopFlag};
use serde::Serialize;

use crate::Result;
use crate::cluster::{Cluster, ClusterSpec};

/// After boot, until caches are filled and all nodes have heard of each other.
const SETTLE: Duration = Duration::from_secs(3);

/// One daemon's use.
#[derive(Debug, Clone, Serialize)]
pub struct DaemonUse {
    /// Share of one CPU.
    pub cpu: f64,
    /// Resident memory, bytes (programs and libraries that all daemons share are in each of these).
    pub rss_bytes: u64,
    /// Memory that is this daemon's alone, bytes.
    pub private_bytes: u64,
    /// Gossip datagrams sent per second.
    pub datagrams_per_s: f64,
}

/// Measures all daemons over `duration`, in a lab where nothing else runs.
///
/// # Errors
/// If the cluster does not come up, or a daemon goes away.
pub fn measure(lab: &Lab, period_ms: u64, duration: Duration, stop: &StopFlag) -> Result<Vec<DaemonUse>> {
    lab.set_quota(false)?;
    let cluster = Cluster::boot(lab, &ClusterSpec { period_ms, ..ClusterSpec::default() }, stop)?;
    std::thread::sleep(SETTLE);
    let before = cluster.stats()?;
    let started = Instant::now();
    while started.elapsed() < duration {
        stop.check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let elapsed_s = started.elapsed().as_secs_f64();
    let after = cluster.stats()?;
    let uses = before.iter().zip(&after).enumerate().map(|(index, (before, after))| DaemonUse {
        cpu: (after.daemon_cpu_s - before.daemon_cpu_s) / elapsed_s,
        rss_bytes: after.daemon_rss_bytes,
        private_bytes: cluster.daemon_pid(index).map_or(0, private_bytes),
        datagrams_per_s: (after.gossip_sent - before.gossip_sent) as f64 / elapsed_s,
    });
    Ok(uses.collect())
}

/// Private pages of a process, from the kernel's own sum.
fn private_bytes(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |key: &str| rollup.lines().find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next()?.parse::<u64>().ok());
    (kib("Private_Clean:").unwrap_or(0) + kib("Private_Dirty:").unwrap_or(0)) * 1024
}

/// Least, median and most of a figure, for people.
#[must_use]
pub fn spread(uses: &[DaemonUse], figure: impl Fn(&DaemonUse) -> f64, digits: usize) -> String {
    let mut values: Vec<f64> = uses.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"),
        _ => "-".into(),
    }
}
