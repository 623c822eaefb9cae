//! Beginning to follow a process, in a program of its own.
//!
//! For about 100 us the process that will be followed is made to run system calls of ours (`mosix_pages::track::take_userfaultfd`). If whoever does that
//! is killed just then, the process goes on with the wrong registers. This daemon may be killed at any time and no process may be lost by it, so
//! it starts itself once more for this ([`helper`]): that one ends in milliseconds, and nobody has a reason to kill it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Name of the argument with which the daemon starts itself.
pub(crate) const ARGUMENT: &str = "--take-userfaultfd";

/// For the helper to start and to do its work.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest reason in words.
const MAX_WORDS: u64 = 1024;

/// Has the helper get a userfaultfd of `pid`.
///
/// # Errors
/// In the helper's words. The process is as before.
pub(crate) fn take(pid: i32) -> io::Result<OwnedFd> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ARGUMENT, &pid.to_string()]).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    let mut child = command.spawn()?;
    // Our copy of its end goes with the command: then its death is seen.
    drop(command);
    let received = receive(&mut ours);
    if received.is_err() {
        // It may hang, and must not be left behind. In a process that it still works on it has nothing to lose any more.
        let _ = child.kill();
    }
    child.wait()?;
    received
}

fn receive(from: &mut UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&*from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.map_or_else(
        || {
            let mut words = String::new();
            from.take(MAX_WORDS).read_to_string(&mut words)?;
            Err(io::Error::other(if words.is_empty() { "the helper ended without a word".to_owned() } else { words }))
        },
        Ok,
    )
}

/// The helper: standard input is the socket for the answer.
pub(crate) fn helper(pid: i32) -> ExitCode {
    let Ok(socket) = nix::unistd::dup(io::stdin()) else { return ExitCode::FAILURE };
    let mut socket = UnixStream::from(socket);
    let taken = mosix_pages::track::take_userfaultfd(pid);
    let answered = match &taken {
        Ok(fd) => {
            let fds = [fd.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds))
                && sendmsg(&socket, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL).is_ok()
        }
        Err(error) => socket.write_all(format!("-{error}").as_bytes()).is_ok(),
    };
    if taken.is_ok() && answered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
