//! Admission: the target of a move checks it on its own committed state, and reserves or refuses.
//!
//! The sender decided on old news, and others decided on the same news at the same time. Without this check an idle node
//! is flooded by dozens of processes; with it, it gets those that it improves. The answer, either way, should carry a
//! fresh record of this node.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::opportunity::marginal;
use crate::params::Params;
use crate::predict::{Figures, time_per_work};
use crate::process::{Candidate, Local, Move, Terms};
use crate::record::{Features, NodeId};
use crate::rotate::may_change_places;
use crate::view::wastes_a_cpu;

/// "May I send you this process?"
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Names the reservation: unique for the sender, the same in repeats.
    pub id: u64,
    /// The sender's figures, with the process still there.
    pub source: Figures,
    /// Home of the process.
    pub home: NodeId,
    /// Memory that comes with it.
    pub memory_bytes: u64,
    /// Extra time per unit of work away from home.
    pub kappa: f64,
    /// Asked for by a user: only room is checked, not whether it pays off.
    pub manual: bool,
    /// CPU features that it needs.
    pub needs: Features,
    /// Extra time per unit of work by talking to partners that are not at the sender ...
    pub apart_here: f64,
    /// ... and by those that are not at the target.
    pub apart_there: f64,
    /// What must hold for the move to make sense.
    pub terms: Terms,
}

impl Request {
    /// The request for a move that [`crate::decide`] found for `candidate`.
    pub fn automatic(id: u64, local: &Local, candidate: &Candidate, action: &Move) -> Self {
        Self {
            id,
            source: local.figures,
            home: candidate.home,
            memory_bytes: candidate.memory_bytes,
            kappa: candidate.kappa,
            manual: false,
            needs: candidate.needs,
            apart_here: candidate.apart(local.figures.node),
            apart_there: candidate.apart(action.target),
            terms: action.terms,
        }
    }

    fn is_sane(&self) -> bool {
        let terms = match self.terms {
            Terms::Faster | Terms::Room | Terms::Idle => true,
            Terms::Cheaper { cost_here, scale } => cost_here.is_finite() && scale.is_finite() && scale > 0.0,
            Terms::Ahead { stayers_lag_s: lag_s, threshold_s } | Terms::Exchange { lag_s, threshold_s } => {
                lag_s.is_finite() && threshold_s.is_finite() && threshold_s >= 0.0
            }
        };
        terms && self.source.is_sane() && [self.kappa, self.apart_here, self.apart_there].iter().all(|x| x.is_finite())
    }
}

/// The target's own state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// Committed figures, reservations included.
    pub figures: Figures,
    /// Reservations that have not arrived.
    pub incoming: u16,
    /// Whether this node takes guests at present. Processes of this home may always return.
    pub accepts_guests: bool,
    /// What its CPUs can do.
    pub features: Features,
    /// Mean lag of its processes.
    pub lag_mean_s: f64,
    /// Lag of the one furthest ahead.
    pub lag_min_s: f64,
}

/// Why a process is not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The node takes no guests.
    Closed,
    /// Enough transfers arrive already.
    Busy {
        /// Transfers that arrive.
        incoming: u16,
        /// The most.
        max_in: u16,
    },
    /// Its memory would become scarce.
    Memory {
        /// Committed bytes with the process.
        would_be_bytes: u64,
        /// Total bytes.
        total_bytes: u64,
    },
    /// It would not run faster here.
    NoGain {
        /// Seconds per second of work at the sender.
        there: f64,
        /// The same here.
        here: f64,
    },
    /// By opportunity cost it would not be cheaper here.
    NotCheaper {
        /// Cost at the sender.
        there: f64,
        /// Cost here.
        here: f64,
    },
    /// The processes here are not that far ahead, or too few.
    NotAhead,
    /// Its CPU lacks a feature that the process needs.
    Features,
    /// The request's numbers cannot be true.
    Nonsense,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the node takes no guests at present"),
            Self::Busy { incoming, max_in } => {
                write!(f, "{incoming} processes are arriving there already, of at most {max_in}: try again soon")
            }
            Self::Memory { would_be_bytes, total_bytes } => {
                write!(f, "its memory would become scarce: {} of {} MiB would be used", would_be_bytes >> 20, total_bytes >> 20)
            }
            Self::NoGain { there, here } => {
                write!(f, "it would not run faster: {here:.3} s per s of work at the target, {there:.3} where it is")
            }
            Self::NotCheaper { there, here } => {
                write!(f, "it would not be cheaper: a cost of {here:.3} at the target, {there:.3} where it is")
            }
            Self::NotAhead => f.write_str("the processes there have not had more than their share, or no transfer fits in between"),
            Self::Features => f.write_str("the target's CPU lacks a feature that the process needs"),
            Self::Nonsense => f.write_str("the request's figures cannot be true: check that both nodes run the same version"),
        }
    }
}

