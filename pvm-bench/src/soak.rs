//! `pvm-bench soak`: many moves under load among the nodes of a lab, and whether anything was lost, doubled, damaged or left behind.
//!
//! Several processes (two `churn`, two `shuffle`) are moved round the nodes at the same time, each by a thread of its own. All check their memory
//! at every fourth move and at the end. What there is on the machine because of the cluster is counted before, after one process went round, and
//! again when all have ended.
//!
//! * [`census`]: what there is: processes, namespaces, mounts, control groups, descriptors, tmpfs.
//! * [`command`]: the command line.

pub mod census;
pub mod command;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mosix_lab::{Lab, StopFlag};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::cluster::{Cluster, ClusterSpec, ConfigItem};
use crate::migrate::load::{Load, Program, Programs};
use crate::migrate::machine;
use crate::migrate::mosix::ByMosix;
use crate::migrate::subject::{Mover, Subject};
use census::Census;

/// Environment variable by which the bodies of a process are found on all nodes.
const MARK: &str = "MOSIX_SOAK_MARK";
/// Moves of a process between two reports.
const REPORT_EVERY: u32 = 4;
/// Between two moves of a process.
const PAUSE: Duration = Duration::from_millis(30);
/// For the remains of a move to go, and for a second body.
const SETTLED: Duration = Duration::from_secs(30);
/// Processes that stay so often in a row are not tried any more.
const MAX_STAYS: u32 = 200;
/// Failures that are kept in words.
const MAX_FAILURES: usize = 50;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Completed moves, all processes together.
    pub moves: u32,
    /// Start of `shuffle`'s random numbers.
    pub seed: u64,
    /// Added to the daemons' configuration.
    pub config: Vec<ConfigItem>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Completed moves.
    pub moves: u32,
    /// Moves that did not happen while the process ran on, by reason.
    pub stayed: BTreeMap<String, u32>,
    /// Pages checked.
    pub checked_pages: u64,
    /// Pages that were wrong.
    pub bad_pages: u64,
    /// Processes that ended without having been told to, or badly.
    pub lost: u32,
    /// Times that a process had two bodies between moves.
    pub doubled: u32,
    /// What went wrong, in words; at most 50.
    pub failures: Vec<String>,
    /// What there is more of than before.
    pub left_behind: Vec<String>,
    /// What there was before.
    pub before: Census,
    /// And afterwards.
    pub after: Census,
    /// Time for the moves, seconds.
    pub seconds: f64,
    /// Kernel release.
    pub kernel: String,
    /// Load averages at the end.
    pub load_average: String,
}

impl Report {
    /// Nothing was lost, doubled, damaged or left behind, and so many moves were made.
    pub fn is_sound(&self, moves: u32) -> bool {
        self.moves >= moves
            && (self.bad_pages, self.lost, self.doubled) == (0, 0, 0)
            && self.failures.is_empty()
            && self.left_behind.is_empty()
            && self.checked_pages > 0
    }
}

/// One of the processes.
struct Walker<'a> {
    mover: ByMosix<'a>,
    subject: Subject,
    mark: String,
}

/// What the threads share.
struct Shared<'a> {
    done: AtomicU32,
    wanted: u32,
    report: Mutex<Report>,
    stop: &'a StopFlag,
}

/// Soaks, in a lab of at least two nodes.
///
/// # Errors
/// If the cluster does not come up, a process cannot be started, or the user wants to stop. What goes wrong with moves is in the report.
pub fn run(lab: &Lab, options: &Options, stop: &StopFlag) -> Result<Report> {
    lab.set_quota(false)?;
    let programs = Programs::find(lab.dir())?;
    let spec = ClusterSpec { balance: false, config: options.config.clone(), ..ClusterSpec::default() };
    let cluster = Cluster::boot(lab, &spec, stop)?;
    let load = |program, mib, rate_mib_s, threads| Load { program, mib, rate_mib_s, threads };
    // What is made once and kept (connections, folders) is there before anything is counted.
    let warm_up = Walker::start(lab, &cluster, "warm-up", programs.argv(load(Program::Churn, 4, 1.0, 1)))?;
    let shared = Shared { done: AtomicU32::new(0), wanted: lab.nodes().len() as u32, report: Mutex::default(), stop };
    warm_up.go_round(&shared);
    let mut report = shared.report.into_inner().unwrap_or_default();
    let before = Census::settled(lab, &cluster, SETTLED, |census| census.guests == 0)?;
    let seed = options.seed;
    let shuffle = |number: u64| {
        let mut argv = programs.argv(load(Program::Shuffle, 8, 0.0, 1));
        argv.extend(["--seed".into(), OsString::from((seed + number).to_string())]);
        argv
    };
    let walkers = [
        ("churn-small", programs.argv(load(Program::Churn, 16, 10.0, 2))),
        ("churn-large", programs.argv(load(Program::Churn, 64, 50.0, 8))),
        ("shuffle-1", shuffle(0)),
        ("shuffle-2", shuffle(1)),
    ];
    let walkers = walkers.into_iter().map(|(name, argv)| Walker::start(lab, &cluster, name, argv)).collect::<Result<Vec<_>>>()?;
    let warm_up_moves = report.moves;
    let shared = Shared { done: AtomicU32::new(0), wanted: options.moves, report: Mutex::new(report), stop };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for walker in walkers {
            let shared = &shared;
            scope.spawn(move || walker.go_round(shared));
        }
    });
    report = shared.report.into_inner().unwrap_or_default();
    stop.check()?;
    report.moves -= warm_up_moves;
    report.seconds = started.elapsed().as_secs_f64();
    let after = Census::settled(lab, &cluster, SETTLED, |census| census.more_than(&before).is_empty())?;
    report.left_behind = after.more_than(&before);
    (report.before, report.after) = (before, after);
    report.kernel = machine::kernel();
    report.load_average = machine::load_average();
    Ok(report)
}

