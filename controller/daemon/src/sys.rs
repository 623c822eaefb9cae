//! The few system calls without a safe form. The daemon's only unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// A duplicate of descriptor `fd` of process `pid`: the same open file description (pidfd_getfd(2)).
pub(crate) fn take_descriptor(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    let pidfd = open_process(pid)?;
    // SAFETY: the call takes integers only and returns a new descriptor of ours, or -1.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0)) }
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn process_descriptor(pid: i32) -> io::Result<AsyncFd<File>> {
    watch(File::from(open_process(pid)?))
}

fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only and returns a new descriptor of ours, or -1.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// # Safety
/// `result` must be a fresh descriptor that nobody else owns, or negative.
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: by this function's contract.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Registers an open file with the event loop.
pub(crate) fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File gives the same open descriptor as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Rows and columns of a terminal.
pub(crate) fn window_size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills one winsize, which lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((size.ws_row, size.ws_col)) }
}
