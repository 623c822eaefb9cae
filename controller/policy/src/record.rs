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

/// Most records in a message by default. In postcard a record takes 60 bytes at the very most, so that such a message
/// always fits a sealed datagram of 1400 bytes.
pub const MAX_RECORDS: usize = 22;

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
        self.figures().is_sane() && self.load.is_finite() && self.load >= 0.0 && self.memory_free_bytes <= self.memory_total_bytes
    }
}

/// One gossip message: the sender's own record first, then others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// At most [`crate::Params::max_records`], one for each node.
    pub records: Vec<Record>,
}
