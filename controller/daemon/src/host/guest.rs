//! One task for each guest: from the offer to its end here.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use mosix_criu::freezer::Freezer;
use mosix_engine::commit::{Destination, DestinationAction as Do, DestinationEvent as On, DestinationState, Stamp};
use mosix_guest::{Carried, FromAgent, Setup, ToAgent};
use mosix_policy::{Request, Reserved, Verdict, admit};
use mosix_wire::blocking::BlockingStream;
use mosix_wire::frame;
use mosix_wire::tls::Stream;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::hop::Hop;
use super::{Guest, Info};
use crate::agent::Agent;
use crate::carry::receive::{WindowOrder, Windows, make_store, receive};
use crate::carry::{files, send::Sent};
use crate::node::Node;
use crate::protocol::{FromHolder, Lease, MAX_MESSAGE_BYTES, Offer, Process, ToHolder};

/// Events and messages that may wait.
const QUEUE: usize = 512;
/// A reservation lasts as long as a move may take, and a little.
const LEASE_SLACK_S: f64 = 5.0;

/// All that can happen to a guest.
pub(crate) enum Event {
    Home(ToHolder),
    LinkLost(String),
    Agent(Option<FromAgent>),
    /// The node that holds the body will send it here.
    BodyStream(Box<Stream>),
    /// Everything has come, or not.
    Body(Result<Carried, String>),
    /// A window is wanted in the waiting CRIU.
    Window(WindowOrder),
    /// It is about to be stopped for the next hop.
    HopFreezes(SyncSender<()>),
    /// It is frozen and has been sent to the next node.
    HopSent(Box<Sent>),
    /// CRIU has let go of it, or it runs on.
    HopDumped(Box<Result<Option<mosix_pages::Source>, String>>),
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

pub(super) struct Run {
    pub(super) node: Rc<Node>,
    home: String,
    pub(super) stamp: Stamp,
    pub(super) process: Process,
    request: Request,
    machine: Destination,
    pub(super) events: mpsc::Sender<Event>,
    to_home: mpsc::Sender<FromHolder>,
    pub(super) info: Rc<RefCell<Info>>,
    pub(super) agent: Option<Agent>,
    /// The agent on its way out.
    ending: Option<std::thread::JoinHandle<()>>,
    keys: Vec<(u16, String)>,
    freezer: Freezer,
    images_dir: PathBuf,
    /// Where the pages go that are in no window, if they come beforehand.
    store: Option<PathBuf>,
    /// The CRIU that waits for them, as this daemon sees it.
    waiting_pid: Option<i32>,
    /// Windows that were asked for and not answered yet.
    windows: VecDeque<SyncSender<Result<u64, String>>>,
    /// The next hop, while it is under way.
    pub(super) hop: Option<Hop>,
    pub(super) over: bool,
}

/// Runs until the guest has ended, has gone on, or has not come.
pub(crate) async fn run(node: Rc<Node>, stream: Stream, home: String, offer: Offer) {
    let (events, mut queue) = mpsc::channel(QUEUE);
    let (to_home, outgoing) = mpsc::channel(QUEUE);
    let Offer { stamp, source, request, process, lease } = offer;
    let lease = lease.checked();
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
    let listening = tokio::task::spawn_local(listen(reader, lease, events.clone()));
    let speaking = tokio::task::spawn_local(speak(writer, lease, outgoing));
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
        ending: None,
        keys: Vec::new(),
        freezer,
        images_dir,
        store: None,
        waiting_pid: None,
        windows: VecDeque::new(),
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

async fn listen(mut reader: ReadHalf<Stream>, lease: Lease, events: mpsc::Sender<Event>) {
    let why = loop {
        match tokio::time::timeout(lease.guest(), frame::read_frame(&mut reader, MAX_MESSAGE_BYTES)).await {
            Ok(Ok(ToHolder::Beat)) => {}
            Ok(Ok(message)) => {
                if events.send(Event::Home(message)).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => break error.to_string(),
            Err(_) => break format!("home is silent for {} ms", lease.guest().as_millis()),
        }
    };
    let _ = events.send(Event::LinkLost(why)).await;
}

async fn speak(mut writer: WriteHalf<Stream>, lease: Lease, mut outgoing: mpsc::Receiver<FromHolder>) {
    loop {
        let message = match tokio::time::timeout(lease.beat(), outgoing.recv()).await {
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
            Event::BodyStream(stream) => self.receive_body(*stream),
            Event::Body(Ok(carried)) => self.tell_agent(ToAgent::Restore { carried }).await,
            Event::Body(Err(why)) => self.step(On::RestoreFailed { why }).await,
            Event::Window(order) => self.make_window(order).await,
            Event::HopFreezes(done) => self.hop_freezes(done).await,
            Event::HopSent(sent) => self.hop_sent(*sent).await,
            Event::HopDumped(result) => self.hop_dumped(*result).await,
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
        let mut limit = self.node.config.move_timeout();
        if state == DestinationState::Accepted && self.store.is_some() {
            limit += self.node.config.copy_timeout();
        }
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            let _ = events.send(Event::Timeout(state)).await;
        });
    }

    async fn act(&mut self, action: Do) {
        match action {
            Do::Admit => self.admit().await,
            Do::Run => self.tell_agent(ToAgent::Commit).await,
            Do::Kill => self.dismiss_agent(),
            Do::Suspend => drop(self.freezer.freeze()),
            Do::Resume => drop(self.freezer.thaw()),
            Do::SendAccepted => {
                let pages = self.store.is_some();
                let message = FromHolder::Accepted { keys: self.keys.clone(), record: self.node.record(), pages };
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
        let limit = self.node.config.move_timeout() + self.node.config.copy_timeout();
        let until_s = self.node.now_s() + limit.as_secs_f64() + LEASE_SLACK_S;
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
        files::make_dir(&self.images_dir)?;
        let node = &self.node;
        if node.kerndat.is_ok() {
            self.store = Some(make_store(&self.images_dir, self.process.pid)?);
        }
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
            images_dir: self.images_dir.to_string_lossy().into_owned(),
            premem: node.kerndat.as_ref().ok().map(|path| path.to_string_lossy().into_owned()),
        };
        let events = self.events.clone();
        self.agent = Some(Agent::start(&node.agent_program, setup, async move |news| {
            let _ = events.send(Event::Agent(news)).await;
        })?);
        Ok(())
    }

    /// A thread takes the body; its questions and its end come back as events.
    fn receive_body(&self, stream: Stream) {
        let (events, dir) = (self.events.clone(), self.images_dir.clone());
        // Images may hold the memory once more: what is free bounds them.
        let limit_bytes = self.node.sample.borrow().memory_available_bytes.max(64 << 20);
        let patience = self.node.config.move_timeout();
        let orders = self.events.clone();
        let windows = self.store.clone().zip(self.waiting_pid).map(|(store, waiting_pid)| Windows {
            pid: self.process.pid,
            waiting_pid,
            order: Box::new(move |order| orders.blocking_send(Event::Window(order)).is_ok()),
            store,
            seen: Arc::default(),
        });
        tokio::task::spawn_local(async move {
            let receiving = move || receive(BlockingStream::new(stream, patience)?, &dir, windows, limit_bytes);
            let result = tokio::task::spawn_blocking(receiving).await.map_err(anyhow::Error::from).and_then(|result| result);
            let _ = events.send(Event::Body(result.map_err(|error| format!("{error:#}")))).await;
        });
    }

    async fn make_window(&mut self, order: WindowOrder) {
        let WindowOrder { region, answer } = order;
        self.windows.push_back(answer);
        let (start, length_bytes, no_reserve) = (region.start, region.length_bytes, region.no_reserve);
        self.tell_agent(ToAgent::Window { start, length_bytes, no_reserve }).await;
    }

    // --- messages ------------------------------------------------------------------------------------------------------

    async fn home_says(&mut self, message: ToHolder) {
        match message {
            ToHolder::Commit => self.step(On::Commit).await,
            ToHolder::Abort { why } => {
                tracing::info!(group = self.stamp.group, "home gave the move up: {why}");
                self.step(On::Abort).await;
            }
            ToHolder::Dump { stamp, target, pages } => self.start_hop(stamp, target, pages).await,
            ToHolder::Quiet => self.hop_is_quiet().await,
            ToHolder::Thaw => self.thaw().await,
            ToHolder::Release => self.release().await,
            ToHolder::WishDone { target, why, refused, record } => self.wish_done(target, why, refused, record),
            ToHolder::Beat => {}
            ToHolder::Agent(order) if is_daily(&order) => self.daily(order).await,
            ToHolder::Agent(order) => tracing::warn!("home may not order {order:?} directly"),
        }
    }

    async fn agent_news(&mut self, news: FromAgent) {
        match news {
            FromAgent::Ready { keys } => {
                self.keys = keys;
                // The waiting CRIU is all that is in the group now.
                self.waiting_pid = self.freezer.members().first().copied();
                self.step(On::Admitted).await;
            }
            FromAgent::Window { address } => {
                if let Some(answer) = self.windows.pop_front() {
                    // Whoever asked may have given up.
                    let _ = answer.try_send(address);
                }
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
            FromAgent::Step(_) | FromAgent::Dumped | FromAgent::DumpFailed { .. } => self.hop_news(news).await,
            FromAgent::Exited { .. } => {
                self.info.borrow_mut().running = false;
                self.tell_home(FromHolder::Agent(news)).await;
            }
            other => self.tell_home(FromHolder::Agent(other)).await,
        }
    }

    async fn agent_gone(&mut self) {
        if self.agent.is_none() {
            return;
        }
        self.dismiss_agent();
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
        // CRIU and its helpers may still be on their way out.
        info.outer_pid = self.freezer.members().into_iter().find(|pid| innermost_pid(*pid) == Some(self.process.pid));
        let _ = std::fs::remove_dir_all(&self.images_dir);
        self.node.news.notify_one();
    }

    fn keep_restore_log(&self) {
        if let Some(parent) = self.images_dir.parent() {
            let _ = std::fs::copy(self.images_dir.join("restore.log"), parent.join("last-failed-restore.log"));
        }
    }

    pub(super) async fn tell_home(&self, message: FromHolder) {
        let _ = self.to_home.send(message).await;
    }

    pub(super) async fn tell_agent(&self, order: ToAgent) {
        if let Some(agent) = &self.agent {
            agent.tell(order).await;
        }
    }

    // --- the end -------------------------------------------------------------------------------------------------------

    /// Unless a later epoch has taken the place.
    fn strike_off(&self) {
        let mut guests = self.node.guests.borrow_mut();
        if guests.get(&self.stamp.group).is_some_and(|guest| guest.stamp == self.stamp) {
            guests.remove(&self.stamp.group);
        }
    }

    /// How many processes it is by now.
    pub(super) fn processes(&self) -> usize {
        self.freezer.members().len()
    }

    /// Without its socket the agent ends, and the kernel ends all that is in its namespace.
    fn dismiss_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            self.ending = Some(agent.end());
        }
    }

    async fn clean_up(mut self, speaking: tokio::task::JoinHandle<()>) {
        self.dismiss_agent();
        let hop_dir = self.hop_dir();
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
        let ending = self.ending.take();
        tokio::task::spawn_blocking(move || {
            // Before it has ended its CRIU may still make files.
            let _ = ending.map(std::thread::JoinHandle::join);
            for dir in std::iter::once(images_dir).chain(hop_dir) {
                let _ = std::fs::remove_dir_all(dir);
            }
            freezer.remove();
        });
        drop(self.to_home);
        let _ = speaking.await;
        self.node.news.notify_one();
    }
}

/// The number by which a process knows itself: the last in its list of numbers.
fn innermost_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_ascii_whitespace().last()?.parse().ok())
}

/// What a guest is told even while it is being stopped: it ends.
pub(super) fn is_urgent(order: &ToAgent) -> bool {
    matches!(order, ToAgent::Kill)
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
