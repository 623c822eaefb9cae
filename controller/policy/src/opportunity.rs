//! Opportunity cost: CPU and memory in one figure, exponential in their use.
//!
//! A node costs `b^(used memory / memory) + b^(load / L)`, with `b` the number of nodes and `L` the smallest power of two
//! above the largest load seen; a process goes where it raises that the least (Amir, Awerbuch, Barak, Borgstrom, Keren:
//! "An opportunity cost approach for job assignment in a scalable computing cluster", 2000). It needs no thresholds and weighs
//! a nearly full memory against a busy CPU; it moves about twice as often as the time rule.

use crate::params::Params;
use crate::predict::{Figures, cpu_load};
use crate::process::{Candidate, Local};
use crate::view::{Peer, View};

/// Larger exponents are cut: all nodes that are so far overcommitted are equally bad.
const MAX_EXPONENT: f64 = 16.0;

/// What one more process of that size costs on a node.
pub(crate) fn marginal(params: &Params, before: &Figures, memory_bytes: u64, scale: f64) -> f64 {
    let base = params.opportunity_base.max(1.000_001);
    let power = |x: f64| base.powf(x.min(MAX_EXPONENT));
    let after = before.with_one_more(memory_bytes);
    let total = before.memory_total_bytes.max(1) as f64;
    let memory = power(after.memory_used_bytes as f64 / total) - power(before.memory_used_bytes as f64 / total);
    memory + power(cpu_load(&after) / scale) - power(cpu_load(before) / scale)
}

/// The smallest power of two above all loads.
pub(crate) fn scale(loads: impl Iterator<Item = f64>) -> f64 {
    let most = loads.filter(|l| l.is_finite()).fold(0.0, f64::max);
    let mut scale = 1.0;
    while scale <= most && scale < 1e12 {
        scale *= 2.0;
    }
    scale
}

/// A process's cheapest node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cheapest<'a> {
    pub(crate) peer: &'a Peer<'a>,
    pub(crate) here: f64,
    pub(crate) there: f64,
}

/// The cheapest node for `candidate`. Drag counts as a factor, as it does in time.
pub(crate) fn cheapest<'a>(params: &Params, local: &Local, view: &'a View<'a>, candidate: &Candidate, scale: f64) -> Option<Cheapest<'a>> {
    let mut without = local.figures;
    without.committed = without.committed.saturating_sub(1);
    without.memory_used_bytes = without.memory_used_bytes.saturating_sub(candidate.memory_bytes);
    let here = (1.0 + candidate.drag(local.figures.node)) * marginal(params, &without, candidate.memory_bytes, scale);
    let costs = view.peers.iter().filter(|p| p.takes(candidate)).map(|peer| {
        let there = (1.0 + candidate.drag(peer.node())) * marginal(params, &peer.figures(), candidate.memory_bytes, scale);
        Cheapest { peer, here, there }
    });
    costs.min_by(|a, b| a.there.total_cmp(&b.there))
}
