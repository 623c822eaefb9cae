//! Making one stopped tracee run system calls for us, and nothing else.
//!
//! A call is made by pointing the registers at a `syscall` instruction and resuming with PTRACE_SYSCALL:
//! the tracee stops at the call's entry and again at its exit, so it never gets to the instruction behind
//! it. All signals are blocked meanwhile; what comes in spite of that (SIGSTOP) is kept for later.

use std::io;
use std::time::{Duration, Instant};

use libc::user_regs_struct;

use crate::sys::{self, End, SigInfo, Stop};

/// Polls this many times without sleeping: most answers come within some microseconds.
const EAGER_POLLS: u32 = 200;
const POLL_PAUSE: Duration = Duration::from_micros(100);

/// Most signals kept while a tracee is worked on; a real flood would be SIGSTOPs, which coalesce.
const MAX_KEPT: usize = 16;

/// What can go wrong with any step.
#[derive(Debug)]
pub enum Failure {
    /// It died meanwhile.
    Died(End),
    /// It did not get on in the time allowed while this was being done.
    Timeout(&'static str),
    /// The kernel refused this.
    Os(&'static str, io::Error),
}

/// Turns a refused ptrace call into a failure that names it.
pub fn os(doing: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Os(doing, source)
}

/// Waits until `pid` reports something. Threads in `dying` are reaped on the way: an `execve` waits for them.
///
/// It polls, because waitpid has no time limit; that is for the short while of an order, never when idle.
///
/// # Errors
/// [`Failure::Timeout`] after the deadline, [`Failure::Os`] from waitpid.
pub fn wait_stop(pid: i32, deadline: Instant, dying: &mut Vec<i32>, doing: &'static str) -> Result<Stop, Failure> {
    let mut polls = 0;
    loop {
        if let Some((_, stop)) = sys::wait(pid, false).map_err(os("waitpid"))? {
            return Ok(stop);
        }
        dying.retain(|tid| matches!(sys::wait(*tid, false), Ok(None)));
        if Instant::now() > deadline {
            return Err(Failure::Timeout(doing));
        }
        polls += 1;
        if polls < EAGER_POLLS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(POLL_PAUSE);
        }
    }
}

/// A stopped leader through which system calls are made.
#[derive(Debug)]
pub struct Injector {
    /// The leader.
    pub pid: i32,
    /// Address of a `syscall` instruction in the tracee.
    pub at: u64,
    /// Registers that each call starts from.
    pub base: user_regs_struct,
    /// Time limit of all waiting.
    pub deadline: Instant,
    /// The other threads, all in their ptrace stop: reaped when they die, since the leader's end shows only after theirs.
    pub others: Vec<i32>,
    /// Signals that arrived meanwhile and were not delivered.
    pub kept: Vec<SigInfo>,
}

impl Injector {
    /// An injector that starts from the present registers of the stopped `pid`.
    ///
    /// # Errors
    /// [`Failure::Os`] if they cannot be read.
    pub fn new(pid: i32, at: u64, others: Vec<i32>, deadline: Instant) -> Result<Injector, Failure> {
        let base = sys::registers(pid).map_err(os("reading registers"))?;
        Ok(Injector { pid, at, base, deadline, others, kept: Vec::new() })
    }

    /// Makes one call. The inner result is the call's own.
    ///
    /// # Errors
    /// The tracee died, or did not get through the call by the deadline.
    pub fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<io::Result<u64>, Failure> {
        self.set_up(number, args)?;
        self.next_stop()?;
        self.next_stop()?;
        self.result()
    }

    /// Makes an `execveat`, by which all other threads die.
    ///
    /// # Errors
    /// As [`Injector::call`].
    pub fn exec(&mut self, args: &[u64]) -> Result<io::Result<()>, Failure> {
        self.set_up(libc::SYS_execveat, args)?;
        self.next_stop()?;
        let stop = self.next_stop()?;
        if stop == Stop::Syscall {
            return Ok(self.result()?.map(drop)); // the exit of a failed call; a successful one has an event before
        }
        self.next_stop()?;
        self.base = sys::registers(self.pid).map_err(os("reading registers"))?;
        Ok(Ok(()))
    }

    fn set_up(&self, number: libc::c_long, args: &[u64]) -> Result<(), Failure> {
        let arg = |i: usize| args.get(i).copied().unwrap_or(0);
        let regs = user_regs_struct {
            rip: self.at,
            rax: number as u64,
            orig_rax: u64::MAX, // no call to restart: without it the kernel would step back over two bytes
            rdi: arg(0),
            rsi: arg(1),
            rdx: arg(2),
            r10: arg(3),
            r8: arg(4),
            r9: arg(5),
            ..self.base
        };
        sys::set_registers(self.pid, regs).map_err(os("setting registers"))
    }

    fn result(&self) -> Result<io::Result<u64>, Failure> {
        let value = sys::registers(self.pid).map_err(os("reading registers"))?.rax as i64;
        Ok(if (-4095..0).contains(&value) { Err(io::Error::from_raw_os_error(-value as i32)) } else { Ok(value as u64) })
    }

    /// Resumes to the next system call stop or exec event.
    fn next_stop(&mut self) -> Result<Stop, Failure> {
        loop {
            // ESRCH: it was killed, and wait will say so
            let resumed = sys::resume_to_syscall(self.pid);
            resumed.or_else(ignore_gone).map_err(os("resuming"))?;
            match wait_stop(self.pid, self.deadline, &mut self.others, "making it run a system call")? {
                Stop::Ended(end) => return Err(Failure::Died(end)),
                Stop::Signal(_) => self.keep_signal()?,
                Stop::Event { event: libc::PTRACE_EVENT_STOP, .. } => {}
                stop => return Ok(stop),
            }
        }
    }

    fn keep_signal(&mut self) -> Result<(), Failure> {
        match sys::signal_info(self.pid) {
            Ok(info) if self.kept.len() < MAX_KEPT => self.kept.push(info),
            Ok(_) => {}
            Err(source) => ignore_gone(source).map_err(os("reading a signal"))?,
        }
        Ok(())
    }
}

/// ESRCH of a ptrace call means that the tracee was killed while it was stopped: its end is reported by wait.
///
/// # Errors
/// Every other error is passed on.
pub fn ignore_gone(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// Finds a `syscall` instruction in executable memory of a process.
///
/// # Errors
/// From reading `/proc/PID/maps`.
pub fn find_syscall(pid: i32) -> io::Result<Option<u64>> {
    const CHUNK_BYTES: usize = 64 * 1024;
    const MAX_BYTES: u64 = 64 * 1024 * 1024;
    let mut buffer = vec![0u8; CHUNK_BYTES];
    let mut budget = MAX_BYTES;
    for (mut from, to) in crate::procfs::executable_ranges(pid)? {
        while from < to && budget > 0 {
            let want = (to - from).min(CHUNK_BYTES as u64) as usize;
            budget = budget.saturating_sub(want as u64);
            let Ok(got) = sys::read_memory(pid, from, &mut buffer[..want]) else { break };
            if let Some(offset) = buffer[..got].windows(2).position(|pair| pair == [0x0f, 0x05]) {
                return Ok(Some(from + offset as u64));
            }
            from += want as u64;
        }
    }
    Ok(None)
}
