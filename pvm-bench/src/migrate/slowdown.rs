//! How much slower a memory-bound program becomes while it is being moved and still runs: between the request and the blackout.
//!
//! The program is `churn` with a walk: a thread that reads its memory round and round, writes to one page in 64, and notes how far it came. It is
//! compared with itself, a moment before, at the same place.

use std::time::Duration;

use mosix_lab::StopFlag;
use serde::{Deserialize, Serialize};

use super::stats::Summary;
use super::subject::{Mover, Said, Subject, now_ms};
use crate::Result;

/// Time before the request that is compared with the time after it, and at least so long; ms.
const BEFORE_MS: f64 = 400.0;
/// Between the report of a move and the request of the next.
const PAUSE: Duration = Duration::from_millis(700);
/// Shorter times between request and blackout say nothing; ms.
const SHORTEST_MS: f64 = 5.0;
/// After a move, until the gap is noted.
const SETTLE: Duration = Duration::from_millis(20);

/// One program, all its moves. The lists have one figure for each move that could be compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowDown {
    /// Memory that it walks through.
    pub walk_bytes: u64,
    /// Pages a second before the request.
    pub before_pages_per_s: Vec<f64>,
    /// Pages a second between request and blackout.
    pub during_pages_per_s: Vec<f64>,
    /// Length of that time, ms.
    pub during_ms: Vec<f64>,
    /// Lost meanwhile, percent of the speed before; below 0: it was faster.
    pub slow_down_percent: Vec<f64>,
    /// Median of these.
    pub slow_down_p50_percent: Option<f64>,
    /// Moves that failed, and other trouble, in words.
    pub failures: Vec<String>,
}

/// Moves the process that often.
///
/// # Errors
/// If it gets lost, or on the user's wish to stop.
pub(super) fn measure(walk_mib: u64, moves: u32, mover: &mut dyn Mover, mut subject: Subject, stop: &StopFlag) -> Result<SlowDown> {
    let mut result = SlowDown { walk_bytes: walk_mib << 20, ..SlowDown::default() };
    subject.expect("ready", stop)?;
    for _ in 0..moves {
        std::thread::sleep(PAUSE);
        let asked_ms = now_ms();
        let moved = mover.shift()?;
        std::thread::sleep(SETTLE);
        let said = subject.report(mover, stop)?;
        result.note_trouble(&said);
        match moved {
            Ok(_) => result.note(&said, asked_ms),
            Err(why) => result.failures.push(why),
        }
    }
    let (said, status) = subject.end(mover, stop)?;
    result.note_trouble(&said);
    if !status.success() {
        result.failures.push(format!("the process ended with {status}"));
    }
    result.slow_down_p50_percent = Summary::of(&result.slow_down_percent).map(|summary| summary.p50);
    Ok(result)
}

impl SlowDown {
    fn note_trouble(&mut self, said: &Said) {
        if said.bad_pages > 0 {
            self.failures.push(format!("{} wrong pages, first: {:?}", said.bad_pages, said.first_bad));
        }
    }

    fn note(&mut self, said: &Said, asked_ms: f64) {
        let Some(gap) = said.longest_gap(asked_ms) else { return };
        let stopped_ms = gap.until_ms - gap.ms;
        if stopped_ms - asked_ms < SHORTEST_MS {
            return;
        }
        let before = rate(&said.samples, asked_ms - BEFORE_MS, asked_ms);
        let during = rate(&said.samples, asked_ms, stopped_ms);
        if let (Some(before), Some(during)) = (before, during) {
            self.before_pages_per_s.push(before);
            self.during_pages_per_s.push(during);
            self.during_ms.push(stopped_ms - asked_ms);
            self.slow_down_percent.push(100.0 * (1.0 - during / before));
        }
    }
}

/// Progress a second between two times, ms; `None` if the samples do not reach so far.
fn rate(samples: &[(f64, f64)], from_ms: f64, to_ms: f64) -> Option<f64> {
    let done = progress(samples, to_ms)? - progress(samples, from_ms)?;
    (to_ms > from_ms).then(|| done / (to_ms - from_ms) * 1000.0)
}

/// How far it was at a time, between the two samples around it.
fn progress(samples: &[(f64, f64)], at_ms: f64) -> Option<f64> {
    let pair = samples.windows(2).find_map(|pair| match pair {
        [one, other] if one.0 <= at_ms && at_ms <= other.0 => Some((*one, *other)),
        _ => None,
    });
    let ((from_ms, from), (to_ms, to)) = pair?;
    if to_ms > from_ms { Some(from + (to - from) * (at_ms - from_ms) / (to_ms - from_ms)) } else { Some(to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: [(f64, f64); 4] = [(1000.0, 100.0), (1010.0, 200.0), (1020.0, 250.0), (1100.0, 250.0)];

    #[test]
    fn rates_are_read_between_samples() {
        assert_eq!(progress(&SAMPLES, 1005.0), Some(150.0));
        assert_eq!(rate(&SAMPLES, 1000.0, 1010.0), Some(10_000.0));
        assert_eq!(rate(&SAMPLES, 1010.0, 1020.0), Some(5_000.0));
        assert_eq!(rate(&SAMPLES, 990.0, 1010.0), None);
        assert_eq!(rate(&[], 1.0, 2.0), None);
    }

    #[test]
    fn the_blackout_is_not_counted_as_slowness() {
        let samples: Vec<(f64, f64)> = (0..=600)
            .map(|ms| (f64::from(ms), if ms <= 500 { f64::from(ms) * 10.0 } else { 5000.0 + f64::from(ms - 500) * 9.0 }))
            .collect();
        let line = serde_json::json!({"event": "report", "gaps": [{"until_ms": 640.0, "ms": 60.0}], "samples": samples});
        let said: Said = serde_json::from_value(line).unwrap();
        let mut result = SlowDown::default();
        result.note(&said, 500.0);
        assert_eq!(result.during_ms, [80.0]);
        assert!((result.slow_down_percent[0] - 10.0).abs() < 1e-6, "{result:?}");
    }
}
