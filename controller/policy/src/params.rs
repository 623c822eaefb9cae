//! All constants of the policy.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::record::MAX_RECORDS;

/// What a decision minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The predicted time of the process that is moved: the MOSIX rule.
    #[default]
    Time,
    /// The marginal cost of CPU and memory, exponential in their use (Amir, Awerbuch, Barak, Borgstrom, Keren 2000).
    OpportunityCost,
}

/// A constant that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadParam {
    /// Its name.
    pub name: &'static str,
    /// What it must be.
    pub must: &'static str,
}

impl fmt::Display for BadParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` must be {}", self.name, self.must)
    }
}

impl std::error::Error for BadParam {}

/// The constants of the policy, with the values that simulation found best as default.
///
/// Times are in seconds; those in *periods* are multiples of `period_s`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Time between a node's gossip messages, and between its unprompted decisions.
    pub period_s: f64,
    /// Each period is drawn from `1 - jitter ..= 1 + jitter` of it, so that nodes do not fall into step.
    pub jitter: f64,
    /// Nodes that a window remembers (L). 16 up to 64 nodes, 64 from 256 nodes on.
    pub window_len: usize,
    /// Newest records in a message, the sender's own among them (P).
    pub message_len: usize,
    /// Least loaded fresh records in a message, on top of the newest.
    pub least_len: usize,
    /// Most records in a message, all together, and most that are taken from one.
    pub max_records: usize,
    /// Entries younger than this many periods may be kept and passed on for being little loaded.
    pub fresh_periods: f64,
    /// Entries older than this many periods are forgotten and decide nothing.
    pub stale_periods: f64,
    /// Messages that are read in a period; what comes beyond is dropped, so that a flood costs no more than that.
    pub max_messages: u32,
    /// Loaded nodes that are told at once when a process ends here.
    pub hints: usize,
    /// Nodes that an idle node tells in each period: the most loaded that it knows of, and random ones, through which its news
    /// reaches those that it does not know of.
    pub idle_hints: usize,
    /// A process younger than this is not moved: most end soon.
    pub min_age_s: f64,
    /// A process that arrived less than this ago is not moved on.
    pub min_residency_s: f64,
    /// Each recent move of a process multiplies the residency that it needs before the next by this: processes that keep
    /// being moved are moved ever less often. 1 switches that off.
    pub cooldown_factor: f64,
    /// A move counts half as recent after so many periods.
    pub cooldown_half_life_periods: f64,
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
    /// What decisions minimise.
    pub objective: Objective,
    /// Base of the opportunity cost: the number of nodes.
    pub opportunity_base: f64,
    /// A move by opportunity cost must save this share of the present cost.
    pub opportunity_hysteresis: f64,
    /// Whether processes are moved away when their node's memory is beyond `usher_limit`, though they run slower elsewhere.
    pub usher: bool,
    /// See there: a share of the total.
    pub usher_limit: f64,
    /// Whether equal shares are kept among nodes whose loads differ by one process. All of a gang then end together, early;
    /// but of identical jobs the mean ends later. Hence a switch.
    pub rotation: bool,
    /// Least difference of lags that is worth a rotation, in CPU seconds.
    pub rotation_floor_s: f64,
    /// The threshold grows with this times the root of cost and age of the process ...
    pub rotation_cost_factor: f64,
    /// ... and with this share of its age, so that long runs are not moved ever on.
    pub rotation_age_share: f64,
    /// An exchange of two processes needs this many times the threshold: it costs two moves ...
    pub swap_factor: f64,
    /// ... and a node where a process gets this many times the rate.
    pub swap_rate_ratio: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            period_s: 1.0,
            jitter: 0.05,
            window_len: 16,
            message_len: 8,
            least_len: 4,
            max_records: MAX_RECORDS,
            fresh_periods: 10.0,
            stale_periods: 60.0,
            max_messages: 64,
            hints: 2,
            idle_hints: 3,
            min_age_s: 1.0,
            min_residency_s: 0.5,
            cooldown_factor: 2.0,
            cooldown_half_life_periods: 15.0,
            max_in: 2,
            max_out: 2,
            margin: 1e-3,
            memory_limit: 0.95,
            cost_free_s: 0.5,
            cost_factor: 2.0,
            max_tries: 4,
            lease_factor: 3.0,
            lease_min_periods: 10.0,
            objective: Objective::Time,
            opportunity_base: 16.0,
            opportunity_hysteresis: 0.1,
            usher: true,
            usher_limit: 0.95,
            rotation: false,
            rotation_floor_s: 0.5,
            rotation_cost_factor: 0.3,
            rotation_age_share: 0.015,
            swap_factor: 3.0,
            swap_rate_ratio: 1.25,
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
            rotation_floor_s: base.rotation_floor_s * period_s,
            ..base
        }
    }

    /// The recommended window and message sizes for a cluster of `nodes`; all else unchanged.
    #[must_use]
    pub fn for_cluster(mut self, nodes: usize) -> Self {
        (self.window_len, self.message_len, self.least_len) = match nodes {
            0..=64 => (16, 8, 4),
            65..=255 => (32, 12, 6),
            _ => (64, 16, 8),
        };
        self.opportunity_base = nodes.max(2) as f64;
        self
    }

    /// Checks that the constants make sense together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn validate(&self) -> Result<(), BadParam> {
        let within = |value: f64, low: f64, high: f64| value >= low && value <= high;
        let checks = [
            (within(self.period_s, 1e-3, 3600.0), "period_s", "from 0.001 to 3600 seconds"),
            (within(self.jitter, 0.0, 0.9), "jitter", "from 0 to 0.9"),
            (self.window_len >= 1 && self.window_len <= 100_000, "window_len", "from 1 to 100,000"),
            (self.message_len >= 1 && self.message_len <= 100_000, "message_len", "from 1 to 100,000"),
            (self.least_len <= 100_000, "least_len", "at most 100,000"),
            (self.max_records >= 1 && self.max_records <= 100_000, "max_records", "from 1 to 100,000"),
            (within(self.fresh_periods, 0.0, 1e6), "fresh_periods", "from 0 to a million"),
            (within(self.stale_periods, 1.0, 1e6), "stale_periods", "from 1 to a million"),
            (self.max_messages >= 1, "max_messages", "at least 1"),
            (self.hints <= 64 && self.idle_hints <= 64, "hints and idle_hints", "at most 64"),
            (within(self.min_age_s, 0.0, 1e6), "min_age_s", "from 0 to a million seconds"),
            (within(self.min_residency_s, 0.0, 1e6), "min_residency_s", "from 0 to a million seconds"),
            (within(self.cooldown_factor, 1.0, 16.0), "cooldown_factor", "from 1 to 16"),
            (within(self.cooldown_half_life_periods, 1e-3, 1e6), "cooldown_half_life_periods", "from 0.001 to a million"),
            (self.max_in >= 1 && self.max_out >= 1, "max_in and max_out", "at least 1"),
            (within(self.margin, 0.0, 1.0), "margin", "from 0 to 1"),
            // Beyond 1 its memory would slow down every prediction, and nodes could not be ranked once for all processes.
            (within(self.memory_limit, 0.01, 1.0), "memory_limit", "from 0.01 to 1"),
            (within(self.usher_limit, 0.01, 10.0), "usher_limit", "from 0.01 to 10"),
            (within(self.cost_free_s, 0.0, f64::MAX), "cost_free_s", "at least 0"),
            (within(self.cost_factor, 0.0, 1e6), "cost_factor", "from 0 to a million"),
            (self.max_tries >= 1, "max_tries", "at least 1"),
            (within(self.lease_factor, 0.0, 1e6), "lease_factor", "from 0 to a million"),
            (within(self.lease_min_periods, 0.0, 1e6), "lease_min_periods", "from 0 to a million"),
            (within(self.opportunity_base, 1.0, 1e9), "opportunity_base", "from 1 to a billion"),
            (within(self.opportunity_hysteresis, 0.0, 1e3), "opportunity_hysteresis", "from 0 to 1000"),
            (within(self.rotation_floor_s, 0.0, 1e6), "rotation_floor_s", "from 0 to a million seconds"),
            (within(self.rotation_cost_factor, 0.0, 1e3), "rotation_cost_factor", "from 0 to 1000"),
            (within(self.rotation_age_share, 0.0, 1.0), "rotation_age_share", "from 0 to 1"),
            (within(self.swap_factor, 1.0, 1e3), "swap_factor", "from 1 to 1000"),
            (within(self.swap_rate_ratio, 1.0, 1e3), "swap_rate_ratio", "from 1 to 1000"),
        ];
        match checks.into_iter().find(|(ok, ..)| !ok) {
            Some((_, name, must)) => Err(BadParam { name, must }),
            None => Ok(()),
        }
    }

    /// Residency that a process needs before its next move, if `restless` is the decayed count of its moves
    /// ([`Params::restless`]). At most 64 periods.
    pub fn cooldown_s(&self, restless: f64) -> f64 {
        let moves = if restless.is_finite() { (restless - 1.0).max(0.0) } else { 0.0 };
        let most_s = (64.0 * self.period_s).max(self.min_residency_s);
        (self.min_residency_s * self.cooldown_factor.powf(moves)).min(most_s)
    }

    /// The decayed count of a process's moves, `since_s` after it was `before`. Add 1 at each move; it travels with the process.
    pub fn restless(&self, before: f64, since_s: f64) -> f64 {
        before * 0.5_f64.powf(since_s.max(0.0) / (self.cooldown_half_life_periods * self.period_s))
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

    /// Age at which a node of a cluster of `nodes` is suspected to be gone: twice the greatest age that news of a living one
    /// is expected to have, as long as all of them fit the window; in a larger cluster only staleness tells.
    pub fn suspect_s(&self, nodes: usize) -> f64 {
        if nodes.saturating_sub(1) > self.window_len {
            return self.stale_s();
        }
        let expected = crate::age::max_age(nodes, self.message_len + self.least_len);
        (2.0 * expected.max(self.fresh_periods)).min(self.stale_periods) * self.period_s
    }

    /// Age at which an entry is ignored.
    pub(crate) fn stale_s(&self) -> f64 {
        self.stale_periods * self.period_s
    }
}
