//! `churn --mib N [--rate-mib-s R] [--threads T] [--verify]`: a process that is made to be moved, and tells what the moves did to it.
//!
//! It holds N MiB of known content; T writers rewrite random pages of it, R MiB/s together; one thread reads the clock and notes every gap.
//! It prints a line of JSON when it is `ready`, a `report` at each SIGUSR1 (the gaps since the last report, and whether the pages are what
//! they must be), and an `end` after SIGTERM or the end of stdin. It exits with 0 if every page ever checked was right, all of them at the
//! end, else with 1. Nothing is open but its three streams.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mosix_workloads::churn::args::{Args, USAGE, parse};
use mosix_workloads::churn::gaps::{Gaps, PAUSE, Seen};
use mosix_workloads::churn::pace::Pace;
use mosix_workloads::churn::pages::{Checked, PAGE_BYTES, PAGES_PER_MIB, Random, Stripe, split};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Pause of a writer between two looks at what it owes.
const WRITER_PAUSE: Duration = Duration::from_millis(1);
/// Pages that are written or checked before the others may have the stripe: about 0.1 ms.
const BATCH: usize = 128;
/// Pages that a report checks without `--verify`: 64 MiB.
const SLICE: usize = 64 * PAGES_PER_MIB as usize;

struct Churn {
    stripes: Vec<Mutex<Stripe>>,
    gaps: Mutex<Gaps>,
    written: AtomicU64,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("churn: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.add(Signal::SIGTERM);
    // Before any thread starts, so that all of them leave the signals to the main one.
    if let Err(error) = signals.thread_block() {
        eprintln!("churn: blocking signals: {error}");
        return ExitCode::from(2);
    }
    let stripes = split(args.mib * PAGES_PER_MIB, args.threads);
    let stripes = stripes.into_iter().map(|(first, count)| Mutex::new(Stripe::new(first, count))).collect();
    // The threads use it until the process ends, whichever way that happens.
    let churn: &'static Churn = Box::leak(Box::new(Churn { stripes, gaps: Mutex::default(), written: AtomicU64::new(0) }));
    churn.start(&args);
    say(&format!("{{\"event\":\"ready\",\"pid\":{},\"mib\":{}}}", std::process::id(), args.mib));
    churn.serve(&signals, args.verify)
}

impl Churn {
    fn start(&'static self, args: &Args) {
        std::thread::spawn(|| self.watch_clock());
        std::thread::spawn(wait_for_end_of_input);
        for number in 0..self.stripes.len() {
            let pace = Pace::new(args.rate_mib_s, args.threads);
            std::thread::spawn(move || self.write(number, pace));
        }
    }

    fn watch_clock(&self) {
        loop {
            lock(&self.gaps).read(now());
            std::thread::sleep(PAUSE);
        }
    }

    fn write(&self, number: usize, mut pace: Pace) {
        let Some(stripe) = self.stripes.get(number) else { return };
        let mut random = Random::new(number as u64);
        loop {
            let mut due = pace.due(now());
            while due > 0 {
                let mut stripe = lock(stripe);
                let count = due.min(BATCH);
                (0..count).for_each(|_| {
                    let index = random.below(stripe.len());
                    stripe.rewrite(index);
                });
                self.written.fetch_add((count * PAGE_BYTES) as u64, Ordering::Relaxed);
                due -= count;
            }
            std::thread::sleep(WRITER_PAUSE);
        }
    }

    fn serve(&self, signals: &SigSet, verify: bool) -> ExitCode {
        let mut from = 0;
        let mut any_bad = false;
        loop {
            let ends = !matches!(signals.wait(), Ok(Signal::SIGUSR1));
            let seen = lock(&self.gaps).take();
            let checked = if ends || verify { self.check(0, usize::MAX) } else { self.check_slice(&mut from) };
            any_bad |= checked.bad > 0;
            let written = self.written.swap(0, Ordering::Relaxed);
            // Checking takes the CPU: its gaps are nobody's. What comes once the report can be read is the reader's.
            lock(&self.gaps).take();
            say(&line(if ends { "end" } else { "report" }, &seen, checked, written));
            if ends {
                return if any_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            }
        }
    }

    /// Checks the pages `from..from + count` of all stripes, each counted from its first.
    fn check(&self, from: usize, count: usize) -> Checked {
        self.stripes.iter().map(|stripe| check_stripe(stripe, from, count)).fold(Checked::default(), Checked::and)
    }

    /// Checks the next pages of each stripe, and begins again after the last.
    fn check_slice(&self, from: &mut usize) -> Checked {
        let longest = self.stripes.iter().map(|stripe| lock(stripe).len()).max().unwrap_or(0);
        let count = SLICE.div_ceil(self.stripes.len().max(1));
        if *from >= longest {
            *from = 0;
        }
        let checked = self.check(*from, count);
        *from += count;
        checked
    }
}

/// In small batches: the writer wants its stripe, too.
fn check_stripe(stripe: &Mutex<Stripe>, from: usize, count: usize) -> Checked {
    let mut checked = Checked::default();
    let mut next = from;
    let end = from.saturating_add(count);
    loop {
        let part = lock(stripe).check(next, BATCH.min(end - next));
        if part.pages == 0 {
            return checked;
        }
        next += part.pages as usize;
        checked = checked.and(part);
    }
}

/// The end of stdin means the same as SIGTERM.
fn wait_for_end_of_input() {
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

fn line(event: &str, seen: &Seen, checked: Checked, written_bytes: u64) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let gaps: Vec<String> =
        seen.gaps.iter().map(|gap| format!("{{\"until_ms\":{:.3},\"ms\":{:.3}}}", ms(gap.until), ms(gap.length))).collect();
    let first_bad = checked.first_bad.map_or_else(|| "null".to_owned(), |page| page.to_string());
    format!(
        "{{\"event\":\"{event}\",\"largest_ms\":{:.3},\"gaps\":[{}],\"readings\":{},\"written_bytes\":{written_bytes},\
         \"checked_pages\":{},\"bad_pages\":{},\"first_bad\":{first_bad}}}",
        ms(seen.largest),
        gaps.join(","),
        seen.readings,
        checked.pages,
        checked.bad
    )
}

/// Nobody may be listening any more; that is no failure of the memory.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A thread that panicked has been reported; what it left is checked all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
