//! Balance: which process of this node should go where, if any.
//!
//! Let `T(p)` be the seconds that `p` needs for a second of work ([`time_per_work`]) here, and at a candidate node with one
//! process more; away from its home times `1 + kappa`. A node is a candidate if `T` falls by more than a margin and
//! its memory stays within the limit. On equal nodes of one CPU this is the rule of the 1996 paper: loads differ by more
//! than one process. A process that has used `a` CPU seconds is expected to use `a` more, so it gains `a * (T_here -
//! T_there)`; the process with the largest gain minus cost goes, and an expensive move must gain twice its cost.
//!
//! The decision is on possibly old news: the target must still [`crate::admit`] the process.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::explain::{Explanation, Ineligible, MAX_ROWS, Row};
use crate::params::Params;
use crate::predict::{Figures, time_per_work};
use crate::record::NodeId;
use crate::window::Window;

/// A process that runs here and wants a CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The caller's name for it.
    pub key: u64,
    /// CPU seconds used in its life.
    pub cpu_age_s: f64,
    /// Seconds since it was started.
    pub wall_age_s: f64,
    /// Seconds since it came to this node; its age if it was started here.
    pub resident_s: f64,
    /// Memory that goes with it.
    pub memory_bytes: u64,
    /// The node where it was started.
    pub home: NodeId,
    /// Extra time per unit of work that it needs away from home (0.3: 30 % slower), for its calls to the deputy.
    pub kappa: f64,
    /// Expected cost of moving it: freeze plus what copying takes from it, in seconds.
    pub cost_s: f64,
    /// It is being moved.
    pub in_flight: bool,
    /// It must not move by itself.
    pub pinned: bool,
}

/// This node and its processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// Committed figures of this node.
    pub figures: Figures,
    /// Transfers that arrive.
    pub incoming: u16,
    /// Transfers that leave.
    pub outgoing: u16,
    /// All processes that might move.
    pub candidates: Vec<Candidate>,
}

/// A process to move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Which candidate.
    pub key: u64,
    /// Where to.
    pub target: NodeId,
    /// By how much the rest of its run is expected to get shorter, before the cost, in seconds.
    pub predicted_gain_s: f64,
}

/// What [`decide`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The move, or nothing to do.
    pub action: Option<Move>,
    /// Why.
    pub explanation: Explanation,
}

/// Whether a process may be moved by a decision now.
///
/// # Errors
/// The first reason why not.
pub fn eligible(params: &Params, candidate: &Candidate) -> Result<(), Ineligible> {
    if candidate.in_flight {
        Err(Ineligible::InFlight)
    } else if candidate.pinned {
        Err(Ineligible::Pinned)
    } else if !candidate.wall_age_s.is_finite() || candidate.wall_age_s < params.min_age_s {
        Err(Ineligible::TooYoung)
    } else if !candidate.resident_s.is_finite() || candidate.resident_s < params.min_residency_s {
        Err(Ineligible::JustArrived)
    } else if !(candidate.cpu_age_s.is_finite() && candidate.cost_s.is_finite() && candidate.kappa.is_finite()) {
        Err(Ineligible::NotMeasured)
    } else {
        Ok(())
    }
}

