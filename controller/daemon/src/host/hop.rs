//! A guest goes on to another node: this one is the source, its agent runs CRIU, and home coordinates.
//!
//! The memory is followed and sent by a thread of this daemon (`carry::send`); the agent tells it how far CRIU is. Until shortly before the stop the
//! guest gets everything that home sends; what comes later is kept and goes back to home with the answer, or to the guest if it stays.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use mosix_criu::DumpOptions;
use mosix_engine::commit::Stamp;
use mosix_guest::{DumpStep, FromAgent, SkeletonSpec, ToAgent};
use mosix_policy::NodeId;
use mosix_wire::blocking::{BlockingStream, Breaker};
use tokio::sync::mpsc;

use super::guest::{Event, Run, is_urgent};
use crate::balance;
use crate::carry::send::{Beside, Check, Dumper, Parcel, Sent, send};
use crate::carry::{files, open};
use crate::protocol::FromHolder;

/// Orders that are kept; home sends hardly any without being asked.
const MAX_LATE: usize = 64;

/// A hop under way.
pub(super) struct Hop {
    dir: PathBuf,
    /// To the thread that sends.
    news: Sender<News>,
    /// Ends its connection.
    breaker: Breaker,
    /// It has not ended yet, so CRIU may be at work.
    working: bool,
    /// Home has given the hop up, and the thread must end first.
    thaw_waits: bool,
    /// Home keeps its orders.
    freezing: bool,
    quiet: bool,
    late: Vec<ToAgent>,
    /// It has been sent, and home is not quiet yet.
    sent: Option<Sent>,
    /// Follows the memory of what is frozen here; see [`send`].
    follower: Option<mosix_pages::Source>,
}

/// From the agent to the thread that sends.
enum News {
    Step(DumpStep),
    Dumped,
    Failed(String),
}

/// CRIU as the agent runs it.
struct AgentDumper {
    agent: mpsc::Sender<ToAgent>,
    events: mpsc::Sender<Event>,
    news: Receiver<News>,
    images_dir: PathBuf,
    deadline: Duration,
}

impl Dumper for AgentDumper {
    fn dump(&mut self, options: &DumpOptions<'_>, beside: &mut dyn FnMut(Beside) -> Result<(), String>) -> Result<()> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let skeleton = match (options.trust, options.smaps, options.kerndat) {
            (Some(trust), Some(smaps), Some(kerndat)) => {
                Some(SkeletonSpec { trust: text(trust), smaps: text(smaps), kerndat: text(kerndat) })
            }
            _ => None,
        };
        self.order(ToAgent::Dump { images_dir: text(&self.images_dir), skeleton })?;
        let mut veto = None;
        loop {
            match self.news.recv_timeout(self.deadline).context("the guest's agent does not answer")? {
                News::Step(DumpStep::Before) => {
                    self.freeze_orders()?;
                    self.order(ToAgent::GoOn { veto: beside(Beside::Before).err() })?;
                }
                // CRIU goes on; a veto waits for the next step.
                News::Step(DumpStep::Stopped) => veto = beside(Beside::Stopped).err(),
                News::Step(DumpStep::Held { carried, frozen_us }) => {
                    let now = Instant::now();
                    let since = now.checked_sub(Duration::from_micros(frozen_us)).unwrap_or(now);
                    let veto = veto.take().or_else(|| beside(Beside::Held { since, carried }).err());
                    self.order(ToAgent::GoOn { veto })?;
                }
                News::Dumped => return Ok(()),
                News::Failed(why) => bail!("{why}"),
            }
        }
    }
}

/// What a guest may open it may open at home, too; home judges only what it sends itself.
struct Unchecked;

impl Check for Unchecked {
    fn before(&self) -> Result<()> {
        Ok(())
    }

    fn held(&self) -> Result<()> {
        Ok(())
    }
}

