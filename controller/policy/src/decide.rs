//! Which process of this node should go where, if any. The rules, in order; the first that finds something wins:
//!
//! 1. *Evict*: the owner wants the node ([`Stance`]): guests leave, wherever there is room, home first if all else is equal.
//! 2. *Usher*: memory is beyond its limit: the smallest process that cures it goes to the least loaded node with room.
//! 3. *Balance*: let `T(p)` be the seconds that `p` needs for a second of work ([`crate::time_per_work`]) here, and at another node with one
//!    process more; times `1 + kappa` away from its home, and longer for each partner that is elsewhere. A node is a
//!    candidate if `T` falls by more than a margin and its memory stays within the limit. On equal nodes of one CPU this
//!    is the rule of the 1996 paper: loads differ by more than one process. A process that has used `a` CPU seconds is
//!    expected to use `a` more, so it gains `a * (T_here - T_there)`; the process with the largest gain minus cost goes, and an expensive
//!    move must gain twice its cost. By [opportunity cost](crate::Objective) instead, if so chosen.
//! 4. *Rotate* and *swap*, if switched on ([`crate::lag`]).
//!
//! The decision is on possibly old news: the target must still [`crate::admit`] the process.

use rand::Rng;

use crate::explain::{Conclusion, Explanation, MAX_ROWS, Row};
use crate::opportunity::{cheapest, scale};
use crate::params::{Objective, Params};
use crate::predict::cpu_load;
use crate::process::{Candidate, Local, Move, Outcome, Rule, Stance, Terms, eligible, movable};
use crate::record::NodeId;
use crate::rotate;
use crate::view::{View, nothing_to_gain};
use crate::window::Window;

/// Picks at most one process to move now. `tried` are the nodes that refused since the last trigger.
///
/// Call it on each own tick, when gossip brought news, when a transfer ended and when a local process exited. With
/// an empty window it does nothing. It has no state: the caller asks the target, and reports the move to its
/// [`crate::Ledger`].
pub fn decide(params: &Params, local: &Local, window: &Window, now_s: f64, rng: &mut impl Rng, tried: &[NodeId]) -> Outcome {
    let mut explanation = Explanation::new(now_s, local);
    explanation.tried = tried.len();
    if let Some(peers) = at_first_sight(params, local, window, now_s, tried) {
        explanation.peers = peers;
        for why in local.candidates.iter().filter_map(|c| eligible(params, c).err()) {
            explanation.count_ineligible(why);
        }
        return Outcome { action: None, explanation };
    }
    let view = match ready(params, local, window, now_s, rng, tried) {
        Ok(view) => view,
        Err(why) => {
            explanation.conclusion = why;
            explanation.peers = window.usable(params, now_s).count();
            return Outcome { action: None, explanation };
        }
    };
    explanation.peers = view.peers.len();
    let action = must_leave(params, local, &view, &mut explanation).or_else(|| {
        if explanation.conclusion == Conclusion::NoRoom { None } else { by_choice(params, local, &view, &mut explanation, rng) }
    });
    if let Some(action) = &action {
        explanation.rule = action.rule;
    }
    Outcome { action, explanation }
}

/// The number of nodes known, if it is plain that none of the rules finds anything.
fn at_first_sight(params: &Params, local: &Local, window: &Window, now_s: f64, tried: &[NodeId]) -> Option<usize> {
    let only_balance = !params.rotation && params.objective == Objective::Time && local.stance == Stance::Open;
    let must_usher = params.usher && !local.figures.memory_within(params.usher_limit);
    if !only_balance || must_usher || !local.figures.is_sane() || local.outgoing >= params.max_out || tried.len() >= params.max_tries {
        return None;
    }
    let (nothing, peers) = nothing_to_gain(params, local, window, now_s, tried);
    (nothing && peers > 0).then_some(peers)
}

