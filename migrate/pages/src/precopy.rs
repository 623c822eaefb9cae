//! When to stop copying and freeze. Pure: figures of past rounds in, a decision out.
//!
//! Each round sends what was written during the one before. If writing is slower than the link, rounds get shorter and the rest
//! smaller, down to what the program writes in the time that a round needs at least. The rest that would be left for the
//! blackout is predicted from the last rounds; it is worth another round as long as that prediction is too large for the
//! blackout aimed at *and* still falls.

use std::time::Duration;

/// What a move aims at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Time that the last pages may take within the blackout.
    pub rest: Duration,
    /// Most rounds while the program runs.
    pub max_rounds: usize,
    /// Most bytes sent in all, as a multiple of the first round's.
    pub max_factor: f64,
    /// Slow the program down, if nothing else helps, to this part of its speed at least. 1: never.
    pub slowest: f64,
}

impl Default for Goal {
    fn default() -> Goal {
        Goal { rest: Duration::from_millis(5), max_rounds: 12, max_factor: 3.0, slowest: 1.0 }
    }
}

/// Figures of one round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Round {
    /// Memory that had to be sent, bytes (before compression).
    pub bytes: u64,
    /// From the start of its scan to the start of the next one, or to its end if it is the last.
    pub duration: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Another round while the program runs.
    Round,
    /// Another round, and meanwhile the program should get only this part of the CPU time it gets now, but not less than [`Goal::slowest`] in all.
    Throttle(f64),
    /// Freeze now.
    Freeze(Reason),
}

/// Why it is time to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The rest fits the blackout aimed at.
    Fits,
    /// Another round would leave as much: the program writes too fast. The blackout will be longer than aimed at.
    NotShrinking,
    /// As many rounds as allowed. The blackout may be longer than aimed at.
    Rounds,
    /// As many bytes as allowed. The blackout may be longer than aimed at.
    Bytes,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Fits => "what is left fits the blackout aimed at",
            Reason::NotShrinking => "the program writes as fast as pages can be sent",
            Reason::Rounds => "the number of rounds is used up",
            Reason::Bytes => "the number of bytes is used up",
        })
    }
}

/// A round that leaves more than this part of what the last one had is not worth its while.
const SHRINKS: f64 = 0.85;
/// Rounds below this say little about rates.
const SHORTEST: Duration = Duration::from_micros(200);

/// What another look would find now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rest {
    /// At least this many bytes: as if every write of the last rounds had gone to another page.
    pub low_bytes: f64,
    /// Probably not more than this: pages that were written again and again stay as many in a shorter time.
    pub high_bytes: f64,
    /// How fast they can be sent, bytes/s.
    pub speed_bytes_s: f64,
}

/// Predicts the rest. `None` before the second round.
///
/// The bytes of a round were written during the one before. Bytes written in some time are a concave function of that time: in
/// proportion to it at first, constant when all pages that are ever written have been. So the line through the origin gives the
/// lower bound for a shorter time; the slope seen between the last two rounds (in logarithms) gives an upper one.
pub fn rest(rounds: &[Round]) -> Option<Rest> {
    let [.., before, last] = rounds else { return None };
    let seconds = |round: &Round| round.duration.max(SHORTEST).as_secs_f64();
    let bytes = last.bytes as f64;
    let shorter = seconds(last) / seconds(before);
    let slope = match rounds {
        [.., earlier, before, last] if before.bytes > 0 && last.bytes > 0 => {
            let time = (seconds(before) / seconds(earlier)).ln();
            let slope = (bytes / before.bytes as f64).ln() / time;
            if time.abs() > 0.1 { slope.clamp(0.0, 1.0) } else { 0.0 }
        }
        _ => 0.0,
    };
    let high_bytes = if shorter < 1.0 { bytes * shorter.powf(slope) } else { bytes * shorter };
    // of all rounds the fastest shows the link best: a small one is mostly its scan
    let speed_bytes_s = rounds.iter().map(|round| round.bytes as f64 / seconds(round)).fold(1.0, f64::max);
    Some(Rest { low_bytes: bytes * shorter, high_bytes, speed_bytes_s })
}

