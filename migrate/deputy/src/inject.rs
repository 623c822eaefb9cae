//! Turns the frozen processes of a group into stubs.
//!
//! The order is what makes it safe: *seize all threads of all members, wait for their ptrace stops, thaw,
//! prepare every member, exec every member*. Nothing of a program runs between the freeze and its end.
//! All that can fail for ordinary reasons (no descriptor, no memory, seccomp) is in "prepare", which is
//! undone on an error before the group is frozen and let go again.

use std::io;
use std::time::{Duration, Instant};

use crate::error::{AdoptError, AdoptReason};
use crate::freezer::Freezer;
use crate::procfs;
use crate::stub_image;
use mosix_ptrace::sys::{self, SigInfo, Stop};
use mosix_ptrace::tracee::{self, Failure, Injector};

/// How long the freezer may take to come to rest.
const FREEZE_LIMIT: Duration = Duration::from_secs(1);

/// `user_regs_struct::cs` of 64-bit user code.
const CS_64: u64 = 0x33;

/// Name of the stub's file, as `/proc/PID/exe` shows it.
const FILE_NAME: &[u8; 16] = b"mosix-deputy\0\0\0\0";

/// What comes before the argument pointers in the scratch memory: a null pointer (also an empty path), the file's name.
const HEAD_BYTES: u64 = 8 + FILE_NAME.len() as u64;

const STOP_SIGNALS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

pub(crate) fn is_stop_signal(signal: i32) -> bool {
    STOP_SIGNALS.contains(&signal)
}

/// A process that has become a stub: in its ptrace stop, about to run for the first time.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: i32,
    /// Signal by which it was stopped (job control) when it was frozen.
    pub(crate) stopped_by: Option<i32>,
    /// Signals that arrived while it was worked on.
    pub(crate) kept: Vec<SigInfo>,
    /// Signals that were pending in the body, bit 0 is signal 1.
    pub(crate) pending: u64,
}

/// Makes stubs of all `pids`. `known` are stubs that may share the cgroup. What was made is in `made`, also on error.
pub(crate) fn make_stubs(
    pids: &[i32],
    freezer: &Freezer,
    known: &dyn Fn(i32) -> bool,
    deadline: Instant,
    made: &mut Vec<Made>,
) -> Result<(), AdoptError> {
    let at = |pid: i32| move |reason: AdoptReason| AdoptError { pid, reason };
    let first = pids.first().copied().unwrap_or(0);
    check_group(pids, freezer, known).map_err(|(pid, reason)| AdoptError { pid, reason })?;
    let mut bodies: Vec<Body> = Vec::new();
    let result = (|| {
        for pid in pids {
            bodies.push(Body::new(*pid));
            bodies.last_mut().map_or(Ok(()), Body::seize).map_err(at(*pid))?;
        }
        for body in &mut bodies {
            body.wait_stops(deadline).map_err(at(body.pid))?;
        }
        freezer.thaw().map_err(|e| at(first)(io_reason("thawing")(e)))?;
        for body in &mut bodies {
            body.prepare(deadline).map_err(at(body.pid))?;
        }
        while let Some(body) = bodies.first_mut() {
            made.push(body.become_stub().map_err(at(body.pid))?);
            bodies.remove(0);
        }
        Ok(())
    })();
    if result.is_err() {
        release(&mut bodies, freezer);
    }
    result
}

fn check_group(pids: &[i32], freezer: &Freezer, known: &dyn Fn(i32) -> bool) -> Result<(), (i32, AdoptReason)> {
    let first = pids.first().copied().unwrap_or(0);
    let at = |pid: i32| move |reason: AdoptReason| (pid, reason);
    let io = |doing| move |e| (first, io_reason(doing)(e));
    for pid in pids {
        check_process(*pid).map_err(at(*pid))?;
    }
    if freezer.has_children().map_err(io("reading cgroup.stat"))? {
        return Err((first, AdoptReason::ChildCgroups));
    }
    if !freezer.wait_frozen(FREEZE_LIMIT).map_err(io("reading cgroup.events"))? {
        return Err((first, AdoptReason::NotFrozen));
    }
    let inside = freezer.processes().map_err(io("reading cgroup.procs"))?;
    if let Some(pid) = pids.iter().find(|pid| !inside.contains(pid)) {
        return Err((*pid, AdoptReason::NotInCgroup { cgroup: freezer.to_string() }));
    }
    match inside.into_iter().find(|pid| !pids.contains(pid) && !known(*pid)) {
        Some(other) => Err((first, AdoptReason::NotAlone { other })),
        None => Ok(()),
    }
}

