//! What nodes tell each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::predict::Figures;

/// A node's number, unique in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// CPU features, a bit for each: of a node those that it has, of a process those that it needs. What a bit stands for is
/// the callers' affair, as long as all nodes agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub u32);

impl Features {
    /// Whether a node that has these can run a process that needs those.
    pub fn covers(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }
}

/// Most records in a message by default. In postcard a record takes 74 bytes at the very most, so that such a message,
/// its [`Death`]s included, always fits a sealed datagram of 1400 bytes.
pub const MAX_RECORDS: usize = 17;

/// Most deaths in a message.
pub const MAX_DEATHS: usize = 4;

/// One node at one moment. Carries an age, not a time: nodes' clocks need not agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whom it describes.
    pub node: NodeId,
    /// Which run of its daemon: larger is later (e.g. the start in Unix seconds).
    pub incarnation: u32,
    /// Counts the records of that run.
    pub seq: u32,
    /// Milliseconds since it was measured, as of sending.
    pub age_ms: u32,
    /// Committed processes that want a CPU.
    pub committed: u16,
    /// Measured average run-queue length. For display: it decides nothing.
    pub load: f32,
    /// Relative speed of one CPU; 1.0 is the cluster's unit.
    pub speed: f32,
    /// CPUs.
    pub cpus: u16,
    /// Total memory.
    pub memory_total_bytes: u64,
    /// Memory that is neither used nor promised.
    pub memory_free_bytes: u64,
    /// Processes of other homes that run there.
    pub guests: u16,
    /// Processes of that home which run elsewhere.
    pub away: u16,
    /// It takes no guests at present: only its own processes may be sent there.
    pub closed: bool,
    /// What its CPUs can do.
    pub features: Features,
    /// Mean lag of its processes, in CPU seconds of speed 1 ([`crate::lag`]). 0 without processes.
    pub lag_mean_s: f32,
    /// Least lag of its processes: of the one that is furthest ahead.
    pub lag_min_s: f32,
}

impl Record {
    /// Which of two records of a node is newer: the larger version.
    pub fn version(&self) -> (u32, u32) {
        (self.incarnation, self.seq)
    }

    /// The figures that decisions use.
    pub fn figures(&self) -> Figures {
        Figures {
            node: self.node,
            speed: f64::from(self.speed),
            cpus: self.cpus,
            committed: self.committed,
            memory_total_bytes: self.memory_total_bytes,
            memory_used_bytes: self.memory_total_bytes.saturating_sub(self.memory_free_bytes),
        }
    }

    /// Whether its figures can be true. A record that cannot is dropped: it would poison every prediction.
    pub fn is_sane(&self) -> bool {
        self.figures().is_sane()
            && self.load.is_finite()
            && self.load >= 0.0
            && self.memory_free_bytes <= self.memory_total_bytes
            && self.lag_mean_s.is_finite()
            && self.lag_min_s.is_finite()
    }
}

/// News that a node is gone: it left, or did not answer when it was called. It holds for all records of the node up to a
/// version; a later one, of the restarted node or of one that was only slow, refutes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Who.
    pub node: NodeId,
    /// The last version that was known of it.
    pub incarnation: u32,
    /// The same.
    pub seq: u32,
    /// In how many more messages each carrier passes it on, ahead of other news.
    pub priority: u8,
}

impl Death {
    /// Which records it ends: those up to this one.
    pub fn version(&self) -> (u32, u32) {
        (self.incarnation, self.seq)
    }
}

/// One gossip message: the sender's own record first, then others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// At most [`crate::Params::max_records`], one for each node.
    pub records: Vec<Record>,
    /// At most [`MAX_DEATHS`].
    pub deaths: Vec<Death>,
}

impl From<Record> for Message {
    /// A message of one record, as answers carry it.
    fn from(record: Record) -> Self {
        Self { records: vec![record], deaths: Vec::new() }
    }
}
