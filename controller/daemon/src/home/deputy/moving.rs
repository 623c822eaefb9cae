//! Home's part of the commit protocol: what its state machine says, done.

use std::rc::Rc;
use std::time::Instant;

use mosix_deputy::StubEvent;
use mosix_engine::commit::{Action, Event as On, Report, Stamp, State};
use mosix_engine::eligible::ChannelKind;
use mosix_guest::{ChannelSpec, Direction, ToAgent, TtySpec};
use mosix_wire::control::{Downtime, Moved};
use tokio::sync::Notify;

use super::super::link::Link;
use super::super::stdio::{Stdio, TERMINAL};
use super::super::{MoveOrder, Stay, plan_of, same_plan};
use super::{Event, Run};
use crate::host::drop_later;
use crate::protocol::{Offer, Process, ToHolder};
use crate::sys;

impl Run {
    pub(super) async fn begin(&mut self, order: MoveOrder) {
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
    pub(super) fn watch_body(&self) {
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
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        if self.stdio.is_none() {
            self.stdio = Some(Stdio::open(&self.plan, self.events.clone()).map_err(|error| format!("{error:#}"))?);
        }
        Ok(())
    }

    /// Gives an event to the machine and does what it says, until nothing is left to do.
    pub(super) async fn step(&mut self, stamp: Stamp, event: On) {
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

    pub(super) fn arm_timeout(&self) {
        let (stamp, state) = (self.machine.stamp(), self.machine.state());
        let config = &self.node.config;
        let limit = match state {
            State::Offered => config.connect_timeout() * 2,
            State::Accepted => config.move_timeout() + config.copy_timeout(),
            State::Frozen | State::Prepared => config.move_timeout(),
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

    pub(super) async fn act(&mut self, action: Action) -> Option<On> {
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
    pub(super) fn wait_for_fence(&self) {
        tracing::warn!(
            pid = self.plan.pid,
            "the link broke while the move was being committed: waiting until the target has certainly given up"
        );
        let (events, stamp, limit) = (self.events.clone(), self.machine.stamp(), self.node.config.lease().home());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            let _ = events.send(Event::Fenced(stamp)).await;
        });
    }

    pub(super) fn offer(&self) -> Option<Offer> {
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
            lease: self.node.config.lease(),
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

    pub(super) async fn start_dump(&mut self) {
        let stamp = self.machine.stamp();
        let Some(target) = self.order.as_ref().map(|order| self.node.name_of(order.target)) else { return };
        self.progress(format!("{target} is ready; copying memory, then freezing"));
        self.downtime = Downtime::default();
        let prepare_ms = self.order.as_ref().map_or(0.0, |order| order.asked.elapsed().as_secs_f64() * 1000.0);
        self.prepare_ms = prepare_ms;
        (self.holder_freezes, self.early_prepared) = (false, false);
        if self.body.is_none() {
            // A hop: the present holder dumps and sends.
            if let Some(holder) = &self.holder {
                holder.send(ToHolder::Dump { stamp, target, pages: self.pages }).await;
            }
            return;
        }
        // What was judged may have changed while the target made itself ready.
        match plan_of(&self.node, self.plan.pid) {
            Ok((plan, _)) if same_plan(&plan, &self.plan) => {}
            Ok(_) => return self.dump_failed(stamp, "its open files changed meanwhile: try again".into()).await,
            Err(error) => return self.dump_failed(stamp, format!("{error:#}")).await,
        }
        self.leave();
        let Some(body) = self.body.clone() else { return };
        let give_up = Rc::new(Notify::new());
        self.dumping = Some(give_up.clone());
        let dir = self.node.images_dir("home", stamp.group, stamp.epoch);
        let events = self.events.clone();
        let pages = self.node.kerndat.clone().ok().filter(|_| self.pages).map(|kerndat| self.node.config.moving.pages(kerndat));
        tokio::task::spawn_local(async move {
            let sent = events.clone();
            let announce = move |body| drop(sent.blocking_send(Event::Sent(stamp, Box::new(body))));
            let result = body.send(target, stamp, dir, pages, &give_up, announce).await.map_err(|error| format!("{error:#}"));
            let _ = events.send(Event::Dumped(stamp, Box::new(result))).await;
        });
    }

    /// CRIU has let go of the body.
    pub(super) async fn dumped(&mut self, stamp: Stamp, result: Result<Option<mosix_pages::Source>, String>) {
        self.dumping = None;
        match result {
            Ok(follower) => self.follower = follower,
            Err(why) => self.step(stamp, On::DumpFailed { why }).await,
        }
        // What had to wait for it.
        if self.machine.state() == State::Thawing
            && let Some(thawed) = self.thaw().await
        {
            self.step(self.machine.stamp(), thawed).await;
        }
        if std::mem::take(&mut self.release_waits) {
            self.become_stub();
        }
    }

    /// The body is frozen and has been sent.
    pub(super) async fn sent(&mut self, stamp: Stamp, since: Instant, record: Downtime) {
        self.frozen_at = Some(since);
        self.downtime = Downtime { prepare_ms: self.prepare_ms, ..record };
        self.step(stamp, On::Dumped).await;
        if std::mem::take(&mut self.early_prepared) {
            self.prepared(stamp).await;
        }
    }

    /// The copy is complete. The target may say so before the source has tidied up behind its CRIU and says that it has sent everything.
    pub(super) async fn prepared(&mut self, stamp: Stamp) {
        if self.machine.state() == State::Accepted && self.machine.stamp() == stamp {
            self.early_prepared = true;
            return;
        }
        self.downtime.prepared_ms = self.frozen_at.map_or(0.0, |at| at.elapsed().as_secs_f64() * 1000.0);
        self.step(stamp, On::Prepared).await;
    }

    pub(super) async fn dump_failed(&self, stamp: Stamp, why: String) {
        let _ = self.events.send(Event::Dumped(stamp, Box::new(Err(why)))).await;
    }

    /// The process counts as leaving from now on.
    pub(super) fn leave(&self) {
        let memory_bytes = self.order.as_ref().map_or(0, |order| order.request.memory_bytes);
        self.node.ledger.borrow_mut().leave(self.node.id().0, self.plan.pid as u64, memory_bytes);
        self.node.leaving.borrow_mut().insert(self.plan.pid as u64);
        crate::balance::answered(&self.node, self.plan.pid as u64);
    }

    pub(super) fn has_left(&self, left: bool) {
        let (own, key) = (self.node.id().0, self.plan.pid as u64);
        if left {
            self.node.ledger.borrow_mut().gone(own, key, self.node.now_s());
        } else {
            self.node.ledger.borrow_mut().abort(own, key);
        }
        self.node.leaving.borrow_mut().remove(&key);
    }

    pub(super) async fn thaw(&mut self) -> Option<On> {
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
        drop_later(self.follower.take());
        self.has_left(false);
        Some(On::Thawed)
    }

    pub(super) async fn release_source(&mut self) -> Option<On> {
        if self.body.is_none() {
            let previous = std::mem::replace(&mut self.holder, self.next.take());
            if let Some(previous) = previous {
                previous.send(ToHolder::Release).await;
            }
            return Some(On::Released);
        };
        self.holder = self.next.take();
        self.has_left(true);
        if self.dumping.is_some() {
            self.release_waits = true;
        } else {
            self.become_stub();
        }
        None
    }

    fn become_stub(&self) {
        let Some(body) = self.body.clone() else { return };
        let stamp = self.machine.stamp();
        let (watcher, events, mailbox) = (self.node.watcher.clone(), self.events.clone(), self.mailbox.clone());
        let on_event: Box<dyn Fn(StubEvent) + Send> = Box::new(move |event| mailbox.put(event));
        tokio::task::spawn_local(async move {
            let result = tokio::task::spawn_blocking(move || body.become_stub(&watcher, on_event)).await;
            let result = result.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| format!("{error:#}")));
            let _ = events.send(Event::Stubbed(stamp, result)).await;
        });
    }

    /// If it is a stub by now, the watcher tells.
    pub(super) async fn body_gone(&mut self) {
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

    pub(super) async fn stubbed(&mut self, stamp: Stamp, result: Result<(), String>) {
        match result {
            Ok(()) => {
                drop_later(self.follower.take());
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

    pub(super) async fn report(&mut self, report: Report) {
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

    pub(super) async fn moved(&mut self) {
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
            patched: !self.downtime.frozen_because.is_empty(),
            sent_bytes: self.downtime.page_bytes + self.downtime.image_bytes,
            record: Downtime { freeze_ms, ..std::mem::take(&mut self.downtime) },
        };
        tracing::info!(pid = moved.pid, from = moved.from, to = moved.to, freeze_ms = moved.freeze_ms, total_ms = moved.total_ms, "moved");
        let _ = order.reply.send(Ok(moved));
        self.catch_up(true).await;
    }

    pub(super) async fn stayed(&mut self, why: String) {
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

    pub(super) fn answer(&mut self, result: Result<Moved, Stay>) {
        if let Some(order) = self.order.take() {
            let _ = order.reply.send(result);
        }
    }

    /// Delivers what was held back, and asks a new holder again for readers.
    pub(super) async fn catch_up(&mut self, is_new: bool) {
        for message in std::mem::take(&mut self.held_back) {
            self.tell_guest(message).await;
        }
        if is_new {
            for id in self.pending.clone() {
                self.tell_guest(ToAgent::Pending { id }).await;
            }
        }
    }

    pub(super) fn progress(&self, stage: String) {
        if let Some(progress) = self.order.as_ref().and_then(|order| order.progress.as_ref()) {
            let _ = progress.send(stage);
        }
    }
}
