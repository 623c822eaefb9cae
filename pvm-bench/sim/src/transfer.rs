//! Transfers: pre-copy while the process runs, then the freeze. All transfers of a node share its network interface.

use mosix_policy::Rule;

use crate::event::Event;
use crate::node::NodeIx;
use crate::process::{Place, ProcIx};
use crate::result::Step;
use crate::spec::Handshake;
use crate::world::World;

const MB: f64 = 1e6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Clean pages are copied; the process runs.
    PreCopy,
    /// Dirty pages are copied; it is frozen.
    Dirty,
    /// It is put together at the target; it is frozen.
    Restore,
}

#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) id: u64,
    pub(crate) from: NodeIx,
    pub(crate) to: NodeIx,
    pub(crate) process: ProcIx,
    rule: Rule,
    phase: Phase,
    left_bytes: f64,
    bytes_per_s: f64,
    since_s: f64,
    frozen_at_s: f64,
    version: u32,
}

impl World {
    /// Seconds of pre-copy and of freeze on a free network.
    pub(crate) fn transfer_times_s(&self, ix: ProcIx) -> (f64, f64) {
        let (p, spec) = (&self.processes[ix], &self.scenario.migration);
        let bytes_per_s = self.scenario.network.interface_mb_s * MB;
        let frozen = if spec.precopy { p.dirty_bytes } else { p.memory_bytes };
        ((p.memory_bytes - frozen) as f64 / bytes_per_s, spec.base_s + frozen as f64 / bytes_per_s)
    }

