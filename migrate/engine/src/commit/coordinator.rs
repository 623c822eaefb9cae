//! Home's part of the protocol: the only one that decides.

use super::{ProtocolError, Record, Stamp, unexpected};

/// So often an abort is sent before the link is closed instead: the process should not stay frozen for a deaf node.
const ABORT_TRIES: u32 = 3;

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Local: move the group to this node. The stamp carries the new epoch.
    Begin {
        /// Node name.
        target: String,
    },
    /// Local: do not move after all. Too late once committed.
    Cancel {
        /// In words.
        why: String,
    },
    /// Destination: it has room and has made everything ready.
    Accepted,
    /// Destination: it does not want it, and holds nothing.
    Refused {
        /// In words.
        why: String,
    },
    /// Source: frozen, and the image is complete.
    Dumped,
    /// Source: it could not be dumped, or the link to it was lost. It waits for Thaw.
    DumpFailed {
        /// In words.
        why: String,
    },
    /// Destination: the copy is complete and waits for Commit.
    Prepared,
    /// Local: the record is on disk.
    Logged(Record),
    /// Local: it could not be written.
    LogFailed {
        /// In words.
        why: String,
    },
    /// Destination: it runs there. So does the first frame on any channel say.
    Done,
    /// Destination: it could not make the copy, and holds nothing.
    Failed {
        /// In words.
        why: String,
    },
    /// Destination: it had prepared a copy and dropped it; that copy never ran and never will.
    NeverRan {
        /// In words.
        why: String,
    },
    /// Destination: it knows nothing of this epoch and will never run it.
    Unknown,
    /// Destination: it has no copy of this epoch and will have none.
    AbortAcked,
    /// Local: no link to the destination.
    LinkLost,
    /// Local: there is a link again.
    LinkBack,
    /// Local: the destination's lease has run out for certain, or its node was seen to restart.
    Fenced,
    /// Local: nothing came for as long as one should wait in this state.
    Timeout,
    /// Source: it runs again.
    Thawed,
    /// Source: its body is no more, and the deputy (or nothing) is in its place.
    Released,
    /// Source: the process has ended (killed while frozen, or its node died).
    ProcessGone,
}

/// What the driver must do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send the offer.
    SendOffer {
        /// To this node.
        target: String,
    },
    /// Have the source freeze and dump.
    StartDump,
    /// Write and sync the record, then report [`Event::Logged`].
    WriteLog(Record),
    /// Send the commit.
    SendCommit,
    /// Send the abort.
    SendAbort {
        /// Of this epoch, which may be an older one.
        epoch: u32,
        /// In words.
        why: String,
    },
    /// Close the link to the destination, for good. Nothing of this epoch may be sent there any more.
    CloseLink,
    /// Have the source stop dumping and let the body run; report [`Event::Thawed`].
    Thaw,
    /// Have the source give up the frozen body (it becomes the deputy, or is killed); report [`Event::Released`].
    ReleaseSource,
    /// The group is lost: have the source kill the frozen body; report [`Event::ProcessGone`].
    DiscardSource,
    /// The process was killed at home after its commit: have the guest killed.
    KillGuest,
    /// Tell who asked.
    Report(Report),
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It runs at the destination.
    Moved,
    /// It runs where it was.
    Stayed {
        /// In words.
        why: String,
    },
    /// The link broke after the commit: nobody knows yet.
    InDoubt,
    /// The node that held the committed body is gone, and the body with it.
    Lost {
        /// In words.
        why: String,
    },
    /// The process ended meanwhile.
    Ended,
}

/// Where a move is. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The specification names and explains each.
pub enum State {
    Running,
    Offered,
    Accepted,
    Frozen,
    Prepared,
    Committed,
    InDoubt,
    Releasing,
    Done,
    Aborting,
    Thawing,
    Discarding,
    Lost,
    Ended,
}

