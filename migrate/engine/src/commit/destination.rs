//! The part of the node that shall have the body. It runs the copy on home's Commit, and never otherwise.

use super::{ProtocolError, Stamp, unexpected};

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationEvent {
    /// Home: will you have it?
    Offer,
    /// Home: let the copy run.
    Commit,
    /// Home: drop the copy.
    Abort,
    /// Local: there is room, and everything that the copy needs was made.
    Admitted,
    /// Local: there is no room.
    Denied {
        /// In words.
        why: String,
    },
    /// Local: the copy is complete and held before its first instruction.
    Restored,
    /// Local: the copy could not be made, and nothing is left of it.
    RestoreFailed {
        /// In words.
        why: String,
    },
    /// Local: the copy runs.
    Started,
    /// Local: the copy could not be let go, is gone, and certainly never ran an instruction. Where that is not certain: [`Self::GuestEnded`].
    StartFailed {
        /// In words.
        why: String,
    },
    /// Local: the guest ended.
    GuestEnded,
    /// Local: no link home.
    LinkLost,
    /// Local: there is a link again.
    LinkBack,
    /// Local: home was not heard of for the short lease.
    LeaseLate,
    /// Local: nor for the long one.
    LeaseExpired,
    /// Local: nothing came for as long as one should wait in this state.
    Timeout,
}

/// What the driver must do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationAction {
    /// Ask one's own policy, reserve, make what the copy needs; report [`DestinationEvent::Admitted`] or [`DestinationEvent::Denied`].
    Admit,
    /// Let the copy run; report [`DestinationEvent::Started`] or [`DestinationEvent::StartFailed`].
    Run,
    /// Remove the copy or the guest, and all that was made for it; forget the reservation.
    Kill,
    /// Freeze the guest.
    Suspend,
    /// Let it go on.
    Resume,
    /// Tell home.
    SendAccepted,
    /// Tell home.
    SendRefused {
        /// In words.
        why: String,
    },
    /// Tell home.
    SendPrepared,
    /// Tell home.
    SendDone,
    /// Tell home.
    SendFailed {
        /// In words.
        why: String,
    },
    /// Tell home.
    SendNeverRan {
        /// In words.
        why: String,
    },
    /// Tell home.
    SendUnknown,
    /// Tell home.
    SendAbortAcked,
}

/// What became of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationState {
    /// There is none, and none was heard of in this epoch.
    Idle,
    /// Room is being made.
    Admitting,
    /// It is being made.
    Accepted,
    /// It is complete and held.
    Prepared,
    /// It is being let go.
    Starting,
    /// It runs: it is the guest.
    Running,
    /// It is frozen, because home is silent.
    Suspended,
    /// It ran, and is no more.
    Ended,
    /// It was dropped after it was complete: it certainly never ran.
    Dropped,
    /// This epoch is over here, and this machine cannot say more.
    Fenced,
}

/// The machine at the destination. One for each group; a node that gave a guest away starts a new one with the epoch that is over.
#[derive(Debug, Clone)]
pub struct Destination {
    group: u64,
    epoch: u32,
    state: DestinationState,
}

use DestinationAction as Do;
use DestinationEvent as On;
use DestinationState as Is;

impl Destination {
    /// `epoch` is the newest one that is over here, 0 for none.
    #[must_use]
    pub fn new(group: u64, epoch: u32) -> Self {
        Self { group, epoch, state: Is::Idle }
    }

    /// What became of the copy.
    #[must_use]
    pub fn state(&self) -> DestinationState {
        self.state
    }

