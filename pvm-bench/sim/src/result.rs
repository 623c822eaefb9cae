//! What is counted during a run, and what comes out.

use std::collections::BTreeMap;

use mosix_policy::{Rule, optimal};
use serde::{Deserialize, Serialize};

use crate::process::Place;
use crate::world::World;

/// A completed move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When it ran at its target, seconds from the start of the run.
    pub at_s: f64,
    /// Which process, in order of birth.
    pub process: usize,
    /// Node that it left.
    pub from: usize,
    /// Node that it came to.
    pub to: usize,
    /// Why.
    pub rule: Rule,
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) births: usize,
    by_group: BTreeMap<usize, usize>,
    first_birth_s: Option<f64>,
    pub(crate) last_birth_s: f64,
    pub(crate) balanced_s: Option<f64>,
    pub(crate) peak_load: f64,
    pub(crate) moves: BTreeMap<&'static str, u64>,
    pub(crate) placed: u64,
    pub(crate) refused: u64,
    pub(crate) lost_leases: u64,
    pub(crate) decisions: u64,
    pub(crate) crashes: u64,
    pub(crate) lost: u64,
    pub(crate) letters: u64,
    pub(crate) gossip: u64,
    pub(crate) measured: u64,
    pub(crate) measured_bytes: f64,
    pub(crate) ask_bytes: f64,
    pub(crate) trace: Option<Vec<Step>>,
}

impl Metrics {
    pub(crate) fn born(&mut self, group: usize, now_s: f64) {
        self.births += 1;
        *self.by_group.entry(group).or_default() += 1;
        self.first_birth_s.get_or_insert(now_s);
        self.last_birth_s = now_s;
    }

    pub(crate) fn births_of(&self, group: usize) -> usize {
        self.by_group.get(&group).copied().unwrap_or(0)
    }

    pub(crate) fn moved(&mut self, step: Step) {
        *self.moves.entry(step.rule.name()).or_default() += 1;
        if let Some(trace) = &mut self.trace {
            trace.push(step);
        }
    }

    fn bytes(&self) -> f64 {
        self.ask_bytes + if self.measured == 0 { 0.0 } else { self.measured_bytes / self.measured as f64 * self.gossip as f64 }
    }
}

/// One run's results. Times count from the end of the warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// When the last job ended; the limit if one did not.
    pub makespan_s: f64,
    /// Mean over ended jobs of (end - birth) / CPU seconds of its longest process. 0 without ended jobs.
    pub mean_slowdown: f64,
    /// The slowdown that 99 % of the jobs do not exceed.
    pub p99_slowdown: f64,
    /// Completed moves.
    pub migrations: u64,
    /// Highest committed load of a CPU to which processes came from elsewhere.
    pub peak_load: f64,
    /// After the last birth, when no move would have made any process faster; `None` if never.
    pub balanced_after_s: Option<f64>,
    /// Gossip and questions.
    pub bytes_per_node_per_s: f64,
    /// Simulated events per second of real time.
    pub events_per_s: f64,
    /// Simulated events.
    pub events: u64,
    /// Mean time at which jobs ended.
    pub mean_end_s: f64,
    /// Jobs that ended.
    pub ended: usize,
    /// Jobs that did not.
    pub unfinished: usize,
    /// Jobs that were lost with a node.
    pub lost: usize,
    /// Moves that targets refused.
    pub refused: u64,
    /// Moves that came too late for their reservation.
    pub lost_leases: u64,
    /// Programs that started elsewhere than at home.
    pub placed: u64,
    /// Decisions.
    pub decisions: u64,
    /// Most moves of one process.
    pub most_moves: u32,
    /// Completed moves by rule.
    pub moves: BTreeMap<String, u64>,
    /// What somebody could reach who knows all lengths, if all jobs are there from the start; else 0.
    pub clairvoyant_s: f64,
    /// Pairs that talk and ended, were or are on the same node at the end: share of all such pairs.
    pub pairs_together: f64,
}

impl RunResult {
    pub(crate) fn new(world: &World, events: u64) -> Self {
        let warmup_s = world.scenario.warmup_s;
        let metrics = &world.metrics;
        let ended: Vec<(f64, f64)> =
            world.jobs.iter().filter_map(|j| j.ended_s.map(|end_s| (end_s - warmup_s, (end_s - j.born_s) / j.work_s.max(1e-9)))).collect();
        let mut slowdowns: Vec<f64> = ended.iter().map(|e| e.1).collect();
        slowdowns.sort_by(f64::total_cmp);
        let lost = world.jobs.iter().filter(|j| j.lost).count();
        let unfinished = world.jobs.len() - ended.len() - lost;
        let last_s = ended.iter().map(|e| e.0).fold(0.0, f64::max);
        let seconds = world.now_s.max(1e-9);
        Self {
            makespan_s: if unfinished > 0 { world.scenario.limit_s } else { last_s },
            mean_slowdown: mean(&slowdowns),
            p99_slowdown: slowdowns.get((slowdowns.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0),
            migrations: metrics.moves.values().sum(),
            peak_load: metrics.peak_load,
            balanced_after_s: metrics.balanced_s,
            bytes_per_node_per_s: metrics.bytes() / seconds / world.nodes.len() as f64,
            events_per_s: 0.0,
            events,
            mean_end_s: mean(&ended.iter().map(|e| e.0).collect::<Vec<_>>()),
            ended: ended.len(),
            unfinished,
            lost,
            refused: metrics.refused,
            lost_leases: metrics.lost_leases,
            placed: metrics.placed,
            decisions: metrics.decisions,
            most_moves: world.processes.iter().map(|p| p.moves).max().unwrap_or(0),
            moves: metrics.moves.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            clairvoyant_s: clairvoyant_s(world),
            pairs_together: pairs_together(world),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

fn clairvoyant_s(world: &World) -> f64 {
    let warmup_s = world.scenario.warmup_s;
    if world.jobs.iter().any(|j| j.born_s > warmup_s) || world.nodes.iter().any(|n| n.cpus > 1) {
        return 0.0;
    }
    let works: Vec<f64> = world.processes.iter().filter(|p| p.background.is_none()).map(|p| p.work_s).collect();
    let speeds: Vec<f64> = world.nodes.iter().map(|n| n.speed).collect();
    optimal::clairvoyant_s(&works, &speeds)
}

fn pairs_together(world: &World) -> f64 {
    let pairs = world.processes.iter().filter_map(|p| p.partner.map(|(other, _)| (p.place, world.processes.get(other).map(|o| o.place))));
    let (mut all, mut together) = (0_u32, 0_u32);
    for (one, other) in pairs {
        if let (Place::At(a), Some(Place::At(b))) = (one, other) {
            all += 1;
            together += u32::from(a == b);
        }
    }
    if all == 0 { 0.0 } else { f64::from(together) / f64::from(all) }
}
