//! The control protocol: what `mosixctl` asks of its own node's `mosixd`.
//!
//! One JSON object a line in each direction over a Unix stream socket. The client writes one [`Request`] and reads
//! [`Reply`] lines until the daemon closes: most requests have one reply; `Migrate` may first send [`Reply::Progress`] lines.
//! Requests and replies are bounded by [`MAX_LINE_BYTES`]; unknown fields are ignored so that versions can differ by one.

use serde::{Deserialize, Serialize};

/// Longest accepted line, either way, in bytes. 16 MiB is a `ps` of 50,000 processes.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// What the client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The cluster as this node sees it.
    Status,
    /// The processes of this home: those away, and those that run here and want a CPU. `all` lists every local process.
    Ps {
        /// Also list processes that are idle or may not move.
        all: bool,
    },
    /// Moves one process (a pid as seen at this, its home, node) to `target`: a node's name, or `home`.
    Migrate {
        /// Pid at home.
        pid: i32,
        /// Node name or `home`.
        target: String,
    },
    /// Why the daemon did or did not move this process: eligibility now, and the last decisions about it.
    Explain {
        /// Pid at home.
        pid: i32,
    },
    /// The node on which a new program should start: the best by the policy's birth placement.
    Place,
    /// Switches automatic balancing on or off at this node (lab barrier, maintenance). Manual moves still work.
    Balance {
        /// Wanted state.
        on: bool,
    },
    /// Counters of this daemon, for benchmarks.
    Stats,
    /// What works on this node, what is used instead of what does not, and what that costs.
    Doctor,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `Status`.
    Status(Status),
    /// To `Ps`.
    Ps {
        /// One row a process.
        processes: Vec<ProcessRow>,
    },
    /// To `Migrate`, while it goes on: a stage in words.
    Progress {
        /// E.g. `frozen`, `sent 1.2 MB`.
        stage: String,
    },
    /// To `Migrate`, when the process runs at the target.
    Moved(Moved),
    /// To `Explain`.
    Explained(Explained),
    /// To `Place`.
    Placed {
        /// Node name.
        node: String,
    },
    /// To `Stats`.
    Stats(Stats),
    /// To `Doctor`.
    Diagnosis {
        /// One row for each thing that can differ from machine to machine.
        checks: Vec<Check>,
    },
    /// To `Balance`.
    Done,
    /// The request failed; nothing changed unless the text says so. What happened, why, and what to do.
    Error {
        /// In words.
        message: String,
    },
}

/// The live cluster as one node sees it. `mosixctl status --json` prints this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// One line: how the cluster is.
    pub health: String,
    /// The node that answers.
    pub this_node: String,
    /// All members, by name.
    pub nodes: Vec<NodeRow>,
}

/// One node in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Member name.
    pub name: String,
    /// `up`, `silent` (not heard of lately) or `unknown` (never heard of).
    pub state: String,
    /// Relative speed of one CPU, 1.0 = the cluster's unit.
    pub speed: f64,
    /// CPUs.
    pub cpus: u32,
    /// Average run-queue length over the last period: processes that wanted a CPU.
    pub load: f64,
    /// Total memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory that new processes could use, in bytes.
    pub memory_free_bytes: u64,
    /// Processes of other homes that run there.
    pub guests: u32,
    /// Processes of that home which run elsewhere.
    pub away: u32,
    /// Seconds since this figure was measured at its node; `null` if never heard of.
    pub age_s: Option<f64>,
}

/// One process of this home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Pid at home.
    pub pid: i32,
    /// Command name.
    pub command: String,
    /// Owner's user id.
    pub uid: u32,
    /// Where it runs: a node's name.
    pub node: String,
    /// Seconds since it came there (or was started).
    pub since_s: f64,
    /// CPU seconds used in its whole life, all nodes.
    pub cpu_s: f64,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Completed moves.
    pub moves: u32,
    /// `running`, `stopped`, `moving` or `idle`.
    pub state: String,
}