impl AgentDumper {
    /// From now on the guest's task keeps what home sends: it would reach a guest that is stopped. What went before is ahead of our next order.
    fn freeze_orders(&self) -> Result<()> {
        let (done, kept) = std::sync::mpsc::sync_channel(1);
        self.events.blocking_send(Event::HopFreezes(done)).map_err(|_| anyhow!("the guest has just ended"))?;
        kept.recv_timeout(self.deadline).context("the guest has just ended")
    }

    fn order(&self, order: ToAgent) -> Result<()> {
        self.agent.blocking_send(order).map_err(|_| anyhow!("the guest's agent has gone"))
    }
}

impl Run {
    fn key(&self) -> u64 {
        self.stamp.group
    }

    /// Home wants it elsewhere.
    pub(super) async fn start_hop(&mut self, stamp: Stamp, target: String, pages: bool) {
        if let Err(error) = self.try_start_hop(stamp, &target, pages).await {
            self.tell_home(FromHolder::DumpFailed { why: format!("{error:#}") }).await;
        }
    }

    async fn try_start_hop(&mut self, stamp: Stamp, target: &str, pages: bool) -> Result<()> {
        let dir = self.node.images_dir("hop", stamp.group, stamp.epoch);
        let config = &self.node.config;
        let stream = open(&self.node.tls, target, stamp, config.connect_timeout()).await?;
        let link = BlockingStream::new(stream, config.move_timeout()).context("cannot hand the connection over")?;
        let breaker = link.breaker()?;
        files::make_dir(&dir)?;
        let pid = self.info.borrow().outer_pid.context("the guest has just ended")?;
        let agent = self.agent.as_ref().context("the guest has just ended")?.sender();
        // Only single processes are followed; if it has children, all memory goes with the images.
        let pages = pages && self.processes() == 1;
        let pages = self.node.kerndat.clone().ok().filter(|_| pages).map(|kerndat| config.moving.pages(kerndat));
        let parcel = Parcel { link, dir: dir.clone(), pid, inner_pid: self.process.pid, pages };
        let (news, from_agent) = channel();
        let mut dumper =
            AgentDumper { agent, events: self.events.clone(), news: from_agent, images_dir: dir.clone(), deadline: config.move_timeout() };
        self.hop = Some(Hop {
            dir,
            news,
            breaker,
            working: true,
            thaw_waits: false,
            freezing: false,
            quiet: false,
            late: Vec::new(),
            sent: None,
            follower: None,
        });
        let memory_bytes = self.info.borrow().memory_bytes;
        self.node.ledger.borrow_mut().leave(self.node.id().0, self.key(), memory_bytes);
        self.node.leaving.borrow_mut().insert(self.key());
        balance::answered(&self.node, self.key());
        let (events, sent) = (self.events.clone(), self.events.clone());
        let sent_dir = self.hop_dir();
        tokio::task::spawn_local(async move {
            let mut announce = move |body| drop(sent.blocking_send(Event::HopSent(Box::new(body))));
            let sending = tokio::task::spawn_blocking(move || send(parcel, &mut dumper, &Unchecked, &mut announce));
            let result = sending.await.map_err(anyhow::Error::from).and_then(|result| result);
            // Here, because the guest's task may have ended before: until now files were made there.
            if let Some(dir) = sent_dir {
                let _ = std::fs::remove_dir_all(dir);
            }
            let _ = events.send(Event::HopDumped(Box::new(result.map_err(|error| format!("{error:#}"))))).await;
        });
        Ok(())
    }

    /// The agent's word on the dump.
    pub(super) async fn hop_news(&self, news: FromAgent) {
        let waits = matches!(&news, FromAgent::Step(DumpStep::Before | DumpStep::Held { .. }));
        let told = match (&self.hop, news) {
            (Some(hop), FromAgent::Step(step)) => hop.news.send(News::Step(step)).is_ok(),
            (Some(hop), FromAgent::Dumped) => hop.news.send(News::Dumped).is_ok(),
            (Some(hop), FromAgent::DumpFailed { why }) => hop.news.send(News::Failed(why)).is_ok(),
            _ => false,
        };
        // The thread that ordered the dump has ended, and said why.
        if waits && !told {
            self.tell_agent(ToAgent::GoOn { veto: Some("the move was given up".into()) }).await;
        }
    }

