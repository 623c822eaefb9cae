//! One task for each process of this home that moves: home's part of the commit protocol, and the deputy's daily work.
//!
//! Everything that happens arrives as an [`Event`] in one queue; the protocol's state machine (`mosix_engine::commit::Coordinator`) says what to do about
//! those that concern a move, the rest is relayed: the stub's signals and home's input to the guest, the guest's output and fate to home.
//! While the body is frozen, what is meant for it is held back and delivered to whoever has it afterwards.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mosix_deputy::{End as StubEnd, StubEvent};
use mosix_engine::commit::{Action, Coordinator, Event as On, Report, Stamp, State};
use mosix_engine::eligible::{ChannelKind, Plan};
use mosix_guest::{ChannelSpec, Direction, End, FromAgent, ToAgent, TtySpec};
use mosix_policy::NodeId;
use mosix_wire::control::Moved;
use tokio::sync::{Notify, mpsc};

use super::link::{Link, LinkNews};
use super::mailbox::Mailbox;
use super::native::{Body, Sent};
use super::stdio::{Input, Stdio, TERMINAL};
use super::{Info, MoveOrder, Stay};
use crate::node::Node;
use crate::protocol::{FromHolder, HOME_PATIENCE, Offer, Process, ToHolder};
use crate::sys;

/// Signals and input that are kept for a frozen guest. More are dropped: standard signals have merged long before.
const MAX_HELD_BACK: usize = 1024;

/// All that can happen to a deputy.
pub(crate) enum Event {
    /// Move it, please.
    Move(MoveOrder),
    /// From the holder, or about the link to it.
    Link(Stamp, LinkNews),
    /// The home body was dumped and sent, or not.
    Dumped(Stamp, Result<Sent, String>),
    /// The home body is a stub now, or could not become one.
    Stubbed(Stamp, Result<(), String>),
    /// Home has input on this channel.
    InputReady(u16),
    /// Output reached its reader.
    Written(u16, usize),
    /// Nobody reads this output.
    Broken(u16),
    /// Nothing moved on for long in this state.
    Timeout(Stamp, State),
    /// The original process has ended.
    BodyGone,
    /// The target of this epoch holds nothing any more, for certain.
    Fenced(Stamp),
    /// The process is to end with this daemon.
    Stop,
}

struct Run {
    node: Rc<Node>,
    plan: Plan,
    info: Rc<RefCell<Info>>,
    events: mpsc::Sender<Event>,
    machine: Coordinator,
    /// The original body, until it is a stub.
    body: Option<Body>,
    /// While the body is being dumped, which ends with it frozen, so that it cannot be let go before: stops the sending.
    dumping: Option<Rc<Notify>>,
    /// To the node that has the guest.
    holder: Option<Link>,
    /// To the node that shall have it.
    next: Option<Link>,
    order: Option<MoveOrder>,
    stdio: Option<Stdio>,
    mailbox: Arc<Mailbox>,
    /// CRIU keys of the channels at the present holder, and at the next one.
    keys: Vec<(u16, String)>,
    next_keys: Vec<(u16, String)>,
    /// The target said no.
    refused: bool,
    /// Inputs that have something and whose reader has not asked yet.
    pending: BTreeSet<u16>,
    held_back: Vec<ToAgent>,
    frozen_at: Option<Instant>,
    image_bytes: u64,
    /// How the guest ended.
    ended: Option<End>,
    over: bool,
}

