//! A tiny synchronous cluster: in each step every node gossips, decides, and the processes run. Messages arrive at once;
//! a transfer takes a step. Everything is drawn from one seed.

use std::collections::BTreeMap;

use mosix_policy::{
    Candidate, Features, Figures, Ledger, Local, NodeId, Own, Params, Record, Request, Stance, Terms, Verdict, Window, admit, decide,
    pick_peer, time_per_work,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub(crate) const GIB: u64 = 1 << 30;

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) key: u64,
    pub(crate) cpu_age_s: f64,
    pub(crate) wall_age_s: f64,
    pub(crate) resident_s: f64,
    pub(crate) home: NodeId,
    pub(crate) kappa: f64,
    pub(crate) cost_s: f64,
}

pub(crate) struct Node {
    pub(crate) speed: f64,
    pub(crate) cpus: u16,
    pub(crate) processes: Vec<Process>,
    window: Window,
    ledger: Ledger,
    seq: u32,
}

struct Transfer {
    id: u64,
    from: usize,
    to: usize,
    process: Process,
}

/// One completed decision: step, process, from, to.
pub(crate) type Step = (u32, u64, u32, u32);

pub(crate) struct Cluster {
    pub(crate) params: Params,
    pub(crate) nodes: Vec<Node>,
    pub(crate) trace: Vec<Step>,
    /// Highest committed count that each node ever had.
    pub(crate) peak: Vec<u16>,
    pub(crate) refused: u32,
    /// Whether targets are asked: off shows what the handshake is for.
    pub(crate) handshake: bool,
    step: u32,
    next_id: u64,
    transfers: Vec<Transfer>,
    rng: ChaCha8Rng,
}

