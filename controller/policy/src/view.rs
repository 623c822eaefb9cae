//! The window, made ready for one decision: nodes ranked once, for all processes of this node.
//!
//! Without paging (a target's memory limit is below its total) the time of a process at a node is its own drag times a figure
//! of the node. So all processes see the nodes in the same order, and the first that has room is the best; only its
//! home and the nodes of its partners must be looked at one by one.

use rand::Rng;

use crate::params::Params;
use crate::predict::{Figures, cpu_load, time_per_work};
use crate::process::{Candidate, Local};
use crate::record::{Features, NodeId};
use crate::window::{Heard, Window};

/// Speeds that differ by less are equal.
const SAME_SPEED: f64 = 1e-3;

/// A node that might take a process.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) figures: Figures,
    /// Seconds per second of work with one process more.
    pub(crate) time: f64,
    /// Memory that it may still take.
    pub(crate) room_bytes: u64,
    pub(crate) load: f64,
    pub(crate) lag_mean_s: f64,
    pub(crate) lag_min_s: f64,
    features: Features,
    closed: bool,
    full: bool,
    /// "Keep": a CPU here would fall idle for a shared one there.
    wasteful: bool,
}

impl Peer {
    fn new(params: &Params, local: &Local, heard: &Heard) -> Self {
        let record = &heard.record;
        let figures = record.figures();
        let after = figures.with_one_more(0);
        let limit = params.memory_limit * figures.memory_total_bytes as f64;
        let unequal = (figures.speed / local.figures.speed - 1.0).abs() > SAME_SPEED;
        Self {
            time: time_per_work(&after, 0.0),
            room_bytes: (limit - figures.memory_used_bytes as f64).max(0.0) as u64,
            full: figures.memory_used_bytes as f64 > limit,
            load: cpu_load(&figures),
            lag_mean_s: f64::from(record.lag_mean_s),
            lag_min_s: f64::from(record.lag_min_s),
            features: record.features,
            closed: record.closed,
            wasteful: params.rotation && unequal && local.figures.committed <= local.figures.cpus && !figures.has_free_cpu(),
            figures,
        }
    }

    /// Whether it could take that process at all.
    pub(crate) fn takes(&self, candidate: &Candidate) -> bool {
        let open = !self.closed || candidate.home == self.figures.node;
        open && !self.full && candidate.memory_bytes <= self.room_bytes && self.features.covers(candidate.needs)
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
pub(crate) struct View {
    pub(crate) peers: Vec<Peer>,
    /// The nodes of `peers`, in the same order: what a search reads.
    nodes: Vec<NodeId>,
    /// `time_per_work` here, without drag.
    here: f64,
    own_load: f64,
    own: NodeId,
}

impl View {
    pub(crate) fn new(params: &Params, local: &Local, window: &Window, now_s: f64, tried: &[NodeId], rng: &mut impl Rng) -> Self {
        let usable = window.usable(params, now_s).filter(|h| !tried.contains(&h.record.node));
        let peers: Vec<Peer> = usable.map(|h| Peer::new(params, local, h)).collect();
        let mut order: Vec<(f64, NodeId, usize)> = peers.iter().enumerate().map(|(at, p)| (p.time, p.figures.node, at)).collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        shuffle_ties(&mut order, params.margin, rng);
        let peers: Vec<Peer> = order.iter().filter_map(|o| peers.get(o.2).cloned()).collect();
        let nodes = order.into_iter().map(|o| o.1).collect();
        Self { peers, nodes, here: time_per_work(&local.figures, 0.0), own_load: cpu_load(&local.figures), own: local.figures.node }
    }

    fn peer(&self, node: NodeId) -> Option<&Peer> {
        let at = self.nodes.iter().position(|n| *n == node)?;
        self.peers.get(at)
    }

    /// Its time here.
    fn time_here(&self, candidate: &Candidate) -> f64 {
        (1.0 + candidate.drag(self.own)) * self.here
    }

    /// The same there, with the candidate. Two that talk and are on two nodes must not change places: only the one at the node
    /// with more load (or, if equal, the larger number) counts on finding its partner there.
    pub(crate) fn time_at(&self, candidate: &Candidate, peer: &Peer, margin: f64) -> f64 {
        let node = peer.figures.node;
        let waits = (peer.load - self.own_load).abs() <= margin && node > self.own || peer.load > self.own_load + margin;
        let not_met = if waits { candidate.apart(self.own).max(candidate.apart(node)) } else { candidate.apart(node) };
        let home = if candidate.home == node { 0.0 } else { candidate.kappa };
        (1.0 + home.max(0.0) + not_met) * peer.time
    }

    /// The node on which `candidate` would run fastest.
    pub(crate) fn best(&self, params: &Params, candidate: &Candidate) -> Option<Best> {
        let here = self.time_here(candidate);
        let needs_home = candidate.kappa > 0.0;
        let is_special = |n: NodeId| (needs_home && n == candidate.home) || candidate.partners.iter().any(|p| p.node == n);
        let plain = self.peers.iter().find(|p| !p.wasteful && !is_special(p.figures.node) && p.takes(candidate));
        let mut best = plain.map(|p| Best {
            target: p.figures.node,
            here,
            there: self.time_at(candidate, p, params.margin),
            for_partner: false,
        });
        // A closed node takes its own processes: when nobody else does they may go home, `kappa` or not.
        let best_is_none = best.is_none();
        let mut consider = |node: NodeId, for_partner: bool| {
            let Some(peer) = self.peer(node).filter(|p| p.takes(candidate)) else { return };
            let there = self.time_at(candidate, peer, params.margin);
            if best.is_none_or(|b| there < b.there - params.margin) {
                best = Some(Best { target: node, here, there, for_partner });
            }
        };
        if needs_home || best_is_none {
            consider(candidate.home, false);
        }
        for partner in &candidate.partners {
            consider(partner.node, true);
        }
        best
    }
}

/// Puts each run of nodes that differ by less than `margin` from its first into random order, so that many senders do
/// not all choose the same.
fn shuffle_ties(order: &mut [(f64, NodeId, usize)], margin: f64, rng: &mut impl Rng) {
    let mut from = 0;
    while let Some(first) = order.get(from).map(|o| o.0) {
        let len = order.iter().skip(from).take_while(|o| o.0 <= first + margin).count();
        for i in 1..len {
            order.swap(from + i, from + rng.random_range(0..=i));
        }
        from += len;
    }
}
