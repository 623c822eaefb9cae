//! One task for each process of this home that moves: home's part of the commit protocol, and the deputy's daily work.
//!
//! Everything that happens arrives as an [`Event`] in one queue; the protocol's state machine (`mosix_engine::commit::Coordinator`) says what to do about
//! those that concern a move, the rest is relayed: the stub's signals and home's input to the guest, the guest's output and fate to home.
//! [`moving`] does what the machine says, [`relay`] the daily work. While the body is frozen, what is meant for it is held back and delivered to whoever has it afterwards.

mod moving;
mod relay;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mosix_engine::commit::{Coordinator, Event as On, Stamp, State};
use mosix_engine::eligible::Plan;
use mosix_guest::{End, ToAgent};
use mosix_policy::NodeId;
use mosix_wire::control::Downtime;
use tokio::sync::{Notify, mpsc};

use super::link::{Link, LinkNews};
use super::mailbox::Mailbox;
use super::native::Body;
use super::stdio::Stdio;
use super::{Info, MoveOrder};
use crate::carry::send::Sent;
use crate::node::Node;
use crate::protocol::{FromHolder, ToHolder};

/// Signals and input that are kept for a frozen guest. More are dropped: standard signals have merged long before.
const MAX_HELD_BACK: usize = 1024;

/// All that can happen to a deputy.
pub(crate) enum Event {
    /// Move it, please.
    Move(MoveOrder),
    /// From the holder, or about the link to it.
    Link(Stamp, LinkNews),
    /// The home body is frozen and has been sent.
    Sent(Stamp, Box<Sent>),
    /// Nobody works on the home body any more: it was dumped, and this follows its memory; or it runs.
    Dumped(Stamp, Box<Result<Option<mosix_pages::Source>, String>>),
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
    /// The source of a hop is about to stop the guest: what is sent to it would come too late.
    holder_freezes: bool,
    /// The target's copy was ready before the source had said that it had sent it all.
    early_prepared: bool,
    /// The machine wants the body to become a stub, and CRIU has not let go of it yet.
    release_waits: bool,
    /// The target takes pages beforehand.
    pages: bool,
    frozen_at: Option<Instant>,
    downtime: Downtime,
    prepare_ms: f64,
    /// Follows the memory of the frozen body; see [`Sent`].
    follower: Option<mosix_pages::Source>,
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
        holder_freezes: false,
        early_prepared: false,
        release_waits: false,
        pages: false,
        frozen_at: None,
        downtime: Downtime::default(),
        prepare_ms: 0.0,
        follower: None,
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
            Event::Sent(stamp, sent) => self.sent(stamp, sent.since, sent.record).await,
            Event::Dumped(stamp, result) => self.dumped(stamp, *result).await,
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

    async fn tell_next(&self, message: ToHolder) {
        if let Some(link) = &self.next {
            link.send(message).await;
        }
    }

    /// To whoever has the guest; held back while it is frozen.
    async fn tell_guest(&mut self, message: ToAgent) {
        let frozen = match self.machine.state() {
            State::Running | State::Done | State::Offered | State::Releasing => false,
            State::Accepted => self.holder_freezes,
            _ => true,
        };
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
            FromHolder::Accepted { keys, record, pages } => {
                self.node.learn(record);
                self.next_keys = keys;
                self.pages = pages;
                self.step(stamp, On::Accepted).await;
            }
            FromHolder::Refused { why, record } => {
                self.node.learn(record);
                self.refused = true;
                self.step(stamp, On::Refused { why }).await;
            }
            FromHolder::Prepared => self.prepared(stamp).await,
            FromHolder::Done => self.step(stamp, On::Done).await,
            FromHolder::Failed { why } => self.step(stamp, On::Failed { why }).await,
            FromHolder::NeverRan { why } => self.step(stamp, On::NeverRan { why }).await,
            FromHolder::Unknown => self.step(stamp, On::Unknown).await,
            FromHolder::AbortAcked => self.step(stamp, On::AbortAcked).await,
            FromHolder::Freezing => {
                self.holder_freezes = true;
                if let Some(holder) = &self.holder {
                    holder.send(ToHolder::Quiet).await;
                }
            }
            FromHolder::Dumped { frozen_us, downtime, mut late } => {
                late.append(&mut self.held_back);
                self.held_back = late;
                let since = Instant::now().checked_sub(Duration::from_micros(frozen_us)).unwrap_or_else(Instant::now);
                self.sent(self.machine.stamp(), since, downtime).await;
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
}
