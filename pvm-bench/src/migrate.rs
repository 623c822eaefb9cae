//! `pvm-bench migrate`: how long a process stands still when it is moved, as it sees it itself.
//!
//! The process is `churn` of the workloads (known memory, writers at a given rate, a thread that notes every gap in the time of the day), or
//! another program that says the same lines. For each size, rate and number of threads it is moved to and fro, once by `mosixd` (which also gives
//! its own figures) and once, in the same lab and run, by plain CRIU: dump to memory, restore from it, no pre-copy and no network. After each
//! move the process is asked for the gap that it saw, and checks its memory.
//!
//! The nodes' speed limit is off: what is measured is the move, not how long a slow node takes for it.
//!
//! * [`load`]: the programs, and what they are to do.
//! * [`subject`]: a process as seen from outside; its moves.
//! * [`mosix`], [`stop_copy`]: the two ways to move it.
//! * [`copy_end`]: what plain CRIU needs inside the nodes' namespaces.
//! * [`slowdown`]: what the time before the blackout costs a memory-bound program.
//! * [`report`]: rows, conditions, table. [`stats`]: percentiles of a few dozen figures. `machine`: what the kernel says.
//! * [`command`]: the command line.

pub mod command;
pub mod copy_end;
pub mod load;
pub(crate) mod machine;
pub mod mosix;
pub mod report;
pub mod slowdown;
pub mod stats;
pub mod stop_copy;
pub mod subject;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mosix_criu::Criu;
use mosix_lab::{Lab, StopFlag, find_beside};

use crate::cluster::{Cluster, ClusterSpec, ConfigItem, find_criu};
use crate::{BenchError, Result};
use load::{Load, Program, Programs};
use mosix::ByMosix;
use report::{Conditions, Report, Row, Series};
use slowdown::SlowDown;
use stop_copy::ByCriu;

/// Between two moves: the process runs, writes, and the nodes tidy up after the move before.
pub const PAUSE: Duration = Duration::from_millis(150);
/// Images exist up to three times during a move, beside the process; more than that must be free.
const ROOM_FACTOR: u64 = 4;
/// Must stay free for all else, bytes.
const ROOM_SPARE_BYTES: u64 = 512 << 20;

/// What to measure: every combination for `churn`; other programs once for each size and rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The programs.
    pub programs: Vec<Program>,
    /// Memory of the process, MiB.
    pub sizes_mib: Vec<u64>,
    /// Written by it, MiB/s.
    pub rates_mib_s: Vec<f64>,
    /// Its writers.
    pub threads: Vec<u32>,
    /// Sizes of programs other than `churn`, MiB.
    pub other_sizes_mib: Vec<u64>,
    /// Memory that a memory-bound program walks through, MiB: its slow-down is measured.
    pub walks_mib: Vec<u64>,
    /// Moves of each.
    pub moves: u32,
    /// Measure plain CRIU, too.
    pub baseline: bool,
    /// Added to the daemons' configuration.
    pub config: Vec<ConfigItem>,
}

impl Options {
    fn loads(&self) -> Vec<Load> {
        let mut loads = Vec::new();
        for program in &self.programs {
            let own = program.has_writers();
            for mib in if own { &self.sizes_mib } else { &self.other_sizes_mib } {
                for rate_mib_s in &self.rates_mib_s {
                    for threads in if own { self.threads.as_slice() } else { &[1] } {
                        loads.push(Load { program: *program, mib: *mib, rate_mib_s: *rate_mib_s, threads: *threads });
                    }
                }
            }
        }
        loads
    }
}

