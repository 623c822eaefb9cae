//! One run: the state of the cluster, and the loop over its events.

use std::sync::Arc;

use mosix_policy::{Case, Dice, Features, Figures, Ledger, NodeId, Params, Record, Ring, Stance, Window, cpu_load, lag};
use rand::{Rng, SeedableRng};

use crate::Result;
use crate::event::{Event, Queue};
use crate::node::{Node, NodeIx};
use crate::process::{Place, ProcIx, Process};
use crate::result::{Metrics, RunResult, Step};
use crate::spec::Scenario;
use crate::transfer::Transfer;

const MB: f64 = 1e6;
/// Makes another seed of a seed.
const FATE: u64 = 0x5eed_fa7e;

/// A job: processes that are born together.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) born_s: f64,
    /// CPU seconds of its longest process.
    pub(crate) work_s: f64,
    pub(crate) left: u32,
    pub(crate) lost: bool,
    pub(crate) ended_s: Option<f64>,
}

/// A simulated cluster.
pub struct World {
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) params: Params,
    pub(crate) rng: Dice,
    /// For what happens to the cluster whatever the policy does: all variants get the same jobs.
    pub(crate) fate: Dice,
    pub(crate) now_s: f64,
    pub(crate) queue: Queue,
    pub(crate) nodes: Vec<Node>,
    pub(crate) members: Vec<NodeId>,
    pub(crate) processes: Vec<Process>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) transfers: Vec<Option<Transfer>>,
    pub(crate) free_slots: Vec<usize>,
    pub(crate) next_id: u64,
    /// Groups of jobs whose last birth has not been.
    pub(crate) groups_open: usize,
    /// Processes of jobs that run or move.
    pub(crate) alive: usize,
    pub(crate) partitioned: bool,
    pub(crate) metrics: Metrics,
    pub(crate) cases: Ring<Case>,
    pub(crate) records_cases: bool,
    checks: bool,
}

impl World {
    /// A cluster as the scenario says, at time 0.
    ///
    /// # Errors
    /// The scenario has a value out of bounds.
    pub fn new(scenario: Arc<Scenario>, seed: u64) -> Result<Self> {
        scenario.validate()?;
        let params = scenario.params()?;
        let mut world = Self {
            params,
            rng: Dice::seed_from_u64(seed),
            fate: Dice::seed_from_u64(seed ^ FATE),
            now_s: 0.0,
            queue: Queue::default(),
            nodes: Vec::with_capacity(scenario.node_count()),
            members: (0..scenario.node_count() as u32).map(NodeId).collect(),
            processes: Vec::new(),
            jobs: Vec::new(),
            transfers: Vec::new(),
            free_slots: Vec::new(),
            next_id: 0,
            groups_open: 0,
            alive: 0,
            partitioned: false,
            metrics: Metrics::default(),
            cases: Ring::new(0),
            records_cases: false,
            checks: false,
            scenario: scenario.clone(),
        };
        for spec in &scenario.nodes {
            for _ in 0..spec.count {
                let id = NodeId(world.nodes.len() as u32);
                let mut node = fresh_node(id, spec.speed, spec.cpus, (spec.memory_mb * MB) as u64, Features(spec.features));
                node.fair = spec.speed;
                world.nodes.push(node);
            }
        }
        world.plan_start();
        Ok(world)
    }

    /// Checks after every event that each process is at exactly one place, and all counts agree: for tests.
    #[must_use]
    pub fn checked(mut self) -> Self {
        self.checks = true;
        self
    }

    /// Keeps the last so many decisions with all their inputs.
    #[must_use]
    pub fn recording(mut self, cases: usize) -> Self {
        self.cases = Ring::new(cases);
        self.records_cases = cases > 0;
        self
    }

