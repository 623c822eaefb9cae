//! A CPU speed as a CFS quota.
//!
//! The kernel accepts quotas of 1 ms or more, and a process's finishing time is wrong by about one period, so the period
//! is the shortest that the quota minimum allows, but not below 10 ms, where timer granularity would show.

use serde::{Deserialize, Serialize};

/// Smallest quota the kernel accepts, in microseconds.
pub(crate) const MIN_QUOTA_US: u64 = 1_000;
/// Shortest period used, in microseconds.
pub(crate) const MIN_PERIOD_US: u64 = 10_000;
/// Longest period the kernel accepts, in microseconds.
pub(crate) const MAX_PERIOD_US: u64 = 1_000_000;

/// CPU time per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// CPU time granted per period, microseconds.
    pub quota_us: u64,
    /// The period, microseconds.
    pub period_us: u64,
}

impl Quota {
    /// The quota for a speed given as a share of one core (0.05 = 5 %); `None` if it is not within 0.001 to 1.
    pub fn for_speed(speed: f64) -> Option<Self> {
        let lowest = MIN_QUOTA_US as f64 / MAX_PERIOD_US as f64;
        if !(lowest..=1.0).contains(&speed) {
            return None;
        }
        let period_us = ((MIN_QUOTA_US as f64 / speed).round() as u64).clamp(MIN_PERIOD_US, MAX_PERIOD_US);
        let quota_us = ((speed * period_us as f64).round() as u64).max(MIN_QUOTA_US);
        Some(Self { quota_us, period_us })
    }

    /// The share of one core that this grants.
    pub fn speed(&self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn papers_speeds_get_the_measured_periods() {
        assert_eq!(Quota::for_speed(0.05), Some(Quota { quota_us: 1_000, period_us: 20_000 }));
        assert_eq!(Quota::for_speed(0.05 / 3.0), Some(Quota { quota_us: 1_000, period_us: 60_000 }));
        assert_eq!(Quota::for_speed(0.5), Some(Quota { quota_us: 5_000, period_us: 10_000 }));
    }

    #[test]
    fn impossible_speeds_are_refused() {
        for speed in [0.0, -1.0, 0.0009, 1.01, f64::NAN, f64::INFINITY] {
            assert_eq!(Quota::for_speed(speed), None, "{speed}");
        }
    }
}
