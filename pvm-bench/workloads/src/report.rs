//! What the moved programs say: a line of JSON when they are `ready`, a `report` when they are asked (SIGUSR1), and an `end` (after SIGTERM or the
//! end of stdin). Written by hand: a serialiser would travel with every move.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::churn::gaps::{Gaps, PAUSE, Seen};

/// Since the last report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Bytes written.
    pub written_bytes: u64,
    /// Pages checked.
    pub checked_pages: u64,
    /// Pages that were wrong.
    pub bad_pages: u64,
    /// The first of them, in words.
    pub first_bad: Option<String>,
    /// Times (ms since 1970) and how far a loop had come by then.
    pub samples: Vec<(f64, f64)>,
}

/// The line of an `event`.
pub fn line(event: &str, seen: &Seen, figures: &Figures) -> String {
    let gaps: Vec<String> =
        seen.gaps.iter().map(|gap| format!("{{\"until_ms\":{:.3},\"ms\":{:.3}}}", ms(gap.until), ms(gap.length))).collect();
    let first_bad = figures.first_bad.as_ref().map_or_else(|| "null".into(), |words| format!("\"{}\"", words.replace(['"', '\\'], "'")));
    let mut line = format!(
        "{{\"event\":\"{event}\",\"largest_ms\":{:.3},\"gaps\":[{}],\"readings\":{},\"written_bytes\":{},\
         \"checked_pages\":{},\"bad_pages\":{},\"first_bad\":{first_bad}",
        ms(seen.largest),
        gaps.join(","),
        seen.readings,
        figures.written_bytes,
        figures.checked_pages,
        figures.bad_pages
    );
    if !figures.samples.is_empty() {
        let samples: Vec<String> = figures.samples.iter().map(|(at_ms, done)| format!("[{at_ms:.3},{done}]")).collect();
        // Writing to a string does not fail.
        let _ = write!(line, ",\"samples\":[{}]", samples.join(","));
    }
    line.push('}');
    line
}

/// Nobody may be listening any more; that is no failure of the memory.
pub fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The time of the day since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// In ms.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Blocks the signals that ask for lines; to be called before any thread starts, so that all of them leave the signals to the one that waits.
///
/// # Errors
/// From the kernel.
pub fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(signals)
}

/// Waits for the next of these signals; `true` for a report, `false` for the end.
pub fn wait_for_request(signals: &SigSet) -> bool {
    matches!(signals.wait(), Ok(Signal::SIGUSR1))
}

/// The end of stdin means the same as SIGTERM; returns after it has been sent.
pub fn wait_for_end_of_input() {
    let mut buffer = [0; 64];
    loop {
        match std::io::stdin().read(&mut buffer) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    // Cannot fail: it is ourselves.
    let _ = kill(Pid::this(), Signal::SIGTERM);
}

/// Reads the clock for ever.
pub fn watch_clock(gaps: &Mutex<Gaps>) -> ! {
    loop {
        lock(gaps).read(now());
        std::thread::sleep(PAUSE);
    }
}

/// A thread that panicked has been reported; what it left is looked at all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::churn::gaps::Gap;

    #[test]
    fn a_line_is_json_whatever_the_words() {
        let seen = Seen {
            readings: 3,
            largest: Duration::from_millis(5),
            gaps: vec![Gap { until: Duration::from_secs(2), length: Duration::from_millis(5) }],
        };
        let mut figures =
            Figures { written_bytes: 1, checked_pages: 2, bad_pages: 1, first_bad: Some("\"x\\".into()), samples: Vec::new() };
        let wanted = "{\"event\":\"report\",\"largest_ms\":5.000,\"gaps\":[{\"until_ms\":2000.000,\"ms\":5.000}],\"readings\":3,\"written_bytes\":1,\
                      \"checked_pages\":2,\"bad_pages\":1,\"first_bad\":\"'x'\"}";
        assert_eq!(line("report", &seen, &figures), wanted);
        figures.samples = vec![(1.0, 2.5), (2.0, 3.0)];
        assert!(line("report", &seen, &figures).ends_with(",\"samples\":[[1.000,2.5],[2.000,3]]}"));
    }
}
