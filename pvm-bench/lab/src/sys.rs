//! The few system calls for which there is no safe wrapper; all unsafe code of this crate is here.

use std::io;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::{ForkResult, Pid};

use crate::proto::MAX_FDS;

/// Forks, but only a process with a single thread: then the child may use everything, allocation too.
///
/// # Errors
/// `EDEADLK` if there are more threads; else as fork.
pub(crate) fn fork() -> nix::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::ENOENT)?.count();
    if threads != 1 {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: no other thread exists, so none can hold a lock that the child would wait for.
    unsafe { nix::unistd::fork() }
}

/// Marks every descriptor but the standard ones to be closed by exec: what our caller had open is none of the nodes' programs' business.
pub(crate) fn keep_from_children() -> io::Result<()> {
    // SAFETY: only flags of descriptors are changed, no memory is touched.
    let result = unsafe { nix::libc::close_range(3, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC as i32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reaps one child that ended: its pid and raw wait status (nix's form of it cannot be turned back).
pub(crate) fn reap_one() -> Option<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let pid = unsafe { nix::libc::waitpid(-1, &raw mut status, nix::libc::WNOHANG) };
    (pid > 0).then_some((Pid::from_raw(pid), status))
}

/// Gives SIGPIPE its default action back, which Rust's start-up code has changed.
pub(crate) fn default_sigpipe() -> nix::Result<()> {
    // SAFETY: sets a default action; no handler code of ours is involved.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// One read from a socket: bytes, and the descriptors that came with them.
pub(crate) fn receive(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(chunk)];
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut owned = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows of them.
            owned.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, owned))
}
