//! All stubs, as the watcher thread keeps them: what it does with each ptrace stop, and the orders.
//!
//! Everything here runs on the watcher thread, because the kernel takes ptrace calls only from the thread
//! that seized. Nothing is decided here: a signal is suppressed and reported, an order is carried out.
//!
//! An order that needs a signal *delivered* (stop by it, die by it) sends a *carrier*: a queued real-time
//! signal with a random value only we know. Unlike a standard signal it never merges with one of the same
//! number that somebody else sent, and at its delivery the tracer may replace it by any other signal.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{AdoptError, StubError};
use crate::freezer::Freezer;
use crate::inject::{self, Made, is_stop_signal};
use crate::procfs;
use crate::stub_image;
use mosix_ptrace::sys::{self, End, SigInfo, Stop};
use mosix_ptrace::tracee::{self, Failure, Injector};

/// Time in which one order for one stub must be done; it normally takes some 100 us.
pub(crate) const ORDER_LIMIT: Duration = Duration::from_secs(5);

/// Time in which a whole group must have become stubs; normally some ms for a process.
pub(crate) const ADOPT_LIMIT: Duration = Duration::from_secs(15);

/// A stop without effect is tried again: a SIGCONT may have undone it and be cancelled itself by another stop signal.
const STOP_ATTEMPTS: u32 = 100;

/// The highest real-time signal.
const CARRIER: i32 = 64;

/// What happened to a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubEvent {
    /// Somebody sent it a signal. The stub did not act on it (but for SIGCONT, which continued it): the guest must get it.
    Signal {
        /// Number of the signal.
        signo: i32,
        /// `si_code`.
        code: i32,
        /// Sender in the stub's pid namespace; 0 if it was the kernel.
        sender_pid: i32,
        /// Real user id of the sender; 0 if it was the kernel.
        sender_uid: u32,
        /// What `sigqueue` sent along; meaningful if `code` is `SI_QUEUE` (-1).
        value: u64,
    },
    /// It ended without having been told to: SIGKILL, which nobody can intercept. The pid is no longer watched.
    Gone {
        /// How; its parent sees the same.
        status: End,
    },
}

/// Is called on the watcher thread: must be quick, and must not call the watcher.
pub(crate) type Handler = Box<dyn Fn(StubEvent) + Send>;

/// One process of a group that is to be adopted.
pub struct Member {
    /// Its pid.
    pub pid: i32,
    /// Signals that the image contains as pending: those of them that are also pending in the body are dropped
    /// once. A signal may be given several times (queued real-time signals).
    pub swallow: Vec<i32>,
    /// Called for each event, on the watcher's thread: must be quick (send to a channel) and must not call the [`Watcher`](crate::Watcher).
    pub on_event: Box<dyn Fn(StubEvent) + Send>,
}

struct Stub {
    on_event: Handler,
    /// Signals still to be dropped once.
    swallow: Vec<i32>,
    /// In a group stop, by this signal.
    stopped_by: Option<i32>,
    /// A SIGCONT continued it, but was not delivered yet: a stop signal may still cancel it.
    owes_cont: bool,
}

impl Stub {
    fn report(&self, pid: i32, event: StubEvent) {
        // A panic would end this thread, and the kernel would then kill every stub.
        if catch_unwind(AssertUnwindSafe(|| (self.on_event)(event))).is_err() {
            tracing::error!(pid, ?event, "the handler of a deputy's events panicked");
        }
    }

    /// Handles a signal that is not ours: reports it, unless the image has it.
    fn foreign_signal(&mut self, pid: i32, info: &SigInfo) {
        if info.signo == libc::SIGCONT {
            self.stopped_by = None;
            self.owes_cont = false;
        } else if is_stop_signal(info.signo) && std::mem::take(&mut self.owes_cont) {
            // The kernel dropped the SIGCONT for this, but it did continue the stub: so the guest must continue, too.
            self.report(pid, event_of(&info.with_signal(libc::SIGCONT)));
        }
        if let Some(place) = self.swallow.iter().position(|signal| *signal == info.signo) {
            self.swallow.swap_remove(place);
            return;
        }
        self.report(pid, event_of(info));
    }
}

