//! Process creation with chosen numbers, and the few calls that nix has no safe form for. The agent's only unsafe code.
//!
//! The agent is single-threaded, so a fork leaves no lock held in the child.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::unistd::Pid;

/// Which side of a fork one is on.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's number.
    Parent(Pid),
}

/// Forks pid 1 of fresh pid, mount, host name and IPC namespaces. The child is killed if its parent ends.
pub(crate) fn clone_into_namespaces() -> io::Result<Fork> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    clone(flags as u64, None)
}

/// Forks; the child has the number `pid` in this pid namespace (clone3(2), `set_tid`).
pub(crate) fn fork_as(pid: i32) -> io::Result<Fork> {
    clone(0, Some(pid))
}

fn clone(flags: u64, pid: Option<i32>) -> io::Result<Fork> {
    let numbers = [pid.unwrap_or(0)];
    // SAFETY: all fields of clone_args are integers, zero is valid for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = libc::SIGCHLD as u64;
    if pid.is_some() {
        args.set_tid = numbers.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: args and numbers outlive the call; no new stack, no shared memory: plain fork semantics in a single-threaded process.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Fork::Child),
        child if child > 0 => Ok(Fork::Parent(Pid::from_raw(child as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the terminal `slave` the controlling one of the calling session leader.
pub(crate) fn take_terminal(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument and touches no memory.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
}

/// Sets a terminal's size.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}

/// Closes every descriptor but the standard ones and those in `keep`. For a freshly forked process that never returns to code which uses the others.
pub(crate) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let open: Vec<RawFd> =
        std::fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // SAFETY: the owners of these descriptors belong to the parent's code path and are neither used nor dropped in this process, which ends by exit.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Ignores a signal.
pub(crate) fn ignore_signal(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    // SAFETY: SIG_IGN installs no handler code.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }.map(drop)
}

/// Bytes in a pipe.
pub(crate) fn bytes_in_pipe(end: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD fills one int, which lives through the call.
    check(unsafe { libc::ioctl(end.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sends a signal with a value, as sigqueue(3) does.
pub(crate) fn queue_signal(pid: Pid, signo: i32, value: i64) -> io::Result<()> {
    let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
    // SAFETY: the value is passed through as a number and never dereferenced.
    check(unsafe { libc::sigqueue(pid.as_raw(), signo, value) })
}

/// What a child did.
pub(crate) struct ChildNews {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) cpu_ms: u64,
}

/// Waits for any child (`pid` -1) or one; `None` if nothing happened (`block` false) or there is no such child.
pub(crate) fn wait_child(pid: i32, block: bool) -> Option<ChildNews> {
    let mut status = 0;
    let options = libc::WUNTRACED | libc::WCONTINUED | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: rusage is plain data, zero is valid; both pointers live through the call.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let result = unsafe { libc::wait4(pid, &raw mut status, options, &raw mut usage) };
        if result > 0 {
            let cpu_ms = milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime);
            return Some(ChildNews { pid: result, status, cpu_ms });
        }
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

fn milliseconds(time: libc::timeval) -> u64 {
    time.tv_sec.max(0) as u64 * 1000 + time.tv_usec.max(0) as u64 / 1000
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
