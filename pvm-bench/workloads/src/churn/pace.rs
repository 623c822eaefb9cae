//! How many pages a writer owes.

use std::time::Duration;

use super::pages::PAGES_PER_MIB;

/// Time that is made up for at most: what was not written while the process stood still is not written afterwards in one go.
const MAX_ARREARS: Duration = Duration::from_millis(20);

/// Turns time into pages, at a rate.
#[derive(Debug)]
pub struct Pace {
    per_s: f64,
    last: Option<Duration>,
    owed: f64,
}

impl Pace {
    /// A writer that is one of `writers` which together write `mib_per_s`.
    pub fn new(mib_per_s: f64, writers: u32) -> Self {
        Self::per_second(mib_per_s * PAGES_PER_MIB as f64 / f64::from(writers.max(1)))
    }

    /// So many things a second.
    pub fn per_second(rate: f64) -> Self {
        Self { per_s: rate, last: None, owed: 0.0 }
    }

    /// Whole pages that are due at `now` (the time of the day).
    pub fn due(&mut self, now: Duration) -> usize {
        let passed = self.last.replace(now).and_then(|last| now.checked_sub(last)).unwrap_or_default();
        self.owed += passed.min(MAX_ARREARS).as_secs_f64() * self.per_s;
        let whole = self.owed.floor();
        self.owed -= whole;
        whole as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_second_brings_the_rate() {
        let mut pace = Pace::new(10.0, 4);
        let pages: usize = (0..=1000).map(|step| pace.due(ms(step))).sum();
        assert!((639..=640).contains(&pages), "{pages} pages instead of 640");
    }

    #[test]
    fn standing_still_is_not_made_up_for() {
        let mut pace = Pace::new(100.0, 1);
        assert_eq!(pace.due(ms(1000)), 0, "the first look starts the clock");
        assert_eq!(pace.due(ms(61_000)), 512, "20 ms worth");
        assert_eq!(pace.due(ms(1)), 0, "a clock that was set back");
    }

    #[test]
    fn idle_is_idle() {
        let mut pace = Pace::new(0.0, 1);
        assert_eq!((0..100).map(|step| pace.due(ms(step))).sum::<usize>(), 0);
    }
}
