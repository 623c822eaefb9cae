//! A moved process as seen from outside, and the moves of one.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mosix_lab::{LabError, StopFlag};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::report::Series;
use super::{PAUSE, bad};
use crate::{BenchError, Result, failed};

/// For a line of the process; checking 4 GiB takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// After a move, until the process has read the clock again and the gap is noted.
const SETTLE: Duration = Duration::from_millis(20);
/// Lines that may wait for us.
const MAX_LINES: usize = 256;
/// After so many failed moves the rest is not tried.
const MAX_FAILURES: usize = 5;

/// What the mover says of a move.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// From request to answer, ms.
    pub total_ms: f64,
    /// Ran nowhere, ms.
    pub freeze_ms: f64,
    /// Image bytes.
    pub bytes: u64,
    /// A patched CRIU was used.
    pub patched: bool,
    /// The mover's own record of it, as JSON.
    pub record: Option<serde_json::Value>,
}

/// CPU time of a move at its two ends, beside the process itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoveCpu {
    /// Where it was, ms.
    pub source_ms: f64,
    /// Where it is now, ms.
    pub target_ms: f64,
}

/// Moves the process, and reaches it where it is.
pub trait Mover {
    /// Moves it to the next node; the inner error says why it stayed where it was.
    ///
    /// # Errors
    /// If it is lost, or nothing more can be done.
    fn shift(&mut self) -> Result<std::result::Result<Moved, String>>;

    /// CPU time since the last move began; `None` if that is not known or has been told.
    ///
    /// # Errors
    /// If it cannot be read.
    fn cpu(&mut self) -> Result<Option<MoveCpu>>;

    /// Signals it.
    ///
    /// # Errors
    /// If it cannot be reached.
    fn signal(&mut self, signal: Signal) -> Result<()>;

    /// How it ended; `None` if it has not.
    ///
    /// # Errors
    /// If its node has gone.
    fn ended(&mut self, patience: Duration) -> Result<Option<ExitStatus>>;

    /// Its pid as this program sees it.
    fn pid_outside(&self) -> Option<i32>;
}

/// A gap that the process saw.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct SeenGap {
    /// When it ended, ms since 1970.
    pub(crate) until_ms: f64,
    pub(crate) ms: f64,
}

/// A line of the process.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    event: String,
    largest_ms: f64,
    gaps: Vec<SeenGap>,
    pub(crate) written_bytes: u64,
    pub(crate) checked_pages: u64,
    pub(crate) bad_pages: u64,
    pub(crate) first_bad: Option<String>,
    /// Times, ms since 1970, and how far a loop had come.
    pub(crate) samples: Vec<(f64, f64)>,
}

impl Said {
    /// The longest gap of those that ended after `asked_ms`.
    pub(crate) fn longest_gap(&self, asked_ms: f64) -> Option<SeenGap> {
        let gaps = self.gaps.iter().filter(|gap| gap.until_ms >= asked_ms);
        gaps.max_by(|one, other| one.ms.total_cmp(&other.ms)).copied()
    }

    /// Longest gap, and all together, of those that ended after `asked_ms`. Without a notable one, the longest time between two readings.
    pub(crate) fn standstill_ms(&self, asked_ms: f64) -> (f64, f64) {
        let gaps = self.gaps.iter().filter(|gap| gap.until_ms >= asked_ms).map(|gap| gap.ms);
        let longest = gaps.clone().fold(0.0, f64::max);
        if longest > 0.0 { (longest, gaps.sum()) } else { (self.largest_ms, self.largest_ms) }
    }
}

/// Our ends of its streams. When this is dropped its stdin ends, and so does it.
#[derive(Debug)]
pub struct Subject {
    stdin: Option<PipeWriter>,
    lines: Receiver<String>,
    /// What makes it report.
    report: Signal,
}

impl Subject {
    /// Makes the streams; the process's ends are to be given to it and to nobody else that lives on.
    ///
    /// # Errors
    /// If no pipes can be had.
    pub fn open(report: Signal) -> Result<(Self, PipeReader, PipeWriter)> {
        let (child_stdin, stdin) = std::io::pipe().map_err(failed("making a pipe"))?;
        let (stdout, child_stdout) = std::io::pipe().map_err(failed("making a pipe"))?;
        let (sender, lines) = sync_channel(MAX_LINES);
        // Ends with the last writer of the pipe or, at the next line, with the receiver.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((Self { stdin: Some(stdin), lines, report }, child_stdin, child_stdout))
    }

