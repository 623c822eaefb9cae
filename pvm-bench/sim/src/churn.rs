//! Failures, partitions, and owners who want their nodes back.

use mosix_policy::Stance;
use rand::Rng;

use crate::chances::Chance;
use crate::event::Event;
use crate::node::NodeIx;
use crate::process::{Place, ProcIx};
use crate::world::{World, fresh_node};

/// Time down, if the scenario does not say.
const DOWN_S: f64 = 30.0;

impl World {
    pub(crate) fn plan_churn(&mut self) {
        let churn = self.scenario.churn.clone();
        if churn.crash_every_s > 0.0 {
            for node in 0..self.nodes.len() {
                self.plan_crash(node, churn.crash_every_s);
            }
        }
        if churn.partition_at_s > 0.0 {
            let at_s = self.scenario.warmup_s + churn.partition_at_s;
            self.queue.push(at_s, Event::Partition { begins: true });
            self.queue.push(at_s + churn.partition_s, Event::Partition { begins: false });
        }
    }

    fn plan_crash(&mut self, node: NodeIx, every_s: f64) {
        let wait_s = Chance::Exponential { exponential: every_s }.draw(&mut self.fate);
        self.queue.push(self.now_s.max(self.scenario.warmup_s) + wait_s, Event::Crash { node });
    }

    /// What runs there is lost, and what has its home there: nobody would take its results.
    pub(crate) fn crash(&mut self, at: NodeIx) {
        self.touch(at);
        for slot in self.nodes[at].transfers.clone() {
            let source = self.transfers[slot].as_ref().map(|t| t.from);
            if source == Some(at) { self.lose_with_process(slot) } else { self.abort(slot) }
        }
        let guests: Vec<ProcIx> = (0..self.processes.len())
            .filter(|p| self.processes[*p].home == at || self.processes[*p].place == Place::At(at))
            .filter(|p| self.processes[*p].background.is_none())
            .collect();
        for ix in guests {
            self.kill(ix);
        }
        let (id, speed, cpus, memory, features, life) = {
            let n = &self.nodes[at];
            (n.id, n.speed, n.cpus, n.memory_bytes, n.features, n.life)
        };
        // Background processes sleep through it: their owner starts them again.
        let (kept, version) = (std::mem::take(&mut self.nodes[at].processes), self.nodes[at].version);
        let mut node = fresh_node(id, speed, cpus, memory, features);
        (node.up, node.life, node.version, node.since_s) = (false, life + 1, version.wrapping_add(1), self.now_s);
        for &ix in &kept {
            let p = &mut self.processes[ix];
            p.asleep = true;
            node.enter(ix, p);
        }
        self.nodes[at] = node;
        let down_s = self.scenario.churn.down_s.unwrap_or(Chance::Constant(DOWN_S)).draw(&mut self.fate);
        self.queue.push(self.now_s + down_s, Event::Rejoin { node: at });
        self.metrics.crashes += 1;
    }

    fn lose_with_process(&mut self, slot: usize) {
        let Some(ix) = self.transfers[slot].as_ref().map(|t| t.process) else { return };
        let frozen = matches!(self.processes[ix].place, Place::Between { .. });
        self.lose(slot);
        if frozen {
            self.count_lost(ix);
        }
    }

    fn kill(&mut self, ix: ProcIx) {
        if self.processes[ix].in_flight {
            let slot = self.transfers.iter().position(|t| t.as_ref().is_some_and(|t| t.process == ix));
            if let Some(slot) = slot {
                self.abort(slot);
            }
        }
        match self.processes[ix].place {
            Place::At(node) => {
                self.touch(node);
                self.nodes[node].exit(ix, &mut self.processes[ix]);
                self.processes[ix].place = Place::Lost;
                self.changed(node);
            }
            Place::Unborn => self.processes[ix].place = Place::Lost,
            Place::Between { .. } | Place::Ended | Place::Lost => return,
        }
        self.count_lost(ix);
    }

    fn count_lost(&mut self, ix: ProcIx) {
        self.alive -= 1;
        self.metrics.lost += 1;
        self.redrag_partner(ix);
        let job = &mut self.jobs[self.processes[ix].job];
        job.left -= 1;
        job.lost = true;
    }

    pub(crate) fn rejoin(&mut self, at: NodeIx) {
        self.touch(at);
        self.nodes[at].up = true;
        let life = self.nodes[at].life;
        self.changed(at);
        self.queue.push(self.now_s, Event::Tick { node: at, life });
        self.plan_crash(at, self.scenario.churn.crash_every_s);
    }

    /// Two halves that hear nothing of each other; transfers in between are given up.
    pub(crate) fn partition(&mut self, begins: bool) {
        self.partitioned = begins;
        if !begins {
            return;
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].side = self.fate.random_range(0..2);
        }
        for slot in 0..self.transfers.len() {
            let cut = self.transfers[slot].as_ref().is_some_and(|t| self.nodes[t.from].side != self.nodes[t.to].side);
            if cut {
                self.abort(slot);
            }
        }
    }

    pub(crate) fn owner(&mut self, group: usize, back: bool) {
        let scenario = self.scenario.clone();
        let spec = &scenario.owners[group];
        let stance = match (back, spec.drain) {
            (false, _) => Stance::Open,
            (true, false) => Stance::Evict,
            (true, true) => Stance::Drain,
        };
        for at in spec.skip_nodes..spec.skip_nodes + spec.nodes {
            self.nodes[at].stance = stance;
            self.decide(at);
        }
    }
}
