//! One task for each guest: from the offer to its end here.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mosix_criu::freezer::Freezer;
use mosix_engine::commit::{Destination, DestinationAction as Do, DestinationEvent as On, DestinationState, Stamp};
use mosix_guest::{Carried, FromAgent, Setup, ToAgent};
use mosix_policy::{Request, Reserved, Verdict, admit};
use mosix_wire::frame;
use mosix_wire::tls::Stream;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::{Guest, Info};
use crate::agent::Agent;
use crate::balance;
use crate::images;
use crate::node::Node;
use crate::protocol::{BEAT, FromHolder, LEASE, MAX_MESSAGE_BYTES, Offer, Process, ToHolder};

/// Events and messages that may wait.
const QUEUE: usize = 512;
/// A reservation lasts as long as a move may take, and a little.
const LEASE_SLACK_S: f64 = 5.0;

/// All that can happen to a guest.
pub(crate) enum Event {
    Home(ToHolder),
    LinkLost(String),
    Agent(Option<FromAgent>),
    ImageStream(Box<Stream>),
    Images(Result<Carried, String>),
    /// Its images have been sent to the next node, or not.
    HopSent(Result<(u64, u64), String>),
    /// This node's policy wants it elsewhere.
    Wish {
        target: u32,
        request: Request,
    },
    /// This node wants it gone.
    Evict {
        why: String,
    },
    /// For home's `ps`.
    Figures {
        work_s: f64,
        rss_bytes: u64,
    },
    Timeout(DestinationState),
}

struct Run {
    node: Rc<Node>,
    home: String,
    stamp: Stamp,
    process: Process,
    request: Request,
    machine: Destination,
    events: mpsc::Sender<Event>,
    to_home: mpsc::Sender<FromHolder>,
    info: Rc<RefCell<Info>>,
    agent: Option<Agent>,
    keys: Vec<(u16, String)>,
    freezer: Freezer,
    images_dir: PathBuf,
    /// The next hop, while it is under way: its stamp and folder, and the stream for the images.
    hop: Option<Hop>,
    over: bool,
}

struct Hop {
    dir: PathBuf,
    stream: Option<Stream>,
    since: Instant,
}

/// Runs until the guest has ended, has gone on, or has not come.
pub(crate) async fn run(node: Rc<Node>, stream: Stream, home: String, offer: Offer) {
    let (events, mut queue) = mpsc::channel(QUEUE);
    let (to_home, outgoing) = mpsc::channel(QUEUE);
    let Offer { stamp, source, request, process } = offer;
    let is_known = node.guests.borrow().get(&stamp.group).is_some_and(|guest| guest.stamp.epoch >= stamp.epoch);
    let freezer = Freezer::create(node.freezer_root.join(format!("guest-{:x}-{}", stamp.group, stamp.epoch)));
    let (Ok(freezer), false) = (freezer, is_known) else {
        tracing::warn!("an offer for a group that is here already, or no freezer could be made");
        return;
    };
    let info = Rc::new(RefCell::new(Info {
        home: home.clone(),
        outer_pid: None,
        since: Instant::now(),
        work_before_s: process.work_s,
        age_before_s: process.age_s,
        memory_bytes: request.memory_bytes,
        running: false,
    }));
    let handle = Guest { stamp, source, events: events.clone(), info: info.clone() };
    node.guests.borrow_mut().insert(stamp.group, handle);
    let images_dir = node.images_dir("guest", stamp.group, stamp.epoch);
    let (reader, writer) = tokio::io::split(stream);
    let listening = tokio::task::spawn_local(listen(reader, events.clone()));
    let speaking = tokio::task::spawn_local(speak(writer, outgoing));
    let machine = Destination::new(stamp.group, stamp.epoch.saturating_sub(1));
    let mut run = Run {
        node,
        home,
        stamp,
        process,
        request,
        machine,
        events,
        to_home,
        info,
        agent: None,
        keys: Vec::new(),
        freezer,
        images_dir,
        hop: None,
        over: false,
    };
    run.step(On::Offer).await;
    while !run.over {
        let Some(event) = queue.recv().await else { break };
        run.take(event).await;
    }
    listening.abort();
    run.clean_up(speaking).await;
}