/// Decides after a round.
pub fn next(goal: &Goal, rounds: &[Round]) -> Step {
    let full = rounds.len() >= goal.max_rounds;
    let Some(rest) = rest(rounds) else {
        return if full { Step::Freeze(Reason::Rounds) } else { Step::Round };
    };
    let goal_s = goal.rest.as_secs_f64();
    if rest.high_bytes / rest.speed_bytes_s <= goal_s {
        return Step::Freeze(Reason::Fits);
    }
    if full {
        return Step::Freeze(Reason::Rounds);
    }
    let sent: f64 = rounds.iter().map(|round| round.bytes as f64).sum();
    let first = rounds.first().map_or(0.0, |round| round.bytes as f64);
    if sent + rest.high_bytes > first * goal.max_factor {
        return Step::Freeze(Reason::Bytes);
    }
    let last = rounds.last().map_or(0.0, |round| round.bytes as f64);
    if rest.low_bytes < last * SHRINKS {
        return Step::Round;
    }
    let wanted = goal_s * rest.speed_bytes_s / rest.high_bytes;
    if goal.slowest < 1.0 { Step::Throttle(wanted.clamp(goal.slowest.max(0.01), 1.0)) } else { Step::Freeze(Reason::NotShrinking) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A program of `size` bytes that writes `rate` bytes/s all over `hot` bytes, over a link of `speed` bytes/s; a look costs `scan_s`.
    fn run(goal: &Goal, size: f64, hot: f64, rate: f64, speed: f64, scan_s: f64) -> (Vec<Round>, Reason, f64) {
        let mut rounds: Vec<Round> = Vec::new();
        let (mut bytes, mut part) = (size, 1.0);
        loop {
            let seconds = scan_s + bytes / speed;
            rounds.push(Round { bytes: bytes as u64, duration: Duration::from_secs_f64(seconds) });
            bytes = (rate * part * seconds).min(hot);
            match next(goal, &rounds) {
                Step::Round => {}
                Step::Throttle(wanted) => part = f64::max(part * wanted, goal.slowest),
                Step::Freeze(reason) => return (rounds, reason, bytes / speed),
            }
            assert!(rounds.len() < 1000, "no end");
        }
    }

    proptest! {
        /// It always ends, within its limits, and "fits" is true.
        #[test]
        fn ends_within_its_limits(
            size in 1e6..1e10f64, hot in 0.001..1.0f64, rate in 0.0..5e9f64, speed in 1e7..5e9f64, scan in 1e-4..0.05f64, slow in any::<bool>()
        ) {
            let goal = Goal { slowest: if slow { 0.1 } else { 1.0 }, ..Goal::default() };
            let (rounds, reason, rest_s) = run(&goal, size, hot * size, rate, speed, scan);
            prop_assert!(rounds.len() <= goal.max_rounds);
            let sent: u64 = rounds.iter().map(|round| round.bytes).sum();
            prop_assert!(sent as f64 <= size * goal.max_factor + 1.0);
            if reason == Reason::Fits {
                // the prediction may be off by the scan, which is in the figures of the link's speed
                prop_assert!(rest_s <= goal.rest.as_secs_f64() * 1.5 + scan, "{rest_s}");
            }
        }

        /// A program that writes at a tenth of the link's speed always gets to the goal.
        #[test]
        fn slow_writers_fit(size in 1e7..1e10f64, speed in 1e8..5e9f64, share in 0.0..0.1f64) {
            let (_, reason, _) = run(&Goal::default(), size, size, speed * share, speed, 0.001);
            prop_assert_eq!(reason, Reason::Fits);
        }

        /// Any figures give an answer.
        #[test]
        fn never_panics(figures in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20)) {
            let rounds: Vec<Round> = figures.into_iter().map(|(bytes, us)| Round { bytes: bytes >> 8, duration: Duration::from_micros(us.into()) }).collect();
            next(&Goal::default(), &rounds);
        }
    }

    #[test]
    fn a_writer_as_fast_as_the_link_is_recognised() {
        let (rounds, reason, _) = run(&Goal { max_factor: 100.0, ..Goal::default() }, 1e9, 1e9, 1.2e9, 1e9, 0.001);
        assert_eq!((rounds.len(), reason), (2, Reason::NotShrinking));
        let goal = Goal { slowest: 0.05, max_factor: 100.0, ..Goal::default() };
        let (_, reason, rest_s) = run(&goal, 1e9, 1e9, 1.2e9, 1e9, 0.001);
        assert_eq!(reason, Reason::Fits);
        assert!(rest_s < 0.01);
    }
}
