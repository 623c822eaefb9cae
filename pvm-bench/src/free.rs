//! The control: greedy balancing with migration that costs nothing.
//!
//! Processes are moved by writing their pids into another node's cgroup; no data is copied, nothing is frozen, one program
//! sees all nodes. What this measures is the best that the greedy rule can do *in this lab*: it must come out at the column
//! "greedy", else the lab, not the migration, is at fault. It is never to be reported as the live side's result.

use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node, StopFlag, UsageSnapshot, find_beside};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::table1::{LiveRun, LiveSide};
use crate::{BenchError, Result, failed};

/// How often ends are looked for and loads compared.
const TICK: Duration = Duration::from_millis(2);
/// Time for all processes to reach the start barrier, without quota.
const START: Duration = Duration::from_millis(500);
/// A run may take this many times what one process per node would.
const PATIENCE_FACTOR: f64 = 10.0;

/// The control.
#[derive(Debug)]
pub struct FreeMigration {
    burn: PathBuf,
}

struct Task {
    child: Child,
    pid: i32,
    go: PipeWriter,
    node: usize,
    ended: bool,
}

impl FreeMigration {
    /// # Errors
    /// If the `burn` program has not been built.
    pub fn new() -> Result<Self> {
        Ok(Self { burn: find_beside("burn")? })
    }

    fn start_task(&self, node: &Node, cpu_s: f64) -> Result<Task> {
        let (stdin, go) = std::io::pipe().map_err(failed("making a pipe"))?;
        let argv = [self.burn.clone().into_os_string(), "--cpu-s".into(), format!("{cpu_s}").into()];
        let child = node.spawn(Exec::new(argv).stdin(stdin).signal_on_disconnect(Signal::SIGKILL))?;
        let pid = child.pid_outside().ok_or_else(|| bad("a process has no pid that we can see"))?;
        Ok(Task { child, pid, go, node: node.index, ended: false })
    }
}

fn bad(why: &str) -> BenchError {
    BenchError::Run { what: "the control run".into(), why: why.into() }
}

impl LiveSide for FreeMigration {
    fn start(&self) -> &str {
        "placed"
    }

    fn describe(&self) -> String {
        "control: greedy balancing, migration without cost (cgroup moves); not the live system".into()
    }

    fn run(&mut self, lab: &Lab, placement: &[usize], cpu_s: f64, stop: &StopFlag) -> Result<LiveRun> {
        let processes = placement.len();
        lab.set_quota(false)?;
        let nodes = lab.nodes();
        let places = placement.iter().filter_map(|index| nodes.get(*index));
        let mut tasks = places.map(|node| self.start_task(node, cpu_s)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(START);
        lab.set_quota(true)?;
        let before = lab.snapshot()?;
        let started = Instant::now();
        for task in &mut tasks {
            task.go.write_all(b"\n").map_err(failed("giving the start signal"))?;
        }
        let slowest = nodes.iter().map(Node::speed).fold(1.0, f64::min);
        let limit_s = cpu_s / slowest * processes as f64 / nodes.len() as f64 * PATIENCE_FACTOR + cpu_s / slowest * PATIENCE_FACTOR;
        let (mut migrations, mut entitlement) = (0, None);
        while tasks.iter().any(|task| !task.ended) {
            stop.check()?;
            if started.elapsed().as_secs_f64() > limit_s {
                return Err(bad("took far too long"));
            }
            std::thread::sleep(TICK);
            collect(&mut tasks)?;
            if entitlement.is_none() && tasks.iter().any(|task| task.ended) {
                entitlement = Some(entitlement_until_now(lab, &before, &tasks)?);
            }
            migrations += balance(nodes, &mut tasks)?;
        }
        Ok(LiveRun { elapsed_s: started.elapsed().as_secs_f64(), migrations, entitlement: entitlement.unwrap_or(0.0) })
    }
}

/// Until the first process ends, every node with a process is busy.
fn entitlement_until_now(lab: &Lab, before: &UsageSnapshot, tasks: &[Task]) -> Result<f64> {
    let ratios = before.entitlement_until(&lab.snapshot()?);
    Ok(crate::check::lowest(&ratios, |index| tasks.iter().any(|task| task.node == index)))
}

/// Notices processes that ended.
fn collect(tasks: &mut [Task]) -> Result<()> {
    for task in tasks.iter_mut().filter(|task| !task.ended) {
        if let Some(status) = task.child.try_wait()? {
            if !status.success() {
                return Err(bad(&format!("a process ended with {status}")));
            }
            task.ended = true;
        }
    }
    Ok(())
}

/// The paper's rule: while two nodes differ by more than one process, move one. Returns the number of moves.
fn balance(nodes: &[Node], tasks: &mut [Task]) -> Result<u32> {
    let mut moves = 0;
    loop {
        let mut loads = vec![0_usize; nodes.len()];
        for task in tasks.iter().filter(|task| !task.ended) {
            if let Some(load) = loads.get_mut(task.node) {
                *load += 1;
            }
        }
        let fullest = (0..nodes.len()).max_by_key(|index| loads.get(*index));
        let emptiest = (0..nodes.len()).min_by_key(|index| loads.get(*index));
        let (Some(from), Some(to)) = (fullest, emptiest) else { return Ok(moves) };
        if loads.get(from).copied().unwrap_or(0) <= loads.get(to).copied().unwrap_or(0) + 1 {
            return Ok(moves);
        }
        let (Some(target), Some(task)) = (nodes.get(to), tasks.iter_mut().find(|task| !task.ended && task.node == from)) else {
            return Ok(moves);
        };
        task.node = to;
        // It may have ended since we looked; the next look will tell.
        if target.cgroup.add(task.pid).is_ok() {
            pin(task.pid, target.cpu);
            moves += 1;
        }
    }
}

/// Pins a process to a CPU; one that has just ended needs no CPU.
fn pin(pid: i32, cpu: usize) {
    let mut cpus = CpuSet::new();
    let _ = cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(pid), &cpus));
}
