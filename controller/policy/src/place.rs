//! Placement at birth: where a program that is started through us should start.

use rand::Rng;

use crate::opportunity::{marginal, scale};
use crate::params::{Objective, Params};
use crate::predict::{Figures, cpu_load, time_per_work};
use crate::record::{Features, NodeId};
use crate::window::Window;

/// What is known of a program before it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newborn {
    /// Memory that it is going to need; 0 if nobody knows.
    pub memory_bytes: u64,
    /// CPU features that it needs.
    pub needs: Features,
}

/// The node where a new process is predicted to run fastest. This node wins ties: being away from home is never better.
/// Of other nodes that tie the least loaded is taken, then a random one.
///
/// If another node is chosen, this window counts one more process there until that node's next record, so that the
/// next placement sees it; if the own node is chosen, tell the [`crate::Ledger`] ([`crate::Ledger::born`]).
pub fn place(params: &Params, own: &Figures, window: &mut Window, now_s: f64, rng: &mut impl Rng) -> NodeId {
    place_process(params, own, Newborn::default(), window, now_s, rng)
}

/// The same for a program of which something is known.
pub fn place_process(params: &Params, own: &Figures, newborn: Newborn, window: &mut Window, now_s: f64, rng: &mut impl Rng) -> NodeId {
    let scale = scale(window.known(params, now_s).map(|f| cpu_load(&f)).chain([cpu_load(own)]));
    let score = |node: &Figures| {
        let after = node.with_one_more(newborn.memory_bytes);
        let first = match params.objective {
            Objective::Time => time_per_work(&after, 0.0),
            Objective::OpportunityCost => marginal(params, node, newborn.memory_bytes, scale),
        };
        (first, cpu_load(&after))
    };
    let fits = |f: &Figures| f.with_one_more(newborn.memory_bytes).memory_within(params.memory_limit);
    let able = window.usable(params, now_s).filter(|h| !h.record.closed && h.record.features.covers(newborn.needs));
    let mut best = (score(own), own.node);
    let mut ties = 0_u32;
    for node in able.map(|h| h.record.figures()).filter(fits) {
        let ((time, load), (best_time, best_load)) = (score(&node), best.0);
        let better = time < best_time - params.margin;
        let equal = !better && time < best_time + params.margin && best.1 != own.node;
        if better || (equal && load < best_load - params.margin) {
            ties = 1;
            best = ((time, load), node.node);
        } else if equal && load < best_load + params.margin {
            ties += 1;
            if rng.random_range(0..ties) == 0 {
                best.1 = node.node;
            }
        }
    }
    if best.1 != own.node {
        window.bump(best.1, newborn.memory_bytes);
    }
    best.1
}

/// Finds nodes that this one knows nothing of.
///
/// A window is a sample. When many programs start at once, all the free CPUs in it are soon taken, though others are free: then
/// members that are not in the window are asked, in random order, nobody twice before all were. The question is [`crate::admit`],
/// as for a move; the node that answers is in the window from then on.
#[derive(Debug, Clone, Default)]
pub struct Explorer {
    /// In random order; taken from the end.
    unasked: Vec<NodeId>,
    /// Free CPUs there were none, anywhere: asks again when this time has come.
    rests_until_s: f64,
}

impl Explorer {
    /// Whom to ask, if nobody is known to have a free CPU, this node included. `None`: [`place`] knows best, or all were asked
    /// within the last period.
    pub fn next(
        &mut self,
        params: &Params,
        own: &Figures,
        window: &Window,
        members: &[NodeId],
        now_s: f64,
        rng: &mut impl Rng,
    ) -> Option<NodeId> {
        let usable = window.usable(params, now_s).filter(|h| !h.record.closed);
        if own.has_free_cpu() || usable.map(|h| h.record.figures()).any(|f| f.has_free_cpu()) {
            return None;
        }
        if self.unasked.is_empty() {
            if now_s < self.rests_until_s {
                return None;
            }
            self.rests_until_s = now_s + params.period_s;
            self.unasked = members.iter().copied().filter(|m| *m != own.node).collect();
            for i in 1..self.unasked.len() {
                self.unasked.swap(i, rng.random_range(0..=i));
            }
        }
        while let Some(node) = self.unasked.pop() {
            if window.get(node).is_none() {
                return Some(node);
            }
        }
        None
    }
}
