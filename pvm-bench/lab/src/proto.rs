//! The exec protocol between a client and a node's holder: frames on a Unix stream socket, descriptors beside them.
//!
//! A frame is a little-endian `u32` length and that many bytes of postcard. The client sends one [`Request::Exec`] with
//! three descriptors (stdin, stdout, stderr) attached, and may send [`Request::Signal`] later. The holder answers
//! [`Reply::Started`] (with a pidfd attached if the kernel has them) or [`Reply::Refused`], and, if the client waits,
//! [`Reply::Exited`]. Frames are bounded by [`MAX_FRAME_BYTES`], descriptors by [`MAX_FDS`].

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{LabError, Result, failed};
use crate::sys;

/// Longest frame: arguments and environment of one program; Linux's own limit is of this order.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Most descriptors taken with one message.
pub const MAX_FDS: usize = 4;
/// The socket's name in a node's folder.
const SOCKET: &str = "exec.sock";

/// A user to run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id; supplementary groups come from the user database.
    pub gid: u32,
}

/// A program to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program (looked up in the `PATH` of `env`) and arguments.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its folder.
    pub cwd: PathBuf,
    /// In the node's quota, or in the sibling group without.
    pub throttled: bool,
    /// Whether the client wants [`Reply::Exited`].
    pub wait: bool,
    /// Signal to send if the client goes away before the program ended.
    pub signal_on_disconnect: Option<i32>,
    /// User to run as; `None` = as the client.
    pub run_as: Option<RunAs>,
}

/// What a client sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// First: run this.
    Exec(Box<ExecRequest>),
    /// Later: signal it.
    Signal(i32),
}

/// What a holder sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It runs.
    Started {
        /// Its pid as seen in the node.
        pid: i32,
    },
    /// It was not started.
    Refused {
        /// Why.
        why: String,
    },
    /// It ended.
    Exited {
        /// Raw wait status.
        status: i32,
    },
}

/// Sends one frame with descriptors attached to its first byte.
pub(crate) fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let body = postcard::to_stdvec(message).map_err(|error| LabError::Protocol(error.to_string()))?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| LabError::Protocol("arguments and environment are too long".into()))?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let mut sent = 0;
    while sent < frame.len() {
        let with = if sent == 0 && !raw.is_empty() { &control[..] } else { &[] };
        let rest = [IoSlice::new(&frame[sent..])];
        match sendmsg::<UnixAddr>(stream.as_raw_fd(), &rest, with, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(bytes) => sent += bytes,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed("sending to the lab's socket")(error)),
        }
    }
    Ok(())
}

/// What one read of the socket gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Some bytes; look for a frame.
    Some,
    /// The other side closed.
    End,
    /// Nothing now (nonblocking socket).
    Nothing,
}

/// Collects bytes and descriptors until frames are complete.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Reader {
    /// Reads once from the socket.
    pub(crate) fn receive(&mut self, stream: &UnixStream) -> io::Result<Received> {
        let mut chunk = [0_u8; 16 << 10];
        let (bytes, fds) = match sys::receive(stream, &mut chunk) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(error) => return Err(error),
        };
        self.fds.extend(fds);
        // Descriptors nobody asked for are closed at once, so that a client cannot fill our table.
        self.fds.truncate(MAX_FDS);
        self.buffer.extend_from_slice(&chunk[..bytes]);
        Ok(if bytes == 0 { Received::End } else { Received::Some })
    }

    /// Takes the next complete message, if there is one.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(length) = self.buffer.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize) else {
            return Ok(None);
        };
        if length > MAX_FRAME_BYTES {
            return Err(LabError::Protocol(format!("a frame of {length} bytes")));
        }
        let Some(body) = self.buffer.get(4..4 + length) else { return Ok(None) };
        let message = postcard::from_bytes(body).map_err(|error| LabError::Protocol(error.to_string()))?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }

    /// Takes the descriptors that came so far.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
}

/// Socket addresses hold 107 bytes, but a lab's folder may be deep: go through a descriptor of the folder instead.
fn with_short_path<T>(node_dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = std::fs::File::open(node_dir)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())))
}

/// Connects to the holder of the node whose folder is `node_dir`.
pub(crate) fn connect(node_dir: &Path) -> io::Result<UnixStream> {
    with_short_path(node_dir, |path| UnixStream::connect(path))
}

/// Binds the socket of the node whose folder is `node_dir`.
pub(crate) fn listen(node_dir: &Path) -> io::Result<UnixListener> {
    with_short_path(node_dir, |path| UnixListener::bind(path))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn frames_and_descriptors_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        send(&left, &Request::Signal(15), &[right.as_fd()]).unwrap();
        send(&left, &Request::Signal(9), &[]).unwrap();
        drop(left);
        let mut reader = Reader::default();
        while reader.receive(&right).unwrap() != Received::End {}
        assert!(matches!(reader.next().unwrap(), Some(Request::Signal(15))));
        assert!(matches!(reader.next().unwrap(), Some(Request::Signal(9))));
        assert!(reader.next::<Request>().unwrap().is_none());
        assert_eq!(reader.take_fds().len(), 1);
    }

    #[test]
    fn a_hostile_length_is_refused() {
        let mut reader = Reader { buffer: vec![0xff; 8], fds: Vec::new() };
        assert!(reader.next::<Request>().is_err());
        let mut reader = Reader { buffer: vec![1, 0, 0, 0, 0xff], fds: Vec::new() };
        assert!(reader.next::<Request>().is_err());
    }

    #[test]
    fn a_deep_folder_is_no_problem() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let _listener = listen(&deep).unwrap();
        assert!(connect(&deep).is_ok());
    }
}
