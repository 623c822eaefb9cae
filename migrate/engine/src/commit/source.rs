//! The part of the node that holds the body. It never decides: once frozen it waits for home's word.

use super::{ProtocolError, Stamp, unexpected};

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// Home: freeze and dump.
    Dump,
    /// Home: let it run; the epoch is over.
    Thaw,
    /// Home: the copy runs; give up the body.
    Release,
    /// Home: the group is lost; kill the body.
    Discard,
    /// Local: the image is complete.
    DumpComplete,
    /// Local: it could not be dumped.
    DumpFailed {
        /// In words.
        why: String,
    },
    /// Local: the process ended.
    BodyGone,
    /// Local: home was not heard of for so long that it counts as dead. Never at home.
    LeaseExpired,
}

/// What the driver must do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAction {
    /// Freeze, dump, send the image (once), report [`SourceEvent::DumpComplete`] or [`SourceEvent::DumpFailed`].
    StartDump,
    /// Stop dumping if that goes on, and let the body run.
    Thaw,
    /// The frozen body becomes the deputy (at home) or is killed.
    Release,
    /// Kill the body.
    Kill,
    /// Tell home.
    SendDumped,
    /// Tell home.
    SendDumpFailed {
        /// In words.
        why: String,
    },
    /// Tell home.
    SendThawed,
    /// Tell home.
    SendReleased,
    /// Tell home that there is no body any more.
    SendGone,
}

/// What became of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// It runs.
    Running,
    /// It is frozen, and the image is not complete.
    Dumping,
    /// It is frozen, and the image is complete.
    Dumped,
    /// It was given up for the copy.
    Released,
    /// It ended.
    Gone,
}

/// The machine beside the body.
#[derive(Debug, Clone)]
pub struct Source {
    group: u64,
    epoch: u32,
    state: SourceState,
}

impl Source {
    /// For a running body; `epoch` is the newest one that is over.
    #[must_use]
    pub fn new(group: u64, epoch: u32) -> Self {
        Self { group, epoch, state: SourceState::Running }
    }

    /// What became of the body.
    #[must_use]
    pub fn state(&self) -> SourceState {
        self.state
    }

    /// The newest epoch it heard of.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { group: self.group, epoch: self.epoch }
    }

    /// Takes one event. On an error nothing has changed.
    pub fn on(&mut self, stamp: Stamp, event: SourceEvent) -> Result<Vec<SourceAction>, ProtocolError> {
        if stamp.group != self.group {
            return Err(ProtocolError::WrongGroup { own: self.group, got: stamp.group });
        }
        if stamp.epoch < self.epoch {
            return Ok(Vec::new());
        }
        match (self.state, event) {
            // Whatever home wants, there is no body; and it may stop asking for its end.
            (SourceState::Gone, SourceEvent::Release) => Ok(vec![SourceAction::SendReleased]),
            (SourceState::Gone, SourceEvent::Dump | SourceEvent::Thaw | SourceEvent::Discard) => Ok(vec![SourceAction::SendGone]),
            (SourceState::Gone, _) => Ok(Vec::new()),
            (SourceState::Released, SourceEvent::Release) => Ok(vec![SourceAction::SendReleased]),
            // A restarted home may not know that it was released before the copy was lost.
            (SourceState::Released, SourceEvent::Discard) => Ok(vec![SourceAction::SendGone]),
            (SourceState::Released, event @ SourceEvent::Thaw) => Err(unexpected(self.state, event)),
            (SourceState::Released, _) => Ok(Vec::new()),
            (_, SourceEvent::BodyGone) => {
                self.state = SourceState::Gone;
                Ok(vec![SourceAction::SendGone])
            }
            (_, SourceEvent::LeaseExpired) => Ok(self.kill()),
            (SourceState::Running, event) => self.running(stamp.epoch, event),
            (SourceState::Dumping | SourceState::Dumped, event) => self.frozen(stamp.epoch, event),
        }
    }

    fn running(&mut self, epoch: u32, event: SourceEvent) -> Result<Vec<SourceAction>, ProtocolError> {
        match event {
            SourceEvent::Dump if epoch > self.epoch => {
                self.epoch = epoch;
                self.state = SourceState::Dumping;
                Ok(vec![SourceAction::StartDump])
            }
            // The request to dump in this epoch, if it still comes, must find it over.
            SourceEvent::Thaw => {
                self.epoch = epoch;
                Ok(vec![SourceAction::SendThawed])
            }
            SourceEvent::Dump | SourceEvent::DumpComplete | SourceEvent::DumpFailed { .. } => Ok(Vec::new()),
            event => Err(unexpected(self.state, event)),
        }
    }

    fn frozen(&mut self, epoch: u32, event: SourceEvent) -> Result<Vec<SourceAction>, ProtocolError> {
        if epoch > self.epoch {
            // Home never begins an epoch before the last one is over here.
            return Err(ProtocolError::FutureEpoch { own: self.epoch, got: epoch });
        }
        match (self.state, event) {
            (_, SourceEvent::Thaw) => {
                self.state = SourceState::Running;
                Ok(vec![SourceAction::Thaw, SourceAction::SendThawed])
            }
            (SourceState::Dumping, SourceEvent::DumpComplete) => {
                self.state = SourceState::Dumped;
                Ok(vec![SourceAction::SendDumped])
            }
            (SourceState::Dumping, SourceEvent::DumpFailed { why }) => Ok(vec![SourceAction::SendDumpFailed { why }]),
            (SourceState::Dumped, SourceEvent::Release) => {
                self.state = SourceState::Released;
                Ok(vec![SourceAction::Release, SourceAction::SendReleased])
            }
            (SourceState::Dumped, SourceEvent::Dump) => Ok(vec![SourceAction::SendDumped]),
            (_, SourceEvent::Discard) => Ok(self.kill()),
            (_, SourceEvent::Dump | SourceEvent::DumpComplete) => Ok(Vec::new()),
            (state, event) => Err(unexpected(state, event)),
        }
    }

    fn kill(&mut self) -> Vec<SourceAction> {
        self.state = SourceState::Gone;
        vec![SourceAction::Kill, SourceAction::SendGone]
    }
}