fn event_of(info: &SigInfo) -> StubEvent {
    // sent by a process, and not the expiry of a timer, which has other things in the same place
    let sent = info.code <= 0 && info.code != libc::SI_TIMER;
    let (sender_pid, sender_uid, value) = if sent { (info.pid, info.uid, info.value) } else { (0, 0, 0) };
    StubEvent::Signal { signo: info.signo, code: info.code, sender_pid, sender_uid, value }
}

/// Everything the watcher thread has.
pub(crate) struct Keeper {
    stubs: HashMap<i32, Stub>,
    mark: u64,
    pub(crate) ending: bool,
}

impl Keeper {
    pub(crate) fn new(mark: u64) -> Keeper {
        Keeper { stubs: HashMap::new(), mark, ending: false }
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        self.stubs.keys().copied().collect()
    }

    pub(crate) fn adopt(&mut self, members: Vec<Member>, freezer_dir: &Path) -> Result<(), AdoptError> {
        let pids: Vec<i32> = members.iter().map(|member| member.pid).collect();
        let mut made = Vec::new();
        let deadline = Instant::now() + ADOPT_LIMIT;
        let known = |pid: i32| self.stubs.contains_key(&pid);
        let result = inject::make_stubs(&pids, &Freezer::new(freezer_dir), &known, deadline, &mut made);
        let mut members: HashMap<i32, Member> = members.into_iter().map(|member| (member.pid, member)).collect();
        for new in made {
            if let Some(member) = members.remove(&new.pid) {
                self.add(member, new);
            }
        }
        result
    }

    /// Lets a new stub run, and stops it again if the body was stopped.
    fn add(&mut self, member: Member, made: Made) {
        let pid = made.pid;
        let mut swallow = member.swallow;
        swallow.retain(|signal| (1..=64).contains(signal) && made.pending >> (signal - 1) & 1 == 1);
        let mut stub = Stub { on_event: member.on_event, swallow, stopped_by: None, owes_cont: false };
        made.kept.iter().for_each(|info| stub.foreign_signal(pid, info));
        self.stubs.insert(pid, stub);
        go_on(pid, sys::resume(pid, 0));
        if let Some(signal) = made.stopped_by
            && let Err(error) = self.stop(pid, signal)
        {
            tracing::warn!(pid, signal, %error, "the deputy of a stopped process could not be stopped again");
        }
    }

    /// Handles what waitpid reported when no order was under way.
    pub(crate) fn handle(&mut self, pid: i32, stop: Stop) {
        if let Stop::Ended(status) = stop {
            if let Some(stub) = self.stubs.remove(&pid) {
                stub.report(pid, StubEvent::Gone { status });
            }
            return;
        }
        match (self.stubs.get_mut(&pid), stop) {
            (Some(stub), Stop::Signal(_)) => {
                match sys::signal_info(pid) {
                    Ok(info) if info.value != self.mark => stub.foreign_signal(pid, &info),
                    _ => {} // ours, of an order that was given up; or killed
                }
                go_on(pid, sys::resume(pid, 0));
            }
            (Some(stub), Stop::Event { event: libc::PTRACE_EVENT_STOP, signal }) => {
                stub.group_stop(pid, signal);
            }
            // A body whose adoption failed half-way and that could not be frozen again: it must not run.
            (None, _) => {}
            (Some(_), _) => go_on(pid, sys::resume(pid, 0)),
        }
    }

    fn stub(&mut self, pid: i32) -> Result<&mut Stub, StubError> {
        self.stubs.get_mut(&pid).ok_or(StubError::Unknown { pid })
    }

    /// Waits for the stub's next stop. Signals that are not ours are handled, and `None` returned: it then still is stopped.
    fn next(&mut self, pid: i32, deadline: Instant) -> Result<Option<Stop>, StubError> {
        let stop = tracee::wait_stop(pid, deadline, &mut Vec::new(), "").map_err(|f| failed(pid, f))?;
        match stop {
            Stop::Ended(end) => {
                self.stubs.remove(&pid);
                Err(StubError::Gone { pid, end })
            }
            Stop::Signal(_) => match sys::signal_info(pid) {
                Ok(info) if info.value == self.mark => Ok(Some(stop)),
                Ok(info) => {
                    self.stub(pid)?.foreign_signal(pid, &info);
                    Ok(None)
                }
                Err(_) => Ok(None), // killed: the next wait says so
            },
            stop => Ok(Some(stop)),
        }
    }

    fn send_mark(&self, pid: i32, signal: i32) -> Result<(), StubError> {
        let sent = sys::queue_signal(pid, &SigInfo::queued(signal, self.mark));
        sent.or_else(tracee::ignore_gone).map_err(os(pid, "sending a signal"))
    }