fn ready<'a>(
    params: &Params,
    local: &Local,
    window: &'a Window,
    now_s: f64,
    rng: &mut impl Rng,
    tried: &[NodeId],
) -> Result<View<'a>, Conclusion> {
    if !local.figures.is_sane() {
        return Err(Conclusion::NotReady);
    }
    if local.outgoing >= params.max_out {
        return Err(Conclusion::OutgoingFull);
    }
    if tried.len() >= params.max_tries {
        return Err(Conclusion::GivenUp);
    }
    let view = View::new(params, local, window, now_s, tried, rng);
    if view.peers.is_empty() { Err(Conclusion::Alone) } else { Ok(view) }
}

/// Evict and usher: moves that are not for the good of who is moved.
fn must_leave(params: &Params, local: &Local, view: &View<'_>, explanation: &mut Explanation) -> Option<Move> {
    let here = local.figures.node;
    let leaves = |c: &&Candidate| match local.stance {
        Stance::Open => false,
        Stance::Evict => c.home != here,
        Stance::Drain => true,
    };
    let leaving: Vec<&Candidate> = local.candidates.iter().filter(leaves).filter(|c| movable(c).is_ok()).collect();
    if !leaving.is_empty() {
        return evict(params, view, &leaving, explanation);
    }
    if !params.usher || local.figures.memory_within(params.usher_limit) {
        return None;
    }
    usher(params, local, view, explanation)
}

fn evict(params: &Params, view: &View<'_>, leaving: &[&Candidate], explanation: &mut Explanation) -> Option<Move> {
    // Those that gain most, or lose least, first.
    let rows = leaving.iter().filter_map(|c| view.best(params, c).map(|best| row(c, best.target, best.here, best.there)));
    let Some(row) = rows.max_by(|a, b| a.value_s.total_cmp(&b.value_s).then(b.key.cmp(&a.key))) else {
        explanation.conclusion = Conclusion::NoRoom;
        return None;
    };
    explanation.rows.push(row);
    Some(goes(row, Rule::Evict, Terms::Room, explanation))
}

/// The smallest process that cures the shortage, else the largest that fits; to the least loaded node, even if that is busier.
fn usher(params: &Params, local: &Local, view: &View<'_>, explanation: &mut Explanation) -> Option<Move> {
    let figures = &local.figures;
    let limit = params.memory_limit * figures.memory_total_bytes as f64;
    let deficit = (figures.memory_used_bytes as f64 - limit).max(0.0) as u64;
    let mut order: Vec<&Candidate> = local.candidates.iter().filter(|c| eligible(params, c).is_ok() && c.memory_bytes > 0).collect();
    let rank = |c: &Candidate| if c.memory_bytes >= deficit { (0, c.memory_bytes) } else { (1, u64::MAX - c.memory_bytes) };
    order.sort_by_key(|c| (rank(c), c.key));
    for candidate in order {
        let fits = view.peers.iter().filter(|p| p.takes(candidate));
        if let Some(peer) = fits.min_by(|a, b| a.load().total_cmp(&b.load())) {
            let drag = |node| 1.0 + candidate.drag(node);
            let here = drag(figures.node) * crate::time_per_work(figures, 0.0);
            let row = row(candidate, peer.node(), here, drag(peer.node()) * peer.time);
            explanation.rows.push(row);
            return Some(goes(row, Rule::Usher, Terms::Room, explanation));
        }
    }
    explanation.conclusion = Conclusion::NoRoom;
    None
}

fn by_choice(params: &Params, local: &Local, view: &View<'_>, explanation: &mut Explanation, rng: &mut impl Rng) -> Option<Move> {
    let mut able = Vec::with_capacity(local.candidates.len());
    for candidate in &local.candidates {
        match eligible(params, candidate) {
            Err(why) => explanation.count_ineligible(why),
            Ok(()) => able.push(candidate),
        }
    }
    let offers = match params.objective {
        Objective::Time => faster(params, view, &able),
        Objective::OpportunityCost => cheaper(params, local, view, &able),
    };
    if offers.is_empty() && params.rotation && local.incoming == 0 && local.outgoing == 0 {
        return rotate::fill(local, view, &able, explanation)
            .or_else(|| rotate::rotate(params, local, view, &able, explanation))
            .or_else(|| rotate::swap(params, local, view, &able, explanation));
    }
    let chosen = choose(params, &offers, rng).copied();
    explanation.rows = most_valuable(&offers);
    match chosen {
        Some(offer) => Some(goes(offer.row, offer.rule, offer.terms, explanation)),
        None => {
            let pays_not = Conclusion::DoesNotPay { factor: params.cost_factor };
            explanation.conclusion = if explanation.rows.is_empty() { Conclusion::Rest } else { pays_not };
            None
        }
    }
}