    /// Waits for a line of this kind. Others do not come in between.
    pub(crate) fn expect(&self, event: &str, stop: &StopFlag) -> Result<Said> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            stop.check()?;
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    let said: Said = serde_json::from_str(&line).map_err(|error| bad(format!("the process said `{line}`: {error}")))?;
                    return if said.event == event { Ok(said) } else { Err(bad(format!("`{line}` came instead of a line `{event}`"))) };
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => return Err(bad(format!("no line `{event}` within {PATIENCE:?}"))),
                Err(RecvTimeoutError::Disconnected) => return Err(bad(format!("the process ended without a line `{event}`"))),
            }
        }
    }

    /// Asks for a report and waits for it.
    pub(crate) fn report(&self, mover: &mut dyn Mover, stop: &StopFlag) -> Result<Said> {
        mover.signal(self.report)?;
        self.expect("report", stop)
    }

    /// Ends the process by the end of its input; its last line. It must end well.
    pub(crate) fn end(&mut self, mover: &mut dyn Mover, stop: &StopFlag) -> Result<(Said, ExitStatus)> {
        drop(self.stdin.take());
        let said = self.expect("end", stop)?;
        let status = mover.ended(PATIENCE)?.ok_or_else(|| bad("the process does not end"))?;
        Ok((said, status))
    }

    /// Moves the process that often and ends it. Whatever goes wrong with it ends its series, which says so.
    ///
    /// # Errors
    /// On the user's wish to stop.
    pub fn measure(mut self, moves: u32, mover: &mut dyn Mover, stop: &StopFlag) -> Result<Series> {
        let mut series = Series::default();
        match self.drive(&mut series, moves, mover, stop) {
            Err(BenchError::Lab(LabError::Interrupted)) => return Err(LabError::Interrupted.into()),
            Err(error) => series.failures.push(error.to_string()),
            Ok(()) => {}
        }
        Ok(series)
    }

    fn drive(&mut self, series: &mut Series, moves: u32, mover: &mut dyn Mover, stop: &StopFlag) -> Result<()> {
        self.expect("ready", stop)?;
        series.rss_bytes = mover.pid_outside().and_then(rss_bytes).unwrap_or(0);
        std::thread::sleep(PAUSE);
        // What it wrote while it filled its memory is not counted.
        note_memory(series, &self.report(mover, stop)?);
        let started = Instant::now();
        let mut written = 0;
        for _ in 0..moves {
            written += self.move_once(series, mover, stop)?;
            series.written_bytes_per_s = written as f64 / started.elapsed().as_secs_f64();
            if series.failures.len() >= MAX_FAILURES {
                break;
            }
        }
        let (said, status) = self.end(mover, stop)?;
        note_memory(series, &said);
        if !status.success() {
            series.failures.push(format!("the process ended with {status}"));
        }
        Ok(())
    }

    /// One move and the process's report of it; gives the bytes that it wrote since the last report.
    fn move_once(&self, series: &mut Series, mover: &mut dyn Mover, stop: &StopFlag) -> Result<u64> {
        let (reported, asked_ms) = (Instant::now(), now_ms());
        let moved = mover.shift()?;
        std::thread::sleep(SETTLE);
        let said = self.report(mover, stop)?;
        let ran_s = reported.elapsed().as_secs_f64();
        note_memory(series, &said);
        std::thread::sleep(PAUSE);
        match moved {
            Ok(moved) => {
                let (longest, all) = said.standstill_ms(asked_ms);
                series.blackout_ms.push(longest);
                series.stalled_ms.push(all);
                // It writes all the time between two reports, of which the move is the largest part.
                let share = (moved.total_ms / 1000.0 / ran_s).min(1.0);
                series.written_meanwhile_bytes.push((said.written_bytes as f64 * share) as u64);
                if let Some(cpu) = mover.cpu()? {
                    series.cpu_source_ms.push(cpu.source_ms);
                    series.cpu_target_ms.push(cpu.target_ms);
                }
                series.note_move(moved);
            }
            Err(why) => series.failures.push(why),
        }
        Ok(said.written_bytes)
    }
}

fn note_memory(series: &mut Series, said: &Said) {
    series.checked_pages += said.checked_pages;
    series.bad_pages += said.bad_pages;
    if let Some(first) = &said.first_bad {
        series.failures.push(format!("wrong memory: {first}"));
    }
}

/// The time of the day as the process sees it, too: ms since 1970.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