    /// Sends the carrier and waits until it is about to be delivered.
    fn carry(&mut self, pid: i32, deadline: Instant) -> Result<(), StubError> {
        self.send_mark(pid, CARRIER)?;
        loop {
            match self.next(pid, deadline)? {
                Some(Stop::Signal(CARRIER)) => return Ok(()),
                // also a group stop is left here: the order is to end or to stop in another way
                _ => resume(pid, 0)?,
            }
        }
    }

    pub(crate) fn stop(&mut self, pid: i32, signal: i32) -> Result<(), StubError> {
        if !is_stop_signal(signal) {
            return Err(StubError::WrongSignal { signal, what: "stop" });
        }
        if self.stub(pid)?.stopped_by.is_some() {
            return Ok(()); // to the kernel, too, it is already stopped, and the parent hears nothing new
        }
        let deadline = Instant::now() + ORDER_LIMIT;
        for _ in 0..STOP_ATTEMPTS {
            if self.try_stop(pid, signal, deadline)? {
                return Ok(());
            }
            if signal != libc::SIGSTOP && procfs::in_orphaned_group(pid) {
                return Err(StubError::Orphaned { pid, signal });
            }
        }
        Err(StubError::Timeout { pid })
    }

    /// False if the stop had no effect, and no SIGCONT that is still to be reported explains that.
    fn try_stop(&mut self, pid: i32, signal: i32, deadline: Instant) -> Result<bool, StubError> {
        self.carry(pid, deadline)?;
        resume(pid, signal)?;
        // The signal is acted on before this: so the next such stop tells whether it had an effect.
        sys::interrupt(pid).or_else(tracee::ignore_gone).map_err(os(pid, "PTRACE_INTERRUPT"))?;
        loop {
            match self.next(pid, deadline)? {
                Some(Stop::Event { event: libc::PTRACE_EVENT_STOP, signal: shown }) => {
                    let continued = !is_stop_signal(shown) && is_pending(pid, libc::SIGCONT);
                    let stub = self.stub(pid)?;
                    stub.owes_cont |= continued;
                    stub.group_stop(pid, shown);
                    return Ok(is_stop_signal(shown) || continued);
                }
                _ => resume(pid, 0)?,
            }
        }
    }

    pub(crate) fn cont(&mut self, pid: i32) -> Result<(), StubError> {
        if self.stub(pid)?.stopped_by.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + ORDER_LIMIT;
        self.send_mark(pid, libc::SIGCONT)?;
        loop {
            match self.next(pid, deadline)? {
                Some(Stop::Event { event: libc::PTRACE_EVENT_STOP, signal }) => self.stub(pid)?.group_stop(pid, signal),
                Some(Stop::Signal(libc::SIGCONT)) => {
                    self.stub(pid)?.stopped_by = None;
                    resume(pid, 0)?;
                }
                _ => resume(pid, 0)?,
            }
            // by our signal, or by one of somebody else that it merged with
            let stub = self.stub(pid)?;
            if stub.stopped_by.is_none() {
                stub.owes_cont = false; // the guest runs already
                return Ok(());
            }
        }
    }

    /// Brings a stub, running or stopped, to a ptrace stop.
    fn hold(&mut self, pid: i32, deadline: Instant) -> Result<(), StubError> {
        self.stub(pid)?;
        sys::interrupt(pid).or_else(tracee::ignore_gone).map_err(os(pid, "PTRACE_INTERRUPT"))?;
        loop {
            match self.next(pid, deadline)? {
                Some(Stop::Event { event: libc::PTRACE_EVENT_STOP, .. }) => return Ok(()),
                _ => resume(pid, 0)?,
            }
        }
    }

    pub(crate) fn forget(&mut self, pid: i32) -> Result<(), StubError> {
        self.hold(pid, Instant::now() + ORDER_LIMIT)?;
        self.stubs.remove(&pid);
        sys::detach(pid, 0).map_err(os(pid, "PTRACE_DETACH"))
    }

    pub(crate) fn finish(&mut self, pid: i32, end: End) -> Result<(), StubError> {
        self.stub(pid)?;
        let deadline = Instant::now() + ORDER_LIMIT;
        match end {
            End::Exited(code) => self.start_exit(pid, code, deadline)?,
            End::Signaled { signal, .. } => self.start_death(pid, signal, deadline)?,
        }
        loop {
            match self.next(pid, deadline) {
                Err(StubError::Gone { end: real, .. }) if same_end(real, end) => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => resume(pid, 0)?,
            }
        }
    }

