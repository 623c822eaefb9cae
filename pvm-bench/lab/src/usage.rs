//! How much CPU the nodes got of what they were entitled to: every run's check of itself.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::state::Node;

/// CPU time used by every node (its quota group) at one moment.
#[derive(Debug, Clone)]
pub struct UsageSnapshot {
    at: Instant,
    used: Vec<Duration>,
    speeds: Vec<f64>,
}

impl UsageSnapshot {
    /// Reads all nodes.
    pub(crate) fn take(nodes: &[Node]) -> Result<Self> {
        let used = nodes.iter().map(|node| node.cgroup.usage()).collect::<Result<_>>()?;
        Ok(Self { at: Instant::now(), used, speeds: nodes.iter().map(Node::speed).collect() })
    }

    /// CPU time each node used from this moment until `later`.
    pub fn used_until(&self, later: &Self) -> Vec<Duration> {
        self.used.iter().zip(&later.used).map(|(from, to)| to.saturating_sub(*from)).collect()
    }

    /// For each node CPU received / CPU entitled between this moment and `later`: 1.0 for a node that was busy all the
    /// time and well served, lower for one that was idle at times or was starved by other load on the machine.
    pub fn entitlement_until(&self, later: &Self) -> Vec<f64> {
        let elapsed_s = later.at.saturating_duration_since(self.at).as_secs_f64().max(1e-9);
        let used = self.used_until(later);
        used.iter().zip(&self.speeds).map(|(used, speed)| used.as_secs_f64() / (elapsed_s * speed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlement_is_received_over_entitled() {
        let at = Instant::now();
        let speeds = vec![0.05, 0.05, 0.05 / 3.0];
        let first = UsageSnapshot { at, used: vec![Duration::ZERO; 3], speeds: speeds.clone() };
        let used = vec![Duration::from_millis(500), Duration::from_millis(250), Duration::from_micros(166_667)];
        let later = UsageSnapshot { at: at + Duration::from_secs(10), used, speeds };
        let ratios = first.entitlement_until(&later);
        for (ratio, wanted) in ratios.iter().zip([1.0, 0.5, 1.0]) {
            assert!((ratio - wanted).abs() < 1e-4, "{ratio} {wanted}");
        }
    }
}
