//! How a body changes nodes: the commit protocol, as state machines without I/O. This text is its specification.
//!
//! # The promise
//!
//! Of a group there are never two bodies running; and there is always one, unless the node that held it died (or was cut off for longer
//! than its lease). If a move fails before it is committed, the original goes on as if nothing had happened.
//!
//! # Roles
//!
//! * The [`Coordinator`] is at home, and alone decides.
//! * The [`Source`] holds the body: home itself, or at a hop the agent of the node that has the guest.
//! * The [`Destination`] makes the copy, holds it unable to run (CRIU's *post-restore* hook), and lets it go on command.
//!
//! Each machine takes one event at a time and returns what its driver must do, in order. Drivers own links, clocks and disks.
//! Where home is the source, its driver hands the messages over directly.
//!
//! # Messages
//!
//! Every message and every local event carries a [`Stamp`]: the group, and the *epoch*, which numbers the attempts to move it and is never
//! used twice. Of older epochs nothing is done, except that a destination which still holds a copy of one is told to drop it.
//! Messages may be lost, doubled and overtaken: timeouts send again, and receivers answer again.
//!
//! ```text
//! home -> destination   Offer Commit Abort          destination -> home   Accepted Refused Prepared Done Failed NeverRan Unknown AbortAcked
//! home -> source        Dump Thaw Release Discard   source -> home        Dumped DumpFailed Thawed Released Gone
//! source -> destination the image, once for each epoch: it is never sent again
//! ```
//!
//! # The course of a move
//!
//! ```text
//! RUNNING -Begin-> OFFERED -Accepted-> ACCEPTED -Dumped-> FROZEN -Prepared-> PREPARED -Logged-> COMMITTED -Done-> RELEASING -Released-> DONE
//!                     |           (dump started)             |     (log is being written)  |
//!                     +---- any failure, or a timeout -------+                             +- NeverRan -> roll back, like an abort
//!                                     v                                                    +- LinkLost -> IN DOUBT
//!           ABORTING -AbortAcked or link closed-> THAWING -Thawed-> RUNNING (next epoch)   +- Unknown, Fenced -> DISCARDING -Gone-> LOST
//! ```
//!
//! 1. *Presumed abort.* Commit is sent only after the commit record is written, so that it survives this daemon (not the machine: with that the body would be gone, too). A coordinator that restarts without one aborts.
//! 2. *The source never decides.* Once frozen it stays frozen until home says Thaw or Release, whatever happens to links.
//!    It keeps its memory until Release, which follows Done. Only its lease may end it (when home is gone for good).
//! 3. *The destination runs the copy on Commit only,* and drops it when the link is lost before. So closing the link is as good
//!    as an acknowledged abort, and home thaws only after one of them. A copy that was dropped this way is remembered.
//! 4. *After Commit was sent* the outcome is the destination's to tell. `NeverRan` comes only from one that prepared a copy, remembers it, and
//!    dropped it: home rolls back. `Unknown` is the answer of one that has no memory of it (its node restarted): no body runs
//!    there, but one may have. The first frame that the guest sends home counts as Done.
//! 5. *In doubt,* which is a lost link after Commit, the source stays frozen until the link is back, or until the destination's lease must have
//!    run out (`Fenced`: home waits longer than the destination does). Then the group is lost: it may have run.
//!    Where all effects of a guest pass home, silence proves that it had none: then [`Coordinator::silence_is_proof`] rolls back instead.
//! 6. *Abort is never sent after Commit* of the same epoch, and a destination that runs refuses it.
//! 7. *Leases.* A guest that has not heard from home may be suspended (`LeaseLate`) and is later killed (`LeaseExpired`).
//!    `mosixd` kills at once.
//!
//! An error returned by a machine ([`ProtocolError`]) leaves its state as it was; nothing needs undoing.
//! The model test (`tests/commit_model/`) lets an adversary lose, double and reorder messages, cut links, and crash each party, home's daemon
//! included, at any point, and checks the promise and that every run comes to rest.

mod coordinator;
mod destination;
mod source;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use coordinator::{Action, Coordinator, Event, Report, State};
pub use destination::{Destination, DestinationAction, DestinationEvent, DestinationState};
pub use source::{Source, SourceAction, SourceEvent, SourceState};

/// What every message and event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The group, unique in the cluster.
    pub group: u64,
    /// The attempt to move it, from 1. 0 is the time before the first.
    pub epoch: u32,
}

/// What home writes to disk about an epoch. The last record of a group counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The destination's copy is the body from now on.
    Committed,
    /// The source's body is, and the destination's copy never will be.
    Aborted,
    /// Committed, and nobody waits for anything any more: the group's records may be dropped.
    Done,
}

/// An input that the protocol does not know at this point. The machine's state is unchanged; the message should be logged and dropped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// Of another group.
    #[error("a message for group {got} reached the machine of group {own}: it was dropped; its sender mixes up links")]
    WrongGroup {
        /// The machine's.
        own: u64,
        /// The message's.
        got: u64,
    },
    /// An epoch that was never begun here.
    #[error("a message of epoch {got} came while epoch {own} is the newest: it was dropped; its sender lives in another run")]
    FutureEpoch {
        /// The machine's.
        own: u32,
        /// The message's.
        got: u32,
    },
    /// A move was begun with an epoch that was used before.
    #[error("a move cannot begin with epoch {got}, because {own} was already used: begin with a higher one")]
    UsedEpoch {
        /// The newest one used.
        own: u32,
        /// The one asked for.
        got: u32,
    },
    /// No such step from here.
    #[error("{event} does not fit into state {state}: it was dropped")]
    Unexpected {
        /// The machine's state.
        state: String,
        /// What came.
        event: String,
    },
}

fn unexpected(state: impl std::fmt::Debug, event: impl std::fmt::Debug) -> ProtocolError {
    ProtocolError::Unexpected { state: format!("{state:?}"), event: format!("{event:?}") }
}
