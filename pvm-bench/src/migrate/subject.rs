//! `churn` as seen from outside, and the moves of one process.

use std::fmt;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mosix_lab::{LabError, StopFlag};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::report::Row;
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

/// What the process is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Memory, MiB.
    pub mib: u64,
    /// Written to random pages, MiB/s.
    pub rate_mib_s: f64,
    /// Writers.
    pub threads: u32,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {} MiB/s, {} threads", self.mib, self.rate_mib_s, self.threads)
    }
}

impl Load {
    /// The command line. All pages are checked at each report up to this size; beyond it a slice is, and all of them at the end.
    pub(crate) fn argv(&self, churn: &Path) -> Vec<std::ffi::OsString> {
        const CHECK_ALL_MIB: u64 = 1024;
        let numbers = [format!("{}", self.mib), format!("{}", self.rate_mib_s), format!("{}", self.threads)];
        let mut argv = vec![churn.as_os_str().to_owned()];
        for (name, number) in ["--mib", "--rate-mib-s", "--threads"].into_iter().zip(numbers) {
            argv.extend([name.into(), number.into()]);
        }
        if self.mib <= CHECK_ALL_MIB {
            argv.push("--verify".into());
        }
        argv
    }
}

/// What the mover says of a move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moved {
    /// From request to answer, ms.
    pub total_ms: f64,
    /// Ran nowhere, ms.
    pub freeze_ms: f64,
    /// Image bytes.
    pub bytes: u64,
}

/// Moves the process, and reaches it where it is.
pub trait Mover {
    /// Moves it to the next node; the inner error says why it stayed where it was.
    ///
    /// # Errors
    /// If it is lost, or nothing more can be done.
    fn shift(&mut self) -> Result<std::result::Result<Moved, String>>;

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
struct SeenGap {
    /// When it ended, ms since 1970.
    until_ms: f64,
    ms: f64,
}

/// A line of the process.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Said {
    event: String,
    largest_ms: f64,
    gaps: Vec<SeenGap>,
    written_bytes: u64,
    checked_pages: u64,
    bad_pages: u64,
}

impl Said {
    /// Longest gap, and all together, of those that ended after `asked_ms`. Without a notable one, the longest time between two readings.
    fn standstill_ms(&self, asked_ms: f64) -> (f64, f64) {
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
}

impl Subject {
    /// Makes the streams; the process's ends are to be given to it and to nobody else that lives on.
    ///
    /// # Errors
    /// If no pipes can be had.
    pub fn open() -> Result<(Self, PipeReader, PipeWriter)> {
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
        Ok((Self { stdin: Some(stdin), lines }, child_stdin, child_stdout))
    }

    /// Waits for a line of this kind. Others do not come in between.
    fn expect(&self, event: &str, stop: &StopFlag) -> Result<Said> {
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

    /// Moves the process that often and ends it. Whatever goes wrong with it ends its row, which says so.
    ///
    /// # Errors
    /// On the user's wish to stop.
    pub fn measure(mut self, kind: &str, load: Load, moves: u32, mover: &mut dyn Mover, stop: &StopFlag) -> Result<Row> {
        let mut row = empty_row(kind, load);
        match self.drive(&mut row, moves, mover, stop) {
            Err(BenchError::Lab(LabError::Interrupted)) => return Err(LabError::Interrupted.into()),
            Err(error) => row.failures.push(error.to_string()),
            Ok(()) => {}
        }
        Ok(row)
    }

    fn drive(&mut self, row: &mut Row, moves: u32, mover: &mut dyn Mover, stop: &StopFlag) -> Result<()> {
        self.expect("ready", stop)?;
        row.rss_bytes = mover.pid_outside().and_then(rss_bytes).unwrap_or(0);
        let started = Instant::now();
        let mut written = 0;
        for _ in 0..moves {
            std::thread::sleep(PAUSE);
            written += self.move_once(row, mover, stop)?;
            row.written_bytes_per_s = written as f64 / started.elapsed().as_secs_f64();
            if row.failures.len() >= MAX_FAILURES {
                break;
            }
        }
        self.finish(row, mover, stop)
    }

    /// One move and the process's report of it; gives the bytes that it wrote since the last report.
    fn move_once(&self, row: &mut Row, mover: &mut dyn Mover, stop: &StopFlag) -> Result<u64> {
        let asked_ms = now_ms();
        let moved = mover.shift()?;
        std::thread::sleep(SETTLE);
        mover.signal(Signal::SIGUSR1)?;
        let said = self.expect("report", stop)?;
        note_memory(row, &said);
        match moved {
            Ok(moved) => {
                let (longest, all) = said.standstill_ms(asked_ms);
                row.blackout_ms.push(longest);
                row.stalled_ms.push(all);
                row.total_ms.push(moved.total_ms);
                row.freeze_ms.push(moved.freeze_ms);
                row.bytes_sent.push(moved.bytes);
            }
            Err(why) => row.failures.push(why),
        }
        Ok(said.written_bytes)
    }

    fn finish(&mut self, row: &mut Row, mover: &mut dyn Mover, stop: &StopFlag) -> Result<()> {
        drop(self.stdin.take());
        note_memory(row, &self.expect("end", stop)?);
        match mover.ended(PATIENCE)? {
            Some(status) if status.success() => {}
            Some(status) => row.failures.push(format!("the process ended with {status}")),
            None => return Err(bad("the process does not end")),
        }
        Ok(())
    }
}

fn empty_row(kind: &str, load: Load) -> Row {
    Row {
        kind: kind.into(),
        rss_bytes: 0,
        dirty_bytes_per_s: load.rate_mib_s * f64::from(1 << 20),
        written_bytes_per_s: 0.0,
        threads: load.threads,
        blackout_ms: Vec::new(),
        stalled_ms: Vec::new(),
        total_ms: Vec::new(),
        freeze_ms: Vec::new(),
        bytes_sent: Vec::new(),
        // The moves of this version need no patches.
        patched: false,
        checked_pages: 0,
        bad_pages: 0,
        failures: Vec::new(),
    }
}

fn note_memory(row: &mut Row, said: &Said) {
    row.checked_pages += said.checked_pages;
    row.bad_pages += said.bad_pages;
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
            "readings":9,"written_bytes":4096,"checked_pages":3,"bad_pages":1,"first_bad":2}"#;
        let said: Said = serde_json::from_str(line).unwrap();
        assert_eq!((said.checked_pages, said.bad_pages, said.written_bytes), (3, 1, 4096));
        assert_eq!(said.standstill_ms(950.0), (31.5, 34.0), "what ended before the move was asked for is not its doing");
        assert_eq!(said.standstill_ms(2000.0), (31.5, 31.5));
    }

