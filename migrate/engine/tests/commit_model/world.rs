//! The world of the model: three machines, their bodies, a network that does as it pleases, and a disk.

use mosix_engine::commit::{
    Action, Coordinator, Destination, DestinationAction, DestinationEvent, DestinationState, Event, Record, Report, Source, SourceAction,
    SourceEvent, SourceState, Stamp, State,
};

const GROUP: u64 = 7;

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Home(Stamp, Event),
    Source(Stamp, SourceEvent),
    Destination(Stamp, DestinationEvent),
    Image(Stamp),
}

/// A body as it really is, whatever the machines believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Frozen,
    /// Told to run: it may do so at any moment.
    Starting,
    Running,
}

impl Body {
    fn may_run(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) moved: u32,
    pub(crate) stayed: u32,
    pub(crate) in_doubt: u32,
    pub(crate) lost: u32,
    pub(crate) ended: u32,
}

pub(crate) struct World {
    pub(crate) home: Coordinator,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) net: Vec<Message>,
    /// Everything that was ever sent: any of it may come again.
    pub(crate) sent: Vec<Message>,
    pub(crate) source_body: Body,
    pub(crate) copy: Body,
    begun: u32,
    records: Vec<(u32, Record)>,
    unwritten: Vec<(u32, Record)>,
    dumping: Option<Stamp>,
    image: Option<Stamp>,
    pub(crate) link: bool,
    home_must_notice: bool,
    destination_must_notice: bool,
    /// The newest epoch in which the copy ran.
    ran: u32,
    /// The destination cannot run anything any more until the link is back.
    fenced: bool,
    /// A body was killed from outside, its node died, or it was cut off for longer than its lease.
    pub(crate) excused: bool,
    pub(crate) tally: Tally,
}

impl World {
    pub(crate) fn new(silence_is_proof: bool) -> Self {
        let mut home = Coordinator::new(GROUP, 0);
        home.silence_is_proof = silence_is_proof;
        Self {
            home,
            source: Source::new(GROUP, 0),
            destination: Destination::new(GROUP, 0),
            net: Vec::new(),
            sent: Vec::new(),
            source_body: Body::Running,
            copy: Body::None,
            begun: 0,
            records: Vec::new(),
            unwritten: Vec::new(),
            dumping: None,
            image: None,
            link: true,
            home_must_notice: false,
            destination_must_notice: false,
            ran: 0,
            fenced: false,
            excused: false,
            tally: Tally::default(),
        }
    }

    // ---- the three drivers -------------------------------------------------------------------------------------------

    pub(crate) fn home_event(&mut self, stamp: Stamp, event: Event) {
        // An error leaves the machine as it was: a message that fits nowhere is dropped, as a driver would.
        let actions = self.home.on(stamp, event).unwrap_or_default();
        self.home_actions(actions);
    }

    fn home_actions(&mut self, actions: Vec<Action>) {
        let stamp = self.home.stamp();
        for action in actions {
            match action {
                Action::SendOffer { .. } => self.send_to_destination(stamp, DestinationEvent::Offer),
                Action::SendCommit => {
                    let logged = self.records.iter().rfind(|(epoch, _)| *epoch == stamp.epoch).map(|(_, record)| *record);
                    assert_eq!(logged, Some(Record::Committed), "commit sent without a record on disk");
                    self.send_to_destination(stamp, DestinationEvent::Commit);
                }
                Action::SendAbort { epoch, .. } => self.send_to_destination(Stamp { epoch, ..stamp }, DestinationEvent::Abort),
                Action::StartDump => self.send(Message::Source(stamp, SourceEvent::Dump)),
                Action::Thaw => {
                    assert!(self.home.silence_is_proof || self.ran < stamp.epoch, "thawed although the copy had run");
                    self.send(Message::Source(stamp, SourceEvent::Thaw));
                }
                Action::ReleaseSource => self.send(Message::Source(stamp, SourceEvent::Release)),
                Action::DiscardSource => self.send(Message::Source(stamp, SourceEvent::Discard)),
                Action::WriteLog(record) => self.unwritten.push((stamp.epoch, record)),
                Action::CloseLink => {
                    self.cut();
                    self.home_must_notice = false;
                }
                Action::KillGuest => {
                    self.copy = Body::None;
                    self.destination_event(DestinationEvent::GuestEnded);
                }
                Action::Report(report) => match report {
                    Report::Moved => self.tally.moved += 1,
                    Report::Stayed { .. } => self.tally.stayed += 1,
                    Report::InDoubt => self.tally.in_doubt += 1,
                    Report::Lost { .. } => self.tally.lost += 1,
                    Report::Ended => self.tally.ended += 1,
                },
            }
        }
    }

