//! Decisions explain themselves: inputs, numbers, outcome.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::decide::Local;
use crate::predict::Figures;

/// Most processes that an explanation lists.
pub const MAX_ROWS: usize = 32;

/// Why a process is not considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ineligible {
    /// It is being moved already.
    InFlight,
    /// It must not move by itself.
    Pinned,
    /// It was started just now.
    TooYoung,
    /// It came here just now.
    JustArrived,
    /// Its CPU time or cost is not known yet.
    NotMeasured,
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "it is being moved",
            Self::Pinned => "it must not move by itself",
            Self::TooYoung => "it was started just now",
            Self::JustArrived => "it came here just now",
            Self::NotMeasured => "it has not been measured yet",
        })
    }
}

/// One process that would run faster elsewhere, and its best target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The candidate's key.
    pub key: u64,
    /// Its best target.
    pub target: crate::NodeId,
    /// Seconds per second of work here.
    pub here: f64,
    /// Seconds per second of work there.
    pub there: f64,
    /// Expected gain over the rest of its run.
    pub gain_s: f64,
    /// Cost of the move.
    pub cost_s: f64,
    /// Gain minus cost.
    pub value_s: f64,
}

/// How a decision came about. `Display` gives one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// When, on the caller's clock.
    pub at_s: f64,
    /// The rule: `balance`, or `none` if nothing was to be done.
    pub rule: String,
    /// This node.
    pub here: Figures,
    /// Transfers that arrive.
    pub incoming: u16,
    /// Transfers that leave.
    pub outgoing: u16,
    /// Nodes known and not yet tried.
    pub peers: usize,
    /// Nodes that have refused since the last trigger.
    pub tried: usize,
    /// Processes of this node that were looked at.
    pub candidates: usize,
    /// How many of them were left out, by reason.
    pub left_out: Vec<(Ineligible, usize)>,
    /// Those that would run faster elsewhere, most valuable first, at most [`MAX_ROWS`].
    pub rows: Vec<Row>,
    /// In words.
    pub outcome: String,
}

impl Explanation {
    pub(crate) fn new(at_s: f64, local: &Local) -> Self {
        Self {
            at_s,
            rule: "none".to_owned(),
            here: local.figures,
            incoming: local.incoming,
            outgoing: local.outgoing,
            peers: 0,
            tried: 0,
            candidates: local.candidates.len(),
            left_out: Vec::new(),
            rows: Vec::new(),
            outcome: String::new(),
        }
    }

    pub(crate) fn count_ineligible(&mut self, why: Ineligible) {
        match self.left_out.iter_mut().find(|(reason, _)| *reason == why) {
            Some((_, count)) => *count += 1,
            None => self.left_out.push((why, 1)),
        }
    }

    /// What was predicted for one process, if it would have run faster elsewhere.
    pub fn row(&self, key: u64) -> Option<&Row> {
        self.rows.iter().find(|r| r.key == key)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = &self.here;
        write!(
            f,
            "{}: {} has {} committed ({} arriving, {} leaving) on {} CPUs of speed {:.3}, {} peers known",
            self.rule, here.node, here.committed, self.incoming, self.outgoing, here.cpus, here.speed, self.peers
        )?;
        if self.tried > 0 {
            write!(f, ", {} refused", self.tried)?;
        }
        write!(f, "; of {} processes", self.candidates)?;
        for (why, count) in &self.left_out {
            write!(f, " {count} left out ({why}),")?;
        }
        write!(f, " {} would run faster elsewhere", self.rows.len())?;
        if let Some(r) = self.rows.first() {
            write!(
                f,
                " (best: {} at {}: {:.3} -> {:.3} s per s of work, gain {:.2} s, cost {:.2} s)",
                r.key, r.target, r.here, r.there, r.gain_s, r.cost_s
            )?;
        }
        write!(f, "; {}", self.outcome)
    }
}
