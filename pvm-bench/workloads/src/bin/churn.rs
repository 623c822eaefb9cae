//! `churn --mib N [--rate-mib-s R] [--threads T] [--walk-mib W] [--verify]`: a process that is made to be moved, and tells what the moves did to it.
//!
//! It holds N MiB of known content; T writers rewrite random pages of it, R MiB/s together; one thread reads the clock and notes every gap;
//! if wanted, one walks through memory of its own as fast as it can.
//! It prints a line of JSON when it is `ready`, a `report` at each SIGUSR1 (the gaps since the last report, and whether the pages are what
//! they must be), and an `end` after SIGTERM or the end of stdin. It exits with 0 if every page ever checked was right, all of them at the
//! end, else with 1. Nothing is open but its three streams.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mosix_workloads::churn::args::{Args, USAGE, parse};
use mosix_workloads::churn::gaps::Gaps;
use mosix_workloads::churn::pace::Pace;
use mosix_workloads::churn::pages::{Checked, PAGE_BYTES, PAGES_PER_MIB, Random, Stripe, split};
use mosix_workloads::report::{self, Figures, lock, now, say};
use mosix_workloads::walk::Walk;
use nix::sys::signal::SigSet;

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
    walk: Walk,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("churn: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let signals = match report::block_signals() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("churn: blocking signals: {error}");
            return ExitCode::from(2);
        }
    };
    let stripes = split(args.mib * PAGES_PER_MIB, args.threads);
    let stripes = stripes.into_iter().map(|(first, count)| Mutex::new(Stripe::new(first, count))).collect();
    // The threads use it until the process ends, whichever way that happens.
    let churn: &'static Churn =
        Box::leak(Box::new(Churn { stripes, gaps: Mutex::default(), written: AtomicU64::new(0), walk: Walk::default() }));
    churn.start(&args);
    say(&format!("{{\"event\":\"ready\",\"pid\":{},\"mib\":{}}}", std::process::id(), args.mib));
    churn.serve(&signals, args.verify)
}

impl Churn {
    fn start(&'static self, args: &Args) {
        std::thread::spawn(|| report::watch_clock(&self.gaps));
        std::thread::spawn(report::wait_for_end_of_input);
        if args.walk_mib > 0 {
            let mib = args.walk_mib;
            std::thread::spawn(move || self.walk.run(mib));
        }
        for number in 0..self.stripes.len() {
            let pace = Pace::new(args.rate_mib_s, args.threads);
            std::thread::spawn(move || self.write(number, pace));
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
            let ends = !report::wait_for_request(signals);
            let seen = lock(&self.gaps).take();
            let checked = if ends || verify { self.check(0, usize::MAX) } else { self.check_slice(&mut from) };
            let (samples, bad_of_walk, written_by_walk) = self.walk.take();
            let figures = Figures {
                written_bytes: self.written.swap(0, Ordering::Relaxed) + written_by_walk,
                checked_pages: checked.pages,
                bad_pages: checked.bad + bad_of_walk,
                first_bad: checked.first_bad.map(|page| format!("page {page}")),
                samples,
            };
            any_bad |= figures.bad_pages > 0;
            // Checking takes the CPU: its gaps are nobody's. What comes once the report can be read is the reader's.
            lock(&self.gaps).take();
            say(&report::line(if ends { "end" } else { "report" }, &seen, &figures));
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
