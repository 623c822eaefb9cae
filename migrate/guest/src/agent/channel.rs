//! The guest's pipes: the ends that init holds, how much output may be under way, and what is still to be delivered.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use mosix_guest::{CHUNK_BYTES, ChannelSpec, Direction, OUTPUT_WINDOW_BYTES};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::sys;

/// Init's end of one pipe.
pub(crate) struct Channel {
    pub(crate) spec: ChannelSpec,
    /// `None` when closed.
    end: Option<File>,
    /// Output: bytes that home can still take.
    credit: usize,
    /// Input: not yet in the pipe. Bounded by what the guest asked for plus what an earlier hop brought.
    backlog: VecDeque<u8>,
    end_of_input: bool,
    key: String,
}

/// What reading an output gave.
pub(crate) enum Output {
    Bytes(Vec<u8>),
    Eof,
    Nothing,
}

impl Channel {
    /// Makes the pipe; returns init's end and the guest's, with the CRIU key that the guest's end replaces.
    pub(crate) fn open(spec: ChannelSpec) -> Result<(Self, (String, OwnedFd))> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let (ours, theirs) = match spec.direction {
            Direction::Input => (write, read),
            Direction::Output => (read, write),
        };
        let key = pipe_key(theirs.as_fd())?;
        set_nonblocking(&ours)?;
        let old_key = spec.key.clone();
        let channel =
            Self { spec, end: Some(File::from(ours)), credit: OUTPUT_WINDOW_BYTES, backlog: VecDeque::new(), end_of_input: false, key };
        Ok((channel, (old_key, theirs)))
    }

    /// Key of the pipe as CRIU will call it at the next dump.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn id(&self) -> u16 {
        self.spec.id
    }

    /// What poll(2) should watch for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, nix::poll::PollFlags)> {
        let end = self.end.as_ref()?;
        match self.spec.direction {
            Direction::Output if self.credit > 0 => Some((end.as_fd(), nix::poll::PollFlags::POLLIN)),
            Direction::Input if !self.backlog.is_empty() => Some((end.as_fd(), nix::poll::PollFlags::POLLOUT)),
            _ => None,
        }
    }

    /// Reads what the guest has written, within the credit.
    pub(crate) fn take_output(&mut self) -> Output {
        if self.spec.direction != Direction::Output || self.credit == 0 {
            return Output::Nothing;
        }
        let Some(end) = self.end.as_mut() else { return Output::Nothing };
        match read_some(end, self.credit.min(CHUNK_BYTES)) {
            Output::Bytes(bytes) => {
                self.credit -= bytes.len();
                Output::Bytes(bytes)
            }
            Output::Eof => {
                self.end = None;
                Output::Eof
            }
            Output::Nothing => Output::Nothing,
        }
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.credit > 0
    }

    pub(crate) fn grant(&mut self, bytes: usize) {
        self.credit = (self.credit + bytes).min(OUTPUT_WINDOW_BYTES);
    }

    /// Home cannot take or give any more: the guest sees a broken pipe or the end of file.
    pub(crate) fn close(&mut self) {
        self.end = None;
    }

    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        self.flush();
    }

    /// The guest sees the end of file once it has read the backlog.
    pub(crate) fn finish_input(&mut self) {
        self.end_of_input = true;
        self.flush();
    }

    /// Puts as much of the backlog into the pipe as fits.
    pub(crate) fn flush(&mut self) {
        while let Some(end) = self.end.as_mut() {
            let (front, _) = self.backlog.as_slices();
            if front.is_empty() {
                break;
            }
            match end.write(front) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The guest closed it: nobody will read this.
                Err(_) => {
                    self.end = None;
                    self.backlog.clear();
                }
            }
        }
        if self.end_of_input && self.backlog.is_empty() {
            self.end = None;
        }
    }

    /// The guest has not read yet what it was given.
    pub(crate) fn has_unread(&self) -> bool {
        !self.backlog.is_empty() || self.end.as_ref().is_some_and(|end| sys::bytes_in_pipe(end.as_fd()).is_ok_and(|count| count > 0))
    }

    /// Takes back what the (frozen) guest has not read; [`Channel::deliver`] gives it again.
    pub(crate) fn take_unread(&mut self) -> io::Result<Vec<u8>> {
        let mut unread = Vec::new();
        if let (Direction::Input, Some(end)) = (self.spec.direction, self.end.as_ref()) {
            let mut reader = reopen_for_reading(end.as_fd())?;
            while let Output::Bytes(bytes) = read_some(&mut reader, CHUNK_BYTES) {
                unread.extend(bytes);
            }
        }
        unread.extend(std::mem::take(&mut self.backlog));
        Ok(unread)
    }
}

/// Reads at most `most` bytes without blocking.
pub(crate) fn read_some(from: &mut impl Read, most: usize) -> Output {
    let mut buffer = vec![0; most];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Output::Eof,
            Ok(count) => {
                buffer.truncate(count);
                return Output::Bytes(buffer);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Output::Nothing,
            Err(_) => return Output::Eof,
        }
    }
}

fn pipe_key(end: BorrowedFd<'_>) -> Result<String> {
    Ok(format!("pipe:[{}]", nix::sys::stat::fstat(end)?.st_ino))
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn reopen_for_reading(end: BorrowedFd<'_>) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(format!("/proc/self/fd/{}", end.as_raw_fd()))
}