impl Cluster {
    /// Nodes of the given speeds, with one CPU and 8 GiB each.
    pub(crate) fn new(params: Params, speeds: &[f64], seed: u64) -> Self {
        let nodes = (0..speeds.len()).zip(speeds).map(|(i, &speed)| Node {
            speed,
            cpus: 1,
            processes: Vec::new(),
            window: Window::new(NodeId(i as u32)),
            ledger: Ledger::new(),
            seq: 0,
        });
        Self {
            params,
            nodes: nodes.collect(),
            trace: Vec::new(),
            peak: vec![0; speeds.len()],
            refused: 0,
            handshake: true,
            step: 0,
            next_id: 0,
            transfers: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Starts `count` processes at `node`, which is their home.
    pub(crate) fn start(&mut self, node: usize, count: usize) {
        for _ in 0..count {
            self.next_id += 1;
            self.nodes[node].processes.push(Process {
                key: self.next_id,
                cpu_age_s: 0.0,
                wall_age_s: 0.0,
                resident_s: 0.0,
                home: NodeId(node as u32),
                kappa: 0.0,
                cost_s: 0.2 * self.params.period_s,
            });
        }
    }

    pub(crate) fn now_s(&self) -> f64 {
        f64::from(self.step) * self.params.period_s
    }

    pub(crate) fn loads(&self) -> Vec<usize> {
        self.nodes.iter().map(|n| n.processes.len()).collect()
    }

    pub(crate) fn figures(&self, i: usize) -> Figures {
        let node = &self.nodes[i];
        Figures {
            node: NodeId(i as u32),
            speed: node.speed,
            cpus: node.cpus,
            committed: node.ledger.committed(),
            memory_total_bytes: 8 * GIB,
            memory_used_bytes: GIB + node.ledger.memory_used_bytes(),
        }
    }

    pub(crate) fn record(&mut self, i: usize) -> Record {
        self.nodes[i].seq += 1;
        let f = self.figures(i);
        Record {
            node: f.node,
            incarnation: 1,
            seq: self.nodes[i].seq,
            age_ms: 0,
            committed: f.committed,
            load: f32::from(f.committed),
            speed: f.speed as f32,
            cpus: f.cpus,
            memory_total_bytes: f.memory_total_bytes,
            memory_free_bytes: f.memory_total_bytes - f.memory_used_bytes,
            guests: 0,
            away: 0,
            closed: false,
            features: Features(u32::MAX),
            lag_mean_s: 0.0,
            lag_min_s: 0.0,
        }
    }

    /// Everybody hears of `i` at once.
    pub(crate) fn announce(&mut self, i: usize) {
        let records = vec![self.record(i)];
        let now_s = self.now_s();
        for node in &mut self.nodes {
            node.window.merge(&self.params, mosix_policy::Message { deaths: Vec::new(), records: records.clone() }, now_s);
        }
    }

    pub(crate) fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        self.step += 1;
        self.complete_transfers();
        self.execute();
        for i in 0..self.nodes.len() {
            self.sample(i);
        }
        for i in 0..self.nodes.len() {
            self.gossip(i);
            self.balance(i);
        }
    }

    fn complete_transfers(&mut self) {
        let now_s = self.now_s();
        for t in std::mem::take(&mut self.transfers) {
            assert!(!self.handshake || self.nodes[t.to].ledger.arrive(t.from as u32, t.id, now_s), "lease lost");
            assert!(self.nodes[t.from].ledger.gone(t.from as u32, t.id, now_s));
            self.nodes[t.from].processes.retain(|p| p.key != t.process.key);
            self.nodes[t.to].processes.push(Process { resident_s: 0.0, ..t.process });
        }
    }

    fn execute(&mut self) {
        let dt = self.params.period_s;
        for node in &mut self.nodes {
            let rate = node.speed * (f64::from(node.cpus) / node.processes.len().max(1) as f64).min(1.0);
            for p in &mut node.processes {
                p.cpu_age_s += rate * dt;
                p.wall_age_s += dt;
                p.resident_s += dt;
            }
        }
    }

    fn sample(&mut self, i: usize) {
        // Taken "just after" everything that happened up to now.
        let taken_at_s = self.now_s() + 1e-9;
        let node = &mut self.nodes[i];
        node.ledger.sample(node.processes.len() as u16, node.processes.len() as u64 * (GIB / 1024), taken_at_s);
        assert!(node.ledger.expire(taken_at_s).is_empty());
        self.note_peak(i);
    }

    fn note_peak(&mut self, i: usize) {
        self.peak[i] = self.peak[i].max(self.nodes[i].ledger.committed());
    }

    fn gossip(&mut self, i: usize) {
        let members: Vec<_> = (0..self.nodes.len() as u32).map(NodeId).collect();
        let now_s = self.now_s();
        let own = self.record(i);
        let message = self.nodes[i].window.compose(&self.params, own, now_s, &mut self.rng);
        assert!(message.records.len() <= self.params.max_records);
        if let Some(peer) = pick_peer(&members, NodeId(i as u32), &mut self.rng) {
            self.nodes[peer.0 as usize].window.merge(&self.params, message, now_s);
        }
    }

    fn local(&self, i: usize) -> Local {
        let flying: Vec<u64> = self.transfers.iter().map(|t| t.process.key).collect();
        let candidates = self.nodes[i].processes.iter().map(|p| Candidate {
            key: p.key,
            cpu_age_s: p.cpu_age_s,
            wall_age_s: p.wall_age_s,
            resident_s: p.resident_s,
            memory_bytes: GIB / 1024,
            home: p.home,
            kappa: p.kappa,
            cost_s: p.cost_s,
            in_flight: flying.contains(&p.key),
            pinned: false,
            needs: Features(0),
            lag_s: 0.0,
            restless: 0.0,
            partners: Vec::new(),
        });
        let ledger = &self.nodes[i].ledger;
        Local {
            figures: self.figures(i),
            incoming: ledger.incoming(),
            outgoing: ledger.outgoing(),
            stance: Stance::Open,
            candidates: candidates.collect(),
        }
    }

    fn balance(&mut self, i: usize) {
        let mut tried = Vec::new();
        loop {
            let local = self.local(i);
            let now_s = self.now_s();
            let outcome = decide(&self.params, &local, &self.nodes[i].window, now_s, &mut self.rng, &tried);
            let Some(action) = outcome.action else { return };
            let to = action.target.0 as usize;
            assert_ne!(to, i);
            let process = self.nodes[i].processes.iter().find(|p| p.key == action.key).unwrap().clone();
            if self.ask(i, to, &process) {
                self.trace.push((self.step, process.key, i as u32, to as u32));
                self.transfers.push(Transfer { id: self.next_id, from: i, to, process });
            } else {
                self.refused += 1;
                tried.push(action.target);
            }
        }
    }

    fn ask(&mut self, from: usize, to: usize, process: &Process) -> bool {
        self.next_id += 1;
        let (id, memory_bytes, now_s) = (self.next_id, GIB / 1024, self.now_s());
        let own = Own {
            figures: self.figures(to),
            incoming: self.nodes[to].ledger.incoming(),
            accepts_guests: true,
            features: Features(u32::MAX),
            lag_mean_s: 0.0,
            lag_min_s: 0.0,
        };
        let request = Request {
            id,
            source: self.figures(from),
            home: process.home,
            memory_bytes,
            kappa: process.kappa,
            manual: false,
            needs: Features(0),
            apart_here: 0.0,
            apart_there: 0.0,
            terms: Terms::Faster,
        };
        let accepted = !self.handshake || admit(&self.params, &own, &request) == Verdict::Accept;
        if accepted {
            let home = process.home;
            let k = |n| if home == n { 0.0 } else { process.kappa };
            if self.handshake {
                // What the whole is for: the mover gets faster, by the true figures of both sides.
                let here = time_per_work(&request.source, k(NodeId(from as u32)));
                let there = time_per_work(&own.figures.with_one_more(memory_bytes), k(NodeId(to as u32)));
                assert!(there < here, "a move made the mover slower: {here} -> {there}");
                let lease_s = self.params.lease_s(self.params.period_s);
                self.nodes[to].ledger.reserve(from as u32, id, memory_bytes, now_s + lease_s);
                self.note_peak(to);
            }
            self.nodes[from].ledger.leave(from as u32, id, memory_bytes);
        }
        if self.handshake {
            let records = vec![self.record(to)];
            self.nodes[from].window.merge(&self.params, mosix_policy::Message { records, deaths: Vec::new() }, now_s);
        } else {
            self.nodes[from].window.bump(NodeId(to as u32), memory_bytes);
        }
        accepted
    }

    /// Moves of each process.
    pub(crate) fn moves(&self) -> BTreeMap<u64, u32> {
        let mut moves = BTreeMap::new();
        for (_, key, _, _) in &self.trace {
            *moves.entry(*key).or_default() += 1;
        }
        moves
    }
}