impl<'a> Walker<'a> {
    fn start(lab: &'a Lab, cluster: &'a Cluster, name: &str, argv: Vec<OsString>) -> Result<Self> {
        let mark = format!("{}-{name}-", lab.id());
        let mut marked = vec![OsString::from("env"), format!("{MARK}={mark}").into()];
        marked.extend(argv);
        let (mover, subject) = ByMosix::start(lab, cluster, marked, Signal::SIGUSR1)?;
        Ok(Self { mover, subject, mark })
    }

    fn go_round(mut self, shared: &Shared<'_>) {
        if let Err(error) = self.moves(shared) {
            let mut report = lock(&shared.report);
            report.lost += 1;
            fail(&mut report, format!("{}: {error}", self.mark));
        }
    }

    fn moves(&mut self, shared: &Shared<'_>) -> Result<()> {
        self.subject.expect("ready", shared.stop)?;
        let (mut moves, mut stays) = (0, 0);
        while shared.done.load(Ordering::Relaxed) < shared.wanted && stays < MAX_STAYS {
            shared.stop.check()?;
            std::thread::sleep(PAUSE);
            match self.mover.shift()? {
                Ok(_) => {
                    shared.done.fetch_add(1, Ordering::Relaxed);
                    (moves, stays) = (moves + 1, 0);
                    lock(&shared.report).moves += 1;
                    if moves % REPORT_EVERY == 0 {
                        self.look(shared)?;
                    }
                }
                Err(why) => {
                    stays += 1;
                    *lock(&shared.report).stayed.entry(reason(&why)).or_default() += 1;
                }
            }
        }
        if stays == MAX_STAYS {
            fail(&mut lock(&shared.report), format!("{}: could not be moved any more", self.mark));
        }
        self.look(shared)?;
        let (said, status) = self.subject.end(&mut self.mover, shared.stop)?;
        self.note(shared, said.checked_pages, said.bad_pages, said.first_bad);
        if status.success() { Ok(()) } else { Err(crate::migrate::bad(format!("it ended with {status}"))) }
    }

    /// Its memory, and how many bodies it has.
    fn look(&mut self, shared: &Shared<'_>) -> Result<()> {
        let said = self.subject.report(&mut self.mover, shared.stop)?;
        self.note(shared, said.checked_pages, said.bad_pages, said.first_bad);
        let deadline = Instant::now() + SETTLED;
        loop {
            let bodies = census::with_environment(&format!("{MARK}={}", self.mark));
            if bodies == 1 {
                return Ok(());
            }
            // A second one may be the frozen source of the last move, which is on its way out.
            if Instant::now() > deadline {
                let mut report = lock(&shared.report);
                report.doubled += u32::from(bodies > 1);
                fail(&mut report, format!("{}: {bodies} bodies", self.mark));
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn note(&self, shared: &Shared<'_>, checked: u64, bad: u64, first_bad: Option<String>) {
        let mut report = lock(&shared.report);
        report.checked_pages += checked;
        report.bad_pages += bad;
        if let Some(first) = first_bad {
            fail(&mut report, format!("{}: {first}", self.mark));
        }
    }
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn fail(report: &mut Report, what: String) {
    if report.failures.len() < MAX_FAILURES {
        report.failures.push(what);
    }
}

/// The reason of a stay without what differs each time.
fn reason(why: &str) -> String {
    let why = why.rsplit("runs on: ").next().unwrap_or(why);
    why.chars().map(|letter| if letter.is_ascii_digit() { '#' } else { letter }).take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_without_their_numbers() {
        let why = |pid| {
            format!("moving a process: node1: process {pid} was not moved and runs on: churn (process {pid}) stays here: it has a child")
        };
        assert_eq!(reason(&why(12)), reason(&why(13)));
        assert_eq!(reason(&why(12)), "churn (process ##) stays here: it has a child");
    }

    #[test]
    fn soundness_needs_everything() {
        let good = Report { moves: 10, checked_pages: 1, ..Report::default() };
        assert!(good.is_sound(10) && !good.is_sound(11));
        for bad in [
            Report { bad_pages: 1, ..good.clone() },
            Report { lost: 1, ..good.clone() },
            Report { doubled: 1, ..good.clone() },
            Report { failures: vec!["x".into()], ..good.clone() },
            Report { left_behind: vec!["x".into()], ..good.clone() },
            Report { checked_pages: 0, ..good },
        ] {
            assert!(!bad.is_sound(10), "{bad:?}");
        }
    }
}