fn check_process(pid: i32) -> Result<(), AdoptReason> {
    let status = mosix_ptrace::procfs::status(pid).map_err(io_reason("reading /proc/PID/status"))?;
    if status.tracer != 0 {
        return Err(AdoptReason::Traced { tracer: status.tracer });
    }
    if status.ppid == std::process::id() as i32 {
        return Err(AdoptReason::OwnChild);
    }
    if matches!(status.state, 'Z' | 'X') {
        return Err(AdoptReason::LeaderGone { state: status.state });
    }
    Ok(())
}

/// Freezes the group again and lets go of it. Failures here only concern processes that have died.
fn release(bodies: &mut [Body], freezer: &Freezer) {
    bodies.iter_mut().for_each(Body::undo);
    if let Err(error) = freezer.freeze() {
        // Detaching now would let the program run a second time. So it stays in its ptrace stop: the
        // watcher's EXITKILL ends it with the daemon, and the parent sees the truth, a death.
        tracing::error!(%error, "cannot freeze again, so the bodies stay stopped by ptrace");
        return;
    }
    bodies.iter_mut().for_each(Body::detach);
}

/// A home body on its way.
struct Body {
    pid: i32,
    /// All threads seized so far, the leader first.
    threads: Vec<i32>,
    stopped_by: Option<i32>,
    work: Option<Work>,
}

/// What was changed in a body, to be undone on failure.
struct Work {
    injector: Injector,
    mask: u64,
    pending: u64,
    comm: Vec<u8>,
    scratch: Option<(u64, u64)>,
    argv: u64,
    memfd: Option<u64>,
    cleared: Vec<i32>,
}

impl Body {
    fn new(pid: i32) -> Body {
        Body { pid, threads: Vec::new(), stopped_by: None, work: None }
    }

