//! Table 1: K identical processes on 16 workstations, placed once by PVM, and balanced live.
//!
//! Two sides that know nothing of each other: the static one is [`crate::pvm::VirtualMachine`]; the live one is whatever
//! implements [`LiveSide`]. Each row runs on one and then on the other, in the same lab, and checks itself
//! ([`crate::check`]).

use indicatif::{ProgressBar, ProgressStyle};
use mosix_lab::{Lab, Node, StopFlag};
use mosix_policy::optimal::{bound_s, greedy_s};

use crate::check::{Measured, checked};
use crate::paper::{self, WORK_S};
use crate::pvm::VirtualMachine;
use crate::row::{Conditions, Report, Row};
use crate::scale::TimeScale;
use crate::{BenchError, Result};

/// Most processes of one row.
pub const MAX_PROCESSES: u32 = 1024;

/// The side that moves running processes.
pub trait LiveSide {
    /// Where its processes start, e.g. `pvm` (PVM's placement) or `home` (all on one node); becomes [`Row::start`].
    fn start(&self) -> &str;

    /// The side in words, for the conditions.
    fn describe(&self) -> String;

    /// Runs `processes` processes of `cpu_s` CPU seconds each to their end. `placement` says on which node (index) PVM put each of them.
    /// The quota is on when this is called and must be on when it returns; nothing of the run may be left in the lab.
    ///
    /// # Errors
    /// If a process fails or gets lost.
    fn run(&mut self, lab: &Lab, placement: &[usize], cpu_s: f64, stop: &StopFlag) -> Result<LiveRun>;
}

/// Result of a run with migration.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveRun {
    /// From the start signal to the end of the last process, real seconds.
    pub elapsed_s: f64,
    /// Completed moves.
    pub migrations: u32,
    /// Lowest CPU received / CPU entitled of the nodes that were busy all the time.
    pub entitlement: f64,
}

