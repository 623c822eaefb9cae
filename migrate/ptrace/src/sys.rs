//! System calls on other processes, each wrapped once: ptrace, wait, queued signals, foreign memory and descriptors.
//!
//! All `unsafe` of the crate is here. Errors are the kernel's own (`io::Error` with its errno).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_void, pid_t, user_regs_struct};

/// ptrace options of a thread that is to become a stub. `EXITKILL`: a dead daemon must not leave stubs that look alive.
pub const STUB_OPTIONS: c_int = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;

/// Lets injected calls pass a seccomp filter of the tracee (needs CAP_SYS_ADMIN).
pub const SUSPEND_SECCOMP: c_int = 1 << 21;

/// `PTRACE_GET_RSEQ_CONFIGURATION`.
const GET_RSEQ: u32 = 0x420f;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;

/// How a process ended, as its parent's `wait()` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It called exit with this code.
    Exited(u8),
    /// A signal killed it.
    Signaled {
        /// Number of the signal.
        signal: i32,
        /// A core was dumped. A process that was made a stub never dumps one.
        core: bool,
    },
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Exited(code) => write!(f, "exited with {code}"),
            End::Signaled { signal, .. } => write!(f, "killed by signal {signal}"),
        }
    }
}

/// What a tracee reports to its tracer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is gone.
    Ended(End),
    /// Entry to or exit from a system call.
    Syscall,
    /// `PTRACE_EVENT_*`, with the signal that goes with it.
    Event {
        /// Number of the event.
        event: i32,
        /// `SIGTRAP`, or the stop signal of a group stop.
        signal: i32,
    },
    /// A signal is about to be delivered.
    Signal(i32),
}

/// The kernel's `siginfo_t` on x86_64, as far as signals sent by processes fill it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SigInfo {
    /// Number of the signal.
    pub signo: i32,
    /// Usually 0.
    pub errno: i32,
    /// `SI_*`: how it was sent.
    pub code: i32,
    pad: i32,
    /// Sender.
    pub pid: i32,
    /// Real user of the sender.
    pub uid: u32,
    /// What `sigqueue()` passed.
    pub value: u64,
    rest: [u64; 12],
}

impl SigInfo {
    /// Another signal of the same sender.
    pub fn with_signal(self, signo: i32) -> SigInfo {
        SigInfo { signo, ..self }
    }

    /// A signal as `sigqueue()` would send it from this process.
    pub fn queued(signo: i32, value: u64) -> SigInfo {
        let pid = std::process::id() as i32;
        SigInfo { signo, errno: 0, code: libc::SI_QUEUE, pad: 0, pid, uid: 0, value, rest: [0; 12] }
    }
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn ptrace(request: u32, pid: pid_t, addr: usize, data: *mut c_void) -> io::Result<()> {
    // SAFETY: private to this module; every caller passes for its request either a plain number as `data`
    // or a pointer to a live object of the type and size that the kernel reads or writes for it.
    check(unsafe { libc::ptrace(request, pid, addr as *mut c_void, data) }).map(drop)
}

fn number(value: c_int) -> *mut c_void {
    value as usize as *mut c_void
}

/// `PTRACE_SEIZE`: the calling thread becomes the tracer of one thread, which runs on.
pub fn seize(tid: pid_t, options: c_int) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, number(options))
}

/// `PTRACE_INTERRUPT`: asks a running thread for a stop; [`wait`] tells when it has come.
pub fn interrupt(tid: pid_t) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, number(0))
}

/// `PTRACE_CONT`, delivering a signal (0: none).
pub fn resume(tid: pid_t, signal: c_int) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, number(signal))
}

/// `PTRACE_SYSCALL`: resumes to the next entry to or exit from a system call.
pub fn resume_to_syscall(tid: pid_t) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, number(0))
}

/// `PTRACE_LISTEN`: a group-stopped thread stays stopped, but reports what happens.
pub fn listen(tid: pid_t) -> io::Result<()> {
    ptrace(libc::PTRACE_LISTEN, tid, 0, number(0))
}

/// `PTRACE_DETACH` of a stopped thread, delivering a signal (0: none).
pub fn detach(tid: pid_t, signal: c_int) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, number(signal))
}