/// Runs until the process has ended, or has stayed home after all.
pub(crate) async fn run(
    node: Rc<Node>,
    plan: Plan,
    info: Rc<RefCell<Info>>,
    events: mpsc::Sender<Event>,
    mut queue: mpsc::Receiver<Event>,
) {
    let group = info.borrow().group;
    let pid = plan.pid;
    let keys = plan.channels.iter().map(|channel| (channel.id, channel.key.clone())).collect();
    let mut run = Run {
        body: Some(Body::new(&node, &plan, group)),
        dumping: None,
        node,
        plan,
        info,
        events,
        machine: Coordinator::new(group, 0),
        holder: None,
        next: None,
        order: None,
        stdio: None,
        mailbox: Arc::new(Mailbox::default()),
        keys,
        next_keys: Vec::new(),
        refused: false,
        pending: BTreeSet::new(),
        held_back: Vec::new(),
        frozen_at: None,
        image_bytes: 0,
        ended: None,
        over: false,
    };
    let mailbox = run.mailbox.clone();
    while !run.over {
        tokio::select! {
            event = queue.recv() => match event {
                Some(event) => run.take(event).await,
                None => break,
            },
            () = mailbox.wait() => {
                for event in mailbox.take() {
                    run.stub_event(event).await;
                }
            }
        }
        run.finish_if_ended().await;
    }
    run.node.deputies.borrow_mut().remove(&pid);
    run.node.leaving.borrow_mut().remove(&(pid as u64));
    run.node.news.notify_one();
}

impl Run {
    async fn take(&mut self, event: Event) {
        match event {
            Event::Move(order) => self.begin(order).await,
            Event::Link(stamp, LinkNews::Message(message)) => self.message(stamp, message).await,
            Event::Link(stamp, LinkNews::Lost { why }) => self.link_lost(stamp, why).await,
            Event::Dumped(stamp, result) => self.dumped(stamp, result).await,
            Event::Stubbed(stamp, result) => self.stubbed(stamp, result).await,
            Event::InputReady(id) => {
                self.pending.insert(id);
                self.tell_guest(ToAgent::Pending { id }).await;
            }
            Event::Written(id, bytes) => {
                if let Some(stdio) = &mut self.stdio {
                    stdio.written(id, bytes);
                }
                self.tell_guest(ToAgent::Credit { id, bytes: bytes as u32 }).await;
            }
            Event::Broken(id) => {
                if let Some(stdio) = &mut self.stdio {
                    stdio.close_output(id);
                }
                self.tell_guest(ToAgent::Closed { id }).await;
            }
            Event::Timeout(stamp, state) => {
                if self.machine.state() == state && self.machine.stamp() == stamp {
                    self.step(stamp, On::Timeout).await;
                }
            }
            Event::BodyGone => self.body_gone().await,
            Event::Fenced(stamp) => self.step(stamp, On::Fenced).await,
            // A body that has not left goes on here: its move is given up in order.
            Event::Stop if self.body.is_some() && !self.may_have_left() => {
                self.step(self.machine.stamp(), On::Cancel { why: "this home's daemon ends".into() }).await;
            }
            Event::Stop => self.lost("this home's daemon ends").await,
        }
    }

    // --- moving --------------------------------------------------------------------------------------------------------

    async fn begin(&mut self, order: MoveOrder) {
        let reason = if self.ended.is_some() {
            Some("the process has just ended".to_owned())
        } else if self.order.is_some() || !self.machine.at_rest() {
            Some("it is being moved already: try again in a moment".to_owned())
        } else if order.target == self.info.borrow().node {
            Some(format!("it runs on {} already", self.node.name_of(order.target)))
        } else {
            self.prepare().err()
        };
        if let Some(why) = reason {
            let _ = order.reply.send(Err(Stay::failed(why)));
            self.over = self.body.is_some() && self.order.is_none() && self.machine.at_rest();
            return;
        }
        let target = self.node.name_of(order.target);
        self.watch_body();
        self.order = Some(order);
        self.info.borrow_mut().moving = true;
        let stamp = Stamp { group: self.machine.stamp().group, epoch: self.machine.stamp().epoch + 1 };
        self.step(stamp, On::Begin { target }).await;
    }

    /// A body that is killed while it is held must not live on elsewhere.
    fn watch_body(&self) {
        if self.body.is_none() {
            return;
        }
        let (events, pidfd) = (self.events.clone(), sys::process_descriptor(self.plan.pid));
        tokio::task::spawn_local(async move {
            // No descriptor: it is gone already.
            if let Ok(pidfd) = pidfd {
                let _ = pidfd.readable().await;
            }
            let _ = events.send(Event::BodyGone).await;
        });
    }

