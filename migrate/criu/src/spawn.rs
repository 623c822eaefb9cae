//! Starting CRIU with the descriptors that it must inherit, or with a `/run` of its own.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
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

/// Runs `command` in a mount namespace of its own where `/run` is the folder `dir`. Needs root.
pub(crate) fn with_run_folder(command: &mut Command, dir: &Path) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let separate = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some(dir.as_c_str()), c"/run", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes system calls with strings made before; C strings are not copied by nix, so
    // it does not allocate.
    unsafe { command.pre_exec(separate) };
    Ok(())
}
