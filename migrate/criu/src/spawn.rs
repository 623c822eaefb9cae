//! Starting the worker process with the descriptors that it must inherit. The crate's only unsafe code.

use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Lets `command` inherit the descriptors `fds` under their own numbers, and gives it every signal's default action: CRIU ends its
/// helpers by SIGTERM and waits for them for ever if it has inherited that signal ignored.
pub(crate) fn inherit(command: &mut Command, fds: Vec<RawFd>) {
    let keep_open = move || {
        for fd in &fds {
            // SAFETY: the numbers are open descriptors of this process, copied by fork; borrowed for this call only.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        for which in Signal::iterator() {
            // SAFETY: SIG_DFL installs no handler code. SIGKILL and SIGSTOP refuse, which is right.
            let _ = unsafe { signal(which, SigHandler::SigDfl) };
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only calls fcntl and signal, which are async-signal-safe; it does not allocate.
    unsafe { command.pre_exec(keep_open) };
}