fn rss_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_process_are_understood() {
        let line = r#"{"event":"report","largest_ms":31.5,"gaps":[{"until_ms":900.0,"ms":40.0},{"until_ms":1000.5,"ms":31.5},{"until_ms":1003.0,"ms":2.5}],
            "readings":9,"written_bytes":4096,"checked_pages":3,"bad_pages":1,"first_bad":"page 2","samples":[[1.0,2],[3.5,4]]}"#;
        let said: Said = serde_json::from_str(line).unwrap();
        assert_eq!((said.checked_pages, said.bad_pages, said.written_bytes), (3, 1, 4096));
        assert_eq!(said.longest_gap(950.0), Some(SeenGap { until_ms: 1000.5, ms: 31.5 }));
        assert_eq!((said.longest_gap(2000.0), said.samples.len()), (None, 2));
        assert_eq!(said.standstill_ms(950.0), (31.5, 34.0), "what ended before the move was asked for is not its doing");
        assert_eq!(said.standstill_ms(2000.0), (31.5, 31.5));
    }

    /// Says what a process says, and fails as told.
    struct Fake {
        stdout: Option<PipeWriter>,
        moves: Vec<std::result::Result<Moved, String>>,
        bad_pages: u64,
        status: i32,
        reports: u32,
    }

    impl Fake {
        fn say(&mut self, event: &str) {
            use std::io::Write;
            let line = format!(
                r#"{{"event":"{event}","gaps":[{{"until_ms":{:.1},"ms":7.0}}],"checked_pages":9,"bad_pages":{}}}"#,
                now_ms() + 1.0,
                self.bad_pages
            );
            writeln!(self.stdout.as_mut().unwrap(), "{line}").unwrap();
        }

        fn measured(mut self, moves: u32) -> Series {
            let (subject, _stdin, stdout) = Subject::open(Signal::SIGUSR1).unwrap();
            self.stdout = Some(stdout);
            self.say("ready");
            subject.measure(moves, &mut self, &StopFlag::default()).unwrap()
        }
    }

    impl Mover for Fake {
        fn shift(&mut self) -> Result<std::result::Result<Moved, String>> {
            self.moves.pop().ok_or_else(|| bad("lost"))
        }

        fn cpu(&mut self) -> Result<Option<MoveCpu>> {
            Ok(Some(MoveCpu { source_ms: 3.0, target_ms: 4.0 }))
        }

        fn signal(&mut self, signal: Signal) -> Result<()> {
            assert_eq!(signal, Signal::SIGUSR1);
            self.say("report");
            self.reports += 1;
            if self.moves.is_empty() && self.reports > 1 {
                self.say("end");
            }
            Ok(())
        }

        fn ended(&mut self, _: Duration) -> Result<Option<ExitStatus>> {
            Ok(Some(std::os::unix::process::ExitStatusExt::from_raw(self.status)))
        }

        fn pid_outside(&self) -> Option<i32> {
            None
        }
    }

    const MOVED: Moved = Moved { total_ms: 9.0, freeze_ms: 8.0, bytes: 5, patched: true, record: None };

    fn fake(moves: Vec<std::result::Result<Moved, String>>) -> Fake {
        Fake { stdout: None, moves, bad_pages: 0, status: 0, reports: 0 }
    }

    #[test]
    fn good_moves_make_a_sound_series() {
        let series = fake(vec![Ok(MOVED), Ok(MOVED)]).measured(2);
        assert!(series.is_sound() && series.patched, "{series:?}");
        assert_eq!((series.blackout_ms.as_slice(), series.bytes_sent.as_slice()), (&[7.0, 7.0][..], &[5, 5][..]));
        assert_eq!((series.checked_pages, series.cpu_source_ms.as_slice()), (36, &[3.0, 3.0][..]));
    }

    #[test]
    fn whatever_goes_wrong_is_in_the_series() {
        // Taken from the end.
        let refused = fake(vec![Ok(MOVED), Err("no".into())]).measured(2);
        assert_eq!((refused.blackout_ms.len(), refused.failures.as_slice()), (1, &["no".to_owned()][..]));
        let damaged = Fake { bad_pages: 1, ..fake(vec![Ok(MOVED)]) }.measured(1);
        assert_eq!((damaged.bad_pages, damaged.is_sound()), (3, false));
        let killed = Fake { status: 9, ..fake(vec![Ok(MOVED)]) }.measured(1);
        assert!(killed.failures[0].contains("signal: 9"), "{killed:?}");
        let lost = fake(Vec::new()).measured(1);
        assert!(lost.failures[0].contains("lost") && lost.blackout_ms.is_empty(), "{lost:?}");
    }

    #[test]
    fn our_own_memory_can_be_read() {
        assert!(rss_bytes(std::process::id() as i32).is_some_and(|bytes| bytes > 4096));
        assert_eq!(rss_bytes(-1), None);
    }
}