impl Measured for LiveRun {
    fn entitlement(&self) -> f64 {
        self.entitlement
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Numbers of processes.
    pub rows: Vec<u32>,
    /// T.
    pub scale: TimeScale,
    /// Whether PVM's column is wanted.
    pub with_static: bool,
}

/// The rows of the paper, and 30, which its row 31 seems to have been.
pub fn all_rows() -> Vec<u32> {
    let mut rows: Vec<u32> = paper::TABLE1.iter().map(|row| row.processes).chain([30]).collect();
    rows.sort_unstable();
    rows
}

/// Runs all rows. `live` is `None` for PVM's column alone.
///
/// # Errors
/// The first error; rows measured so far are lost, the lab is as before.
pub fn run(lab: &Lab, options: &Options, mut live: Option<&mut dyn LiveSide>, stop: &StopFlag) -> Result<Report> {
    if let Some(bad) = options.rows.iter().find(|row| !(1..=MAX_PROCESSES).contains(*row)) {
        return Err(BenchError::Run { what: "Table 1".into(), why: format!("{bad} processes; 1 to {MAX_PROCESSES}") });
    }
    let mut conditions = conditions(lab, options, live.as_deref());
    let progress = progress(options.rows.len());
    let mut rows: Vec<Row> = options.rows.iter().map(|row| empty_row(*row, lab, live.as_deref())).collect();
    // One side after the other, not row by row: PVM's daemons are gone when the live side runs, and start only once.
    let mut placements: Vec<Vec<usize>> = rows.iter().map(|row| evenly(row.processes, lab.nodes().len())).collect();
    if options.with_static {
        placements = static_side(lab, options, &mut rows, &mut conditions, &progress, stop)?;
    }
    if let Some(live) = &mut live {
        let mut live = |placement: &[usize], cpu_s| live.run(lab, placement, cpu_s, stop);
        live_side(options.scale, speed(lab), &mut live, &mut rows, &placements, &mut conditions, &progress)?;
    }
    progress.finish_and_clear();
    Ok(Report { conditions, rows })
}

/// What PVM would do, near enough, where it is not run: round robin.
fn evenly(processes: u32, nodes: usize) -> Vec<usize> {
    (0..nodes).cycle().take(processes as usize).collect()
}

fn static_side(
    lab: &Lab,
    options: &Options,
    rows: &mut [Row],
    conditions: &mut Conditions,
    progress: &ProgressBar,
    stop: &StopFlag,
) -> Result<Vec<Vec<usize>>> {
    let mut machine = VirtualMachine::boot(lab, stop)?;
    let mut placements = Vec::new();
    progress.reset();
    for row in rows {
        progress.set_message(format!("PVM, {} processes", row.processes));
        let (run, again) = checked(|| machine.run_static(row.processes, options.scale.cpu_s(speed(lab))))?;
        row.pvm_s = Some(options.scale.to_paper_s(run.elapsed_s));
        placements.push(run.placement);
        finish(row, run.entitlement, again, conditions, progress);
    }
    machine.halt()?;
    Ok(placements)
}

fn live_side(
    scale: TimeScale,
    speed: f64,
    live: &mut dyn FnMut(&[usize], f64) -> Result<LiveRun>,
    rows: &mut [Row],
    placements: &[Vec<usize>],
    conditions: &mut Conditions,
    progress: &ProgressBar,
) -> Result<()> {
    progress.reset();
    for (row, placement) in rows.iter_mut().zip(placements) {
        progress.set_message(format!("live, {} processes", row.processes));
        let (run, again) = checked(|| live(placement, scale.cpu_s(speed)))?;
        row.live_s = Some(scale.to_paper_s(run.elapsed_s));
        row.migrations = Some(run.migrations);
        finish(row, run.entitlement, again, conditions, progress);
    }
    Ok(())
}

/// Writes down how believable a side of a row is.
fn finish(row: &mut Row, entitlement: f64, again: bool, conditions: &mut Conditions, progress: &ProgressBar) {
    row.entitlement = row.entitlement.min(entitlement);
    if again && !conditions.repeated.contains(&row.processes) {
        conditions.repeated.push(row.processes);
    }
    progress.inc(1);
}

fn empty_row(processes: u32, lab: &Lab, live: Option<&(dyn LiveSide + '_)>) -> Row {
    let nodes = u32::try_from(lab.nodes().len()).unwrap_or(u32::MAX);
    Row {
        processes,
        greedy_s: greedy_s(processes, nodes, WORK_S),
        bound_s: bound_s(processes, nodes, WORK_S),
        start: live.map_or("none", |live| live.start()).into(),
        pvm_s: None,
        live_s: None,
        migrations: None,
        // The lowest seen so far; every finished side lowers it to a real one.
        entitlement: f64::MAX,
    }
}

/// Speed of a normal node: the fastest ones.
fn speed(lab: &Lab) -> f64 {
    lab.nodes().iter().map(Node::speed).fold(0.0, f64::max)
}

fn conditions(lab: &Lab, options: &Options, live: Option<&(dyn LiveSide + '_)>) -> Conditions {
    let normal = lab.nodes().first().map(|node| node.quota);
    Conditions {
        nodes: lab.nodes().len(),
        speed: speed(lab),
        quota_us: normal.map_or(0, |quota| quota.quota_us),
        period_us: normal.map_or(0, |quota| quota.period_us),
        time_scale_s: options.scale.t_s(),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
        static_side: if options.with_static {
            "PVM 3.4, one pvm_spawn, PvmTaskDefault, daemons inside the nodes' quota".into()
        } else {
            "none".into()
        },
        live_side: live.map_or_else(|| "none".into(), LiveSide::describe),
        timing: "start signal to last result, all processes started before; paper seconds = real * 300 / time_scale_s".into(),
        repeated: Vec::new(),
    }
}

/// Drawn on a terminal only.
fn progress(rows: usize) -> ProgressBar {
    let bar = ProgressBar::new(rows as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar
}
