//! Decisions explain themselves: inputs, numbers, outcome. And can be taken again: [`Case`].

use std::collections::VecDeque;
use std::fmt;

use rand::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::decide::decide;
use crate::dice::Dice;
use crate::params::Params;
use crate::predict::Figures;
use crate::process::{Local, Outcome, Rule};
use crate::record::NodeId;
use crate::window::{Heard, Window};

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
    /// It was moved often of late.
    CoolingDown,
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
            Self::CoolingDown => "it was moved often of late",
            Self::NotMeasured => "it has not been measured yet",
        })
    }
}

/// One process that would be better elsewhere, and its best target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The candidate's key.
    pub key: u64,
    /// Its best target.
    pub target: NodeId,
    /// Seconds per second of work here; by opportunity cost, the marginal cost.
    pub here: f64,
    /// The same there.
    pub there: f64,
    /// Expected gain over the rest of its run.
    pub gain_s: f64,
    /// Cost of the move.
    pub cost_s: f64,
    /// Gain minus cost.
    pub value_s: f64,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// This node's own figures are not known yet.
    NotReady,
    /// As many leave as may.
    OutgoingFull,
    /// Enough nodes have refused.
    GivenUp,
    /// No other node is known.
    Alone,
    /// No process would be better elsewhere.
    Rest,
    /// The best move gains too little for its cost.
    DoesNotPay {
        /// How many times the cost it must gain.
        factor: f64,
    },
    /// Nobody has room for what must leave.
    NoRoom,
    /// This process goes there.
    Goes {
        /// Which.
        key: u64,
        /// Where to.
        target: NodeId,
        /// By how much its run gets shorter, in seconds.
        gain_s: f64,
    },
    /// This process gives a CPU something to do that would idle.
    Fills {
        /// Which.
        key: u64,
        /// Where to.
        target: NodeId,
    },
    /// This process goes there because of lags.
    Shares {
        /// Which.
        key: u64,
        /// Where to.
        target: NodeId,
        /// Lag of those that gain, in CPU seconds.
        behind_s: f64,
        /// Lag of those there.
        ahead_s: f64,
        /// The least difference.
        threshold_s: f64,
    },
}

/// How a decision came about. `Display` gives one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// When, on the caller's clock.
    pub at_s: f64,
    /// The rule that moved something.
    pub rule: Rule,
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
    /// Those that would be better elsewhere, most valuable first, at most [`MAX_ROWS`].
    pub rows: Vec<Row>,
    /// What came out.
    pub conclusion: Conclusion,
}

impl Explanation {
    pub(crate) fn new(at_s: f64, local: &Local) -> Self {
        Self {
            at_s,
            rule: Rule::None,
            here: local.figures,
            incoming: local.incoming,
            outgoing: local.outgoing,
            peers: 0,
            tried: 0,
            candidates: local.candidates.len(),
            left_out: Vec::new(),
            rows: Vec::new(),
            conclusion: Conclusion::Rest,
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

    /// What came out, in words.
    pub fn outcome(&self) -> String {
        match self.conclusion {
            Conclusion::NotReady => "this node's own figures are not known yet".to_owned(),
            Conclusion::OutgoingFull => "as many processes as allowed are leaving already".to_owned(),
            Conclusion::GivenUp => "enough nodes have refused for now".to_owned(),
            Conclusion::Alone => "no other node is known".to_owned(),
            Conclusion::Rest => "no process would run faster elsewhere".to_owned(),
            Conclusion::NoRoom => "processes must leave, but no known node has room for one".to_owned(),
            Conclusion::DoesNotPay { factor } => self.rows.first().map_or_else(String::new, |best| {
                format!(
                    "moving process {} to {} would gain {:.2} s, less than {factor} times its cost of {:.2} s",
                    best.key, best.target, best.gain_s, best.cost_s
                )
            }),
            Conclusion::Goes { key, target, gain_s } if self.rule == Rule::Balance || self.rule == Rule::Together => {
                format!("process {key} goes to {target}, to gain {gain_s:.2} s")
            }
            Conclusion::Fills { key, target } => {
                format!("process {key} goes to {target}, where a CPU idles, until it is its turn elsewhere")
            }
            Conclusion::Goes { key, target, .. } => format!("process {key} goes to {target}, to make room"),
            Conclusion::Shares { key, target, behind_s, ahead_s, threshold_s } => format!(
                "process {key} goes to {target}: a lag of {behind_s:.2} s here, of {ahead_s:.2} s there, a difference of more than \
                 {threshold_s:.2} s"
            ),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = &self.here;
        write!(
            f,
            "{}: {} has {} committed ({} arriving, {} leaving) on {} CPUs of speed {:.3}, {} peers known",
            self.rule.name(),
            here.node,
            here.committed,
            self.incoming,
            self.outgoing,
            here.cpus,
            here.speed,
            self.peers
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
        write!(f, "; {}", self.outcome())
    }
}

/// A decision with all that it depended on: it can be stored, and taken again with the same result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The constants.
    pub params: Params,
    /// The node and its processes.
    pub local: Local,
    /// What it knew of others.
    pub window: Vec<Heard>,
    /// When, on the node's clock.
    pub now_s: f64,
    /// Who had refused.
    pub tried: Vec<NodeId>,
    /// Seed of its random choices.
    pub seed: u64,
    /// What came out.
    pub outcome: Outcome,
}

impl Case {
    /// Decides, and keeps what is needed to do it again. `rng` gives the seed.
    pub fn decide(params: &Params, local: &Local, window: &Window, now_s: f64, rng: &mut impl RngCore, tried: &[NodeId]) -> Self {
        let seed = rng.next_u64();
        let outcome = decide(params, local, window, now_s, &mut Dice::seed_from_u64(seed), tried);
        Self {
            params: params.clone(),
            local: local.clone(),
            window: window.entries().cloned().collect(),
            now_s,
            tried: tried.to_vec(),
            seed,
            outcome,
        }
    }

    /// Takes the decision again. It must equal [`Case::outcome`].
    pub fn replay(&self) -> Outcome {
        let window = Window::restore(self.local.figures.node, self.window.clone());
        decide(&self.params, &self.local, &window, self.now_s, &mut Dice::seed_from_u64(self.seed), &self.tried)
    }
}

/// The last so many of something. The oldest goes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ring<T> {
    capacity: usize,
    items: VecDeque<T>,
}

impl<T> Ring<T> {
    /// An empty one. A capacity of 0 keeps nothing.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, items: VecDeque::new() }
    }

    /// Adds one, and drops the oldest if there are too many.
    pub fn push(&mut self, item: T) {
        self.items.push_back(item);
        while self.items.len() > self.capacity {
            self.items.pop_front();
        }
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}