/// Picks at most one process to move now. `tried` are the nodes that refused since the last trigger.
///
/// Call it on each own tick, when gossip brought news, when a transfer ended and when a local process exited. With
/// an empty window it does nothing. It has no state: the caller asks the target, and reports the move to its
/// [`crate::Ledger`].
pub fn decide(params: &Params, local: &Local, window: &Window, now_s: f64, rng: &mut impl Rng, tried: &[NodeId]) -> Outcome {
    let mut explanation = Explanation::new(now_s, local);
    let peers: Vec<Figures> = window.known(params, now_s).filter(|f| !tried.contains(&f.node)).collect();
    explanation.peers = peers.len();
    explanation.tried = tried.len();
    let idle = |mut explanation: Explanation, why: &str| {
        why.clone_into(&mut explanation.outcome);
        Outcome { action: None, explanation }
    };
    if !local.figures.is_sane() {
        return idle(explanation, "this node's own figures are not known yet");
    }
    if local.outgoing >= params.max_out {
        return idle(explanation, "as many processes as allowed are leaving already");
    }
    if tried.len() >= params.max_tries {
        return idle(explanation, "enough nodes have refused for now");
    }
    if peers.is_empty() {
        return idle(explanation, "no other node is known");
    }

    let mut rows = Vec::new();
    for candidate in &local.candidates {
        match eligible(params, candidate) {
            Err(why) => explanation.count_ineligible(why),
            Ok(()) => rows.extend(best_target(params, local, candidate, &peers, rng)),
        }
    }
    rows.sort_by(|a, b| b.value_s.total_cmp(&a.value_s).then(a.key.cmp(&b.key)));
    let action = choose(params, &rows, rng);
    if action.is_some() {
        "balance".clone_into(&mut explanation.rule);
    }
    explanation.outcome = match (&action, rows.first()) {
        (Some(m), _) => format!("process {} goes to {}, to gain {:.2} s", m.key, m.target, m.predicted_gain_s),
        (None, Some(best)) => format!(
            "moving process {} to {} would gain {:.2} s, less than {} times its cost of {:.2} s",
            best.key, best.target, best.gain_s, params.cost_factor, best.cost_s
        ),
        (None, None) => "no process would run faster elsewhere".to_owned(),
    };
    rows.truncate(MAX_ROWS);
    explanation.rows = rows;
    Outcome { action, explanation }
}

/// The node on which `candidate` would run fastest, if clearly faster than here. Ties are broken at random, so that
/// many senders do not all choose the same node.
fn best_target(params: &Params, local: &Local, candidate: &Candidate, peers: &[Figures], rng: &mut impl Rng) -> Option<Row> {
    let here = time_per_work(&local.figures, kappa_at(candidate, local.figures.node));
    let mut best: Option<(f64, NodeId)> = None;
    let mut ties = 0_u32;
    for peer in peers {
        let after = peer.with_one_more(candidate.memory_bytes);
        let there = time_per_work(&after, kappa_at(candidate, peer.node));
        if here - there <= params.margin || !after.memory_within(params.memory_limit) {
            continue;
        }
        match best {
            Some((so_far, _)) if there > so_far + params.margin => continue,
            Some((so_far, _)) if there > so_far - params.margin => {
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    // `so_far` stays the reference, or a row of near-ties could drift away from the best.
                    best = Some((so_far, peer.node));
                }
            }
            _ => {
                ties = 1;
                best = Some((there, peer.node));
            }
        }
    }
    let (there, target) = best?;
    let gain_s = candidate.cpu_age_s.max(0.0) * (here - there);
    let cost_s = candidate.cost_s.max(0.0);
    Some(Row { key: candidate.key, target, here, there, gain_s, cost_s, value_s: gain_s - cost_s })
}

fn kappa_at(candidate: &Candidate, node: NodeId) -> f64 {
    if candidate.home == node { 0.0 } else { candidate.kappa }
}

/// The row of the highest value that pays off; of equal ones a random one. `rows` are sorted by value.
fn choose(params: &Params, rows: &[Row], rng: &mut impl Rng) -> Option<Move> {
    let mut paying = rows.iter().filter(|r| r.cost_s <= params.cost_free_s || r.gain_s > params.cost_factor * r.cost_s);
    let first = paying.next()?;
    let equals: Vec<&Row> = std::iter::once(first).chain(paying.take_while(|r| r.value_s > first.value_s - params.margin)).collect();
    let row = equals.get(rng.random_range(0..equals.len()))?;
    Some(Move { key: row.key, target: row.target, predicted_gain_s: row.gain_s })
}
