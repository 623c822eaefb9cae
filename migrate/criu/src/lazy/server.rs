//! The server's loop: CRIU's words, the processes' events, faults, and the rest in the background.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::memory::{FILL_BYTES, Memory, Store};
use super::missing::Missing;
use super::socket::{self, Word};
use super::{LazyError, Report};

/// What is known of a process before its task appears.
pub(super) type Expected = HashMap<i32, (Store, Missing)>;

pub(super) struct Loop {
    listener: UnixListener,
    criu: Option<UnixStream>,
    /// Readable when the caller has given up.
    cancel: UnixStream,
    expected: Expected,
    memories: Vec<Memory>,
    /// Whose turn it is in the background.
    turn: usize,
    finished: Option<Instant>,
    deadline: Instant,
    limit: Duration,
    buffer: Vec<u8>,
    report: Report,
}

/// Who has something to say.
struct Ready {
    listener: bool,
    criu: bool,
    cancel: bool,
}

impl Loop {
    pub(super) fn new(listener: UnixListener, cancel: UnixStream, expected: Expected, limit: Duration) -> Self {
        Self {
            listener,
            criu: None,
            cancel,
            expected,
            memories: Vec::new(),
            turn: 0,
            finished: None,
            deadline: Instant::now() + limit,
            limit,
            buffer: vec![0; FILL_BYTES],
            report: Report::default(),
        }
    }

    /// Until all is in.
    pub(super) fn run(&mut self) -> Result<Report, LazyError> {
        loop {
            let ready = self.wait()?;
            if ready.cancel && self.finished.is_none() {
                return Err(LazyError::Cancelled);
            }
            if ready.listener && self.finished.is_none() {
                self.criu = Some(socket::accept(&self.listener)?);
            } else if ready.criu {
                self.obey()?;
            }
            self.serve()?;
            if let Some(finished) = self.finished {
                self.memories.retain(|memory| !memory.is_complete());
                if self.memories.is_empty() {
                    return Ok(Report { filled_in: finished.elapsed(), ..self.report });
                }
                self.fill()?;
            }
        }
    }

    /// After an error. Returns the descriptors of processes that may run although they miss pages.
    ///
    /// If CRIU has not said its last word it cannot any more, and lets nothing run.
    pub(super) fn give_up(mut self) -> Vec<OwnedFd> {
        if let Some(criu) = &self.criu {
            // No word can arrive after this, so what is read is all there will be. If it fails CRIU has gone.
            let _ = criu.shutdown(std::net::Shutdown::Read);
            while let Ok(word @ (Word::Task(..) | Word::Zombie | Word::Finished)) = socket::read(criu) {
                if matches!(word, Word::Finished) {
                    self.finished = Some(Instant::now());
                }
            }
        }
        if self.finished.is_none() {
            return Vec::new();
        }
        self.memories.into_iter().map(Memory::into_descriptor).collect()
    }

    fn wait(&self) -> Result<Ready, LazyError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && self.finished.is_none() {
            return Err(LazyError::Deadline(self.limit));
        }
        // There is always something to do in the background once the restore is finished.
        let timeout = if self.finished.is_some() { PollTimeout::ZERO } else { PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX) };
        let criu = self.criu.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd);
        let mut fds = vec![PollFd::new(criu, PollFlags::POLLIN), PollFd::new(self.cancel.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.memories.iter().map(|memory| PollFd::new(memory.descriptor(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any) == Some(true);
        Ok(Ready { listener: self.criu.is_none() && ready(0), criu: self.criu.is_some() && ready(0), cancel: ready(1) })
    }

    fn obey(&mut self) -> Result<(), LazyError> {
        let Some(criu) = &self.criu else { return Ok(()) };
        match socket::read(criu)? {
            Word::Task(pid, uffd) => {
                let (store, missing) = self.expected.remove(&pid).ok_or(LazyError::Unexpected(pid))?;
                self.memories.push(Memory::new(uffd, Arc::new(store), missing));
            }
            Word::Zombie => {}
            Word::Finished => {
                let missed = self.expected.iter().find(|(_, (_, missing))| !missing.is_empty());
                if let Some((pid, _)) = missed {
                    return Err(LazyError::Absent(*pid));
                }
                self.finished = Some(Instant::now());
            }
            Word::End if self.finished.is_none() => return Err(LazyError::Abandoned),
            // CRIU's work is done; a closed connection would always be readable, and the listener takes its place.
            Word::End => self.criu = None,
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<(), LazyError> {
        let mut children = Vec::new();
        for memory in &mut self.memories {
            children.extend(memory.read_events(&mut self.report)?);
            memory.serve_faults(&mut self.buffer, &mut self.report)?;
        }
        self.memories.append(&mut children);
        Ok(())
    }

    fn fill(&mut self) -> Result<(), LazyError> {
        self.turn = self.turn.wrapping_add(1);
        let index = self.turn % self.memories.len().max(1);
        match self.memories.get_mut(index) {
            Some(memory) => Ok(memory.fill(&mut self.buffer, &mut self.report)?),
            None => Ok(()),
        }
    }
}