    pub(crate) fn start_transfer(&mut self, from: NodeIx, to: NodeIx, id: u64, process: ProcIx, rule: Rule) {
        self.touch(from);
        self.touch(to);
        let p = &mut self.processes[process];
        p.in_flight = true;
        let frozen = if self.scenario.migration.precopy { p.dirty_bytes } else { p.memory_bytes };
        let left_bytes = (p.memory_bytes - frozen) as f64;
        self.nodes[to].arriving_bytes += p.memory_bytes;
        let transfer = Transfer {
            id,
            from,
            to,
            process,
            rule,
            phase: Phase::PreCopy,
            left_bytes,
            bytes_per_s: 0.0,
            since_s: self.now_s,
            frozen_at_s: self.now_s,
            version: 0,
        };
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.transfers.push(None);
            self.transfers.len() - 1
        });
        self.transfers[slot] = Some(transfer);
        self.nodes[from].transfers.push(slot);
        self.nodes[to].transfers.push(slot);
        self.changed(from);
        self.changed(to);
        if left_bytes > 0.0 {
            self.share_interfaces(from, to);
        } else {
            self.next_phase(slot);
        }
    }

    /// Shares the interfaces of two nodes anew among all transfers that use them.
    fn share_interfaces(&mut self, a: NodeIx, b: NodeIx) {
        let mut slots: Vec<usize> = self.nodes[a].transfers.iter().chain(&self.nodes[b].transfers).copied().collect();
        slots.sort_unstable();
        slots.dedup();
        let users = |node: NodeIx| self.nodes[node].transfers.iter().filter(|s| self.copies(**s)).count().max(1) as f64;
        let interface = self.scenario.network.interface_mb_s * MB;
        let rates: Vec<(usize, f64)> = slots
            .into_iter()
            .filter(|s| self.copies(*s))
            .filter_map(|s| self.transfers[s].as_ref().map(|t| (s, interface / users(t.from).max(users(t.to)))))
            .collect();
        for (slot, bytes_per_s) in rates {
            if let Some(t) = self.transfers[slot].as_mut() {
                t.left_bytes -= t.bytes_per_s * (self.now_s - t.since_s);
                t.since_s = self.now_s;
                t.bytes_per_s = bytes_per_s;
                t.version += 1;
                let at_s = self.now_s + t.left_bytes.max(0.0) / bytes_per_s;
                self.queue.push(at_s, Event::Transfer { slot, version: t.version });
            }
        }
    }

    fn copies(&self, slot: usize) -> bool {
        self.transfers[slot].as_ref().is_some_and(|t| t.phase != Phase::Restore)
    }

    pub(crate) fn transfer_event(&mut self, slot: usize, version: u32) {
        if self.transfers[slot].as_ref().is_some_and(|t| t.version == version) {
            self.next_phase(slot);
        }
    }

    fn next_phase(&mut self, slot: usize) {
        let Some(t) = self.transfers[slot].clone() else { return };
        match t.phase {
            Phase::PreCopy => self.freeze(slot, &t),
            Phase::Dirty => self.restore(slot),
            Phase::Restore => self.arrive(slot, &t),
        }
    }

    fn freeze(&mut self, slot: usize, t: &Transfer) {
        self.touch(t.from);
        let p = &mut self.processes[t.process];
        let dirty = if self.scenario.migration.precopy { p.dirty_bytes } else { p.memory_bytes };
        let memory_bytes = p.memory_bytes;
        let node = &mut self.nodes[t.from];
        node.exit(t.process, p);
        p.place = Place::Between { from: t.from };
        // The body stays until the end.
        node.frozen += 1;
        node.used_bytes += memory_bytes;
        if let Some(t) = self.transfers[slot].as_mut() {
            t.phase = Phase::Dirty;
            t.left_bytes = dirty as f64;
            t.bytes_per_s = 0.0;
            t.since_s = self.now_s;
            t.frozen_at_s = self.now_s;
            t.version += 1;
        }
        self.changed(t.from);
        self.redrag_partner(t.process);
        if dirty > 0 {
            self.share_interfaces(t.from, t.to);
        } else {
            self.restore(slot);
        }
    }

    fn restore(&mut self, slot: usize) {
        let Some(t) = self.transfers[slot].as_mut() else { return };
        t.phase = Phase::Restore;
        t.version += 1;
        let (from, to, version) = (t.from, t.to, t.version);
        self.queue.push(self.now_s + self.scenario.migration.base_s, Event::Transfer { slot, version });
        self.share_interfaces(from, to);
    }

    fn arrive(&mut self, slot: usize, t: &Transfer) {
        let reserved = self.scenario.policy.handshake != Handshake::Full || {
            let ledger = &mut self.nodes[t.to].ledger;
            ledger.expire(self.now_s);
            ledger.arrive(t.from as u32, t.id, self.now_s)
        };
        if !reserved {
            self.metrics.lost_leases += 1;
            return self.abort(slot);
        }
        self.thaw(slot, t, t.to);
        self.nodes[t.from].ledger.gone(t.from as u32, t.id, self.now_s);
        let p = &mut self.processes[t.process];
        p.restless = self.params.restless(p.restless, self.now_s - p.moved_s) + 1.0;
        (p.arrived_s, p.moved_s) = (self.now_s, self.now_s);
        p.moves += 1;
        self.metrics.moved(Step { at_s: self.now_s, process: t.process, from: t.from, to: t.to, rule: t.rule });
        self.changed(t.from);
        self.changed(t.to);
        if self.scenario.policy.handshake != Handshake::Full {
            self.note_peak(t.to);
        }
        self.decide(t.from);
        self.decide(t.to);
    }

    /// Ends a transfer: the process runs on, at `at`.
    fn thaw(&mut self, slot: usize, t: &Transfer, at: NodeIx) {
        self.touch(t.from);
        self.touch(t.to);
        self.transfers[slot] = None;
        self.free_slots.push(slot);
        for node in [t.from, t.to] {
            self.nodes[node].transfers.retain(|s| *s != slot);
        }
        let p = &mut self.processes[t.process];
        p.in_flight = false;
        self.nodes[t.to].arriving_bytes = self.nodes[t.to].arriving_bytes.saturating_sub(p.memory_bytes);
        if matches!(p.place, Place::Between { .. }) {
            let source = &mut self.nodes[t.from];
            source.frozen -= 1;
            source.used_bytes -= p.memory_bytes;
            // While frozen it got nothing of its fair share.
            p.lag_s += source.fair * (self.now_s - t.frozen_at_s);
            p.place = Place::At(at);
            self.nodes[at].enter(t.process, p);
            self.redrag(t.process);
            self.redrag_partner(t.process);
        }
        self.share_interfaces(t.from, t.to);
    }

    /// Gives a transfer up: the process goes on where it was.
    pub(crate) fn abort(&mut self, slot: usize) {
        let Some(t) = self.transfers[slot].clone() else { return };
        self.nodes[t.from].ledger.abort(t.from as u32, t.id);
        self.thaw(slot, &t, t.from);
        self.changed(t.from);
        self.changed(t.to);
        if self.nodes[t.from].up && self.scenario.policy.handshake == Handshake::Full {
            self.send(t.from, t.to, crate::event::Letter::Withdraw { id: t.id });
        }
    }

    pub(crate) fn abort_transfer_of(&mut self, ix: ProcIx) {
        if let Some(slot) = self.transfers.iter().position(|t| t.as_ref().is_some_and(|t| t.process == ix)) {
            self.abort(slot);
        }
    }

    /// Drops a transfer whose source is gone, and the process with it.
    pub(crate) fn lose(&mut self, slot: usize) {
        let Some(t) = self.transfers[slot].take() else { return };
        self.free_slots.push(slot);
        for node in [t.from, t.to] {
            self.touch(node);
            self.nodes[node].transfers.retain(|s| *s != slot);
        }
        let p = &mut self.processes[t.process];
        p.in_flight = false;
        let memory_bytes = p.memory_bytes;
        if matches!(p.place, Place::Between { .. }) {
            self.nodes[t.from].frozen -= 1;
            self.nodes[t.from].used_bytes -= memory_bytes;
            p.place = Place::Lost;
        }
        self.nodes[t.to].arriving_bytes = self.nodes[t.to].arriving_bytes.saturating_sub(memory_bytes);
        self.changed(t.to);
        self.share_interfaces(t.from, t.to);
    }
}
