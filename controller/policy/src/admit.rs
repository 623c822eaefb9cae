//! Admission: the target of a move checks it on its own committed state, and reserves or refuses.
//!
//! The sender decided on old news, and others decided on the same news at the same time. Without this check an idle node
//! is flooded by dozens of processes; with it, it gets those that it improves. The answer, either way, should carry a
//! fresh record of this node.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::params::Params;
use crate::predict::{Figures, time_per_work};
use crate::record::NodeId;

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
    if !request.source.is_sane() || !own.figures.is_sane() || !request.kappa.is_finite() || request.source.node == here {
        return Err(Refusal::Nonsense);
    }
    if !own.accepts_guests && request.home != here {
        return Err(Refusal::Closed);
    }
    if own.incoming >= params.max_in {
        return Err(Refusal::Busy { incoming: own.incoming, max_in: params.max_in });
    }
    let after = own.figures.with_one_more(request.memory_bytes);
    if !after.memory_within(params.memory_limit) {
        return Err(Refusal::Memory { would_be_bytes: after.memory_used_bytes, total_bytes: after.memory_total_bytes });
    }
    if request.manual {
        return Ok(());
    }
    let kappa_at = |node| if request.home == node { 0.0 } else { request.kappa };
    let time_there = time_per_work(&request.source, kappa_at(request.source.node));
    let time_here = time_per_work(&after, kappa_at(here));
    if time_there - time_here <= params.margin {
        return Err(Refusal::NoGain { there: time_there, here: time_here });
    }
    Ok(())
}