    /// Seizes every thread and asks it to stop; until no new one is found, since one may have been about to be born.
    fn seize(&mut self) -> Result<(), AdoptReason> {
        let suspend = mosix_ptrace::procfs::status(self.pid).map_err(io_reason("reading /proc/PID/status"))?.seccomp;
        self.seize_thread(self.pid, suspend)?;
        loop {
            let found = mosix_ptrace::procfs::threads(self.pid).map_err(io_reason("reading /proc/PID/task"))?;
            let new: Vec<i32> = found.into_iter().filter(|tid| !self.threads.contains(tid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for tid in new {
                self.seize_thread(tid, false)?;
            }
        }
    }

    fn seize_thread(&mut self, tid: i32, suspend_seccomp: bool) -> Result<(), AdoptReason> {
        let options = sys::STUB_OPTIONS | if suspend_seccomp { sys::SUSPEND_SECCOMP } else { 0 };
        match sys::seize(tid, options) {
            Ok(()) => self.threads.push(tid),
            Err(source) if suspend_seccomp => return Err(AdoptReason::Seccomp { source }),
            // a thread that died while the group was being frozen
            Err(_) if tid != self.pid && !std::path::Path::new(&format!("/proc/{}/task/{tid}", self.pid)).exists() => return Ok(()),
            Err(source) => return Err(io_reason("PTRACE_SEIZE")(source)),
        }
        sys::interrupt(tid).or_else(tracee::ignore_gone).map_err(io_reason("PTRACE_INTERRUPT"))
    }

    /// Waits for all stops. The freezer still holds the threads: ptrace stops are taken within its trap.
    fn wait_stops(&mut self, deadline: Instant) -> Result<(), AdoptReason> {
        // the leader last: should the process die, its end shows only after those of the other threads
        let mut stopped = Vec::new();
        for tid in self.threads.clone().into_iter().rev() {
            // killed meanwhile, those that have stopped already must be reaped, or the leader's end never shows
            let stop = tracee::wait_stop(tid, deadline, &mut stopped, "stopping its threads");
            stopped.push(tid);
            match stop.map_err(|failure| not_stopping(failure, tid))? {
                Stop::Ended(end) if tid == self.pid => return Err(AdoptReason::Died { end }),
                Stop::Ended(_) => self.threads.retain(|other| *other != tid),
                Stop::Event { signal, .. } if tid == self.pid && is_stop_signal(signal) => self.stopped_by = Some(signal),
                _ => {}
            }
        }
        Ok(())
    }

    /// Does all that can be undone: blocks signals, makes the stub's file and arguments, keeps descriptors from being closed.
    fn prepare(&mut self, deadline: Instant) -> Result<(), AdoptReason> {
        let at = tracee::find_syscall(self.pid).map_err(io_reason("reading its memory"))?;
        let at = at.ok_or(AdoptReason::NoSyscallInstruction)?;
        let others = self.threads.iter().copied().filter(|tid| *tid != self.pid).collect();
        let injector = Injector::new(self.pid, at, others, deadline).map_err(reason)?;
        if injector.base.cs != CS_64 {
            return Err(AdoptReason::Not64Bit);
        }
        let work = Work {
            injector,
            mask: sys::blocked(self.pid).map_err(io_reason("reading the signal mask"))?,
            pending: mosix_ptrace::procfs::status(self.pid).map_err(io_reason("reading /proc/PID/status"))?.pending,
            comm: procfs::comm(self.pid).map_err(io_reason("reading /proc/PID/comm"))?,
            scratch: None,
            argv: 0,
            memfd: None,
            cleared: Vec::new(),
        };
        let arguments = procfs::arguments(self.pid).map_err(io_reason("reading /proc/PID/cmdline"))?;
        let closing = procfs::close_on_exec_fds(self.pid).map_err(io_reason("reading /proc/PID/fdinfo"))?;
        sys::set_blocked(self.pid, u64::MAX).map_err(io_reason("blocking signals"))?;
        let work = self.work.insert(work);
        work.write_arguments(&arguments)?;
        work.make_file()?;
        work.keep_open(&closing)
    }

    /// The point of no return.
    fn become_stub(&mut self) -> Result<Made, AdoptReason> {
        let pid = self.pid;
        let Some(mut work) = self.work.take() else {
            return Err(AdoptReason::Timeout { doing: "preparing it" });
        };
        let Some((scratch, _)) = work.scratch else { return Err(AdoptReason::NoSyscallInstruction) };
        // scratch begins with eight zero bytes: an empty path, and an empty environment
        let args = [work.memfd.unwrap_or(0), scratch, work.argv, scratch, libc::AT_EMPTY_PATH as u64];
        match work.injector.exec(&args).map_err(reason)? {
            Ok(()) => {}
            Err(source) => {
                self.work = Some(work);
                return Err(AdoptReason::Injected { call: "execveat", source });
            }
        }
        self.threads = vec![pid]; // the others are gone
        settle_in(&mut work.injector, &work.comm).map_err(reason)?;
        Ok(Made { pid, stopped_by: self.stopped_by, kept: work.injector.kept, pending: work.pending })
    }

    /// Puts the body back as it was. An error means that it died, and then nothing is left to undo.
    fn undo(&mut self) {
        let Some(mut work) = self.work.take() else { return };
        if let Err(failure) = work.undo() {
            tracing::warn!(pid = self.pid, ?failure, "the body could not be put back as it was");
        }
    }

    fn detach(&mut self) {
        for tid in self.threads.drain(..) {
            if let Err(error) = sys::detach(tid, 0).or_else(tracee::ignore_gone) {
                tracing::warn!(tid, %error, "detaching failed");
            }
        }
    }
}

impl Work {
    fn call(&mut self, name: &'static str, number: libc::c_long, args: &[u64]) -> Result<u64, AdoptReason> {
        let result = self.injector.call(number, args).map_err(reason)?;
        result.map_err(|source| AdoptReason::Injected { call: name, source })
    }

    /// Scratch memory: eight zero bytes, the file's name, the argument pointers, a null pointer, the argument strings.
    fn write_arguments(&mut self, arguments: &[Vec<u8>]) -> Result<(), AdoptReason> {
        let strings: usize = arguments.iter().map(|a| a.len() + 1).sum();
        let size = (HEAD_BYTES as usize + (arguments.len() + 1) * 8 + strings) as u64;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let address = self.call("mmap", libc::SYS_mmap, &[0, size, protection, flags, u64::MAX, 0])?;
        self.scratch = Some((address, size));
        self.argv = address + HEAD_BYTES;
        let mut bytes = vec![0u8; 8];
        bytes.extend_from_slice(FILE_NAME);
        let mut string = self.argv + (arguments.len() as u64 + 1) * 8;
        for argument in arguments {
            bytes.extend_from_slice(&string.to_le_bytes());
            string += argument.len() as u64 + 1;
        }
        bytes.extend_from_slice(&[0; 8]);
        for argument in arguments {
            bytes.extend_from_slice(argument);
            bytes.push(0);
        }
        sys::write_memory(self.injector.pid, address, &bytes).map_err(io_reason("writing its arguments"))
    }

    /// The stub's file: made by the process itself, which needs no path, but filled from here, so that its limits do not matter.
    fn make_file(&mut self) -> Result<(), AdoptReason> {
        let pid = self.injector.pid;
        let name = self.scratch.map_or(0, |(address, _)| address + 8);
        // kernels before 6.3 do not know MFD_EXEC, and need it not
        let fd = match self.call("memfd_create", libc::SYS_memfd_create, &[name, u64::from(libc::MFD_CLOEXEC | libc::MFD_EXEC)]) {
            Err(AdoptReason::Injected { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                self.call("memfd_create", libc::SYS_memfd_create, &[name, u64::from(libc::MFD_CLOEXEC)])?
            }
            other => other?,
        };
        self.memfd = Some(fd);
        let file = sys::fd_of(pid, fd as i32).map_err(io_reason("taking its memfd"))?;
        io::Write::write_all(&mut std::fs::File::from(file), &stub_image::stub_image()).map_err(io_reason("writing the stub"))
    }

    fn keep_open(&mut self, fds: &[i32]) -> Result<(), AdoptReason> {
        for fd in fds {
            self.call("fcntl", libc::SYS_fcntl, &[*fd as u64, libc::F_SETFD as u64, 0])?;
            self.cleared.push(*fd);
        }
        Ok(())
    }

    fn undo(&mut self) -> Result<(), Failure> {
        let pid = self.injector.pid;
        for fd in std::mem::take(&mut self.cleared) {
            let args = [fd as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
            let _ = self.injector.call(libc::SYS_fcntl, &args)?;
        }
        if let Some(fd) = self.memfd.take() {
            let _ = self.injector.call(libc::SYS_close, &[fd])?;
        }
        if let Some((address, size)) = self.scratch.take() {
            let _ = self.injector.call(libc::SYS_munmap, &[address, size])?;
        }
        sys::set_registers(pid, self.injector.base).map_err(tracee::os("restoring registers"))?;
        sys::set_blocked(pid, self.mask).map_err(tracee::os("restoring the signal mask"))?;
        for info in self.injector.kept.drain(..) {
            sys::kill(pid, info.signo).map_err(tracee::os("sending a signal again"))?;
        }
        Ok(())
    }
}

/// First steps of a new stub: its name, no timers, default dispositions, no zombies; then ready to pause.
fn settle_in(injector: &mut Injector, comm: &[u8]) -> Result<(), Failure> {
    let pid = injector.pid;
    injector.at = stub_image::SYSCALL;
    // Below the stack pointer nobody has anything yet. 0: name. 32: zero timer or action. 64: "ignore" action.
    let place = (injector.base.rsp - 512) & !63;
    let mut bytes = [0u8; 96];
    bytes[..comm.len().min(16)].copy_from_slice(&comm[..comm.len().min(16)]);
    bytes[64] = libc::SIG_IGN as u8;
    sys::write_memory(pid, place, &bytes).map_err(tracee::os("writing to the stub"))?;
    let ignored = mosix_ptrace::procfs::status(pid).map_err(tracee::os("reading /proc/PID/status"))?.ignored;

    let mut calls: Vec<(libc::c_long, [u64; 4])> = vec![(libc::SYS_prctl, [libc::PR_SET_NAME as u64, place, 0, 0])];
    calls.extend(
        [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|timer| (libc::SYS_setitimer, [timer as u64, place + 32, 0, 0])),
    );
    calls.extend(resets(ignored).map(|signal| (libc::SYS_rt_sigaction, [signal, place + 32, 0, 8])));
    calls.push((libc::SYS_rt_sigaction, [libc::SIGCHLD as u64, place + 64, 0, 8]));
    for (number, args) in calls {
        if let Err(error) = injector.call(number, &args)? {
            tracing::debug!(pid, number, %error, "a first step of the stub failed");
        }
    }
    injector.base.rip = stub_image::ENTRY;
    injector.base.rax = 0;
    injector.base.orig_rax = u64::MAX;
    sys::set_registers(pid, injector.base).map_err(tracee::os("setting registers"))?;
    sys::set_blocked(pid, 0).map_err(tracee::os("unblocking signals"))
}

/// Ignored signals to be set to default. Not those whose default is "ignore": setting them drops pending ones for nothing.
fn resets(ignored: u64) -> impl Iterator<Item = u64> {
    let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    (1..=64u64).filter(move |signal| ignored >> (signal - 1) & 1 == 1 && !harmless.contains(&(*signal as i32)))
}

fn io_reason(doing: &'static str) -> impl FnOnce(io::Error) -> AdoptReason {
    move |source| AdoptReason::Os { doing, source }
}

fn reason(failure: Failure) -> AdoptReason {
    match failure {
        Failure::Died(end) => AdoptReason::Died { end },
        Failure::Timeout(doing) => AdoptReason::Timeout { doing },
        Failure::Os(doing, source) => AdoptReason::Os { doing, source },
    }
}

fn not_stopping(failure: Failure, tid: i32) -> AdoptReason {
    match failure {
        Failure::Timeout(_) => AdoptReason::NotStopping { tid },
        other => reason(other),
    }
}
