//! All constants of the policy.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::record::MAX_RECORDS;

/// The constants of the policy, with the values that simulation found best as default.
///
/// Times are in seconds; those in *periods* are multiples of `period_s`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Params {
    /// Time between a node's gossip messages, and between its unprompted decisions.
    pub period_s: f64,
    /// Each period is drawn from `1 - jitter ..= 1 + jitter` of it, so that nodes do not fall into step.
    pub jitter: f64,
    /// Nodes that a window remembers (L). 16 up to 64 nodes, 64 from 256 nodes on.
    pub window_len: usize,
    /// Newest records in a message, the sender's own among them (P). Half as many least loaded ones come on top.
    pub message_len: usize,
    /// Most records in a message, all together, and most that are taken from one.
    pub max_records: usize,
    /// Entries younger than this many periods may be kept and passed on for being little loaded.
    pub fresh_periods: f64,
    /// Entries older than this many periods are forgotten and decide nothing.
    pub stale_periods: f64,
    /// A process younger than this is not moved: most end soon.
    pub min_age_s: f64,
    /// A process that arrived less than this ago is not moved on.
    pub min_residency_s: f64,
    /// Transfers that a node receives at a time.
    pub max_in: u16,
    /// Transfers that a node sends at a time.
    pub max_out: u16,
    /// Predicted times per second of work that differ by less are equal.
    pub margin: f64,
    /// A node's committed memory must stay below this share of its total for it to accept.
    pub memory_limit: f64,
    /// Moves cheaper than this need not pay off: the test does not matter for them.
    pub cost_free_s: f64,
    /// An expensive move must gain this many times its cost.
    pub cost_factor: f64,
    /// Refusals after which a decision is given up until the next trigger.
    pub max_tries: usize,
    /// A reservation is held for this many times the expected duration of the transfer ...
    pub lease_factor: f64,
    /// ... but at least for this many periods.
    pub lease_min_periods: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            period_s: 1.0,
            jitter: 0.05,
            window_len: 16,
            message_len: 8,
            max_records: MAX_RECORDS,
            fresh_periods: 10.0,
            stale_periods: 60.0,
            min_age_s: 1.0,
            min_residency_s: 0.5,
            max_in: 2,
            max_out: 2,
            margin: 1e-3,
            memory_limit: 0.95,
            cost_free_s: 0.5,
            cost_factor: 2.0,
            max_tries: 4,
            lease_factor: 3.0,
            lease_min_periods: 10.0,
        }
    }
}

impl Params {
    /// The defaults for another gossip period: every time shrinks or grows with it, as jobs in a lab do.
    pub fn scaled(period_s: f64) -> Self {
        let base = Self::default();
        Self {
            period_s,
            min_age_s: base.min_age_s * period_s,
            min_residency_s: base.min_residency_s * period_s,
            cost_free_s: base.cost_free_s * period_s,
            ..base
        }
    }

    /// The recommended window and message sizes for a cluster of `nodes`; all else unchanged.
    #[must_use]
    pub fn for_cluster(mut self, nodes: usize) -> Self {
        (self.window_len, self.message_len) = match nodes {
            0..=64 => (16, 8),
            65..=255 => (32, 12),
            _ => (64, 16),
        };
        self
    }

    /// Seconds until the next tick, jittered.
    pub fn next_tick_s(&self, rng: &mut impl Rng) -> f64 {
        let shift = (rng.random::<f64>() * 2.0 - 1.0) * self.jitter;
        self.period_s * (1.0 + shift)
    }

    /// For how long the destination holds a reservation, for a transfer that is expected to take `transfer_s`.
    pub fn lease_s(&self, transfer_s: f64) -> f64 {
        let transfer_s = if transfer_s.is_finite() { transfer_s } else { 0.0 };
        (self.lease_factor * transfer_s).max(self.lease_min_periods * self.period_s)
    }

    /// Age at which an entry stops being fresh.
    pub(crate) fn fresh_s(&self) -> f64 {
        self.fresh_periods * self.period_s
    }

    /// Age at which an entry is ignored.
    pub(crate) fn stale_s(&self) -> f64 {
        self.stale_periods * self.period_s
    }
}