    /// Home's ends of the channels are taken before anything is frozen.
    fn prepare(&mut self) -> Result<(), String> {
        if self.stdio.is_none() {
            self.stdio = Some(Stdio::open(&self.plan, self.events.clone()).map_err(|error| format!("{error:#}"))?);
        }
        Ok(())
    }

    /// Gives an event to the machine and does what it says, until nothing is left to do.
    async fn step(&mut self, stamp: Stamp, event: On) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let before = self.machine.state();
            match self.machine.on(stamp, event) {
                Ok(actions) => {
                    for action in actions {
                        if let Some(next) = self.act(action).await {
                            events.insert(0, next);
                        }
                    }
                }
                Err(error) => tracing::warn!(pid = self.plan.pid, "{error}"),
            }
            if self.machine.state() != before {
                self.arm_timeout();
            }
        }
    }

    fn arm_timeout(&self) {
        let (stamp, state) = (self.machine.stamp(), self.machine.state());
        let config = &self.node.config;
        let limit = match state {
            State::Offered => config.connect_timeout() * 2,
            State::Accepted | State::Frozen | State::Prepared => config.move_timeout(),
            State::Committed | State::InDoubt | State::Aborting | State::Thawing | State::Discarding => config.connect_timeout(),
            // Releasing is this daemon's own work, which reports its end by itself.
            State::Running | State::Releasing | State::Done | State::Lost | State::Ended => return,
        };
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            let _ = events.send(Event::Timeout(stamp, state)).await;
        });
    }

    async fn act(&mut self, action: Action) -> Option<On> {
        match action {
            Action::SendOffer { target } => {
                let Some(offer) = self.offer() else { return Some(On::Cancel { why: "nobody wants this move any more".into() }) };
                self.progress(format!("asking {target}"));
                self.next = Some(Link::open(&self.node, target, offer, self.events.clone()));
                None
            }
            Action::StartDump => {
                self.start_dump().await;
                None
            }
            Action::WriteLog(record) => {
                let result = self.node.log.borrow_mut().write(self.machine.stamp(), record);
                Some(match result {
                    Ok(()) => On::Logged(record),
                    Err(error) => On::LogFailed { why: format!("{error:#}") },
                })
            }
            Action::SendCommit => {
                self.tell_next(ToHolder::Commit).await;
                None
            }
            Action::SendAbort { epoch, why } => {
                if self.next.as_ref().is_some_and(|link| link.epoch == epoch) {
                    self.tell_next(ToHolder::Abort { why }).await;
                }
                None
            }
            Action::CloseLink => {
                self.next = None;
                None
            }
            Action::Thaw => self.thaw().await,
            Action::ReleaseSource => self.release_source().await,
            Action::DiscardSource => {
                self.kill_body();
                if let Some(holder) = &self.holder {
                    holder.send(ToHolder::Agent(ToAgent::Kill)).await;
                }
                Some(On::ProcessGone)
            }
            Action::KillGuest => {
                for link in self.next.iter().chain(&self.holder) {
                    link.send(ToHolder::Agent(ToAgent::Kill)).await;
                }
                None
            }
            Action::Report(report) => {
                self.report(report).await;
                None
            }
        }
    }

    /// The link broke between commit and answer. The target kills what it cannot tell home about, at the latest when its lease ends; home waits longer.
    fn wait_for_fence(&self) {
        tracing::warn!(
            pid = self.plan.pid,
            "the link broke while the move was being committed: waiting until the target has certainly given up"
        );
        let (events, stamp) = (self.events.clone(), self.machine.stamp());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(HOME_PATIENCE).await;
            let _ = events.send(Event::Fenced(stamp)).await;
        });
    }

    fn offer(&self) -> Option<Offer> {
        let info = self.info.borrow();
        let request = self.order.as_ref().map(|order| order.request.clone());
        let direction = |kind: ChannelKind| if kind == ChannelKind::PipeIn { Direction::Input } else { Direction::Output };
        let key =
            |id: u16, own: &str| self.keys.iter().find(|(other, _)| *other == id).map_or_else(|| own.to_owned(), |(_, key)| key.clone());
        let channels = self.plan.channels.iter().map(|channel| ChannelSpec {
            id: channel.id,
            direction: direction(channel.kind),
            key: key(channel.id, &channel.key),
            shared: channel.shared,
        });
        let stdio = self.stdio.as_ref();
        let tty = self.plan.tty.as_ref().map(|_| TtySpec {
            id: TERMINAL,
            canonical: stdio.is_some_and(Stdio::is_canonical),
            size: stdio.and_then(Stdio::window_size).unwrap_or((24, 80)),
        });
        let work_s = if self.body.is_some() { crate::measure::work_of(&self.node, self.plan.pid) } else { info.work_s };
        Some(Offer {
            stamp: self.machine.stamp(),
            source: self.node.name_of(info.node),
            request: request?,
            process: Process {
                pid: self.plan.pid,
                ppid: self.plan.ppid.max(1),
                pgid: self.plan.pgid,
                sid: self.plan.sid,
                uid: self.plan.uid,
                comm: self.plan.comm.clone(),
                hostname: self.plan.hostname.clone(),
                channels: channels.collect(),
                tty,
                work_s,
                age_s: info.born.elapsed().as_secs_f64(),
            },
        })
    }

    async fn start_dump(&mut self) {
        let stamp = self.machine.stamp();
        let Some(target) = self.order.as_ref().map(|order| self.node.name_of(order.target)) else { return };
        self.progress(format!("{target} is ready; freezing"));
        if self.body.is_none() {
            // A hop: the present holder dumps and sends.
            if let Some(holder) = &self.holder {
                holder.send(ToHolder::Dump { stamp, target }).await;
            }
            return;
        }
        // What was judged may have changed while the target made itself ready.
        match super::plan_of(&self.node, self.plan.pid) {
            Ok((plan, _)) if super::same_plan(&plan, &self.plan) => {}
            Ok(_) => return self.dump_failed(stamp, "its open files changed meanwhile: try again".into()).await,
            Err(error) => return self.dump_failed(stamp, format!("{error:#}")).await,
        }
        self.leave();
        let Some(body) = self.body.clone() else { return };
        let give_up = Rc::new(Notify::new());
        self.dumping = Some(give_up.clone());
        let dir = self.node.images_dir("home", stamp.group, stamp.epoch);
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            let result = body.dump(target, stamp, dir, &give_up).await.map_err(|error| format!("{error:#}"));
            let _ = events.send(Event::Dumped(stamp, result)).await;
        });
    }

    async fn dumped(&mut self, stamp: Stamp, result: Result<Sent, String>) {
        self.dumping = None;
        let event = match result {
            Ok(sent) => {
                self.frozen_at = Some(sent.since);
                self.image_bytes = sent.image_bytes;
                On::Dumped
            }
            Err(why) => On::DumpFailed { why },
        };
        self.step(stamp, event).await;
        // The move was given up meanwhile.
        if self.machine.state() == State::Thawing
            && let Some(thawed) = self.thaw().await
        {
            self.step(self.machine.stamp(), thawed).await;
        }
    }

    async fn dump_failed(&self, stamp: Stamp, why: String) {
        let _ = self.events.send(Event::Dumped(stamp, Err(why))).await;
    }

    /// The process counts as leaving from now on.
    fn leave(&self) {
        let memory_bytes = self.order.as_ref().map_or(0, |order| order.request.memory_bytes);
        self.node.ledger.borrow_mut().leave(self.node.id().0, self.plan.pid as u64, memory_bytes);
        self.node.leaving.borrow_mut().insert(self.plan.pid as u64);
        crate::balance::answered(&self.node, self.plan.pid as u64);
    }

    fn has_left(&self, left: bool) {
        let (own, key) = (self.node.id().0, self.plan.pid as u64);
        if left {
            self.node.ledger.borrow_mut().gone(own, key, self.node.now_s());
        } else {
            self.node.ledger.borrow_mut().abort(own, key);
        }
        self.node.leaving.borrow_mut().remove(&key);
    }

    async fn thaw(&mut self) -> Option<On> {
        let Some(body) = &self.body else {
            if let Some(holder) = &self.holder {
                holder.send(ToHolder::Thaw).await;
            }
            return None;
        };
        if let Some(give_up) = &self.dumping {
            // The freeze would come after the thaw, and last for ever. `dumped` does it.
            give_up.notify_one();
            return None;
        }
        if let Err(error) = body.thaw() {
            tracing::error!(pid = self.plan.pid, "the process could not be let go after a failed move: {error:#}");
        }
        self.has_left(false);
        Some(On::Thawed)
    }

    async fn release_source(&mut self) -> Option<On> {
        let stamp = self.machine.stamp();
        let Some(body) = self.body.clone() else {
            let previous = std::mem::replace(&mut self.holder, self.next.take());
            if let Some(previous) = previous {
                previous.send(ToHolder::Release).await;
            }
            return Some(On::Released);
        };
        self.holder = self.next.take();
        self.has_left(true);
        let (watcher, events, mailbox) = (self.node.watcher.clone(), self.events.clone(), self.mailbox.clone());
        let on_event: Box<dyn Fn(StubEvent) + Send> = Box::new(move |event| mailbox.put(event));
        tokio::task::spawn_local(async move {
            let result = tokio::task::spawn_blocking(move || body.become_stub(&watcher, on_event)).await;
            let result = result.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| format!("{error:#}")));
            let _ = events.send(Event::Stubbed(stamp, result)).await;
        });
        None
    }

    /// If it is a stub by now, the watcher tells.
    async fn body_gone(&mut self) {
        if self.body.is_none() {
            return;
        }
        let stamp = self.machine.stamp();
        if self.machine.at_rest() {
            self.over = true;
        } else if self.machine.state() == State::Releasing {
            tracing::debug!(pid = self.plan.pid, "was killed while it became a stub");
            if let Some(holder) = &self.holder {
                holder.send(ToHolder::Agent(ToAgent::Kill)).await;
            }
            self.over = true;
        } else {
            self.step(stamp, On::ProcessGone).await;
        }
    }

    async fn stubbed(&mut self, stamp: Stamp, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.body = None;
                self.info.borrow_mut().is_stub = true;
                self.step(stamp, On::Released).await;
                if let Some(stdio) = &mut self.stdio {
                    stdio.watch_inputs();
                }
            }
            // The guest runs, so the body must never run again: it stays frozen and is killed when the guest ends.
            Err(why) => {
                tracing::error!(
                    pid = self.plan.pid,
                    "the home body could not become a stub ({why}); it stays frozen, signals to it are not carried"
                );
                self.info.borrow_mut().is_stub = true;
                self.step(stamp, On::Released).await;
            }
        }
    }

    async fn report(&mut self, report: Report) {
        match report {
            Report::Moved => self.moved().await,
            Report::Stayed { why } => self.stayed(why).await,
            Report::InDoubt => self.wait_for_fence(),
            Report::Lost { why } => self.lost(&why).await,
            Report::Ended => {
                self.answer(Err(Stay::ended("the process ended")));
                self.over = true;
            }
        }
    }

    async fn moved(&mut self) {
        let Some(order) = self.order.take() else { return };
        self.keys = std::mem::take(&mut self.next_keys);
        let freeze_ms = self.frozen_at.take().map_or(0.0, |at| at.elapsed().as_secs_f64() * 1000.0);
        let from = {
            let mut info = self.info.borrow_mut();
            info.moves += 1;
            info.moving = false;
            info.since = Instant::now();
            std::mem::replace(&mut info.node, order.target)
        };
        self.node.count_move(freeze_ms);
        let moved = Moved {
            pid: self.plan.pid,
            from: self.node.name_of(from),
            to: self.node.name_of(order.target),
            total_ms: order.asked.elapsed().as_secs_f64() * 1000.0,
            freeze_ms,
            image_bytes: self.image_bytes,
        };
        tracing::info!(pid = moved.pid, from = moved.from, to = moved.to, freeze_ms = moved.freeze_ms, total_ms = moved.total_ms, "moved");
        let _ = order.reply.send(Ok(moved));
        self.catch_up(true).await;
    }

    async fn stayed(&mut self, why: String) {
        self.frozen_at = None;
        self.next = None;
        self.info.borrow_mut().moving = false;
        self.node.stats.borrow_mut().aborted += 1;
        let refused = std::mem::take(&mut self.refused);
        tracing::info!(pid = self.plan.pid, "stays: {why}");
        self.answer(Err(Stay { why, refused, gone: false }));
        self.catch_up(false).await;
        // A process that never left needs no deputy.
        self.over = self.body.is_some();
    }

    fn answer(&mut self, result: Result<Moved, Stay>) {
        if let Some(order) = self.order.take() {
            let _ = order.reply.send(result);
        }
    }

    /// Delivers what was held back, and asks a new holder again for readers.
    async fn catch_up(&mut self, is_new: bool) {
        for message in std::mem::take(&mut self.held_back) {
            self.tell_guest(message).await;
        }
        if is_new {
            for id in self.pending.clone() {
                self.tell_guest(ToAgent::Pending { id }).await;
            }
        }
    }

    fn progress(&self, stage: String) {
        if let Some(progress) = self.order.as_ref().and_then(|order| order.progress.as_ref()) {
            let _ = progress.send(stage);
        }
    }

    // --- the links -----------------------------------------------------------------------------------------------------

    async fn tell_next(&self, message: ToHolder) {
        if let Some(link) = &self.next {
            link.send(message).await;
        }
    }

    /// To whoever has the guest; held back while it is frozen.
    async fn tell_guest(&mut self, message: ToAgent) {
        let frozen = !matches!(self.machine.state(), State::Running | State::Done | State::Offered | State::Releasing);
        match &self.holder {
            Some(holder) if !frozen => holder.send(ToHolder::Agent(message)).await,
            _ => {
                if self.held_back.len() < MAX_HELD_BACK {
                    self.held_back.push(message);
                }
            }
        }
    }

    async fn message(&mut self, stamp: Stamp, message: FromHolder) {
        match message {
            FromHolder::Accepted { keys, record } => {
                self.node.learn(record);
                self.next_keys = keys;
                self.step(stamp, On::Accepted).await;
            }
            FromHolder::Refused { why, record } => {
                self.node.learn(record);
                self.refused = true;
                self.step(stamp, On::Refused { why }).await;
            }
            FromHolder::Prepared => self.step(stamp, On::Prepared).await,
            FromHolder::Done => self.step(stamp, On::Done).await,
            FromHolder::Failed { why } => self.step(stamp, On::Failed { why }).await,
            FromHolder::NeverRan { why } => self.step(stamp, On::NeverRan { why }).await,
            FromHolder::Unknown => self.step(stamp, On::Unknown).await,
            FromHolder::AbortAcked => self.step(stamp, On::AbortAcked).await,
            FromHolder::Dumped { frozen_us, image_bytes } => {
                self.frozen_at = Instant::now().checked_sub(Duration::from_micros(frozen_us));
                self.image_bytes = image_bytes;
                self.step(self.machine.stamp(), On::Dumped).await;
            }
            FromHolder::DumpFailed { why } => self.step(self.machine.stamp(), On::DumpFailed { why }).await,
            FromHolder::Thawed => self.step(self.machine.stamp(), On::Thawed).await,
            FromHolder::Released | FromHolder::Beat => {}
            FromHolder::Wish { target, request } => self.wish(NodeId(target), request).await,
            FromHolder::Evict { why } => self.evict(why).await,
            FromHolder::Figures { work_s, rss_bytes } => {
                let mut info = self.info.borrow_mut();
                info.work_s = work_s;
                info.rss_bytes = rss_bytes;
            }
            FromHolder::Agent(news) => self.guest_news(news).await,
        }
    }

    async fn link_lost(&mut self, stamp: Stamp, why: String) {
        if self.next.as_ref().is_some_and(|link| link.epoch == stamp.epoch) {
            self.next = None;
            tracing::debug!(pid = self.plan.pid, "link to the target: {why}");
            self.step(stamp, On::LinkLost).await;
        } else if self.holder.as_ref().is_some_and(|link| link.epoch == stamp.epoch) && self.ended.is_none() {
            self.holder = None;
            let node = self.node.name_of(self.info.borrow().node);
            self.lost(&format!("{node}, where it ran, is gone ({why})")).await;
        }
    }

    /// The holder's policy wants it elsewhere: home does it, and tells how it went.
    async fn wish(&mut self, target: NodeId, request: mosix_policy::Request) {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let order = MoveOrder { target, request, progress: None, reply, asked: Instant::now() };
        self.begin(order).await;
        let Some(holder) = &self.holder else { return };
        let messages = holder.sender();
        let node = self.node.clone();
        tokio::task::spawn_local(async move {
            let refused = match answer.await {
                // The node that held it learns of the success by its release.
                Ok(Ok(_)) | Err(_) => return,
                Ok(Err(stay)) => stay,
            };
            let record = node.window.borrow().get(target).map(|heard| heard.record.clone());
            let _ = messages.send(ToHolder::WishDone { target: target.0, why: refused.why, refused: refused.refused, record }).await;
        });
    }

    /// The holder wants it gone: it comes home.
    async fn evict(&mut self, why: String) {
        tracing::info!(pid = self.plan.pid, "comes home: {why}");
        let request = super::request_for(&self.node, self.plan.pid, self.info.borrow().node, true);
        self.wish(self.node.id(), request).await;
    }

    // --- daily work ----------------------------------------------------------------------------------------------------

    async fn guest_news(&mut self, news: FromAgent) {
        match news {
            FromAgent::Data { id, bytes } => {
                let count = bytes.len();
                let taken = match &mut self.stdio {
                    Some(stdio) => stdio.write(id, bytes).await,
                    None => false,
                };
                if !taken {
                    // Nobody reads it: the credit is given back, the guest's next write fails as at home.
                    self.tell_guest(ToAgent::Credit { id, bytes: count as u32 }).await;
                    self.tell_guest(ToAgent::Closed { id }).await;
                }
            }
            FromAgent::Eof { id } => {
                if let Some(stdio) = &mut self.stdio {
                    stdio.end_output(id);
                }
            }
            FromAgent::Wants { id, bytes } => self.wanted(id, bytes as usize).await,
            FromAgent::Stopped { signal } => {
                self.info.borrow_mut().stopped = true;
                self.watcher_call(move |watcher, pid| watcher.stop(pid, signal)).await;
            }
            FromAgent::Continued => self.info.borrow_mut().stopped = false,
            FromAgent::Exited { end, cpu_ms } => {
                tracing::debug!(pid = self.plan.pid, ?end, cpu_ms, "the guest ended");
                self.ended = Some(end);
            }
            // Steps of the protocol, which the holder's daemon translates.
            FromAgent::Ready { .. }
            | FromAgent::Prepared
            | FromAgent::Running
            | FromAgent::Failed { .. }
            | FromAgent::Dumped { .. }
            | FromAgent::DumpFailed { .. } => tracing::warn!("a message that only the holder's daemon should see"),
        }
    }

    async fn wanted(&mut self, id: u16, bytes: usize) {
        self.pending.remove(&id);
        let Some(stdio) = &mut self.stdio else { return };
        match stdio.read(id, bytes) {
            Input::Bytes(bytes) => {
                stdio.watch_input(id);
                self.tell_guest(ToAgent::Data { id, bytes }).await;
            }
            Input::End => {
                if id == TERMINAL {
                    stdio.watch_input(id);
                }
                self.tell_guest(ToAgent::EndOfInput { id }).await;
            }
            Input::Nothing => stdio.watch_input(id),
        }
    }

    async fn stub_event(&mut self, event: StubEvent) {
        match event {
            StubEvent::Signal { signo, code, value, .. } => {
                if signo == libc::SIGWINCH
                    && let Some(size) = self.stdio.as_ref().and_then(Stdio::window_size)
                {
                    self.tell_guest(ToAgent::WindowSize { size }).await;
                }
                if signo == libc::SIGCONT {
                    self.info.borrow_mut().stopped = false;
                }
                let value = (code == SI_QUEUE).then_some(value as i64);
                self.tell_guest(ToAgent::Signal { signo, value }).await;
            }
            StubEvent::Gone { .. } => {
                tracing::debug!(pid = self.plan.pid, "the stub was killed");
                if let Some(holder) = &self.holder {
                    holder.send(ToHolder::Agent(ToAgent::Kill)).await;
                }
                self.answer(Err(Stay::ended("the process was killed")));
                self.over = true;
            }
        }
    }

    /// The guest has ended and all its output has been read: the stub ends in the same way.
    async fn finish_if_ended(&mut self) {
        let Some(end) = self.ended else { return };
        let written = self.stdio.as_ref().is_none_or(Stdio::all_written);
        if self.over || !written || self.machine.state() == State::Releasing {
            return;
        }
        // Readers must see the end of file when the process is gone: our copies of its pipes go first.
        self.stdio = None;
        if self.body.is_some() {
            self.kill_body();
        } else {
            let end = match end {
                End::Exited(code) => StubEnd::Exited(code as u8),
                End::Signaled { signal, core } => StubEnd::Signaled { signal, core },
            };
            self.watcher_call(move |watcher, pid| watcher.finish(pid, end)).await;
        }
        self.answer(Err(Stay::ended("the process ended")));
        self.over = true;
    }

    /// The guest is gone for good and cannot be had back.
    async fn lost(&mut self, why: &str) {
        tracing::error!(pid = self.plan.pid, "{} is lost: {why}", self.plan.comm);
        self.node.remember("lost", Some(self.plan.pid as u64), why.to_owned());
        self.answer(Err(Stay::ended(format!("the process is lost: {why}"))));
        self.stdio = None;
        if self.machine.state() == State::Releasing {
            // The body is just becoming a stub, which can be ended only when it is one.
            self.ended = Some(End::Signaled { signal: libc::SIGKILL, core: false });
            return;
        }
        if self.body.is_none() {
            self.watcher_call(|watcher, pid| watcher.finish(pid, StubEnd::Signaled { signal: libc::SIGKILL, core: false })).await;
        } else {
            self.kill_body();
        }
        self.over = true;
    }

    /// A copy of the body elsewhere runs, or may run.
    fn may_have_left(&self) -> bool {
        matches!(self.machine.state(), State::Committed | State::InDoubt | State::Releasing | State::Discarding | State::Lost | State::Done)
    }

    fn kill_body(&self) {
        let pid = nix::unistd::Pid::from_raw(self.plan.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        if let Some(body) = &self.body
            && let Err(error) = body.thaw()
        {
            tracing::debug!("{error:#}");
        }
    }

    async fn watcher_call<F>(&self, call: F)
    where
        F: FnOnce(&mosix_deputy::Watcher, i32) -> Result<(), mosix_deputy::StubError> + Send + 'static,
    {
        let (watcher, pid) = (self.node.watcher.clone(), self.plan.pid);
        match tokio::task::spawn_blocking(move || call(&watcher, pid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(pid, "stub: {error}"),
            Err(error) => tracing::error!(pid, "{error}"),
        }
    }
}

/// si_code of sigqueue(3).
const SI_QUEUE: i32 = -1;
