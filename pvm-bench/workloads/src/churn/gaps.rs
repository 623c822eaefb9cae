//! The times between two readings of a clock.
//!
//! A thread that only reads the clock and sleeps for a moment reads it a few thousand times a second. If two readings lie further apart,
//! the process did not run in between: it was moved, or others had the CPU. The clock is that of the day, because a restored process lives
//! in a time namespace of its own, in which the other clocks may have been set back or forward.

use std::collections::VecDeque;
use std::time::Duration;

/// Pause between two readings.
pub const PAUSE: Duration = Duration::from_micros(200);
/// Gaps up to this are the loop's own.
pub const NOTABLE: Duration = Duration::from_millis(2);
/// Gaps that are kept between two reports; the newest win.
const MAX_KEPT: usize = 64;

/// One gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// When it ended: time of the day since 1970.
    pub until: Duration,
    /// Its length.
    pub length: Duration,
}

/// What was seen since the last report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Readings taken.
    pub readings: u64,
    /// The longest time between two readings, notable or not.
    pub largest: Duration,
    /// The notable gaps, oldest first; at most 64.
    pub gaps: Vec<Gap>,
}

/// Takes readings.
#[derive(Debug, Default)]
pub struct Gaps {
    last: Option<Duration>,
    readings: u64,
    largest: Duration,
    kept: VecDeque<Gap>,
}

impl Gaps {
    /// Takes the time of the day, since 1970. A clock that was set back starts anew.
    pub fn read(&mut self, now: Duration) {
        self.readings += 1;
        let Some(length) = self.last.replace(now).and_then(|last| now.checked_sub(last)) else { return };
        self.largest = self.largest.max(length);
        if length > NOTABLE {
            if self.kept.len() == MAX_KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(Gap { until: now, length });
        }
    }

    /// Everything since the last time; what comes next counts anew, from the last reading on.
    pub fn take(&mut self) -> Seen {
        let seen = Seen { readings: self.readings, largest: self.largest, gaps: self.kept.drain(..).collect() };
        *self = Self { last: self.last, ..Self::default() };
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn notable_gaps_are_kept_with_their_end() {
        let mut gaps = Gaps::default();
        [1_000_000, 1_000_250, 1_030_250, 1_032_250, 1_032_500].into_iter().for_each(|time| gaps.read(us(time)));
        let seen = gaps.take();
        assert_eq!(seen.gaps, [Gap { until: us(1_030_250), length: us(30_000) }], "exactly 2 ms is not notable");
        assert_eq!((seen.readings, seen.largest), (5, us(30_000)));
    }

    #[test]
    fn a_gap_across_a_report_is_not_lost() {
        let mut gaps = Gaps::default();
        gaps.read(us(0));
        assert_eq!(gaps.take().readings, 1);
        gaps.read(us(9_000));
        assert_eq!(gaps.take().largest, us(9_000));
        assert_eq!(gaps.take(), Seen::default());
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_gap() {
        let mut gaps = Gaps::default();
        [5_000_000, 1_000, 1_200].into_iter().for_each(|time| gaps.read(us(time)));
        assert_eq!(gaps.take(), Seen { readings: 3, largest: us(200), gaps: Vec::new() });
    }

    #[test]
    fn the_newest_are_kept() {
        let mut gaps = Gaps::default();
        (0..=100).for_each(|step| gaps.read(us(step * 10_000)));
        let seen = gaps.take();
        assert_eq!(seen.gaps.len(), MAX_KEPT);
        assert_eq!(seen.gaps.last().map(|gap| gap.until), Some(us(1_000_000)));
    }
}