    /// The newest epoch it heard of: answers carry it.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { group: self.group, epoch: self.epoch }
    }

    /// Takes one event. On an error nothing has changed. Local events carry the epoch of [`Self::stamp`] when their work began.
    pub fn on(&mut self, stamp: Stamp, event: DestinationEvent) -> Result<Vec<DestinationAction>, ProtocolError> {
        if stamp.group != self.group {
            return Err(ProtocolError::WrongGroup { own: self.group, got: stamp.group });
        }
        if stamp.epoch > self.epoch {
            return self.newer(stamp.epoch, event);
        }
        if stamp.epoch < self.epoch {
            return Ok(Vec::new());
        }
        match event {
            On::Commit => self.commit(),
            On::Abort => self.abort(),
            On::LinkLost | On::LeaseExpired => Ok(self.cut_off(event == On::LeaseExpired)),
            event => self.step(event),
        }
    }

    fn has_copy(&self) -> bool {
        use DestinationState::{Accepted, Admitting, Prepared, Running, Starting, Suspended};
        matches!(self.state, Admitting | Accepted | Prepared | Starting | Running | Suspended)
    }

    fn newer(&mut self, epoch: u32, event: DestinationEvent) -> Result<Vec<DestinationAction>, ProtocolError> {
        if self.has_copy() {
            return Err(ProtocolError::FutureEpoch { own: self.epoch, got: epoch });
        }
        let (state, action) = match event {
            On::Offer => (Is::Admitting, Do::Admit),
            // An offer that still comes must find the epoch over.
            On::Abort => (Is::Fenced, Do::SendAbortAcked),
            On::Commit => (Is::Fenced, Do::SendUnknown),
            _ => return Err(ProtocolError::FutureEpoch { own: self.epoch, got: epoch }),
        };
        self.epoch = epoch;
        self.state = state;
        Ok(vec![action])
    }

    fn commit(&mut self) -> Result<Vec<DestinationAction>, ProtocolError> {
        Ok(match self.state {
            Is::Prepared => {
                self.state = Is::Starting;
                vec![Do::Run]
            }
            Is::Starting => Vec::new(),
            Is::Running | Is::Suspended | Is::Ended => vec![Do::SendDone],
            Is::Dropped => vec![Do::SendNeverRan { why: "the copy was dropped when the link was lost".to_owned() }],
            // Home commits only what was prepared: so that was before this node's daemon was restarted, and may even have run.
            Is::Admitting | Is::Accepted => {
                self.state = Is::Fenced;
                vec![Do::Kill, Do::SendUnknown]
            }
            Is::Idle | Is::Fenced => {
                self.state = Is::Fenced;
                vec![Do::SendUnknown]
            }
        })
    }

    fn abort(&mut self) -> Result<Vec<DestinationAction>, ProtocolError> {
        match self.state {
            Is::Admitting | Is::Accepted | Is::Prepared => {
                self.drop_copy();
                Ok(vec![Do::Kill, Do::SendAbortAcked])
            }
            Is::Idle | Is::Fenced => {
                self.state = Is::Fenced;
                Ok(vec![Do::SendAbortAcked])
            }
            Is::Dropped => Ok(vec![Do::SendAbortAcked]),
            // Home does not abort what it committed: this is the echo of something old.
            state => Err(unexpected(state, On::Abort)),
        }
    }

    /// Only a copy that was complete can be vouched for.
    fn drop_copy(&mut self) {
        self.state = if self.state == Is::Prepared { Is::Dropped } else { Is::Fenced };
    }

    fn cut_off(&mut self, for_good: bool) -> Vec<DestinationAction> {
        match self.state {
            Is::Admitting | Is::Accepted | Is::Prepared => {
                self.drop_copy();
                vec![Do::Kill]
            }
            Is::Starting | Is::Running | Is::Suspended if for_good => {
                self.state = Is::Ended;
                vec![Do::Kill]
            }
            _ => Vec::new(),
        }
    }

    fn step(&mut self, event: DestinationEvent) -> Result<Vec<DestinationAction>, ProtocolError> {
        let (next, actions) = match (self.state, event) {
            (Is::Admitting, On::Admitted) => (Is::Accepted, vec![Do::SendAccepted]),
            (Is::Admitting, On::Denied { why }) => (Is::Fenced, vec![Do::SendRefused { why }]),
            (Is::Accepted, On::Offer) => (Is::Accepted, vec![Do::SendAccepted]),
            (Is::Accepted, On::Restored) => (Is::Prepared, vec![Do::SendPrepared]),
            (Is::Admitting | Is::Accepted, On::RestoreFailed { why }) => (Is::Fenced, vec![Do::Kill, Do::SendFailed { why }]),
            (Is::Admitting | Is::Accepted, On::Timeout) => {
                let why = "no complete image came in time".to_owned();
                (Is::Fenced, vec![Do::Kill, Do::SendFailed { why }])
            }
            // The copy died while it was held, by whatever cause.
            (Is::Prepared, On::RestoreFailed { why } | On::StartFailed { why }) => (Is::Dropped, vec![Do::Kill, Do::SendNeverRan { why }]),
            (Is::Prepared, On::GuestEnded) => {
                let why = "the copy was killed while it was held".to_owned();
                (Is::Dropped, vec![Do::Kill, Do::SendNeverRan { why }])
            }
            // Home is asked again what it wants.
            (Is::Prepared, On::Timeout | On::Offer) => (Is::Prepared, vec![Do::SendPrepared]),
            (Is::Starting, On::Started) => (Is::Running, vec![Do::SendDone]),
            (Is::Starting, On::StartFailed { why }) => (Is::Dropped, vec![Do::Kill, Do::SendNeverRan { why }]),
            (Is::Running, On::LeaseLate) => (Is::Suspended, vec![Do::Suspend]),
            (Is::Suspended, On::LinkBack) => (Is::Running, vec![Do::Resume, Do::SendDone]),
            // How it ended is told on the group's own channel; that it ran is what matters here.
            (Is::Starting | Is::Running | Is::Suspended, On::GuestEnded) => (Is::Ended, vec![Do::SendDone]),
            // Made too late: the copy is not wanted any more.
            (Is::Fenced | Is::Dropped | Is::Ended, On::Restored | On::Admitted | On::Started) => (self.state, vec![Do::Kill]),
            (Is::Fenced | Is::Dropped, On::Offer) => (self.state, vec![Do::SendAbortAcked]),
            (state, event @ (On::Restored | On::Started)) => return Err(unexpected(state, event)),
            (state, _) => (state, Vec::new()),
        };
        self.state = next;
        Ok(actions)
    }
}
