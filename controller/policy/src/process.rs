//! What decisions look at: this node, its processes, and what a decision says.

use serde::{Deserialize, Serialize};

use crate::explain::{Explanation, Ineligible};
use crate::params::Params;
use crate::predict::Figures;
use crate::record::{Features, NodeId};

/// Another process that one talks to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Partner {
    /// Where it runs.
    pub node: NodeId,
    /// Extra time per unit of work that talking costs as long as the two are on different nodes, like `kappa`.
    pub apart: f64,
}

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
    /// CPU features that it needs.
    pub needs: Features,
    /// How far it is behind its fair share ([`crate::lag`]); only rotation looks at it.
    pub lag_s: f64,
    /// Decayed count of its moves ([`Params::restless`]): it sets the cool-down.
    pub restless: f64,
    /// The processes it talks to most, a few at most.
    pub partners: Vec<Partner>,
}

impl Candidate {
    /// Factor by which it is slower than by its own work on `node`: calls to its home, and talk to partners elsewhere.
    pub(crate) fn drag(&self, node: NodeId) -> f64 {
        let home = if self.home == node { 0.0 } else { self.kappa.max(0.0) };
        home + self.apart(node)
    }

    /// The part of it that is talk to partners elsewhere.
    pub(crate) fn apart(&self, node: NodeId) -> f64 {
        self.partners.iter().filter(|p| p.node != node).map(|p| p.apart).filter(|a| a.is_finite() && *a > 0.0).sum()
    }
}

/// What the owner of this node wants of its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stance {
    /// Guests are welcome.
    #[default]
    Open,
    /// The owner needs the node: guests leave, for their home if nothing better is known.
    Evict,
    /// The node is taken out of service: everything leaves that may.
    Drain,
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
    /// Whether guests may stay.
    pub stance: Stance,
    /// All processes that might move.
    pub candidates: Vec<Candidate>,
}

/// Why a move is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Nothing was to be done.
    None,
    /// It runs faster there.
    Balance,
    /// It runs faster there because whom it talks to is there.
    Together,
    /// Memory is scarce here.
    Usher,
    /// The owner wants the node, or it is taken out of service.
    Evict,
    /// It has had more than its share, and those that stay less.
    Rotate,
    /// It has had less than its share: it changes places with one that had more.
    Swap,
    /// The other half of that.
    SwapBack,
    /// A user asked.
    Manual,
}

impl Rule {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Balance => "balance",
            Self::Together => "together",
            Self::Usher => "usher",
            Self::Evict => "evict",
            Self::Rotate => "rotate",
            Self::Swap => "swap",
            Self::SwapBack => "swap_back",
            Self::Manual => "manual",
        }
    }
}

/// What must hold at the target for a move to make sense; the target checks it on its own state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// It must run faster there.
    Faster,
    /// It must cost less there than this, by opportunity cost.
    Cheaper {
        /// Marginal cost at the sender.
        cost_here: f64,
        /// Load that counts as 1 in it.
        scale: f64,
    },
    /// There must be room.
    Room,
    /// There must be a CPU that idles, at the sender more processes than CPUs.
    Idle,
    /// Those there must be further ahead than those that stay here.
    Ahead {
        /// Mean lag of those that stay, in CPU seconds.
        stayers_lag_s: f64,
        /// Least difference.
        threshold_s: f64,
    },
    /// The one furthest ahead there must be ahead of the mover.
    Exchange {
        /// Lag of the mover, in CPU seconds.
        lag_s: f64,
        /// Least difference.
        threshold_s: f64,
    },
}

/// A process to move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Which candidate.
    pub key: u64,
    /// Where to.
    pub target: NodeId,
    /// By how much the rest of its run is expected to get shorter, before the cost, in seconds. Negative if it is moved for the
    /// sake of others.
    pub predicted_gain_s: f64,
    /// Why.
    pub rule: Rule,
    /// What the target must check.
    pub terms: Terms,
}

/// What [`crate::decide`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    movable(candidate)?;
    if !candidate.wall_age_s.is_finite() || candidate.wall_age_s < params.min_age_s {
        Err(Ineligible::TooYoung)
    } else if !candidate.resident_s.is_finite() || candidate.resident_s < params.min_residency_s {
        Err(Ineligible::JustArrived)
    } else if candidate.restless > 1.0 && candidate.resident_s < params.cooldown_s(candidate.restless) {
        Err(Ineligible::CoolingDown)
    } else {
        Ok(())
    }
}

/// Whether a process may be moved at all, however young.
pub(crate) fn movable(candidate: &Candidate) -> Result<(), Ineligible> {
    let measured =
        candidate.cpu_age_s.is_finite() && candidate.cost_s.is_finite() && candidate.kappa.is_finite() && candidate.lag_s.is_finite();
    if candidate.in_flight {
        Err(Ineligible::InFlight)
    } else if candidate.pinned {
        Err(Ineligible::Pinned)
    } else if !measured {
        Err(Ineligible::NotMeasured)
    } else {
        Ok(())
    }
}
