//! A short visit to a running process: some of its threads are stopped, it runs a few system calls for us, and goes on.
//!
//! # What the process notices
//!
//! The time (some 100 us), and what any ptrace stop does: a call that the kernel does not restart (`epoll_wait`, `semop`,
//! `sigtimedwait`, see signal(7)) returns EINTR. Calls that are restarted go on: registers are put back as they were at the
//! stop, and the kernel decides about the restart only when the thread leaves it.
//! Signals are held back meanwhile and delivered afterwards. A restartable sequence (rseq) that was interrupted is aborted as
//! by any preemption. A group-stopped process is stopped again afterwards.
//!
//! # Failing safely
//!
//! The tracer is a thread of its own that ends with the visit. So a thread that cannot be stopped (it waits in the kernel
//! without reacting to signals) is let go by the kernel itself, and nobody else's `wait()` is confused.

use std::io;
use std::time::{Duration, Instant};

use crate::procfs;
use crate::sys::{self, End, Stop};
use crate::tracee::{self, Failure, Injector, ignore_gone};

/// `user_regs_struct::cs` of 64-bit user code.
const CS_64: u64 = 0x33;
/// Offset of `rseq_cs` in `struct rseq`.
const RSEQ_CS: u64 = 8;
/// Rounds of looking for new threads.
const MAX_SWEEPS: usize = 100;

/// Which threads stand still during a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Only the one that runs the calls.
    One,
    /// All of them.
    All,
}

