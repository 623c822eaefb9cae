//! The system calls that only the watcher needs: its waking, and its random mark. Those on tracees are in `mosix_ptrace::sys`.
//!
//! All `unsafe` of the crate is here. Errors are the kernel's own (`io::Error` with its errno).

use std::io;

use libc::{c_int, c_long, pid_t};

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn own_tid() -> pid_t {
    // SAFETY: always succeeds.
    unsafe { libc::gettid() }
}

/// Sends a signal to one thread of this process.
pub(crate) fn wake_thread(tid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, signal) }).map(drop)
}

extern "C" fn no_op(_: c_int) {}

/// Makes `signal` do nothing but interrupt a blocking call. It changes the whole process's disposition of it.
pub(crate) fn install_waker(signal: c_int) -> io::Result<()> {
    // SAFETY: a sigaction is plain data, all zero is valid: no flags (so not SA_RESTART), empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = no_op as extern "C" fn(c_int) as usize;
    // SAFETY: `action` is live, and its handler touches nothing.
    check(c_long::from(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })).map(drop)
}

/// Lets the calling thread get `signal` and no other, so that signals for the process go to its other threads.
pub(crate) fn only_accept(signal: c_int) {
    // SAFETY: the set is filled by sigfillset before it is read, and lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigdelset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// A random number nobody else can guess.
pub(crate) fn random() -> io::Result<u64> {
    let mut value = 0u64;
    // SAFETY: the kernel writes 8 bytes to a live u64.
    check(unsafe { libc::getrandom((&raw mut value).cast(), size_of::<u64>(), 0) } as c_long)?;
    Ok(value)
}