async fn listen(mut reader: ReadHalf<Stream>, events: mpsc::Sender<Event>) {
    let why = loop {
        match tokio::time::timeout(LEASE, frame::read_frame(&mut reader, MAX_MESSAGE_BYTES)).await {
            Ok(Ok(ToHolder::Beat)) => {}
            Ok(Ok(message)) => {
                if events.send(Event::Home(message)).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => break error.to_string(),
            Err(_) => break format!("home is silent for {} s", LEASE.as_secs()),
        }
    };
    let _ = events.send(Event::LinkLost(why)).await;
}

async fn speak(mut writer: WriteHalf<Stream>, mut outgoing: mpsc::Receiver<FromHolder>) {
    loop {
        let message = match tokio::time::timeout(BEAT, outgoing.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => FromHolder::Beat,
        };
        if frame::write_frame(&mut writer, &message).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

impl Run {
    async fn take(&mut self, event: Event) {
        match event {
            Event::Home(message) => self.home_says(message).await,
            Event::LinkLost(why) => {
                tracing::info!(group = self.stamp.group, comm = self.process.comm, "lost {}, its home: {why}", self.home);
                self.step(On::LinkLost).await;
                self.step(On::LeaseExpired).await;
                self.over = true;
            }
            Event::Agent(Some(news)) => self.agent_news(news).await,
            Event::Agent(None) => self.agent_gone().await,
            Event::ImageStream(stream) => self.receive_images(*stream),
            Event::Images(Ok(carried)) => {
                let images_dir = self.images_dir.to_string_lossy().into_owned();
                self.tell_agent(ToAgent::Restore { images_dir, carried }).await;
            }
            Event::Images(Err(why)) => self.step(On::RestoreFailed { why }).await,
            Event::HopSent(result) => self.hop_sent(result).await,
            Event::Wish { target, request } => self.tell_home(FromHolder::Wish { target, request }).await,
            Event::Evict { why } => self.tell_home(FromHolder::Evict { why }).await,
            Event::Figures { work_s, rss_bytes } => self.tell_home(FromHolder::Figures { work_s, rss_bytes }).await,
            Event::Timeout(state) => {
                if self.machine.state() == state {
                    self.step(On::Timeout).await;
                }
            }
        }
    }

    // --- the commit protocol -------------------------------------------------------------------------------------------

    async fn step(&mut self, event: On) {
        let before = self.machine.state();
        let actions = match self.machine.on(self.stamp, event) {
            Ok(actions) => actions,
            Err(error) => return tracing::warn!("{error}"),
        };
        for action in actions {
            self.act(action).await;
        }
        let state = self.machine.state();
        if state != before {
            self.arm_timeout(state);
        }
        if matches!(state, DestinationState::Fenced | DestinationState::Dropped | DestinationState::Ended) {
            self.over = true;
        }
    }

    fn arm_timeout(&self, state: DestinationState) {
        if !matches!(state, DestinationState::Accepted | DestinationState::Prepared) {
            return;
        }
        let (events, limit) = (self.events.clone(), self.node.config.move_timeout());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            let _ = events.send(Event::Timeout(state)).await;
        });
    }

    async fn act(&mut self, action: Do) {
        match action {
            Do::Admit => self.admit().await,
            Do::Run => self.tell_agent(ToAgent::Commit).await,
            Do::Kill => self.agent = None,
            Do::Suspend => drop(self.freezer.freeze()),
            Do::Resume => drop(self.freezer.thaw()),
            Do::SendAccepted => {
                let message = FromHolder::Accepted { keys: self.keys.clone(), record: self.node.record() };
                self.tell_home(message).await;
            }
            Do::SendRefused { why } => {
                self.node.stats.borrow_mut().refused += 1;
                let record = self.node.record();
                self.tell_home(FromHolder::Refused { why, record }).await;
            }
            Do::SendPrepared => self.tell_home(FromHolder::Prepared).await,
            Do::SendDone => self.tell_home(FromHolder::Done).await,
            Do::SendFailed { why } => self.tell_home(FromHolder::Failed { why }).await,
            Do::SendNeverRan { why } => self.tell_home(FromHolder::NeverRan { why }).await,
            Do::SendUnknown => self.tell_home(FromHolder::Unknown).await,
            Do::SendAbortAcked => self.tell_home(FromHolder::AbortAcked).await,
        }
    }

    /// Reserves, or says why not; then has everything made that the copy needs.
    async fn admit(&mut self) {
        if let Err(why) = self.reserve() {
            self.node.remember(
                "admit",
                None,
                format!("refused {} (process {} of {}): {why}", self.process.comm, self.process.pid, self.home),
            );
            return Box::pin(self.step(On::Denied { why })).await;
        }
        if let Err(error) = self.start_agent() {
            let why = format!("{} could not make it ready: {error:#}", self.node.identity.name());
            Box::pin(self.step(On::RestoreFailed { why })).await;
        }
    }

    fn reserve(&self) -> Result<(), String> {
        let own = mosix_policy::Own {
            figures: self.node.figures(),
            incoming: self.node.ledger.borrow().incoming(),
            accepts_guests: self.node.config.node.accept_guests && !self.node.closing.get(),
            features: mosix_policy::Features::default(),
            lag_mean_s: 0.0,
            lag_min_s: 0.0,
        };
        if let Verdict::Refuse(why) = admit(&self.node.params, &own, &self.request) {
            return Err(format!("{}: {why}", self.node.identity.name()));
        }
        let until_s = self.node.now_s() + self.node.config.move_timeout().as_secs_f64() + LEASE_SLACK_S;
        let (home, id) = self.reservation();
        match self.node.ledger.borrow_mut().reserve(home, id, self.request.memory_bytes, until_s) {
            Reserved::New | Reserved::Again => Ok(()),
            Reserved::Done | Reserved::Full => Err(format!("{}: no more reservations are possible", self.node.identity.name())),
        }
    }

    fn reservation(&self) -> (u32, u64) {
        (self.request.home.0, self.request.id)
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        images::make_dir(&self.images_dir)?;
        let node = &self.node;
        let text = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let setup = Setup {
            pid: self.process.pid,
            ppid: self.process.ppid,
            pgid: self.process.pgid,
            sid: self.process.sid,
            hostname: self.process.hostname.clone(),
            channels: self.process.channels.clone(),
            tty: self.process.tty.clone(),
            criu: node.criu.path().to_string_lossy().into_owned(),
            cgroups: text(&node.config.node.guest_cgroups),
            freezer: self.freezer.dir().to_string_lossy().into_owned(),
            dump_cgroups: text(&node.config.node.dump_cgroups),
            cpus: node.config.node.guest_cpus.clone(),
            criu_deadline_ms: node.config.timing.move_ms,
        };
        let events = self.events.clone();
        self.agent = Some(Agent::start(&node.agent_program, setup, async move |news| {
            let _ = events.send(Event::Agent(news)).await;
        })?);
        Ok(())
    }

    fn receive_images(&self, stream: Stream) {
        let (events, dir) = (self.events.clone(), self.images_dir.clone());
        // Images hold the memory once more: what is free bounds them.
        let limit_bytes = self.node.sample.borrow().memory_available_bytes.max(64 << 20);
        tokio::task::spawn_local(async move {
            let result = images::receive(stream, dir, limit_bytes).await.map_err(|error| format!("{error:#}"));
            let _ = events.send(Event::Images(result)).await;
        });
    }

    // --- messages ------------------------------------------------------------------------------------------------------

    async fn home_says(&mut self, message: ToHolder) {
        match message {
            ToHolder::Commit => self.step(On::Commit).await,
            ToHolder::Abort { why } => {
                tracing::info!(group = self.stamp.group, "home gave the move up: {why}");
                self.step(On::Abort).await;
            }
            ToHolder::Dump { stamp, target } => self.dump(stamp, target).await,
            ToHolder::Thaw => self.thaw().await,
            ToHolder::Release => self.release().await,
            ToHolder::WishDone { target, why, refused, record } => self.wish_done(target, why, refused, record),
            ToHolder::Beat => {}
            ToHolder::Agent(order) if is_daily(&order) => self.tell_agent(order).await,
            ToHolder::Agent(order) => tracing::warn!("home may not order {order:?} directly"),
        }
    }

    async fn agent_news(&mut self, news: FromAgent) {
        match news {
            FromAgent::Ready { keys } => {
                self.keys = keys;
                self.step(On::Admitted).await;
            }
            FromAgent::Prepared => self.step(On::Restored).await,
            FromAgent::Running => {
                self.arrived();
                self.step(On::Started).await;
            }
            FromAgent::Failed { why } => {
                self.keep_restore_log();
                self.step(On::RestoreFailed { why: format!("{}: {why}", self.node.identity.name()) }).await;
            }
            FromAgent::Dumped { carried, frozen_us } => self.send_hop(carried, frozen_us),
            FromAgent::DumpFailed { why } => self.hop_sent(Err(why)).await,
            FromAgent::Exited { .. } => {
                self.info.borrow_mut().running = false;
                self.tell_home(FromHolder::Agent(news)).await;
            }
            other => self.tell_home(FromHolder::Agent(other)).await,
        }
    }

    async fn agent_gone(&mut self) {
        if self.agent.take().is_none() {
            return;
        }
        match self.machine.state() {
            DestinationState::Running | DestinationState::Suspended => {
                self.step(On::GuestEnded).await;
                self.over = true;
            }
            DestinationState::Starting => {
                // It may have run, and nothing of it is left: there is nothing for home to wait for.
                self.tell_home(FromHolder::Unknown).await;
                self.over = true;
            }
            _ => {
                let why = format!("{}: the agent of the copy was killed", self.node.identity.name());
                self.step(On::RestoreFailed { why }).await;
            }
        }
    }

    fn arrived(&mut self) {
        let (home, id) = self.reservation();
        self.node.ledger.borrow_mut().arrive(home, id, self.node.now_s());
        let mut info = self.info.borrow_mut();
        info.running = true;
        info.since = Instant::now();
        info.outer_pid = self.freezer.members().first().copied();
        let _ = std::fs::remove_dir_all(&self.images_dir);
        self.node.news.notify_one();
    }

    fn keep_restore_log(&self) {
        if let Some(parent) = self.images_dir.parent() {
            let _ = std::fs::copy(self.images_dir.join("restore.log"), parent.join("last-failed-restore.log"));
        }
    }

    async fn tell_home(&self, message: FromHolder) {
        let _ = self.to_home.send(message).await;
    }

    async fn tell_agent(&self, order: ToAgent) {
        if let Some(agent) = &self.agent {
            agent.tell(order).await;
        }
    }

    // --- the next hop --------------------------------------------------------------------------------------------------

    fn key(&self) -> u64 {
        self.stamp.group
    }

    async fn dump(&mut self, stamp: Stamp, target: String) {
        let dir = self.node.images_dir("hop", stamp.group, stamp.epoch);
        let stream = images::open(&self.node.tls, &target, stamp, self.node.config.connect_timeout()).await;
        let ready = stream.and_then(|stream| images::make_dir(&dir).map(|()| stream));
        match ready {
            Ok(stream) => {
                let images_dir = dir.to_string_lossy().into_owned();
                self.hop = Some(Hop { dir, stream: Some(stream), since: Instant::now() });
                let memory_bytes = self.info.borrow().memory_bytes;
                self.node.ledger.borrow_mut().leave(self.node.id().0, self.key(), memory_bytes);
                self.node.leaving.borrow_mut().insert(self.key());
                balance::answered(&self.node, self.key());
                self.tell_agent(ToAgent::Dump { images_dir }).await;
            }
            Err(error) => self.tell_home(FromHolder::DumpFailed { why: format!("{error:#}") }).await,
        }
    }

    fn send_hop(&mut self, carried: Carried, frozen_us: u64) {
        let Some(hop) = &mut self.hop else { return };
        hop.since = Instant::now().checked_sub(Duration::from_micros(frozen_us)).unwrap_or_else(Instant::now);
        let (Some(stream), dir, since, events) = (hop.stream.take(), hop.dir.clone(), hop.since, self.events.clone()) else { return };
        tokio::task::spawn_local(async move {
            let result = images::send(stream, &dir, carried, async { Ok(()) }).await.map_err(|error| format!("{error:#}"));
            let frozen = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            let _ = events.send(Event::HopSent(result.map(|bytes| (frozen, bytes)))).await;
        });
    }

    async fn hop_sent(&mut self, result: Result<(u64, u64), String>) {
        match result {
            Ok((frozen_us, image_bytes)) => self.tell_home(FromHolder::Dumped { frozen_us, image_bytes }).await,
            Err(why) => self.tell_home(FromHolder::DumpFailed { why }).await,
        }
    }

    /// The hop was given up, whether or not the dump was complete.
    async fn thaw(&mut self) {
        self.tell_agent(ToAgent::Thaw).await;
        self.end_hop(false);
        self.tell_home(FromHolder::Thawed).await;
    }

    async fn release(&mut self) {
        self.tell_home(FromHolder::Released).await;
        self.end_hop(true);
        self.over = true;
    }

    fn end_hop(&mut self, left: bool) {
        if let Some(hop) = self.hop.take() {
            let _ = std::fs::remove_dir_all(&hop.dir);
        }
        let (own, key) = (self.node.id().0, self.key());
        if left {
            self.node.ledger.borrow_mut().gone(own, key, self.node.now_s());
        } else {
            self.node.ledger.borrow_mut().abort(own, key);
        }
        self.node.leaving.borrow_mut().remove(&key);
        balance::answered(&self.node, self.key());
    }

    fn wish_done(&mut self, target: u32, why: String, refused: bool, record: Option<mosix_policy::Record>) {
        if let Some(record) = record {
            self.node.learn(record);
        }
        balance::failed(&self.node, self.key(), mosix_policy::NodeId(target), &why, refused);
    }

    // --- the end -------------------------------------------------------------------------------------------------------

    /// Unless a later epoch has taken the place.
    fn strike_off(&self) {
        let mut guests = self.node.guests.borrow_mut();
        if guests.get(&self.stamp.group).is_some_and(|guest| guest.stamp == self.stamp) {
            guests.remove(&self.stamp.group);
        }
    }

    async fn clean_up(mut self, speaking: tokio::task::JoinHandle<()>) {
        // Without its socket the agent ends, and the kernel ends all that is in its namespace.
        self.agent = None;
        self.end_hop(true);
        let (home, id) = self.reservation();
        self.node.ledger.borrow_mut().abort(home, id);
        self.strike_off();
        let freezer = self.freezer.clone();
        let images_dir = self.images_dir.clone();
        // The agent needs a moment to end, and after a hop its frozen body is one too many: it may not run for even that moment. Killed
        // tasks never return to the program, so the thaw only lets them die.
        for pid in freezer.members() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = freezer.thaw();
        tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_dir_all(images_dir);
            freezer.remove();
        });
        drop(self.to_home);
        let _ = speaking.await;
        self.node.news.notify_one();
    }
}

/// What home may order the agent without the commit protocol.
fn is_daily(order: &ToAgent) -> bool {
    matches!(
        order,
        ToAgent::Signal { .. }
            | ToAgent::Data { .. }
            | ToAgent::Pending { .. }
            | ToAgent::EndOfInput { .. }
            | ToAgent::Credit { .. }
            | ToAgent::Closed { .. }
            | ToAgent::WindowSize { .. }
            | ToAgent::Kill
    )
}