    fn start_exit(&mut self, pid: i32, code: u8, deadline: Instant) -> Result<(), StubError> {
        self.hold(pid, deadline)?;
        let mut regs = sys::registers(pid).map_err(os(pid, "reading registers"))?;
        regs.rip = stub_image::SYSCALL;
        regs.rax = libc::SYS_exit_group as u64;
        regs.orig_rax = u64::MAX;
        regs.rdi = u64::from(code);
        sys::set_registers(pid, regs).map_err(os(pid, "setting registers"))?;
        resume(pid, 0)
    }

    fn start_death(&mut self, pid: i32, signal: i32, deadline: Instant) -> Result<(), StubError> {
        if signal == libc::SIGKILL {
            return sys::kill(pid, signal).map_err(os(pid, "kill"));
        }
        if !ends_by_default(signal) {
            return Err(StubError::WrongSignal { signal, what: "end" });
        }
        self.hold(pid, deadline)?;
        self.forbid_core(pid, deadline)?;
        resume(pid, 0)?;
        self.carry(pid, deadline)?;
        resume(pid, signal)
    }

    /// A core of the stub would only mislead. Not by RLIMIT_CORE: the kernel ignores 0 there when cores go to a pipe.
    fn forbid_core(&mut self, pid: i32, deadline: Instant) -> Result<(), StubError> {
        let work = || {
            let mut injector = Injector::new(pid, stub_image::SYSCALL, Vec::new(), deadline)?;
            let done = injector.call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 0])?;
            done.map_err(tracee::os("PR_SET_DUMPABLE"))?;
            // back into pause(), in case it is not ended after all
            injector.base.rip = stub_image::ENTRY;
            injector.base.orig_rax = u64::MAX;
            sys::set_registers(pid, injector.base).map_err(tracee::os("setting registers"))
        };
        work().map_err(|failure| {
            if matches!(failure, Failure::Died(_)) {
                self.stubs.remove(&pid);
            }
            failed(pid, failure)
        })
    }
}

impl Stub {
    /// A stop by job control, or the end of one.
    fn group_stop(&mut self, pid: i32, signal: i32) {
        let stopped = is_stop_signal(signal);
        let before = std::mem::replace(&mut self.stopped_by, stopped.then_some(signal));
        self.owes_cont |= before.is_some() && !stopped;
        // LISTEN: stays stopped, and tells us of a SIGCONT; the parent sees an ordinary stopped child
        go_on(pid, if stopped { sys::listen(pid) } else { sys::resume(pid, 0) });
    }
}

/// Resuming a stub that was just killed is no failure: wait reports the end.
fn go_on(pid: i32, result: std::io::Result<()>) {
    if let Err(error) = result.or_else(tracee::ignore_gone) {
        tracing::error!(pid, %error, "a deputy could not be resumed");
    }
}

fn resume(pid: i32, signal: i32) -> Result<(), StubError> {
    sys::resume(pid, signal).or_else(tracee::ignore_gone).map_err(os(pid, "PTRACE_CONT"))
}

fn os(pid: i32, doing: &'static str) -> impl FnOnce(std::io::Error) -> StubError {
    move |source| StubError::Os { pid, doing, source }
}

fn failed(pid: i32, failure: Failure) -> StubError {
    match failure {
        Failure::Died(end) => StubError::Gone { pid, end },
        Failure::Timeout(_) => StubError::Timeout { pid },
        Failure::Os(doing, source) => StubError::Os { pid, doing, source },
    }
}

/// Equal but for the core flag, which a stub never has.
fn same_end(a: End, b: End) -> bool {
    match (a, b) {
        (End::Signaled { signal: a, .. }, End::Signaled { signal: b, .. }) => a == b,
        (a, b) => a == b,
    }
}

fn ends_by_default(signal: i32) -> bool {
    let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    (1..=64).contains(&signal) && !is_stop_signal(signal) && !harmless.contains(&signal)
}

fn is_pending(pid: i32, signal: i32) -> bool {
    mosix_ptrace::procfs::status(pid).is_ok_and(|status| status.pending >> (signal - 1) & 1 == 1)
}