/// The machine at home, one for each group that ever moved.
#[derive(Debug, Clone)]
pub struct Coordinator {
    group: u64,
    epoch: u32,
    state: State,
    /// Why it is being aborted.
    why: String,
    /// The destination has no copy, or cannot get the commit.
    acked: bool,
    /// A commit record may be on disk that an abort record must follow before anybody is thawed.
    must_log: bool,
    /// The source's process is gone.
    gone: bool,
    tries: u32,
    /// This move was taken over from before a restart: whether the guest was heard of is forgotten.
    restarted: bool,
    /// All effects of a guest pass home, so a destination that died without a sign of the guest may be rolled back. Off unless
    /// set: files written by path do not pass home.
    pub silence_is_proof: bool,
}

impl Coordinator {
    /// For a group that is not moving. `epoch` is the newest one ever used, 0 for none.
    #[must_use]
    pub fn new(group: u64, epoch: u32) -> Self {
        Self {
            group,
            epoch,
            state: State::Running,
            why: String::new(),
            acked: false,
            must_log: false,
            gone: false,
            tries: 0,
            restarted: false,
            silence_is_proof: false,
        }
    }

    /// After a restart of home's daemon, with links gone: `epoch` was begun, and `last` is its last record. The actions must be
    /// executed like those of an event.
    #[must_use]
    pub fn recover(group: u64, epoch: u32, last: Option<Record>) -> (Self, Vec<Action>) {
        let mut machine = Self { restarted: true, ..Self::new(group, epoch) };
        let actions = match last {
            None | Some(Record::Aborted) => {
                machine.why = "home's daemon was restarted".to_owned();
                machine.acked = true;
                machine.state = State::Aborting;
                machine.after_abort()
            }
            Some(Record::Committed) => {
                machine.state = State::InDoubt;
                vec![Action::SendCommit]
            }
            Some(Record::Done) => {
                machine.state = State::Done;
                Vec::new()
            }
        };
        (machine, actions)
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The stamp of this move, or of the last one.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { group: self.group, epoch: self.epoch }
    }