/// The rows of the [`MAX_ROWS`] most valuable offers, in order.
fn most_valuable(offers: &[Offer]) -> Vec<Row> {
    let mut order: Vec<(f64, u64, usize)> = offers.iter().enumerate().map(|(at, o)| (o.row.value_s, o.row.key, at)).collect();
    let by_value = |a: &(f64, u64, usize), b: &(f64, u64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if order.len() > MAX_ROWS {
        order.select_nth_unstable_by(MAX_ROWS, by_value);
        order.truncate(MAX_ROWS);
    }
    order.sort_unstable_by(by_value);
    order.into_iter().filter_map(|o| offers.get(o.2).map(|offer| offer.row)).collect()
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    row: Row,
    rule: Rule,
    terms: Terms,
}

fn faster(params: &Params, view: &View<'_>, able: &[&Candidate]) -> Vec<Offer> {
    let offers = able.iter().filter(|c| !view.is_best_here(params, c)).filter_map(|candidate| {
        let best = view.best(params, candidate).filter(|best| best.here - best.there > params.margin)?;
        let rule = if best.for_partner { Rule::Together } else { Rule::Balance };
        Some(Offer { row: row(candidate, best.target, best.here, best.there), rule, terms: Terms::Faster })
    });
    offers.collect()
}

fn cheaper(params: &Params, local: &Local, view: &View<'_>, able: &[&Candidate]) -> Vec<Offer> {
    let scale = scale(view.peers.iter().map(|p| p.load()).chain([cpu_load(&local.figures)]));
    let offers = able.iter().filter_map(|candidate| {
        let found = cheapest(params, local, view, candidate, scale)?;
        if found.here * (1.0 - params.opportunity_hysteresis) - found.there <= params.margin {
            return None;
        }
        let gain_s = candidate.cpu_age_s.max(0.0) * (1.0 - found.there / found.here);
        let cost_s = candidate.cost_s.max(0.0);
        let (key, target, here, there) = (candidate.key, found.peer.node(), found.here, found.there);
        let row = Row { key, target, here, there, gain_s, cost_s, value_s: gain_s - cost_s };
        Some(Offer { row, rule: Rule::Balance, terms: Terms::Cheaper { cost_here: here, scale } })
    });
    offers.collect()
}

fn row(candidate: &Candidate, target: NodeId, here: f64, there: f64) -> Row {
    let gain_s = candidate.cpu_age_s.max(0.0) * (here - there);
    let cost_s = candidate.cost_s.max(0.0);
    Row { key: candidate.key, target, here, there, gain_s, cost_s, value_s: gain_s - cost_s }
}

fn goes(row: Row, rule: Rule, terms: Terms, explanation: &mut Explanation) -> Move {
    explanation.rule = rule;
    explanation.conclusion = Conclusion::Goes { key: row.key, target: row.target, gain_s: row.gain_s };
    Move { key: row.key, target: row.target, predicted_gain_s: row.gain_s, rule, terms }
}

/// The offer of the highest value that pays off; of equal ones a random one.
fn choose<'a>(params: &Params, offers: &'a [Offer], rng: &mut impl Rng) -> Option<&'a Offer> {
    let pays = |o: &&Offer| o.row.cost_s <= params.cost_free_s || o.row.gain_s > params.cost_factor * o.row.cost_s;
    let most = offers.iter().filter(pays).map(|o| o.row.value_s).max_by(f64::total_cmp)?;
    let mut chosen = None;
    let equals = offers.iter().filter(pays).filter(|o| o.row.value_s >= most - params.margin);
    for (before, offer) in equals.enumerate() {
        if rng.random_range(0..=before) == 0 {
            chosen = Some(offer);
        }
    }
    chosen
}
