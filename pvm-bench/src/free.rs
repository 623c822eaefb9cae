//! The control: greedy balancing with migration that costs nothing.
//!
//! Processes are moved by writing their pids into another node's cgroup; no data is copied, nothing is frozen, one program
//! sees all nodes. What this measures is the best that the greedy rule can do *in this lab*: it must come out at the column
//! "greedy", else the lab, not the migration, is at fault. It is never to be reported as the live side's result.

use std::path::PathBuf;

use mosix_lab::{Lab, Node, StopFlag, find_beside};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::Result;
use crate::race::{self, Runner};
use crate::table1::{LiveRun, LiveSide};

/// The control.
#[derive(Debug)]
pub struct FreeMigration {
    burn: PathBuf,
}

impl FreeMigration {
    /// # Errors
    /// If the `burn` program has not been built.
    pub fn new() -> Result<Self> {
        Ok(Self { burn: find_beside("burn")? })
    }
}

impl LiveSide for FreeMigration {
    fn start(&self) -> &str {
        "placed"
    }

    fn describe(&self) -> String {
        "control: greedy balancing, migration without cost (cgroup moves); not the live system".into()
    }

    fn run(&mut self, lab: &Lab, placement: &[usize], cpu_s: f64, stop: &StopFlag) -> Result<LiveRun> {
        let mut migrations = 0;
        let times = race::run(lab, &self.burn, placement, cpu_s, stop, &mut |runners| {
            migrations += balance(lab.nodes(), runners);
            Ok(())
        })?;
        Ok(LiveRun { elapsed_s: times.elapsed_s, migrations, entitlement: times.entitlement })
    }
}

/// The paper's rule: while two nodes differ by more than one process, move one. Returns the number of moves.
fn balance(nodes: &[Node], tasks: &mut [Runner]) -> u32 {
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
        let (Some(from), Some(to)) = (fullest, emptiest) else { return moves };
        if loads.get(from).copied().unwrap_or(0) <= loads.get(to).copied().unwrap_or(0) + 1 {
            return moves;
        }
        let (Some(target), Some(task)) = (nodes.get(to), tasks.iter_mut().find(|task| !task.ended && task.node == from)) else {
            return moves;
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