/// General registers of a stopped thread.
pub fn registers(tid: pid_t) -> io::Result<user_regs_struct> {
    // SAFETY: a register set is plain numbers; all zero is a valid value.
    let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, (&raw mut regs).cast())?;
    Ok(regs)
}

/// Sets the general registers of a stopped thread.
pub fn set_registers(tid: pid_t, mut regs: user_regs_struct) -> io::Result<()> {
    ptrace(libc::PTRACE_SETREGS, tid, 0, (&raw mut regs).cast())
}

/// Where a stopped thread keeps its restartable sequence area (`struct rseq`), if it has one.
pub fn rseq_area(tid: pid_t) -> io::Result<Option<u64>> {
    // address, then size and signature, then flags and padding: `struct ptrace_rseq_configuration`
    let mut area = [0u64; 3];
    ptrace(GET_RSEQ, tid, size_of_val(&area), (&raw mut area).cast())?;
    Ok((area[0] != 0).then_some(area[0]))
}

/// The blocked signals of a stopped thread, bit 0 is signal 1.
pub fn blocked(tid: pid_t) -> io::Result<u64> {
    let mut mask = 0u64;
    ptrace(GETSIGMASK, tid, size_of::<u64>(), (&raw mut mask).cast())?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
pub fn set_blocked(tid: pid_t, mut mask: u64) -> io::Result<()> {
    ptrace(SETSIGMASK, tid, size_of::<u64>(), (&raw mut mask).cast())
}

/// The signal a thread in a signal-delivery stop is about to get.
pub fn signal_info(tid: pid_t) -> io::Result<SigInfo> {
    let mut info = SigInfo::queued(0, 0);
    ptrace(libc::PTRACE_GETSIGINFO, tid, 0, (&raw mut info).cast())?;
    Ok(info)
}

/// Waits for a tracee of the calling thread (`-1`: any). `None`: nothing to report (only with `block` false).
pub fn wait(pid: pid_t, block: bool) -> io::Result<Option<(pid_t, Stop)>> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    // SAFETY: `status` is a live c_int.
    let found = unsafe { libc::waitpid(pid, &raw mut status, flags) };
    match check(c_long::from(found))? {
        0 => Ok(None),
        _ => Ok(Some((found, decode(status)))),
    }
}

fn decode(status: c_int) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(End::Exited(libc::WEXITSTATUS(status) as u8));
    }
    if libc::WIFSIGNALED(status) {
        let (signal, core) = (libc::WTERMSIG(status), libc::WCOREDUMP(status));
        return Stop::Ended(End::Signaled { signal, core });
    }
    let (event, signal) = (status >> 16, libc::WSTOPSIG(status));
    match (event, signal) {
        (0, s) if s == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (0, signal) => Stop::Signal(signal),
        (event, signal) => Stop::Event { event, signal },
    }
}

/// Queues a signal with its siginfo to the leader of a process.
pub fn queue_signal(pid: pid_t, info: &SigInfo) -> io::Result<()> {
    // SAFETY: the kernel reads one siginfo_t (128 bytes), the size of `SigInfo` (asserted below).
    check(unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, pid, info.signo, info) }).map(drop)
}

const _: () = assert!(size_of::<SigInfo>() == 128);

/// `kill(2)`.
pub fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// A duplicate of descriptor `fd` of process `pid`.
pub fn fd_of(pid: pid_t, fd: c_int) -> io::Result<OwnedFd> {
    let pidfd = own_fd(|| {
        // SAFETY: no memory is involved.
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }
    })?;
    own_fd(|| {
        // SAFETY: no memory is involved; `pidfd` is open.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd), fd, 0) }
    })
}

fn own_fd(open: impl FnOnce() -> c_long) -> io::Result<OwnedFd> {
    let fd = check(open())? as c_int;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads foreign memory; returns how many bytes could be read.
pub fn read_memory(pid: pid_t, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: buffer.len() };
    // SAFETY: `local` is exactly `buffer`; the remote address is checked by the kernel.
    let done = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(done as c_long).map(|n| n as usize)
}

/// Writes all of `bytes` to writable foreign memory.
pub fn write_memory(pid: pid_t, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: bytes.len() };
    // SAFETY: the kernel only reads `local`, which is exactly `bytes`; the remote address is checked by it.
    let done = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if check(done as c_long)? as usize != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