    /// Keeps all completed moves.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.metrics.trace = Some(Vec::new());
        self
    }

    fn plan_start(&mut self) {
        for node in 0..self.nodes.len() {
            let at_s = self.rng.random::<f64>() * self.params.period_s;
            self.queue.push(at_s, Event::Tick { node, life: 0 });
        }
        let warmup_s = self.scenario.warmup_s;
        let scenario = self.scenario.clone();
        for (group, job) in scenario.jobs.iter().enumerate() {
            if job.count > 0 || job.rate_per_s > 0.0 {
                self.groups_open += 1;
                let wait_s = if job.rate_per_s > 0.0 { self.next_arrival_s(job.rate_per_s) } else { 0.0 };
                self.queue.push(warmup_s + job.from_s + wait_s, Event::Birth { group });
            }
        }
        self.start_background();
        self.plan_churn();
        for (group, owner) in scenario.owners.iter().enumerate() {
            self.queue.push(warmup_s + owner.from_s, Event::Owner { group, back: true });
            self.queue.push(warmup_s + owner.until_s, Event::Owner { group, back: false });
        }
        self.queue.push(warmup_s + 1e-6, Event::Sample);
    }

    /// Runs to the end. The result's `events_per_s` is 0: who has a clock may set it.
    ///
    /// # Errors
    /// With [`World::checked`], the first count that does not agree, as a text.
    pub fn run(mut self) -> std::result::Result<(RunResult, Vec<Step>, Ring<Case>), String> {
        let end_s = self.scenario.warmup_s + self.scenario.limit_s;
        let mut events = 0_u64;
        while let Some((at_s, event)) = self.queue.pop() {
            if at_s > end_s {
                break;
            }
            self.now_s = at_s;
            events += 1;
            self.handle(event);
            if self.checks {
                self.check().map_err(|why| format!("at {at_s} s: {why}"))?;
            }
            if self.alive == 0 && self.groups_open == 0 && !self.scenario.to_the_limit && self.metrics.births > 0 {
                break;
            }
        }
        if self.scenario.to_the_limit {
            self.now_s = end_s;
        }
        let result = RunResult::new(&self, events);
        let trace = self.metrics.trace.take().unwrap_or_default();
        Ok((result, trace, self.cases))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::Deliver { from, to, letter } => self.deliver(from as usize, to as usize, letter),
            Event::Finish { node, version } => self.finish(node, version),
            Event::Transfer { slot, version } => self.transfer_event(slot, version),
            Event::AnswerDue { node, id } => self.answer_due(node, id),
            Event::PlacementDue { process } => self.placement_due(process),
            Event::Birth { group } => self.birth(group),
            Event::Toggle { process } => self.toggle(process),
            Event::Crash { node } => self.crash(node),
            Event::Rejoin { node } => self.rejoin(node),
            Event::Partition { begins } => self.partition(begins),
            Event::Owner { group, back } => self.owner(group, back),
            Event::Sample => self.look_whether_balanced(),
        }
    }

    /// Brings a node's counters to now. Before any change there.
    pub(crate) fn touch(&mut self, at: NodeIx) {
        let smoothing_s = self.scenario.policy.smoothing_s;
        self.nodes[at].advance(self.now_s, smoothing_s);
    }

    /// After any change at a node: its rate, what it measures, and who ends next.
    pub(crate) fn changed(&mut self, at: NodeIx) {
        let spec = &self.scenario.migration;
        let node = &mut self.nodes[at];
        let fill = (node.used_bytes + node.arriving_bytes) as f64 / node.memory_bytes as f64;
        let paging = match fill > 1.0 {
            false => 1.0,
            true if spec.paging_factor > 0.0 => spec.paging_factor,
            true => 1.0 + spec.paging_slope * (fill - 1.0),
        };
        let wanted = f64::from(node.running) + spec.copy_share * node.transfers.len() as f64;
        let share = (f64::from(node.cpus) / wanted.max(1e-9)).min(1.0);
        node.rate = if node.running == 0 { 0.0 } else { node.speed * share / paging };
        node.sample(self.now_s);
        node.version = node.version.wrapping_add(1);
        if node.running == 0 || node.rate <= 0.0 {
            return;
        }
        let left = |p: &ProcIx| {
            let p = &self.processes[*p];
            let done = (node.got_s - p.v_mark) / p.drag;
            if p.asleep || p.background.is_some() { f64::INFINITY } else { (p.left_s - done) * p.drag }
        };
        let least = node.processes.iter().map(left).fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            let at_s = self.now_s + least.max(0.0) / node.rate;
            self.queue.push(at_s, Event::Finish { node: at, version: node.version });
        }
    }

    fn finish(&mut self, at: NodeIx, version: u32) {
        if self.nodes[at].version != version || !self.nodes[at].up {
            return;
        }
        self.touch(at);
        let mut ended = Vec::new();
        for &ix in &self.nodes[at].processes {
            self.nodes[at].settle(&mut self.processes[ix]);
            let p = &self.processes[ix];
            if p.background.is_none() && !p.asleep && p.left_s <= 1e-9 * p.work_s.max(1.0) {
                ended.push(ix);
            }
        }
        for ix in ended {
            self.end(at, ix);
        }
        self.changed(at);
        self.tell_of_exit(at);
        self.decide(at);
    }

    fn end(&mut self, at: NodeIx, ix: ProcIx) {
        self.nodes[at].exit(ix, &mut self.processes[ix]);
        self.processes[ix].place = Place::Ended;
        self.alive -= 1;
        if self.processes[ix].in_flight {
            self.abort_transfer_of(ix);
        }
        self.redrag_partner(ix);
        let job = &mut self.jobs[self.processes[ix].job];
        job.left -= 1;
        if job.left == 0 && !job.lost {
            job.ended_s = Some(self.now_s);
        }
    }

    /// What slows a process down where it is now. Its node must have been touched.
    pub(crate) fn redrag(&mut self, ix: ProcIx) {
        let p = &self.processes[ix];
        let Some(at) = p.node() else { return };
        let home = if p.home == at { 0.0 } else { p.kappa };
        let apart = p.partner.map_or(0.0, |(other, cost)| match self.processes.get(other).map(|o| o.place) {
            Some(Place::At(there)) if there == at => 0.0,
            Some(Place::At(_) | Place::Between { .. }) => cost,
            _ => 0.0,
        });
        self.nodes[at].settle(&mut self.processes[ix]);
        self.processes[ix].drag = 1.0 + home + apart;
    }

    /// The partner of a process that came, went or ended.
    pub(crate) fn redrag_partner(&mut self, ix: ProcIx) {
        let Some((other, _)) = self.processes[ix].partner else { return };
        if let Some(there) = self.processes.get(other).and_then(Process::node) {
            self.touch(there);
            self.redrag(other);
            self.changed(there);
        }
    }

    /// A node's committed figures, as its daemon has them.
    pub(crate) fn figures(&self, at: NodeIx) -> Figures {
        let node = &self.nodes[at];
        let committed = if self.scenario.policy.smoothing_s > 0.0 {
            node.smooth_load.round().clamp(0.0, f64::from(u16::MAX)) as u16
        } else {
            node.ledger.committed()
        };
        Figures {
            node: node.id,
            speed: node.speed,
            cpus: node.cpus,
            committed,
            memory_total_bytes: node.memory_bytes,
            memory_used_bytes: if self.scenario.policy.ignore_memory { 0 } else { node.ledger.memory_used_bytes() },
        }
    }

    pub(crate) fn record(&mut self, at: NodeIx) -> Record {
        let figures = self.figures(at);
        let (lag_mean_s, lag_min_s) = if self.params.rotation { self.lags(at) } else { (0.0, 0.0) };
        let node = &mut self.nodes[at];
        node.seq = node.seq.wrapping_add(1);
        Record {
            node: node.id,
            incarnation: node.life,
            seq: node.seq,
            age_ms: 0,
            committed: figures.committed,
            load: node.running as f32,
            speed: figures.speed as f32,
            cpus: figures.cpus,
            memory_total_bytes: figures.memory_total_bytes,
            memory_free_bytes: figures.memory_total_bytes.saturating_sub(figures.memory_used_bytes),
            guests: 0,
            away: 0,
            closed: node.stance != Stance::Open,
            features: node.features,
            lag_mean_s: lag_mean_s as f32,
            lag_min_s: lag_min_s as f32,
        }
    }

    /// Mean and least lag of a node's processes.
    pub(crate) fn lags(&mut self, at: NodeIx) -> (f64, f64) {
        self.touch(at);
        let node = &self.nodes[at];
        let awake = node.processes.iter().map(|p| &self.processes[*p]).filter(|p| !p.asleep && p.background.is_none());
        lag::summary(awake.map(|p| p.lag_s + node.lag_s - p.l_mark))
    }

    pub(crate) fn note_peak(&mut self, at: NodeIx) {
        let load = cpu_load(&self.figures(at)) * self.nodes[at].speed;
        self.metrics.peak_load = self.metrics.peak_load.max(load);
    }
}

pub(crate) fn fresh_node(id: NodeId, speed: f64, cpus: u16, memory_bytes: u64, features: Features) -> Node {
    Node {
        id,
        speed,
        cpus,
        memory_bytes,
        features,
        up: true,
        life: 0,
        stance: Stance::Open,
        processes: Vec::new(),
        running: 0,
        frozen: 0,
        used_bytes: 0,
        arriving_bytes: 0,
        transfers: Vec::new(),
        window: Window::new(id),
        ledger: Ledger::new(),
        seq: 0,
        asking: None,
        refused: Vec::new(),
        explorer: mosix_policy::Explorer::default(),
        smooth_load: 0.0,
        side: 0,
        since_s: 0.0,
        got_s: 0.0,
        lag_s: 0.0,
        rate: 0.0,
        fair: speed,
        version: 0,
    }
}