/// A completed move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Pid at home.
    pub pid: i32,
    /// Node it left.
    pub from: String,
    /// Node it runs on now.
    pub to: String,
    /// From the request until it ran at the target, ms.
    pub total_ms: f64,
    /// Time in which it ran nowhere, ms.
    pub freeze_ms: f64,
    /// All bytes sent: pages and images.
    pub sent_bytes: u64,
    /// Memory was copied beforehand, by a CRIU with our patches at both ends.
    pub patched: bool,
    /// Where the time went.
    pub record: Downtime,
}

/// Where the time of a move went. Times in ms; those of the blackout count from the moment when the process was stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downtime {
    /// From the request until the target had made everything ready.
    pub prepare_ms: f64,
    /// Copying pages while it ran.
    pub precopy_ms: f64,
    /// The rounds of that; the last one is that of the dump's start.
    pub rounds: Vec<Round>,
    /// Why there was no further round; empty without pre-copy.
    pub frozen_because: String,
    /// Stopped until CRIU's images were complete.
    pub dump_ms: f64,
    /// Stopped until the last pages had been sent (beside the dump).
    pub delta_ms: f64,
    /// Stopped until everything had been sent.
    pub sent_ms: f64,
    /// Stopped until the copy was complete, as home heard.
    pub prepared_ms: f64,
    /// Stopped until the copy ran, as home heard: the blackout and the way of that word.
    pub freeze_ms: f64,
    /// Bytes of pages on the wire.
    pub page_bytes: u64,
    /// Bytes of images.
    pub image_bytes: u64,
}

/// One round of copying pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Bytes on the wire.
    pub bytes: u64,
    /// Its time, ms.
    pub ms: f64,
}

/// Answer to `Explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Pid at home.
    pub pid: i32,
    /// Command name.
    pub command: String,
    /// Node it runs on.
    pub node: String,
    /// Whether it could move now.
    pub movable: bool,
    /// Reasons why it cannot be moved at all; empty if it can.
    pub refusals: Vec<String>,
    /// Reasons why it is not moved *by itself* (a user still can).
    pub not_automatic: Vec<String>,
    /// Last decisions that concerned it, newest last, in words with numbers.
    pub decisions: Vec<DecisionRow>,
}

/// One row of [`Reply::Diagnosis`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, e.g. `criu`.
    pub what: String,
    /// The best there is, or how good what is there is.
    pub state: Health,
    /// What is used and, if that is not the best, what it costs and what to do.
    pub detail: String,
}

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As good as it gets.
    Good,
    /// It works, and something else would be better.
    Slow,
    /// Something cannot be done here.
    Missing,
}

/// One recorded decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Seconds ago.
    pub ago_s: f64,
    /// The rule that decided, e.g. `balance`, `admit`, `none`.
    pub rule: String,
    /// Inputs, candidates and outcome in words.
    pub text: String,
}

/// Counters since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Moves that this node, as home, committed.
    pub migrations: u64,
    /// Moves that this node, as home, began and gave up (the process ran on).
    pub aborted: u64,
    /// Requests refused by this node as destination.
    pub refused: u64,
    /// CPU seconds used by this daemon and its helpers.
    pub daemon_cpu_s: f64,
    /// Resident memory of this daemon, bytes.
    pub daemon_rss_bytes: u64,
    /// Gossip datagrams sent.
    pub gossip_sent: u64,
    /// Gossip datagrams accepted.
    pub gossip_received: u64,
    /// Gossip datagrams dropped: forged, replayed, malformed or stale.
    pub gossip_dropped: u64,
    /// Freeze times of the moves that this home committed, newest last, ms; at most 1000.
    pub freeze_ms: Vec<f64>,
    /// Which collector measures, e.g. `bpf iter/task` or `/proc: <why>`.
    pub probe: String,
}