/// Measures everything in a lab of at least two nodes, whose speed limit it switches off.
///
/// Moves that fail and processes that get lost are written down in their rows; so is, beside them, what was not measured for want of
/// memory.
///
/// # Errors
/// If the cluster does not come up, a process cannot be started, or the user wants to stop.
pub fn run(lab: &Lab, options: &Options, stop: &StopFlag) -> Result<Report> {
    if lab.nodes().len() < 2 {
        return Err(bad("two nodes are needed to move anything"));
    }
    lab.set_quota(false)?;
    let tools = Tools::find(lab)?;
    let conditions = Conditions::now(lab, &tools.criu, options, machine::busy_share())?;
    let spec = ClusterSpec { balance: false, config: options.config.clone(), ..ClusterSpec::default() };
    let cluster = Cluster::boot(lab, &spec, stop)?;
    let mut bench = Bench {
        lab,
        cluster,
        tools,
        options,
        stop,
        report: Report { rows: Vec::new(), slow_down: Vec::new(), skipped: Vec::new(), conditions },
    };
    bench.all()?;
    let Bench { cluster, mut report, .. } = bench;
    drop(cluster);
    report.conditions.finish(machine::busy_share());
    Ok(report)
}

struct Bench<'a> {
    lab: &'a Lab,
    cluster: Cluster,
    tools: Tools,
    options: &'a Options,
    stop: &'a StopFlag,
    report: Report,
}

impl Bench<'_> {
    fn all(&mut self) -> Result<()> {
        let loads = self.options.loads();
        let progress = progress(loads.len() + self.options.walks_mib.len());
        for load in loads {
            progress.set_message(load.to_string());
            self.one(load)?;
            progress.inc(1);
        }
        for walk_mib in &self.options.walks_mib {
            progress.set_message(format!("slow-down, {walk_mib} MiB"));
            let slow_down = self.slow_down(*walk_mib)?;
            self.report.slow_down.push(slow_down);
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn one(&mut self, load: Load) -> Result<()> {
        let prepared = self.tools.programs.prepare(load.program).map_err(|why| format!("{load}: {why}"));
        let version = match (prepared, too_large(&load)) {
            (Ok(version), None) => version,
            (Err(why), _) | (_, Some(why)) => {
                self.report.skipped.push(why);
                return Ok(());
            }
        };
        let mosix = self.by_mosix(load)?;
        let plain = if self.options.baseline { Some(self.by_criu(load)?) } else { None };
        self.report.rows.push(Row::new(load.program, version, load.rate_mib_s, load.threads, mosix, plain));
        Ok(())
    }

    fn by_mosix(&self, load: Load) -> Result<Series> {
        let argv = self.tools.programs.argv(load);
        let (mut mover, subject) = ByMosix::start(self.lab, &self.cluster, argv, load.program.report_signal())?;
        subject.measure(self.options.moves, &mut mover, self.stop)
    }

    fn by_criu(&self, load: Load) -> Result<Series> {
        let (mut mover, subject) = ByCriu::start(self.lab, &self.tools, load)?;
        subject.measure(self.options.moves, &mut mover, self.stop)
    }

    fn slow_down(&self, walk_mib: u64) -> Result<SlowDown> {
        let argv = self.tools.programs.walk_argv(walk_mib);
        let (mut mover, subject) = ByMosix::start(self.lab, &self.cluster, argv, Program::Churn.report_signal())?;
        slowdown::measure(walk_mib, self.options.moves, &mut mover, subject, self.stop)
    }
}

/// The programs that are needed.
pub(crate) struct Tools {
    pub(crate) programs: Programs,
    pub(crate) bench: PathBuf,
    pub(crate) criu: Criu,
}

impl Tools {
    fn find(lab: &Lab) -> Result<Self> {
        Ok(Self { programs: Programs::find(lab.dir())?, bench: find_beside("pvm-bench")?, criu: Criu::at(find_criu()?) })
    }
}

fn too_large(load: &Load) -> Option<String> {
    let needed = load.mib.saturating_mul(1 << 20).saturating_mul(ROOM_FACTOR).saturating_add(ROOM_SPARE_BYTES);
    let free = machine::memory_available_bytes()?;
    (free < needed).then(|| format!("{load}: needs {} MiB of free memory, there are {}", needed >> 20, free >> 20))
}

pub(crate) fn bad(why: impl Into<String>) -> BenchError {
    BenchError::Run { what: "moving a process".into(), why: why.into() }
}

/// Drawn on a terminal only.
fn progress(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar
}
