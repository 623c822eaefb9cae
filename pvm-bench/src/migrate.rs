//! `pvm-bench migrate`: how long a process stands still when it is moved, as it sees it itself.
//!
//! The process is `churn` of the workloads: known memory, writers at a given rate, and a thread that notes every gap in the time of the day.
//! For each size, rate and number of threads it is moved to and fro, once by `mosixd` (which also gives its own figures) and once, in the
//! same lab and run, by plain CRIU: dump to memory, restore from it, no pre-copy and no network. After each move the process is asked for
//! the gap that it saw, and checks its memory.
//!
//! The nodes' speed limit is off: what is measured is the move, not how long a slow node takes for it.
//!
//! * [`stats`]: percentiles of a few dozen figures.
//! * [`report`]: rows, conditions, table.
//! * [`subject`]: `churn` as seen from outside; one cell of the table is measured here.
//! * [`mosix`], [`stop_copy`]: the two ways to move it.
//! * [`copy_end`]: what plain CRIU needs inside the nodes' namespaces.
//! * [`command`]: the command line.

pub mod command;
pub mod copy_end;
pub mod mosix;
pub mod report;
pub mod stats;
pub mod stop_copy;
pub mod subject;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mosix_criu::Criu;
use mosix_lab::{Lab, StopFlag, find_beside};

use crate::cluster::{Cluster, ClusterSpec, find_criu};
use crate::{BenchError, Result};
use mosix::ByMosix;
use report::{Conditions, Report, Row};
use stop_copy::ByCriu;
use subject::Load;

/// Between two moves: the process runs, writes, and the nodes tidy up after the move before.
pub const PAUSE: Duration = Duration::from_millis(150);
/// Images exist up to three times during a move, beside the process; more than that must be free.
const ROOM_FACTOR: u64 = 4;
/// Must stay free for all else, bytes.
const ROOM_SPARE_BYTES: u64 = 512 << 20;

/// What to measure: every combination.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Memory of the process, MiB.
    pub sizes_mib: Vec<u64>,
    /// Written by it, MiB/s.
    pub rates_mib_s: Vec<f64>,
    /// Its writers.
    pub threads: Vec<u32>,
    /// Moves of each.
    pub moves: u32,
}

impl Options {
    fn loads(&self) -> Vec<Load> {
        let mut loads = Vec::new();
        for mib in &self.sizes_mib {
            for rate_mib_s in &self.rates_mib_s {
                for threads in &self.threads {
                    loads.push(Load { mib: *mib, rate_mib_s: *rate_mib_s, threads: *threads });
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
    let tools = Tools::find()?;
    let cluster = Cluster::boot(lab, &ClusterSpec { balance: false, ..ClusterSpec::default() }, stop)?;
    let mut report = Report { conditions: Conditions::now(lab, &tools.criu, options)?, rows: Vec::new(), skipped: Vec::new() };
    let loads = options.loads();
    let progress = progress(loads.len() * 2);
    for load in loads {
        if let Some(why) = too_large(&load) {
            report.skipped.push(why);
            progress.inc(2);
            continue;
        }
        progress.set_message(format!("{load} by mosix"));
        report.rows.push(by_mosix(lab, &cluster, &tools, load, options.moves, stop)?);
        progress.inc(1);
        progress.set_message(format!("{load} by criu"));
        report.rows.push(by_criu(lab, &tools, load, options.moves, stop)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    report.conditions.load_average_after = report::load_average();
    Ok(report)
}

/// The programs that are needed.
pub(crate) struct Tools {
    pub(crate) churn: PathBuf,
    pub(crate) bench: PathBuf,
    pub(crate) criu: Criu,
}

impl Tools {
    fn find() -> Result<Self> {
        Ok(Self { churn: find_beside("churn")?, bench: find_beside("pvm-bench")?, criu: Criu::at(find_criu()?) })
    }
}

fn by_mosix(lab: &Lab, cluster: &Cluster, tools: &Tools, load: Load, moves: u32, stop: &StopFlag) -> Result<Row> {
    let (mut mover, subject) = ByMosix::start(lab, cluster, &tools.churn, load)?;
    subject.measure("mosix", load, moves, &mut mover, stop)
}

fn by_criu(lab: &Lab, tools: &Tools, load: Load, moves: u32, stop: &StopFlag) -> Result<Row> {
    let (mut mover, subject) = ByCriu::start(lab, tools, load)?;
    subject.measure("criu", load, moves, &mut mover, stop)
}

fn too_large(load: &Load) -> Option<String> {
    let needed = load.mib.saturating_mul(1 << 20).saturating_mul(ROOM_FACTOR).saturating_add(ROOM_SPARE_BYTES);
    let free = report::memory_available_bytes()?;
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
