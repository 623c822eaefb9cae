//! How the paper's seconds become ours.
//!
//! One number: T, the real seconds that stand for the paper's 300. A process of the paper then needs `T * speed` seconds of
//! CPU on a node that has `speed` of a core, and what took x real seconds is printed as `x * 300 / T`.

use crate::paper::WORK_S;

/// Shortest and longest T accepted, seconds: below 1 the quota's period shows, and 300 is the paper's own time.
const RANGE_S: std::ops::RangeInclusive<f64> = 1.0..=300.0;

/// Real seconds per 300 seconds of the paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeScale {
    t_s: f64,
}

impl TimeScale {
    /// # Errors
    /// In words, if T is not within 1 and 300 s.
    pub fn new(t_s: f64) -> Result<Self, String> {
        if RANGE_S.contains(&t_s) {
            Ok(Self { t_s })
        } else {
            Err(format!("{t_s} s; it must be within {} and {} s", RANGE_S.start(), RANGE_S.end()))
        }
    }

    /// T in real seconds.
    pub fn t_s(self) -> f64 {
        self.t_s
    }

    /// Real seconds as seconds of the paper.
    pub fn to_paper_s(self, real_s: f64) -> f64 {
        real_s * WORK_S / self.t_s
    }

    /// Seconds of the paper as real seconds.
    pub fn to_real_s(self, paper_s: f64) -> f64 {
        paper_s * self.t_s / WORK_S
    }

    /// CPU seconds of one process of the paper on a node with `speed` of a core.
    pub fn cpu_s(self, speed: f64) -> f64 {
        self.t_s * speed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_both_ways() {
        let scale = TimeScale::new(10.0).unwrap();
        assert!((scale.to_paper_s(15.0) - 450.0).abs() < 1e-9);
        assert!((scale.to_real_s(450.0) - 15.0).abs() < 1e-9);
        assert!((scale.cpu_s(0.05) - 0.5).abs() < 1e-9);
        for bad in [0.0, 0.5, 301.0, f64::NAN] {
            assert!(TimeScale::new(bad).is_err());
        }
    }
}
