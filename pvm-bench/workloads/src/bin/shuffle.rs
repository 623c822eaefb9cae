//! `shuffle [--mib N] [--seed S] ...`: a process that does everything to its memory that can be done, and knows what each page must hold.
//!
//! It says the lines of `mosix_workloads::report`: `ready`, a `report` at each SIGUSR1 after comparing all pages, and an `end` after SIGTERM or the
//! end of stdin. It exits with 0 if every page ever compared was right, with 1 if not, and with 2 if it could not go on.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mosix_workloads::churn::gaps::Gaps;
use mosix_workloads::churn::pace::Pace;
use mosix_workloads::report::{self, Figures};
use mosix_workloads::shuffle::args::{Args, USAGE, parse};
use mosix_workloads::shuffle::play::Play;
use mosix_workloads::shuffle::stacks::{self, Found};

/// Pause between two looks at what is due.
const PAUSE: Duration = Duration::from_millis(1);

struct Shuffle {
    play: Play,
    stacks: Arc<Found>,
    gaps: &'static Mutex<Gaps>,
    any_bad: bool,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("shuffle: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shuffle: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> std::io::Result<bool> {
    let signals = report::block_signals()?;
    let mut play = Play::new(args)?;
    play.fill()?;
    let gaps: &'static Mutex<Gaps> = Box::leak(Box::default());
    let mut shuffle = Shuffle { play, stacks: stacks::start(args.threads, args.seed), gaps, any_bad: false };
    std::thread::spawn(|| report::watch_clock(gaps));
    if args.steps.is_none() {
        std::thread::spawn(report::wait_for_end_of_input);
    }
    let (sender, requests) = channel();
    std::thread::spawn(move || while sender.send(report::wait_for_request(&signals)).is_ok() {});
    report::say(&format!("{{\"event\":\"ready\",\"pid\":{},\"mib\":{},\"seed\":{}}}", std::process::id(), args.mib, args.seed));
    shuffle.go_on(args, &requests)
}

impl Shuffle {
    /// Until the end; whether all was right.
    fn go_on(&mut self, args: &Args, requests: &Receiver<bool>) -> std::io::Result<bool> {
        let mut pace = Pace::per_second(args.steps_per_s as f64);
        loop {
            match requests.recv_timeout(PAUSE) {
                Ok(true) => self.tell("report")?,
                Ok(false) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let left = args.steps.map_or(u64::MAX, |steps| steps.saturating_sub(self.play.steps()));
            let due = (pace.due(report::now()) as u64).min(left);
            (0..due).try_for_each(|_| self.play.step())?;
            if left == due && args.steps.is_some() {
                break;
            }
        }
        self.play.reap(true)?;
        self.tell("end")?;
        Ok(!self.any_bad)
    }

    fn tell(&mut self, event: &str) -> std::io::Result<()> {
        let seen = report::lock(self.gaps).take();
        self.play.check_all()?;
        let tally = self.play.take();
        let bad_frames = self.stacks.bad.swap(0, Ordering::Relaxed);
        let figures = Figures {
            written_bytes: tally.written_bytes,
            checked_pages: tally.checked + self.stacks.checked.swap(0, Ordering::Relaxed),
            bad_pages: tally.bad + bad_frames,
            first_bad: tally.first_bad.or_else(|| (bad_frames > 0).then(|| format!("{bad_frames} frames of stacks"))),
            samples: Vec::new(),
        };
        self.any_bad |= figures.bad_pages > 0;
        // Comparing takes the CPU: its gaps are nobody's.
        report::lock(self.gaps).take();
        report::say(&report::line(event, &seen, &figures));
        Ok(())
    }
}
