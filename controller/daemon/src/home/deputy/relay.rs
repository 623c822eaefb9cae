//! The deputy's daily work: the guest's output and fate to home, home's signals and input to the guest.

use mosix_deputy::{End as StubEnd, StubEvent};
use mosix_engine::commit::State;
use mosix_guest::{End, FromAgent, ToAgent};

use super::super::Stay;
use super::super::stdio::{Input, Stdio, TERMINAL};
use super::Run;
use crate::protocol::ToHolder;

/// si_code of sigqueue(3).
const SI_QUEUE: i32 = -1;

impl Run {
    pub(super) async fn guest_news(&mut self, news: FromAgent) {
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
            | FromAgent::Window { .. }
            | FromAgent::Step(_)
            | FromAgent::Dumped
            | FromAgent::DumpFailed { .. } => tracing::warn!("a message that only the holder's daemon should see"),
        }
    }

    pub(super) async fn wanted(&mut self, id: u16, bytes: usize) {
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

    pub(super) async fn stub_event(&mut self, event: StubEvent) {
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
    pub(super) async fn finish_if_ended(&mut self) {
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
    pub(super) async fn lost(&mut self, why: &str) {
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
    pub(super) fn may_have_left(&self) -> bool {
        matches!(self.machine.state(), State::Committed | State::InDoubt | State::Releasing | State::Discarding | State::Lost | State::Done)
    }

    pub(super) fn kill_body(&self) {
        let pid = nix::unistd::Pid::from_raw(self.plan.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        if let Some(body) = &self.body
            && let Err(error) = body.thaw()
        {
            tracing::debug!("{error:#}");
        }
    }

    pub(super) async fn watcher_call<F>(&self, call: F)
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
