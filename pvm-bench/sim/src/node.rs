//! Nodes: how they share their CPUs, and what they know.
//!
//! All running processes of a node get the same rate. So the node keeps two counters, of CPU seconds that each of them got and of lag that
//! each of them gained; a process remembers where they stood. A change at the node then costs the same however many processes it has;
//! only finding out who ends first looks at all of them.

use mosix_policy::{Features, Ledger, NodeId, Stance, Window};

use crate::process::{ProcIx, Process};

/// Place of a node in the world's list. Also its [`NodeId`].
pub(crate) type NodeIx = usize;

/// A sample is taken just after what happened at its moment.
pub(crate) const JUST_AFTER_S: f64 = 1e-9;

/// A move that this node wants, while the target has not answered.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    pub(crate) id: u64,
    pub(crate) process: ProcIx,
    pub(crate) target: NodeIx,
    pub(crate) letter: crate::event::Ask,
    pub(crate) rule: mosix_policy::Rule,
    pub(crate) tries: u32,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) speed: f64,
    pub(crate) cpus: u16,
    pub(crate) memory_bytes: u64,
    pub(crate) features: Features,
    pub(crate) up: bool,
    /// Counts its lives: events of an earlier one are void.
    pub(crate) life: u32,
    pub(crate) stance: Stance,
    /// Processes that are here, asleep or not, frozen ones not.
    pub(crate) processes: Vec<ProcIx>,
    pub(crate) running: u32,
    /// Frozen ones whose body is still here.
    pub(crate) frozen: u32,
    /// Memory of what is here, frozen included.
    pub(crate) used_bytes: u64,
    /// Memory that incoming copies already take.
    pub(crate) arriving_bytes: u64,
    /// Transfers at either end.
    pub(crate) transfers: Vec<usize>,
    pub(crate) window: Window,
    pub(crate) ledger: Ledger,
    pub(crate) seq: u32,
    pub(crate) asking: Option<Asking>,
    pub(crate) refused: Vec<(NodeId, f64)>,
    /// Whom to ask for room next.
    pub(crate) explorer: mosix_policy::Explorer,
    pub(crate) smooth_load: f64,
    /// Which side of a partition.
    pub(crate) side: u8,
    // Counters and rates, as of `since_s`.
    pub(crate) since_s: f64,
    pub(crate) got_s: f64,
    pub(crate) lag_s: f64,
    pub(crate) rate: f64,
    pub(crate) fair: f64,
    /// Counts changes: a planned end holds for one version.
    pub(crate) version: u32,
}

impl Node {
    /// Brings the counters to `now_s`.
    pub(crate) fn advance(&mut self, now_s: f64, smoothing_s: f64) {
        let dt_s = (now_s - self.since_s).max(0.0);
        self.got_s += self.rate * dt_s;
        self.lag_s = mosix_policy::lag::accrue(self.lag_s, self.fair, self.rate, dt_s);
        if smoothing_s > 0.0 {
            let keep = (-dt_s / smoothing_s).exp();
            self.smooth_load = keep * self.smooth_load + (1.0 - keep) * f64::from(self.running);
        }
        self.since_s = now_s;
    }

    /// Brings one of its processes up to date. [`Node::advance`] first.
    pub(crate) fn settle(&self, process: &mut Process) {
        if !process.asleep {
            process.left_s -= (self.got_s - process.v_mark) / process.drag;
            process.lag_s += self.lag_s - process.l_mark;
        }
        process.v_mark = self.got_s;
        process.l_mark = self.lag_s;
    }

    /// A process comes to run here, or leaves.
    pub(crate) fn enter(&mut self, ix: ProcIx, process: &mut Process) {
        process.v_mark = self.got_s;
        process.l_mark = self.lag_s;
        self.processes.push(ix);
        self.running += u32::from(!process.asleep);
        self.used_bytes += process.memory_bytes;
    }

    pub(crate) fn exit(&mut self, ix: ProcIx, process: &mut Process) {
        self.settle(process);
        if let Some(at) = self.processes.iter().position(|p| *p == ix) {
            self.processes.swap_remove(at);
            self.running -= u32::from(!process.asleep);
            self.used_bytes -= process.memory_bytes;
        }
    }

    /// What the daemon would measure: tells the ledger. Frozen ones count until they are gone.
    pub(crate) fn sample(&mut self, now_s: f64) {
        let running = u16::try_from(self.running + self.frozen).unwrap_or(u16::MAX);
        self.ledger.sample(running, self.used_bytes, now_s + JUST_AFTER_S);
    }
}