/// A visit failed.
///
/// Effect on state: the process runs on as before, unless it [died](VisitError::Died) or a call of the visit had changed it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// It died, or had done so before.
    #[error("process {pid} was {end}")]
    Died {
        /// The process.
        pid: i32,
        /// How.
        end: End,
    },
    /// It did not stop, or not get through a call.
    #[error(
        "process {pid} did not get on in the time allowed while {doing}; it may be frozen, or wait in the kernel without reacting to signals"
    )]
    Timeout {
        /// The process.
        pid: i32,
        /// What was to be done.
        doing: &'static str,
    },
    /// It cannot be made to run 64-bit system calls.
    #[error("process {pid} {why}")]
    Unsuitable {
        /// The process.
        pid: i32,
        /// Why.
        why: &'static str,
    },
    /// The kernel refused something.
    #[error("process {pid}: {doing}: {source}")]
    Os {
        /// The process.
        pid: i32,
        /// What was to be done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A process during a visit.
#[derive(Debug)]
pub struct Stopped {
    pid: i32,
    /// All threads seized, the one that runs the calls first.
    threads: Vec<i32>,
    injector: Injector,
    mask: u64,
    /// Address and value of `rseq_cs`, if a restartable sequence was interrupted.
    rseq: Option<(u64, u64)>,
}

impl Stopped {
    /// Makes the process run one system call. The inner result is the call's own.
    ///
    /// # Errors
    /// It died, or did not get through the call in time.
    pub fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<io::Result<u64>, VisitError> {
        self.injector.call(number, args).map_err(|failure| failed(self.pid, failure))
    }
}

/// Stops `pid`, lets `work` make it run system calls, and lets it go on. Everything must be done within `limit`.
///
/// # Errors
/// [`VisitError`]; that of `work` is passed on after the process has been put back.
pub fn visit<T: Send>(
    pid: i32,
    threads: Threads,
    limit: Duration,
    work: impl FnOnce(&mut Stopped) -> Result<T, VisitError> + Send,
) -> Result<T, VisitError> {
    let run = || {
        // found before the stop: reading memory needs none
        let at = tracee::find_syscall(pid).map_err(os(pid, "reading its memory"))?;
        let at = at.ok_or(VisitError::Unsuitable { pid, why: "has no syscall instruction that could be used" })?;
        let mut stopped = stop(pid, at, threads, Instant::now() + limit)?;
        let result = work(&mut stopped);
        let left = leave(stopped);
        result.and_then(|value| left.map(|()| value))
    };
    std::thread::scope(|scope| {
        let tracer = std::thread::Builder::new().name("visit".into()).spawn_scoped(scope, run).map_err(os(pid, "starting a thread"))?;
        tracer.join().unwrap_or(Err(VisitError::Unsuitable { pid, why: "could not be visited: the visitor panicked" }))
    })
}

fn stop(pid: i32, at: u64, which: Threads, deadline: Instant) -> Result<Stopped, VisitError> {
    let seccomp = procfs::status(pid).map_err(os(pid, "reading /proc/PID/status"))?.seccomp;
    let first = seize_first(pid, seccomp)?;
    let mut threads = vec![first];
    if which == Threads::All {
        seize_others(pid, &mut threads)?;
    }
    for tid in threads.clone() {
        match tracee::wait_stop(tid, deadline, &mut Vec::new(), "stopping its threads").map_err(|f| failed(pid, f))? {
            Stop::Ended(end) if tid == first => return Err(VisitError::Died { pid, end }),
            Stop::Ended(_) => threads.retain(|other| *other != tid),
            _ => {}
        }
    }
    let injector = Injector::new(first, at, Vec::new(), deadline).map_err(|f| failed(pid, f))?;
    if injector.base.cs != CS_64 {
        return Err(VisitError::Unsuitable { pid, why: "runs 32-bit code" });
    }
    let rseq = interrupted_sequence(first);
    let mask = sys::blocked(first).map_err(os(pid, "reading the signal mask"))?;
    sys::set_blocked(first, u64::MAX).map_err(os(pid, "blocking signals"))?;
    Ok(Stopped { pid, threads, injector, mask, rseq })
}

/// Seizes the leader, or if that has exited any other thread.
fn seize_first(pid: i32, seccomp: bool) -> Result<i32, VisitError> {
    let options = libc::PTRACE_O_TRACESYSGOOD | if seccomp { sys::SUSPEND_SECCOMP } else { 0 };
    let mut all = procfs::threads(pid).map_err(os(pid, "reading /proc/PID/task"))?;
    all.sort_by_key(|tid| *tid != pid);
    let alive = |tid: &i32| procfs::status(*tid).is_ok_and(|status| !matches!(status.state, 'Z' | 'X'));
    let tid = all.into_iter().find(alive).ok_or(VisitError::Unsuitable { pid, why: "has ended" })?;
    sys::seize(tid, options).map_err(os(pid, "PTRACE_SEIZE"))?;
    sys::interrupt(tid).or_else(ignore_gone).map_err(os(pid, "PTRACE_INTERRUPT"))?;
    Ok(tid)
}

/// Seizes every other thread; until no new one is found, since one may have been about to be born.
fn seize_others(pid: i32, threads: &mut Vec<i32>) -> Result<(), VisitError> {
    for _ in 0..MAX_SWEEPS {
        let found = procfs::threads(pid).map_err(os(pid, "reading /proc/PID/task"))?;
        let new: Vec<i32> = found.into_iter().filter(|tid| !threads.contains(tid)).collect();
        let mut seized = false;
        for tid in new {
            if sys::seize(tid, 0).is_ok() {
                sys::interrupt(tid).or_else(ignore_gone).map_err(os(pid, "PTRACE_INTERRUPT"))?;
                threads.push(tid);
                seized = true;
            } else if procfs::status(tid).is_ok_and(|status| !matches!(status.state, 'Z' | 'X')) {
                return Err(VisitError::Unsuitable { pid, why: "has a thread that cannot be traced" });
            }
        }
        if !seized {
            return Ok(());
        }
    }
    Err(VisitError::Unsuitable { pid, why: "makes new threads without end" })
}

/// The kernel forgets an interrupted sequence when it sees the thread at our instruction: it must be named again afterwards.
fn interrupted_sequence(tid: i32) -> Option<(u64, u64)> {
    let place = sys::rseq_area(tid).ok()?? + RSEQ_CS;
    let mut value = [0u8; 8];
    let whole = sys::read_memory(tid, place, &mut value).ok()? == value.len();
    let value = u64::from_le_bytes(value);
    (whole && value != 0).then_some((place, value))
}

/// Puts everything back and lets go.
fn leave(mut stopped: Stopped) -> Result<(), VisitError> {
    let (pid, first) = (stopped.pid, stopped.injector.pid);
    let put_back = || -> io::Result<()> {
        if let Some((place, value)) = stopped.rseq {
            sys::write_memory(first, place, &value.to_le_bytes())?;
        }
        sys::set_registers(first, stopped.injector.base)?;
        sys::set_blocked(first, stopped.mask)
    };
    let done = put_back().or_else(ignore_gone).map_err(os(pid, "putting it back"));
    for info in stopped.injector.kept.drain(..) {
        // the kernel holds it until the thread runs again; if that is gone, so is the need
        let _ = sys::kill(pid, info.signo);
    }
    for tid in stopped.threads {
        sys::detach(tid, 0).or_else(ignore_gone).map_err(os(pid, "PTRACE_DETACH"))?;
    }
    done
}

fn os(pid: i32, doing: &'static str) -> impl FnOnce(io::Error) -> VisitError {
    move |source| VisitError::Os { pid, doing, source }
}

fn failed(pid: i32, failure: Failure) -> VisitError {
    match failure {
        Failure::Died(end) => VisitError::Died { pid, end },
        Failure::Timeout(doing) => VisitError::Timeout { pid, doing },
        Failure::Os(doing, source) => VisitError::Os { pid, doing, source },
    }
}
