//! Predicts how fast a process would run.
//!
//! A node of speed `s` with `C` CPUs gives each of its `n` processes the rate `s * min(1, C/n) * f(U/M)`, where `U` of
//! its `M` bytes of memory are committed and `f` falls steeply once they are overcommitted: 10 % too much makes
//! everything 11 times slower, which is about what paging does.

use serde::{Deserialize, Serialize};

use crate::record::NodeId;

/// Slope of the slowdown by overcommitted memory.
const THRASHING: f64 = 100.0;

/// A node as decisions see it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Which node.
    pub node: NodeId,
    /// Relative speed of one CPU.
    pub speed: f64,
    /// CPUs.
    pub cpus: u16,
    /// Committed processes that want a CPU: running here, plus accepted, minus leaving.
    pub committed: u16,
    /// Total memory.
    pub memory_total_bytes: u64,
    /// Committed memory: used, plus promised to incoming, minus that of leaving processes.
    pub memory_used_bytes: u64,
}

impl Figures {
    /// Whether predictions can be made from them at all.
    pub fn is_sane(&self) -> bool {
        self.speed.is_finite() && self.speed > 1e-6 && self.speed < 1e6 && self.cpus > 0 && self.memory_total_bytes > 0
    }

    /// The same node with one more process of this size.
    #[must_use]
    pub fn with_one_more(mut self, memory_bytes: u64) -> Self {
        self.committed = self.committed.saturating_add(1);
        self.memory_used_bytes = self.memory_used_bytes.saturating_add(memory_bytes);
        self
    }

    /// Whether another process would leave the others on this node as fast as they are: a CPU is free.
    pub fn has_free_cpu(&self) -> bool {
        self.committed < self.cpus
    }

    /// Whether committed memory is within `limit` (a share of the total).
    pub fn memory_within(&self, limit: f64) -> bool {
        self.memory_used_bytes as f64 <= limit * self.memory_total_bytes as f64
    }
}

/// Seconds that one process needs there for one second of work of a CPU of speed 1. `kappa` is the extra time per unit
/// of work that it needs away from home; pass 0 for its home.
pub fn time_per_work(node: &Figures, kappa: f64) -> f64 {
    let share = (f64::from(node.cpus) / f64::from(node.committed.max(1))).min(1.0);
    let fill = node.memory_used_bytes as f64 / node.memory_total_bytes.max(1) as f64;
    let paging = 1.0 + THRASHING * (fill - 1.0).max(0.0);
    (1.0 + kappa.max(0.0)) * paging / (node.speed * share)
}

/// What one process gets there, in CPU seconds of speed 1 for each second.
pub fn rate(node: &Figures) -> f64 {
    1.0 / time_per_work(node, 0.0)
}

/// Normalised load: committed processes for each unit of CPU speed. Ranks nodes; never compare it for equality.
pub fn cpu_load(node: &Figures) -> f64 {
    f64::from(node.committed) / (node.speed * f64::from(node.cpus.max(1)))
}
