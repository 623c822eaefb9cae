//! What two daemons say to each other about a group, and the specification of that stream.
//!
//! All streams are TLS with both certificates checked (`mosix_wire::tls`). The side that connects sends one [`Opening`].
//!
//! *Group stream* (`Opening::Offer`): home connects to the node that shall hold the group; one stream for each epoch. It is the link of the commit protocol
//! (`mosix_engine::commit`, whose module text is the specification of the order of messages), and afterwards carries the life of the guest:
//! the agent's own messages, in both directions, wrapped in `Agent`. Loss of the stream before the commit aborts the move; after it
//! the holder kills the guest, since nothing that a guest does may go unseen by its home.
//!
//! *Body stream* (`Opening::Body`): the node that holds the body connects to the one that shall have it. What follows is described in [`crate::carry`].
//! Only the source named in the offer may open it.
//!
//! At a hop the guest runs on while its memory is copied, and home goes on giving it signals and input. Before it is stopped the holder says
//! `Freezing`; home answers `Quiet`, and keeps everything from then on. What was under way until `Quiet` comes back with `Dumped` (`late`).

use std::time::Duration;

use mosix_engine::commit::Stamp;
use mosix_guest::{Carried, ChannelSpec, FromAgent, ToAgent, TtySpec};
use mosix_policy::{Record, Request};
use mosix_wire::control::Downtime;
use serde::{Deserialize, Serialize};

/// Longest message of these streams: one of the agent's with its wrapping.
pub(crate) const MAX_MESSAGE_BYTES: usize = mosix_guest::MAX_MESSAGE_BYTES + 1024;

/// How long the two ends of a group stream wait for each other. Home chooses, and tells the holder in its offer: both must go by the same, or a
/// guest could run on that home has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    ms: u64,
}

impl Lease {
    /// Below, a busy machine would lose guests; above, a lost node would keep them too long.
    pub(crate) const BOUNDS_MS: std::ops::RangeInclusive<u64> = 1_000..=60_000;

    /// Out of bounds it is the nearest that is not.
    pub(crate) fn new(ms: u64) -> Self {
        Self { ms: ms.clamp(*Self::BOUNDS_MS.start(), *Self::BOUNDS_MS.end()) }
    }

    /// As it came from another node.
    pub(crate) fn checked(self) -> Self {
        Self::new(self.ms)
    }

    /// A holder that has not heard from home for so long kills the guest.
    pub(crate) fn guest(self) -> Duration {
        Duration::from_millis(self.ms)
    }

    /// Home counts a holder as gone after so long: longer than the lease, so that no guest runs on unseen.
    pub(crate) fn home(self) -> Duration {
        Duration::from_millis(self.ms + self.ms / 2)
    }

    /// Each side says something at least this often.
    pub(crate) fn beat(self) -> Duration {
        Duration::from_millis(self.ms / 10)
    }
}

/// First message of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// A group stream.
    Offer(Box<Offer>),
    /// A body stream.
    Body {
        /// For this offer.
        stamp: Stamp,
    },
}

/// "Will you have this process?"
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) stamp: Stamp,
    /// Node that holds the body and will send the images.
    pub(crate) source: String,
    /// For the policy.
    pub(crate) request: Request,
    pub(crate) process: Process,
    pub(crate) lease: Lease,
}

/// The process, as the other end must know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) ppid: i32,
    pub(crate) pgid: i32,
    pub(crate) sid: i32,
    pub(crate) uid: u32,
    pub(crate) comm: String,
    pub(crate) hostname: String,
    pub(crate) channels: Vec<ChannelSpec>,
    pub(crate) tty: Option<TtySpec>,
    /// Work done in its life: CPU seconds times speed.
    pub(crate) work_s: f64,
    /// Seconds since it was started.
    pub(crate) age_s: f64,
}

/// Home to holder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToHolder {
    Commit,
    Abort {
        why: String,
    },
    /// Be the source of the next hop: epoch `stamp.epoch`, to `target`.
    Dump {
        stamp: Stamp,
        target: String,
        /// The target takes pages beforehand.
        pages: bool,
    },
    /// Nothing more comes for the guest until it is known who has it.
    Quiet,
    Thaw,
    Release,
    /// The wish to move it came to nothing: `refused` by the target's policy, or failed.
    WishDone {
        target: u32,
        why: String,
        refused: bool,
        record: Option<Record>,
    },
    /// Home is there.
    Beat,
    /// To the guest's agent.
    Agent(ToAgent),
}

/// Holder to home.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromHolder {
    Accepted {
        keys: Vec<(u16, String)>,
        record: Record,
        /// Its CRIU waits for pages.
        pages: bool,
    },
    Refused {
        why: String,
        record: Record,
    },
    Prepared,
    Done,
    Failed {
        why: String,
    },
    NeverRan {
        why: String,
    },
    Unknown,
    AbortAcked,
    /// It will be stopped at once: send nothing more.
    Freezing,
    Dumped {
        frozen_us: u64,
        downtime: Downtime,
        /// Orders that came too late for the guest that was stopped.
        late: Vec<ToAgent>,
    },
    DumpFailed {
        why: String,
    },
    Thawed,
    Released,
    /// The holder's policy wants it elsewhere.
    Wish {
        target: u32,
        request: Request,
    },
    /// The holder wants it gone (it stops, or its owner needs it): home, please.
    Evict {
        why: String,
    },
    /// Now and then: work done in its life, resident memory.
    Figures {
        work_s: f64,
        rss_bytes: u64,
    },
    /// The holder is there.
    Beat,
    /// From the guest's agent.
    Agent(FromAgent),
}

/// On an image stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ImageFrame {
    /// A file follows in raw frames.
    File { name: String, bytes: u64 },
    /// All files are there.
    End { carried: Carried },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_waits_longer_than_any_holder() {
        for ms in [0, 1_000, 10_000, u64::MAX] {
            let lease = Lease { ms }.checked();
            assert!(lease.home() > lease.guest() + lease.beat() && lease.guest() > 5 * lease.beat(), "{lease:?}");
        }
    }
}