/// The target's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Welcome: reserve it in the [`crate::Ledger`] before answering.
    Accept,
    /// No; the process stays where it is.
    Refuse(Refusal),
}

/// Whether this node takes the process. Changes nothing: on [`Verdict::Accept`] the caller reserves, before it looks at
/// another request.
pub fn admit(params: &Params, own: &Own, request: &Request) -> Verdict {
    match check(params, own, request) {
        Ok(()) => Verdict::Accept,
        Err(why) => Verdict::Refuse(why),
    }
}

fn check(params: &Params, own: &Own, request: &Request) -> Result<(), Refusal> {
    let here = own.figures.node;
    if !request.is_sane() || !own.figures.is_sane() || request.source.node == here {
        return Err(Refusal::Nonsense);
    }
    if !own.accepts_guests && request.home != here {
        return Err(Refusal::Closed);
    }
    if !own.features.covers(request.needs) {
        return Err(Refusal::Features);
    }
    if own.incoming >= params.max_in {
        return Err(Refusal::Busy { incoming: own.incoming, max_in: params.max_in });
    }
    let after = own.figures.with_one_more(request.memory_bytes);
    if !after.memory_within(params.memory_limit) {
        return Err(Refusal::Memory { would_be_bytes: after.memory_used_bytes, total_bytes: after.memory_total_bytes });
    }
    if request.manual { Ok(()) } else { pays_off(params, own, request, &after) }
}

/// Whether what the sender expects holds on the target's true state.
fn pays_off(params: &Params, own: &Own, request: &Request, after: &Figures) -> Result<(), Refusal> {
    let here = own.figures.node;
    let home = |node| if request.home == node { 0.0 } else { request.kappa.max(0.0) };
    match request.terms {
        Terms::Room => Ok(()),
        Terms::Idle => {
            let fills = own.figures.has_free_cpu() && request.source.committed > request.source.cpus;
            if fills { Ok(()) } else { Err(Refusal::NotAhead) }
        }
        Terms::Faster => {
            let there_s = time_per_work(&request.source, home(request.source.node) + request.apart_here.max(0.0));
            let here_s = time_per_work(after, home(here) + request.apart_there.max(0.0));
            let wasteful = wastes_a_cpu(params, &request.source, &own.figures);
            if there_s - here_s > params.margin && !wasteful { Ok(()) } else { Err(Refusal::NoGain { there: there_s, here: here_s }) }
        }
        Terms::Cheaper { cost_here: there, scale } => {
            let drag = 1.0 + home(here) + request.apart_there.max(0.0);
            let cost = drag * marginal(params, &own.figures, request.memory_bytes, scale);
            let limit = there * (1.0 - params.opportunity_hysteresis);
            if limit - cost > params.margin { Ok(()) } else { Err(Refusal::NotCheaper { there, here: cost }) }
        }
        Terms::Ahead { stayers_lag_s, threshold_s } => {
            let quiet = own.incoming == 0;
            let ahead = stayers_lag_s - own.lag_mean_s > threshold_s;
            if quiet && ahead && may_change_places(params, &request.source, &own.figures) { Ok(()) } else { Err(Refusal::NotAhead) }
        }
        Terms::Exchange { lag_s, threshold_s } => {
            let quiet = own.incoming == 0 && own.figures.committed > 0;
            if quiet && lag_s - own.lag_min_s > threshold_s { Ok(()) } else { Err(Refusal::NotAhead) }
        }
    }
}