    /// Nothing is under way and nothing is owed.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        matches!(self.state, State::Running | State::Done | State::Lost | State::Ended)
    }

    /// Takes one event. On an error nothing has changed.
    pub fn on(&mut self, stamp: Stamp, event: Event) -> Result<Vec<Action>, ProtocolError> {
        if stamp.group != self.group {
            return Err(ProtocolError::WrongGroup { own: self.group, got: stamp.group });
        }
        if let Event::Begin { target } = event {
            return self.begin(stamp.epoch, target);
        }
        if stamp.epoch > self.epoch {
            return Err(ProtocolError::FutureEpoch { own: self.epoch, got: stamp.epoch });
        }
        if stamp.epoch < self.epoch {
            return Ok(Self::stale(stamp.epoch, &event));
        }
        match self.state {
            State::Offered | State::Accepted | State::Frozen | State::Prepared => self.before_commit(event),
            State::Committed | State::InDoubt => self.after_commit(event),
            State::Aborting => self.aborting(event),
            State::Thawing | State::Releasing | State::Discarding => self.finishing(event),
            // Whoever still holds a copy that nobody wants shall drop it.
            State::Lost | State::Ended if matches!(event, Event::Accepted | Event::Prepared) => Ok(vec![self.send_abort()]),
            State::Running | State::Done | State::Lost | State::Ended => Ok(Vec::new()),
        }
    }

    fn begin(&mut self, epoch: u32, target: String) -> Result<Vec<Action>, ProtocolError> {
        if !matches!(self.state, State::Running | State::Done) {
            return Err(unexpected(self.state, Event::Begin { target }));
        }
        if epoch <= self.epoch {
            return Err(ProtocolError::UsedEpoch { own: self.epoch, got: epoch });
        }
        *self = Self { silence_is_proof: self.silence_is_proof, ..Self::new(self.group, epoch) };
        self.state = State::Offered;
        Ok(vec![Action::SendOffer { target }])
    }

    /// Who still holds a copy of an older epoch shall drop it. If that epoch was committed, the destination runs it and will not listen.
    fn stale(epoch: u32, event: &Event) -> Vec<Action> {
        match event {
            Event::Accepted | Event::Prepared => vec![Action::SendAbort { epoch, why: "that move was given up".to_owned() }],
            _ => Vec::new(),
        }
    }

    fn before_commit(&mut self, event: Event) -> Result<Vec<Action>, ProtocolError> {
        match (self.state, event) {
            (State::Offered, Event::Accepted) => {
                self.state = State::Accepted;
                Ok(vec![Action::StartDump])
            }
            (State::Offered, Event::Refused { why }) => {
                // Nobody was frozen, nothing was made.
                self.why = why;
                Ok(self.stay())
            }
            (State::Accepted, Event::Dumped) => {
                self.state = State::Frozen;
                Ok(Vec::new())
            }
            // The destination's word may overtake the source's.
            (State::Accepted | State::Frozen, Event::Prepared) => {
                self.state = State::Prepared;
                self.must_log = true;
                Ok(vec![Action::WriteLog(Record::Committed)])
            }
            (State::Prepared, Event::Logged(Record::Committed)) => {
                self.state = State::Committed;
                Ok(vec![Action::SendCommit])
            }
            // One's own disk is slow: nothing to send again.
            (State::Prepared, Event::Timeout) => Ok(Vec::new()),
            (_, Event::LinkLost) => Ok(self.abort("the link to the destination was lost", true)),
            (_, Event::Failed { why } | Event::NeverRan { why }) => Ok(self.abort(&why, true)),
            (_, Event::Unknown | Event::AbortAcked | Event::Fenced) => Ok(self.abort("the destination was restarted", true)),
            (State::Offered, Event::Timeout) => Ok(self.abort("the destination did not answer in time", false)),
            (_, Event::Timeout) => Ok(self.abort("dumping and restoring took too long", false)),
            (_, Event::Cancel { why } | Event::DumpFailed { why }) => Ok(self.abort(&why, false)),
            (_, Event::LogFailed { why }) => {
                // Nothing can be promised by a disk that does not write; the abort is attempted nevertheless.
                Ok(self.abort(&format!("the commit could not be logged: {why}"), false))
            }
            (_, Event::ProcessGone) => {
                self.gone = true;
                Ok(self.abort("the process ended", false))
            }
            // Doubled or overtaken.
            (_, Event::Accepted | Event::Refused { .. } | Event::Dumped | Event::Prepared | Event::LinkBack) => Ok(Vec::new()),
            (state, event) => Err(unexpected(state, event)),
        }
    }

    fn after_commit(&mut self, event: Event) -> Result<Vec<Action>, ProtocolError> {
        match event {
            Event::Done => {
                self.state = State::Releasing;
                Ok(vec![Action::ReleaseSource, Action::Report(Report::Moved)])
            }
            Event::NeverRan { why } => Ok(self.roll_back(why)),
            Event::Unknown | Event::Fenced => {
                let why = "the destination died after the commit";
                if self.silence_is_proof && !self.restarted {
                    return Ok(self.roll_back(why.to_owned()));
                }
                self.state = State::Discarding;
                Ok(vec![Action::DiscardSource, Action::Report(Report::Lost { why: why.to_owned() })])
            }
            Event::LinkLost if self.state == State::Committed => {
                self.state = State::InDoubt;
                Ok(vec![Action::Report(Report::InDoubt)])
            }
            Event::LinkBack => {
                self.state = State::Committed;
                Ok(vec![Action::SendCommit])
            }
            Event::Timeout | Event::Prepared => Ok(vec![Action::SendCommit]),
            Event::ProcessGone => {
                self.state = State::Ended;
                Ok(vec![Action::KillGuest, Action::Report(Report::Ended)])
            }
            // Too late, doubled or overtaken. Failed is from before the copy was prepared, by a node that has since restarted.
            Event::LinkLost | Event::Accepted | Event::Refused { .. } | Event::Dumped | Event::Failed { .. } | Event::Logged(_) => {
                Ok(Vec::new())
            }
            event => Err(unexpected(self.state, event)),
        }
    }

    /// Before Commit was sent: whatever the destination has can never run.
    fn abort(&mut self, why: &str, acked: bool) -> Vec<Action> {
        self.why = why.to_owned();
        self.acked = acked;
        self.tries = 1;
        self.state = State::Aborting;
        let mut actions = Vec::new();
        if self.must_log {
            actions.push(Action::WriteLog(Record::Aborted));
        }
        if !acked {
            actions.push(self.send_abort());
        }
        actions.extend(self.after_abort());
        actions
    }

    /// After Commit was sent: the destination's copy is gone, by its own word or by proof.
    fn roll_back(&mut self, why: String) -> Vec<Action> {
        self.why = why;
        self.acked = true;
        self.must_log = true;
        self.state = State::Aborting;
        vec![Action::WriteLog(Record::Aborted)]
    }

    fn send_abort(&self) -> Action {
        Action::SendAbort { epoch: self.epoch, why: self.why.clone() }
    }

    fn aborting(&mut self, event: Event) -> Result<Vec<Action>, ProtocolError> {
        match event {
            Event::AbortAcked
            | Event::LinkLost
            | Event::Refused { .. }
            | Event::Failed { .. }
            | Event::NeverRan { .. }
            | Event::Unknown
            | Event::Fenced => {
                self.acked = true;
            }
            Event::Logged(Record::Aborted) | Event::LogFailed { .. } => self.must_log = false,
            Event::ProcessGone => self.gone = true,
            Event::Timeout if self.acked => {}
            Event::Timeout if self.tries >= ABORT_TRIES => {
                self.acked = true;
                let mut actions = vec![Action::CloseLink];
                actions.extend(self.after_abort());
                return Ok(actions);
            }
            Event::Timeout | Event::Accepted | Event::Prepared if !self.acked => {
                self.tries += u32::from(event == Event::Timeout);
                return Ok(vec![self.send_abort()]);
            }
            Event::Done => return Err(unexpected(self.state, event)),
            _ => return Ok(Vec::new()),
        }
        Ok(self.after_abort())
    }

    /// Goes on when both the destination and the disk have said their word.
    fn after_abort(&mut self) -> Vec<Action> {
        if !self.acked || self.must_log {
            Vec::new()
        } else if self.gone {
            self.state = State::Ended;
            vec![Action::Report(Report::Ended)]
        } else {
            self.state = State::Thawing;
            vec![Action::Thaw]
        }
    }

    /// The decision is made; the source has to follow it, and may be slow to answer.
    fn finishing(&mut self, event: Event) -> Result<Vec<Action>, ProtocolError> {
        match (self.state, event) {
            (State::Thawing, Event::Thawed) => Ok(self.stay()),
            (State::Thawing, Event::Timeout) => Ok(vec![Action::Thaw]),
            (State::Thawing, Event::ProcessGone) => {
                self.state = State::Ended;
                Ok(vec![Action::Report(Report::Ended)])
            }
            (State::Releasing, Event::Released | Event::ProcessGone) => {
                self.state = State::Done;
                Ok(vec![Action::WriteLog(Record::Done)])
            }
            (State::Releasing, Event::Timeout) => Ok(vec![Action::ReleaseSource]),
            (State::Discarding, Event::ProcessGone) => {
                self.state = State::Lost;
                Ok(Vec::new())
            }
            (State::Discarding, Event::Timeout) => Ok(vec![Action::DiscardSource]),
            (state @ (State::Thawing | State::Discarding), event @ Event::Done) => Err(unexpected(state, event)),
            _ => Ok(Vec::new()),
        }
    }

    /// The body runs where it was, in the next epoch: whatever still comes of this one is stale.
    fn stay(&mut self) -> Vec<Action> {
        self.state = State::Running;
        self.epoch = self.epoch.saturating_add(1);
        vec![Action::Report(Report::Stayed { why: std::mem::take(&mut self.why) })]
    }
}
