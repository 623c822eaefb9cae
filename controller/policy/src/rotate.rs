//! Rotation: equal shares among nodes whose loads differ by less than a move would mend. See [`crate::lag`].
//!
//! *Fill*: a CPU that idles because it is too slow for anybody gets the process that is furthest ahead.
//! *Rotate*: from a node with more load to one with less, which thereby change places. The process that is furthest ahead goes to the
//! node whose processes are furthest ahead: those that stay speed up, those there slow down.
//! *Swap*: where speeds differ, a process on a slow node that is behind changes places with one on a fast node that is ahead.

use crate::explain::{Conclusion, Explanation};
use crate::lag;
use crate::params::Params;
use crate::predict::{cpu_load, rate};
use crate::process::{Candidate, Local, Move, Rule, Terms};
use crate::view::{Peer, View};

/// Whether `to` is a node that a process of `from` may go to for the sake of shares: the loads change places, or come closer.
/// Both are busy: else balance would do it.
pub(crate) fn may_change_places(params: &Params, from: &crate::Figures, to: &crate::Figures) -> bool {
    let more = cpu_load(&to.with_one_more(0));
    let (here, there) = (cpu_load(from), cpu_load(to));
    !to.has_free_cpu() && there < here - params.margin && more <= here + params.margin
}

pub(crate) fn fill(local: &Local, view: &View<'_>, able: &[&Candidate], explanation: &mut Explanation) -> Option<Move> {
    if local.figures.committed <= local.figures.cpus {
        return None;
    }
    let mover = able.iter().min_by(|a, b| a.lag_s.total_cmp(&b.lag_s).then(a.key.cmp(&b.key)))?;
    let idle = view.peers.iter().filter(|p| p.figures().has_free_cpu() && p.takes(mover));
    let peer = idle.min_by(|a, b| a.time.total_cmp(&b.time))?;
    explanation.conclusion = Conclusion::Fills { key: mover.key, target: peer.node() };
    Some(Move { key: mover.key, target: peer.node(), predicted_gain_s: 0.0, rule: Rule::Rotate, terms: Terms::Idle })
}

pub(crate) fn rotate(params: &Params, local: &Local, view: &View<'_>, able: &[&Candidate], explanation: &mut Explanation) -> Option<Move> {
    if local.figures.committed <= local.figures.cpus || local.figures.committed < 2 {
        return None;
    }
    let mover = able.iter().min_by(|a, b| a.lag_s.total_cmp(&b.lag_s).then(a.key.cmp(&b.key)))?;
    let others = local.candidates.iter().filter(|c| c.key != mover.key && !c.in_flight).map(|c| c.lag_s);
    let (behind_s, _) = lag::summary(others);
    let threshold_s = lag::threshold_s(params, mover.cost_s, mover.wall_age_s);
    let fits = |p: &&Peer<'_>| p.takes(mover) && may_change_places(params, &local.figures, &p.figures());
    let worth = |p: &&Peer<'_>| behind_s - p.lag_mean_s() > threshold_s;
    let peer = view.peers.iter().filter(fits).filter(worth).min_by(|a, b| a.lag_mean_s().total_cmp(&b.lag_mean_s()))?;
    let terms = Terms::Ahead { stayers_lag_s: behind_s, threshold_s };
    Some(shares(mover, peer, Rule::Rotate, terms, (behind_s, peer.lag_mean_s(), threshold_s), explanation))
}

pub(crate) fn swap(params: &Params, local: &Local, view: &View<'_>, able: &[&Candidate], explanation: &mut Explanation) -> Option<Move> {
    let mover = able.iter().max_by(|a, b| a.lag_s.total_cmp(&b.lag_s).then(b.key.cmp(&a.key)))?;
    let threshold_s = params.swap_factor * lag::threshold_s(params, mover.cost_s, mover.wall_age_s);
    let here = rate(&local.figures);
    let faster = |p: &&Peer<'_>| p.record.committed > 0 && rate(&p.figures()) >= params.swap_rate_ratio * here;
    let worth = |p: &&Peer<'_>| mover.lag_s - p.lag_min_s() > threshold_s;
    let fits = view.peers.iter().filter(|p| p.takes(mover)).filter(faster).filter(worth);
    let peer = fits.min_by(|a, b| a.lag_min_s().total_cmp(&b.lag_min_s()))?;
    let terms = Terms::Exchange { lag_s: mover.lag_s, threshold_s };
    Some(shares(mover, peer, Rule::Swap, terms, (mover.lag_s, peer.lag_min_s(), threshold_s), explanation))
}

fn shares(
    mover: &Candidate,
    peer: &Peer<'_>,
    rule: Rule,
    terms: Terms,
    (behind_s, ahead_s, threshold_s): (f64, f64, f64),
    explanation: &mut Explanation,
) -> Move {
    let target = peer.node();
    explanation.conclusion = Conclusion::Shares { key: mover.key, target, behind_s, ahead_s, threshold_s };
    Move { key: mover.key, target, predicted_gain_s: 0.0, rule, terms }
}

/// The process that this node gives in exchange for one that it has just accepted under [`Terms::Exchange`]: the one that is
/// furthest ahead. Send it to `back` as any other move; there it need only fit.
pub fn swap_back(params: &Params, local: &Local, back: crate::NodeId) -> Option<Move> {
    let able = local.candidates.iter().filter(|c| crate::eligible(params, c).is_ok());
    let mover = able.min_by(|a, b| a.lag_s.total_cmp(&b.lag_s).then(a.key.cmp(&b.key)))?;
    Some(Move { key: mover.key, target: back, predicted_gain_s: 0.0, rule: Rule::SwapBack, terms: Terms::Room })
}