    pub(crate) fn source_event(&mut self, stamp: Stamp, event: SourceEvent) {
        let actions = self.source.on(stamp, event).unwrap_or_default();
        // Answers carry the stamp of what is answered.
        for action in actions {
            let answer = match action {
                SourceAction::StartDump => {
                    self.source_body = Body::Frozen;
                    self.dumping = Some(stamp);
                    continue;
                }
                SourceAction::Thaw => {
                    self.source_body = Body::Running;
                    self.dumping = None;
                    continue;
                }
                SourceAction::Release | SourceAction::Kill => {
                    self.source_body = Body::None;
                    continue;
                }
                SourceAction::SendDumped => Event::Dumped,
                SourceAction::SendDumpFailed { why } => Event::DumpFailed { why },
                SourceAction::SendThawed => Event::Thawed,
                SourceAction::SendReleased => Event::Released,
                SourceAction::SendGone => Event::ProcessGone,
            };
            self.send(Message::Home(stamp, answer));
        }
    }

    /// A local event of the destination.
    pub(crate) fn destination_event(&mut self, event: DestinationEvent) {
        self.destination_message(self.destination.stamp(), event);
    }

    fn destination_message(&mut self, stamp: Stamp, event: DestinationEvent) {
        let actions = self.destination.on(stamp, event).unwrap_or_default();
        let stamp = self.destination.stamp();
        for action in actions {
            let answer = match action {
                DestinationAction::Admit => continue,
                DestinationAction::Run | DestinationAction::Resume => {
                    assert_ne!(self.copy, Body::None, "nothing there to run");
                    self.copy = if action == DestinationAction::Run { Body::Starting } else { Body::Running };
                    continue;
                }
                DestinationAction::Kill => {
                    self.copy = Body::None;
                    continue;
                }
                DestinationAction::Suspend => {
                    self.copy = Body::Frozen;
                    continue;
                }
                DestinationAction::SendAccepted => Event::Accepted,
                DestinationAction::SendRefused { why } => Event::Refused { why },
                DestinationAction::SendPrepared => Event::Prepared,
                DestinationAction::SendDone => Event::Done,
                DestinationAction::SendFailed { why } => Event::Failed { why },
                DestinationAction::SendNeverRan { why } => Event::NeverRan { why },
                DestinationAction::SendUnknown => Event::Unknown,
                DestinationAction::SendAbortAcked => Event::AbortAcked,
            };
            if self.link {
                self.send(Message::Home(stamp, answer));
            }
        }
    }

    fn send(&mut self, message: Message) {
        // An image is never sent twice; without it a second offer leads nowhere.
        if !matches!(message, Message::Image(_)) {
            self.sent.push(message.clone());
        }
        self.net.push(message);
    }

    fn send_to_destination(&mut self, stamp: Stamp, event: DestinationEvent) {
        if self.link {
            self.send(Message::Destination(stamp, event));
        }
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        match message {
            Message::Home(stamp, event) => self.home_event(stamp, event),
            Message::Source(stamp, event) => self.source_event(stamp, event),
            Message::Destination(stamp, event) => self.destination_message(stamp, event),
            Message::Image(stamp) => self.image = Some(stamp),
        }
    }

    // ---- what happens by itself --------------------------------------------------------------------------------------

    pub(crate) fn begin(&mut self) {
        if self.home.state() == State::Running {
            let epoch = self.begun.max(self.home.stamp().epoch) + 1;
            self.begun = epoch;
            self.home_event(Stamp { group: GROUP, epoch }, Event::Begin { target: "b".to_owned() });
        }
    }

    pub(crate) fn write_log(&mut self) {
        if !self.unwritten.is_empty() {
            let (epoch, record) = self.unwritten.remove(0);
            self.records.push((epoch, record));
            self.home_event(Stamp { group: GROUP, epoch }, Event::Logged(record));
        }
    }

    pub(crate) fn finish_dump(&mut self, well: bool) {
        let Some(stamp) = self.dumping.take() else { return };
        if well {
            self.send(Message::Image(stamp));
            self.source_event(stamp, SourceEvent::DumpComplete);
        } else {
            self.source_event(stamp, SourceEvent::DumpFailed { why: "model".to_owned() });
        }
    }

    /// The destination's local work goes one step on, well or badly.
    pub(crate) fn destination_works(&mut self, well: bool) {
        let why = "model".to_owned();
        match self.destination.state() {
            DestinationState::Admitting if well => self.destination_event(DestinationEvent::Admitted),
            DestinationState::Admitting => self.destination_event(DestinationEvent::Denied { why }),
            DestinationState::Accepted if self.image == Some(self.destination.stamp()) => {
                self.image = None;
                if well {
                    self.copy = Body::Frozen;
                    self.destination_event(DestinationEvent::Restored);
                } else {
                    self.destination_event(DestinationEvent::RestoreFailed { why });
                }
            }
            DestinationState::Starting if well => {
                self.copy = Body::Running;
                self.ran = self.destination.stamp().epoch;
                self.destination_event(DestinationEvent::Started);
            }
            DestinationState::Starting => self.destination_event(DestinationEvent::StartFailed { why }),
            _ => {}
        }
    }

