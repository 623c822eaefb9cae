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
use crate::window::{Window, shuffle};

/// Speeds that differ by less are equal.
const SAME_SPEED: f64 = 1e-3;

/// A node that might take a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) record: &'a Record,
    /// Seconds per second of work with one process more.
    pub(crate) time: f64,
    /// Memory that it may still take; `None` if it has too much in use already.
    room_bytes: Option<u64>,
}

impl<'a> Peer<'a> {
    fn new(params: &Params, record: &'a Record, time: f64) -> Self {
        let limit = (params.memory_limit * record.memory_total_bytes as f64) as u64;
        let used = record.memory_total_bytes.saturating_sub(record.memory_free_bytes);
        Self { record, time, room_bytes: limit.checked_sub(used) }
    }

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
    pub(crate) fn takes(&self, candidate: &Candidate) -> bool {
        let record = self.record;
        let open = !record.closed || candidate.home == record.node;
        let fits = self.room_bytes.is_some_and(|room| candidate.memory_bytes <= room);
        fits && open && record.features.covers(candidate.needs)
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

/// So many of the best nodes are put in order; nearly always the first of them has room.
const HEAD: usize = 8;

/// All nodes that may be targets.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// The best first, equally good ones in random order; after [`HEAD`] of them the rest in no order.
    pub(crate) peers: Vec<Peer<'a>>,
    /// Where each node is in `peers`, by node; empty if no process cares for a particular one.
    places: Vec<(NodeId, usize)>,
    /// `time_per_work` here, without drag.
    here: f64,
    own_load: f64,
    own: Figures,
    /// Whether CPUs here must not fall idle.
    keeps: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(params: &Params, local: &Local, window: &'a Window, now_s: f64, tried: &[NodeId], rng: &mut impl Rng) -> Self {
        let dice: u64 = rng.random();
        let known = window.usable_with_times(params, now_s).filter(|(h, _)| !tried.contains(&h.record.node));
        let mut order: Vec<(f64, u64, &Record)> = Vec::with_capacity(window.len());
        order.extend(known.map(|(h, time)| (time, shuffle(dice, h.record.node.0 as usize), &h.record)));
        let by_time = |a: &(f64, u64, &Record), b: &(f64, u64, &Record)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if order.len() > HEAD {
            order.select_nth_unstable_by(HEAD, by_time);
        }
        let head = order.len().min(HEAD);
        order[..head].sort_unstable_by(by_time);
        let mut peers: Vec<Peer<'_>> = order.into_iter().map(|(time, _, record)| Peer::new(params, record, time)).collect();
        shuffle_ties(&mut peers[..head], params.margin, rng);
        let own = local.figures.node;
        let mut places = Vec::new();
        if local.candidates.iter().any(|c| needs_home(c, own) || !c.partners.is_empty()) {
            places.extend(peers.iter().enumerate().map(|(at, p)| (p.node(), at)));
            places.sort_unstable();
        }
        let (here, own_load) = (time_per_work(&local.figures, 0.0), cpu_load(&local.figures));
        Self { peers, places, here, own_load, own: local.figures, keeps: local.stance == Stance::Open }
    }

    fn peer(&self, node: NodeId) -> Option<&Peer<'a>> {
        let at = self.places.binary_search_by_key(&node, |p| p.0).ok()?;
        self.peers.get(self.places.get(at)?.1)
    }

    /// The first that fits, and if none of the head does the best of the rest.
    fn plain(&self, fits: impl Fn(&Peer<'_>) -> bool) -> Option<&Peer<'a>> {
        let (head, rest) = self.peers.split_at(self.peers.len().min(HEAD));
        let of_rest = || rest.iter().filter(|p| fits(p)).min_by(|a, b| a.time.total_cmp(&b.time));
        head.iter().find(|p| fits(p)).or_else(of_rest)
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
        peer.takes(candidate) && !(self.keeps && wastes_a_cpu(params, &self.own, &peer.figures()))
    }

    /// Whether it is plain that no node is better for `candidate`, though it be met there by all whom it talks to.
    pub(crate) fn is_best_here(&self, params: &Params, candidate: &Candidate) -> bool {
        let least = self.peers.first().map_or(f64::INFINITY, |p| p.time - params.margin);
        self.time_here(candidate) - least <= params.margin
    }

    /// The node on which `candidate` would run fastest.
    pub(crate) fn best(&self, params: &Params, candidate: &Candidate) -> Option<Best> {
        let here = self.time_here(candidate);
        let home = needs_home(candidate, self.own.node).then_some(candidate.home);
        let is_special = |n: NodeId| home == Some(n) || candidate.partners.iter().any(|p| p.node == n);
        let plain = self.plain(|p| !is_special(p.node()) && self.usable(params, candidate, p));
        let mut best = plain.map(|p| Best { target: p.node(), here, there: self.time_at(candidate, p, params.margin), for_partner: false });
        let partners = candidate.partners.iter().map(|p| (p.node, true));
        for (node, for_partner) in home.map(|node| (node, false)).into_iter().chain(partners) {
            let Some(peer) = self.peer(node).filter(|p| self.usable(params, candidate, p)) else { continue };
            let there = self.time_at(candidate, peer, params.margin);
            if best.is_none_or(|b| there < b.there - params.margin) {
                best = Some(Best { target: node, here, there, for_partner });
            }
        }
        best
    }
}

/// Whether its home is better for it than an equal node.
fn needs_home(candidate: &Candidate, own: NodeId) -> bool {
    candidate.kappa > 0.0 && candidate.home != own
}

/// "Keep": whether a move leaves a CPU idle to crowd one of another speed. For the process that is moved it may be
/// better; the work that the idle CPU would have done is lost to all. With rotation each gets its turn on the fast ones.
pub(crate) fn wastes_a_cpu(params: &Params, from: &Figures, to: &Figures) -> bool {
    params.rotation && from.committed <= from.cpus && !to.has_free_cpu() && (to.speed / from.speed - 1.0).abs() > SAME_SPEED
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