    pub(super) async fn hop_freezes(&mut self, done: SyncSender<()>) {
        if let Some(hop) = &mut self.hop {
            hop.freezing = true;
            let _ = done.try_send(());
            self.tell_home(FromHolder::Freezing).await;
        }
    }

    /// Home sends nothing more: now the answer can go, if it is there.
    pub(super) async fn hop_is_quiet(&mut self) {
        let Some(hop) = &mut self.hop else { return };
        hop.quiet = true;
        if let Some(sent) = hop.sent.take() {
            self.hop_sent(sent).await;
        }
    }

    /// An order for the guest. One that is about to be stopped does not get it any more.
    pub(super) async fn daily(&mut self, order: ToAgent) {
        match &mut self.hop {
            Some(hop) if hop.freezing && !is_urgent(&order) => {
                if hop.late.len() < MAX_LATE {
                    hop.late.push(order);
                } else {
                    tracing::error!(group = self.stamp.group, "home sends too much to a guest that is being moved: {order:?} is lost");
                }
            }
            _ => self.tell_agent(order).await,
        }
    }

    /// The guest is frozen and has been sent on.
    pub(super) async fn hop_sent(&mut self, sent: Sent) {
        let Some(hop) = &mut self.hop else { return };
        if !hop.quiet {
            hop.sent = Some(sent);
            return;
        }
        let late = std::mem::take(&mut hop.late);
        let frozen_us = u64::try_from(sent.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tell_home(FromHolder::Dumped { frozen_us, downtime: sent.record, late }).await;
    }

    /// CRIU has let go of it, or it runs on.
    pub(super) async fn hop_dumped(&mut self, result: Result<Option<mosix_pages::Source>, String>) {
        let Some(hop) = &mut self.hop else { return result.map_or((), drop_later) };
        hop.working = false;
        let thaws = std::mem::take(&mut hop.thaw_waits);
        match result {
            Ok(follower) => hop.follower = follower,
            Err(why) if !thaws => self.tell_home(FromHolder::DumpFailed { why }).await,
            Err(_) => {}
        }
        if thaws {
            self.thaw().await;
        }
    }

    /// The hop was given up, whether or not the dump was complete. A thread that is still at it must end first, or it would freeze the guest
    /// after this.
    pub(super) async fn thaw(&mut self) {
        if let Some(hop) = self.hop.as_mut().filter(|hop| hop.working) {
            hop.breaker.cut();
            hop.thaw_waits = true;
            return;
        }
        self.tell_agent(ToAgent::Thaw).await;
        let late = self.hop.as_mut().map(|hop| std::mem::take(&mut hop.late)).unwrap_or_default();
        self.end_hop(false);
        for order in late {
            self.tell_agent(order).await;
        }
        self.tell_home(FromHolder::Thawed).await;
    }

    pub(super) async fn release(&mut self) {
        self.tell_home(FromHolder::Released).await;
        self.end_hop(true);
        self.over = true;
    }

    /// The folder of a hop that is under way.
    pub(super) fn hop_dir(&self) -> Option<PathBuf> {
        self.hop.as_ref().map(|hop| hop.dir.clone())
    }

    pub(super) fn end_hop(&mut self, left: bool) {
        if let Some(hop) = self.hop.take() {
            drop_later(hop.follower);
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

    pub(super) fn wish_done(&mut self, target: u32, why: String, refused: bool, record: Option<mosix_policy::Record>) {
        if let Some(record) = record {
            self.node.learn(record);
        }
        balance::failed(&self.node, self.key(), NodeId(target), &why, refused);
    }
}

/// Taking the write protection off takes the kernel long: not on the event loop, and not while the process stands still.
pub(crate) fn drop_later(follower: Option<mosix_pages::Source>) {
    if let Some(follower) = follower {
        tokio::task::spawn_blocking(move || drop(follower));
    }
}
