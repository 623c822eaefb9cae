//! The window, made ready for one decision: nodes ranked once, for all processes of this node.
//!
//! Without paging (a target's memory limit is below its total) the time of a process at a node is its own drag times a figure
//! of the node. So all processes see the nodes in the same order, and the first that has room is the best; only its
//! home and the nodes of its partners must be looked at one by one.

use rand::Rng;

use crate::params::Params;
use crate::predict::{Figures, cpu_load, time_per_work};
use crate::process::{Candidate, Local, Stance};
use crate::record::{NodeId, Record};
use crate::window::{Heard, Window};

/// Speeds that differ by less are equal.
const SAME_SPEED: f64 = 1e-3;

/// A node that might take a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) record: &'a Record,
    /// Seconds per second of work with one process more.
    pub(crate) time: f64,
}

impl Peer<'_> {
    pub(crate) fn node(&self) -> NodeId {
        self.record.node
    }

    pub(crate) fn figures(&self) -> Figures {
        self.record.figures()
    }

    pub(crate) fn load(&self) -> f64 {
        cpu_load(&self.figures())
    }

    pub(crate) fn lag_mean_s(&self) -> f64 {
        f64::from(self.record.lag_mean_s)
    }

    pub(crate) fn lag_min_s(&self) -> f64 {
        f64::from(self.record.lag_min_s)
    }

    /// Whether it could take that process at all.
    pub(crate) fn takes(&self, params: &Params, candidate: &Candidate) -> bool {
        let record = self.record;
        let open = !record.closed || candidate.home == record.node;
        open && record.features.covers(candidate.needs)
            && self.figures().with_one_more(candidate.memory_bytes).memory_within(params.memory_limit)
    }
}

/// A process's best node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    pub(crate) target: NodeId,
    /// Seconds per second of work here and there.
    pub(crate) here: f64,
    pub(crate) there: f64,
    /// It would not be the best without a partner there.
    pub(crate) for_partner: bool,
}

/// All nodes that may be targets, best first; equally good ones in random order.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) peers: Vec<Peer<'a>>,
    /// `time_per_work` here, without drag.
    here: f64,
    own_load: f64,
    own: Figures,
    /// Whether CPUs here must not fall idle.
    keeps: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(params: &Params, local: &Local, window: &'a Window, now_s: f64, tried: &[NodeId], rng: &mut impl Rng) -> Self {
        let usable = window.usable(params, now_s).filter(|h| !tried.contains(&h.record.node));
        let mut peers: Vec<Peer<'_>> = usable.map(|h| Peer { record: &h.record, time: time_with_one_more(h) }).collect();
        peers.sort_unstable_by(|a, b| a.time.total_cmp(&b.time).then(a.node().cmp(&b.node())));
        shuffle_ties(&mut peers, params.margin, rng);
        let (here, own_load) = (time_per_work(&local.figures, 0.0), cpu_load(&local.figures));
        Self { peers, here, own_load, own: local.figures, keeps: local.stance == Stance::Open }
    }

    /// Its time here.
    fn time_here(&self, candidate: &Candidate) -> f64 {
        (1.0 + candidate.drag(self.own.node)) * self.here
    }

    /// The same there, with the candidate. Two that talk and are on two nodes must not change places: only the one at the node
    /// with more load (or, if equal, the larger number) counts on finding its partner there.
    fn time_at(&self, candidate: &Candidate, peer: &Peer<'_>, margin: f64) -> f64 {
        let (node, own) = (peer.node(), self.own.node);
        let home = if candidate.home == node { 0.0 } else { candidate.kappa.max(0.0) };
        if candidate.partners.is_empty() {
            return (1.0 + home) * peer.time;
        }
        let difference = peer.load() - self.own_load;
        let waits = difference > margin || (difference.abs() <= margin && node > own);
        let apart = if waits { candidate.apart(own).max(candidate.apart(node)) } else { candidate.apart(node) };
        (1.0 + home + apart) * peer.time
    }

    fn usable(&self, params: &Params, candidate: &Candidate, peer: &Peer<'_>) -> bool {
        peer.takes(params, candidate) && !(self.keeps && wastes_a_cpu(params, &self.own, &peer.figures()))
    }

    /// The node on which `candidate` would run fastest.
    pub(crate) fn best(&self, params: &Params, candidate: &Candidate) -> Option<Best> {
        let here = self.time_here(candidate);
        let needs_home = candidate.kappa > 0.0 && candidate.home != self.own.node;
        let is_special = |n: NodeId| (needs_home && n == candidate.home) || candidate.partners.iter().any(|p| p.node == n);
        let plain = self.peers.iter().find(|p| !is_special(p.node()) && self.usable(params, candidate, p));
        let mut best = plain.map(|p| Best { target: p.node(), here, there: self.time_at(candidate, p, params.margin), for_partner: false });
        if !needs_home && candidate.partners.is_empty() {
            return best;
        }
        for peer in self.peers.iter().filter(|p| is_special(p.node()) && self.usable(params, candidate, p)) {
            let there = self.time_at(candidate, peer, params.margin);
            if best.is_none_or(|b| there < b.there - params.margin) {
                let for_partner = candidate.partners.iter().any(|p| p.node == peer.node());
                best = Some(Best { target: peer.node(), here, there, for_partner });
            }
        }
        best
    }
}

/// "Keep": whether a move leaves a CPU idle to crowd one of another speed. For the process that is moved it may be
/// better; the work that the idle CPU would have done is lost to all. With rotation each gets its turn on the fast ones.
pub(crate) fn wastes_a_cpu(params: &Params, from: &Figures, to: &Figures) -> bool {
    params.rotation && from.committed <= from.cpus && !to.has_free_cpu() && (to.speed / from.speed - 1.0).abs() > SAME_SPEED
}

fn time_with_one_more(heard: &Heard) -> f64 {
    time_per_work(&heard.record.figures().with_one_more(0), 0.0)
}

/// Whether it is plain at first sight that no process would run faster elsewhere: not even the most hampered on the best node without any
/// drag. Also how many nodes there are. Most decisions end here, at a tenth of the cost of a [`View`].
pub(crate) fn nothing_to_gain(params: &Params, local: &Local, window: &Window, now_s: f64, tried: &[NodeId]) -> (bool, usize) {
    let drag = local.candidates.iter().map(|c| c.drag(local.figures.node)).fold(0.0, f64::max);
    let here = (1.0 + drag) * time_per_work(&local.figures, 0.0);
    let (mut count, mut best) = (0, f64::INFINITY);
    for (_, time) in window.times(params, now_s).filter(|(node, _)| !tried.contains(node)) {
        count += 1;
        best = best.min(time);
    }
    (here - best <= params.margin, count)
}

/// Puts each run of nodes that differ by less than `margin` from its first into random order, so that many senders do
/// not all choose the same.
fn shuffle_ties(peers: &mut [Peer<'_>], margin: f64, rng: &mut impl Rng) {
    let mut from = 0;
    while let Some(first) = peers.get(from).map(|p| p.time) {
        let len = peers.iter().skip(from).take_while(|p| p.time <= first + margin).count();
        for i in 1..len {
            peers.swap(from + i, from + rng.random_range(0..=i));
        }
        from += len;
    }
}