    /// Says what a process says, and fails as told.
    struct Fake {
        stdout: Option<PipeWriter>,
        moves: Vec<std::result::Result<Moved, String>>,
        bad_pages: u64,
        status: i32,
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

        fn measured(mut self, moves: u32) -> Row {
            let (subject, _stdin, stdout) = Subject::open().unwrap();
            self.stdout = Some(stdout);
            self.say("ready");
            subject.measure("fake", Load { mib: 1, rate_mib_s: 1.0, threads: 1 }, moves, &mut self, &StopFlag::default()).unwrap()
        }
    }

    impl Mover for Fake {
        fn shift(&mut self) -> Result<std::result::Result<Moved, String>> {
            self.moves.pop().ok_or_else(|| bad("lost"))
        }

        fn signal(&mut self, _: Signal) -> Result<()> {
            self.say("report");
            if self.moves.is_empty() {
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

    const MOVED: Moved = Moved { total_ms: 9.0, freeze_ms: 8.0, bytes: 5 };

    #[test]
    fn good_moves_make_a_sound_row() {
        let row = Fake { stdout: None, moves: vec![Ok(MOVED), Ok(MOVED)], bad_pages: 0, status: 0 }.measured(2);
        assert!(row.is_sound(), "{row:?}");
        assert_eq!((row.blackout_ms.as_slice(), row.bytes_sent.as_slice(), row.checked_pages), (&[7.0, 7.0][..], &[5, 5][..], 27));
    }

    #[test]
    fn whatever_goes_wrong_is_in_the_row() {
        let refused = Fake { stdout: None, moves: vec![Ok(MOVED), Err("no".into())], bad_pages: 0, status: 0 }.measured(2);
        assert_eq!((refused.blackout_ms.len(), refused.failures.as_slice()), (1, &["no".to_owned()][..]));
        let damaged = Fake { stdout: None, moves: vec![Ok(MOVED)], bad_pages: 1, status: 0 }.measured(1);
        assert_eq!((damaged.bad_pages, damaged.is_sound()), (2, false));
        let killed = Fake { stdout: None, moves: vec![Ok(MOVED)], bad_pages: 0, status: 9 }.measured(1);
        assert!(killed.failures[0].contains("signal: 9"), "{killed:?}");
        let lost = Fake { stdout: None, moves: Vec::new(), bad_pages: 0, status: 0 }.measured(1);
        assert!(lost.failures[0].contains("lost") && lost.blackout_ms.is_empty(), "{lost:?}");
    }

    #[test]
    fn the_command_line_fits_churn() {
        let load = Load { mib: 4, rate_mib_s: 2.5, threads: 3 };
        let words = load.argv(Path::new("churn")).into_iter().skip(1).map(|word| word.into_string().unwrap());
        let args = mosix_workloads::churn::args::parse(words).unwrap();
        assert_eq!((args.mib, args.rate_mib_s, args.threads, args.verify), (4, 2.5, 3, true));
        assert!(!Load { mib: 4096, ..load }.argv(Path::new("churn")).contains(&"--verify".into()));
    }

    #[test]
    fn our_own_memory_can_be_read() {
        assert!(rss_bytes(std::process::id() as i32).is_some_and(|bytes| bytes > 4096));
        assert_eq!(rss_bytes(-1), None);
    }
}