    /// One step of a world without an adversary.
    pub(crate) fn quietly(&mut self) {
        if self.net.is_empty() {
            self.write_log();
            self.finish_dump(true);
            self.destination_works(true);
        } else {
            let message = self.net.remove(0);
            self.deliver(message);
        }
    }

    pub(crate) fn timeouts(&mut self) {
        self.home_event(self.home.stamp(), Event::Timeout);
        self.destination_event(DestinationEvent::Timeout);
    }

    // ---- what the adversary does -------------------------------------------------------------------------------------

    pub(crate) fn cut(&mut self) {
        if self.link {
            self.link = false;
            self.home_must_notice = true;
            self.destination_must_notice = true;
        }
    }

    pub(crate) fn notice(&mut self, home: bool) {
        if home && std::mem::take(&mut self.home_must_notice) {
            self.home_event(self.home.stamp(), Event::LinkLost);
        }
        if !home && std::mem::take(&mut self.destination_must_notice) {
            self.destination_event(DestinationEvent::LinkLost);
        }
    }

    pub(crate) fn join(&mut self) {
        if !self.link {
            self.notice(true);
            self.notice(false);
            self.link = true;
            self.fenced = false;
            self.destination_event(DestinationEvent::LinkBack);
            self.home_event(self.home.stamp(), Event::LinkBack);
        }
    }

    pub(crate) fn lease(&mut self, expired: bool) {
        if self.link {
            return;
        }
        self.notice(false);
        if expired {
            self.excused |= self.copy != Body::None;
            self.destination_event(DestinationEvent::LeaseExpired);
            self.fenced = true;
        } else {
            self.destination_event(DestinationEvent::LeaseLate);
        }
    }

    /// Home waits longer than the lease of the destination.
    pub(crate) fn home_gives_up(&mut self) {
        if !self.link && self.fenced && !self.home_must_notice {
            // A destination that dropped a held copy could have told so, had the link come back in time.
            self.excused |= matches!(self.home.state(), State::InDoubt | State::Committed);
            self.home_event(self.home.stamp(), Event::Fenced);
        }
    }

    pub(crate) fn crash_destination(&mut self) {
        // With the node dies its copy, or its memory of having dropped it.
        self.excused |= self.copy != Body::None || self.destination.state() == DestinationState::Dropped;
        self.copy = Body::None;
        self.image = None;
        self.destination = Destination::new(GROUP, 0);
        self.cut();
        self.destination_must_notice = false;
        self.fenced = true;
    }

    pub(crate) fn kill_source(&mut self) {
        if self.source_body != Body::None {
            self.excused = true;
            self.source_body = Body::None;
            self.dumping = None;
            self.source_event(self.source.stamp(), SourceEvent::BodyGone);
        }
    }

    pub(crate) fn restart_home(&mut self, durable: bool) {
        let unwritten = std::mem::take(&mut self.unwritten);
        if durable {
            self.records.extend(unwritten);
        }
        self.cut();
        self.home_must_notice = false;
        let last = self.records.iter().rfind(|(epoch, _)| *epoch == self.begun).map(|(_, record)| *record);
        let silence_is_proof = self.home.silence_is_proof;
        let (home, actions) = Coordinator::recover(GROUP, self.begun, last);
        self.home = home;
        self.home.silence_is_proof = silence_is_proof;
        self.home_actions(actions);
    }

    // ---- what must hold ----------------------------------------------------------------------------------------------

    pub(crate) fn check(&self) {
        assert!(!(self.source_body.may_run() && self.copy.may_run()), "two bodies run");
        assert!(self.excused || self.source_body != Body::None || self.copy != Body::None, "no body, and nobody died");
        if self.source.state() == SourceState::Released {
            assert!(self.source_body == Body::None, "a body that was given up");
        }
    }

    /// The adversary leaves: everything that was sent arrives, and time passes.
    pub(crate) fn settle(&mut self) {
        self.join();
        for _ in 0..40 {
            while !self.net.is_empty() {
                let message = self.net.remove(0);
                self.deliver(message);
                self.check();
            }
            self.write_log();
            self.finish_dump(true);
            self.destination_works(true);
            self.join();
            self.check();
            if self.net.is_empty() {
                self.timeouts();
            }
        }
        assert!(self.home.at_rest(), "home never comes to rest: {:?}", self.home);
        assert!(!matches!(self.copy, Body::Frozen | Body::Starting), "a copy is held for ever: {:?}", self.destination);
        assert_ne!(self.source_body, Body::Frozen, "the source is frozen for ever: {:?} {:?}", self.home, self.source);
        match self.home.state() {
            // A process may also end while nobody moves it.
            State::Running => assert!(self.copy == Body::None && (self.excused || self.source_body == Body::Running)),
            State::Done => assert!(self.source_body == Body::None && (self.excused || self.copy == Body::Running)),
            _ => assert!(self.excused && self.source_body == Body::None && self.copy == Body::None),
        }
    }
}
