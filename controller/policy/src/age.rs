//! How old news gets: closed forms for push gossip, and the window that keeps it as young as wanted.
//!
//! `n` nodes; each period each node sends the newest `W` records that it has, its own among them, to one random other.
//! Formulas of the authors of MOSIX's information daemon (Amar, Barak, Drezner, Okun: "Randomized gossip algorithms
//! for maintaining a distributed bulletin board with guaranteed age properties", 2009). Ages are in periods.

use crate::params::Params;
use crate::record::MAX_RECORDS;

/// Euler's constant.
const GAMMA: f64 = 0.577_215_664_901_532_9;

/// Age below which there are `window` records: those that are sent. 0 if a window holds everybody.
pub fn window_age(nodes: usize, window: usize) -> f64 {
    let (n, w) = (nodes as f64, window.max(1) as f64);
    if w >= n { f64::INFINITY } else { (n - 1.0) / n * (w * (n - 1.0) / (n - w)).ln() }
}

/// Mean age of the records that are sent. At least 1 record and fewer records than nodes.
pub fn mean_age_in_window(nodes: usize, window: usize) -> f64 {
    let (n, t) = (nodes as f64, window_age(nodes, window));
    let e = (n * t / (n - 1.0)).exp();
    let x = n * e / (n - 1.0 + e);
    t - (n - 1.0) / x * ((n - 1.0 + e).ln() - n.ln())
}

/// Mean age of a node's knowledge about all others. 0 for a node alone; if a window holds everybody, `ln n`.
pub fn mean_age(nodes: usize, window: usize) -> f64 {
    match nodes {
        0 | 1 => 0.0,
        _ if window >= nodes => (nodes as f64).ln(),
        _ => 1.0 / heard_of(nodes, window) + mean_age_in_window(nodes, window),
    }
}

/// Expected age of the oldest entry of a node about any other.
pub fn max_age(nodes: usize, window: usize) -> f64 {
    if nodes < 2 {
        return 0.0;
    }
    let (n, w) = (nodes as f64, window.clamp(1, nodes) as f64);
    let missed = (1.0 - 1.0 / (n - 1.0).max(1.0)).max(1e-12).ln();
    -(n.ln() + GAMMA) / (w * missed)
}

/// Probability that a message speaks of a given node.
fn heard_of(nodes: usize, window: usize) -> f64 {
    1.0 - (1.0 - 1.0 / (nodes as f64 - 1.0)).powf(window as f64)
}

/// The smallest window with which the mean age is at most `wanted_periods`; `None` if none is small enough.
pub fn window_for(nodes: usize, wanted_periods: f64) -> Option<usize> {
    (1..=nodes.max(1)).find(|&w| mean_age(nodes, w) <= wanted_periods)
}

impl Params {
    /// Chooses the records in a message, and if those that fit are not enough the period, so that what a node knows
    /// of a random other is `wanted_s` old on average. All other times keep their relation to the period.
    ///
    /// The window then remembers everybody up to 4 times what a message carries: beyond that it is a sample, and this
    /// is the mean age that a full vector would have.
    #[must_use]
    pub fn for_mean_age(self, nodes: usize, wanted_s: f64) -> Self {
        let wanted_s = if wanted_s.is_finite() { wanted_s.max(1e-3) } else { self.period_s };
        let most = MAX_RECORDS.min(self.max_records);
        let window = window_for(nodes, wanted_s / self.period_s).filter(|&w| w <= most);
        let period_s = match window {
            Some(_) => self.period_s,
            None => wanted_s / mean_age(nodes, most).max(1.0),
        };
        let message_len = window.unwrap_or(most).max(2);
        let window_len = nodes.saturating_sub(1).clamp(message_len, 4 * most);
        let scale = period_s / self.period_s;
        Self {
            period_s,
            message_len,
            window_len,
            // All that fits is for the newest, or the formula does not hold.
            least_len: 0,
            min_age_s: self.min_age_s * scale,
            min_residency_s: self.min_residency_s * scale,
            cost_free_s: self.cost_free_s * scale,
            rotation_floor_s: self.rotation_floor_s * scale,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// n, W, mean and maximal age as published with the formulas.
    #[test]
    fn the_published_values_come_out() {
        for (n, w, mean, max) in [
            (16, 4, 4.8, 12.0),
            (16, 8, 3.7, 6.1),
            (32, 8, 5.6, 15.0),
            (64, 16, 6.4, 18.5),
            (128, 32, 7.1, 21.0),
            (256, 64, 7.8, 24.0),
            (1024, 16, 66.0, 480.0),
            (4096, 64, 67.7, 569.0),
        ] {
            let (m, x) = (mean_age(n, w), max_age(n, w));
            assert!((m / mean - 1.0).abs() < 0.015, "mean age ({n}, {w}): {m}");
            assert!((x / max - 1.0).abs() < 0.05, "max age ({n}, {w}): {x}");
        }
    }

    #[test]
    fn a_wanted_age_chooses_window_and_period() {
        for (nodes, wanted_s) in [(2, 1.0), (16, 4.0), (64, 8.0), (64, 2.0), (1000, 80.0), (1000, 5.0), (100_000, 60.0)] {
            let params = Params::default().for_mean_age(nodes, wanted_s);
            let got_s = mean_age(nodes, params.message_len) * params.period_s;
            assert!(got_s <= wanted_s * 1.001, "{nodes}, {wanted_s}: {got_s}");
            assert!(params.message_len <= MAX_RECORDS && params.window_len >= params.message_len);
            // No more than is needed, unless the period was shortened.
            if params.message_len > 2 && params.period_s >= 1.0 {
                assert!(mean_age(nodes, params.message_len - 1) > wanted_s, "{nodes}, {wanted_s}");
            }
            assert!((params.min_age_s / params.period_s - 1.0).abs() < 1e-9);
            params.validate().unwrap();
        }
        assert!(Params::default().for_mean_age(0, f64::NAN).validate().is_ok());
    }
}
