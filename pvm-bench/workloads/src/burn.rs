//! Using a given amount of CPU time.
//!
//! Work is metered in CPU time, not in loop iterations: on a shared machine the latter are off by up to 5 % (cache,
//! hyper-threads, clock). It is added up in memory, chunk by chunk, because the kernel's CPU clock of a process starts
//! again from 0 when the process is restored on another node. Nothing but `clock_gettime` is called while it burns.

use std::hint::black_box;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Shortest and longest chunk aimed at: short enough to end on time, long enough not to measure the clock call.
const CHUNK_MIN: Duration = Duration::from_micros(50);
const CHUNK_MAX: Duration = Duration::from_micros(100);
/// A chunk cannot use more CPU time than this; a larger step is the clock's, not ours.
const CHUNK_IMPOSSIBLE: Duration = Duration::from_millis(50);
/// Bounds of the adaptive chunk length, in steps of the inner loop.
const STEPS_MIN: u32 = 1_000;
const STEPS_MAX: u32 = 100_000_000;

/// What a burn was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burned {
    /// CPU time used.
    pub cpu: Duration,
    /// Chunks it was done in.
    pub chunks: u64,
    /// Steps of the CPU clock that were not counted: about one per migration.
    pub ignored: u64,
}

/// Adds up the steps of a clock that may be set back.
#[derive(Debug, Default)]
struct Meter {
    done: Duration,
    last: Duration,
    ignored: u64,
}

impl Meter {
    /// Takes a reading; returns the length of the chunk, or `None` if the clock was changed during it.
    fn read(&mut self, now: Duration) -> Option<Duration> {
        let step = now.checked_sub(self.last).filter(|step| *step < CHUNK_IMPOSSIBLE);
        self.last = now;
        match step {
            Some(step) => self.done += step,
            None => self.ignored += 1,
        }
        step
    }
}

/// Uses `cpu` of CPU time on the calling thread.
pub fn burn(cpu: Duration) -> Burned {
    let mut meter = Meter { last: cpu_clock(), ..Meter::default() };
    let (mut steps, mut chunks, mut number) = (STEPS_MIN, 0_u64, 1_u64);
    while meter.done < cpu {
        for _ in 0..steps {
            // A linear congruential generator: needs no memory and cannot be optimised away.
            number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        chunks += 1;
        match meter.read(cpu_clock()) {
            Some(step) if step < CHUNK_MIN => steps = (steps + steps / 4).min(STEPS_MAX),
            Some(step) if step > CHUNK_MAX => steps = (steps - steps / 4).max(STEPS_MIN),
            _ => {}
        }
    }
    Burned { cpu: meter.done, chunks, ignored: meter.ignored }
}

/// This thread's CPU time. Linux always has this clock.
fn cpu_clock() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Reads a number of seconds within what a benchmark can mean.
///
/// # Errors
/// In words.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    const MAX_S: f64 = 1e6;
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if (0.0..=MAX_S).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("{text} s is not within 0 and {MAX_S} s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_restarts_is_not_counted() {
        let us = Duration::from_micros;
        let mut meter = Meter { last: us(1_000_000), ..Meter::default() };
        assert_eq!(meter.read(us(1_000_070)), Some(us(70)));
        assert_eq!(meter.read(us(20)), None, "restored: the clock starts at 0");
        assert_eq!(meter.read(us(90)), Some(us(70)));
        assert_eq!(meter.read(us(9_000_000)), None, "moved back to a node where it had run before");
        assert_eq!(meter.read(us(9_000_060)), Some(us(60)));
        assert_eq!((meter.done, meter.ignored), (us(200), 2));
    }

    #[test]
    fn burns_what_it_says() {
        let wanted = Duration::from_millis(20);
        let before = cpu_clock();
        let burned = burn(wanted);
        let really = cpu_clock().saturating_sub(before);
        assert!(burned.cpu >= wanted && really >= burned.cpu);
        assert!(burned.chunks > 10, "{burned:?}");
    }

    #[test]
    fn seconds_are_checked() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "x", "-1", "NaN", "inf", "1e7"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
