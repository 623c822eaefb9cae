//! The server's loop: CRIU's words, the processes' events, faults, and the rest in the background.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::memory::{Memory, Store, Work};
use super::missing::Missing;
use super::socket::{self, Word};
use super::{LazyError, Report};

/// What is known of a process before its task appears.
pub(super) type Expected = HashMap<i32, (Store, Missing)>;

pub(super) struct Loop {
    listener: UnixListener,
    criu: Option<UnixStream>,
    /// A byte of it is the word to begin; at its end the caller has given up.
    caller: UnixStream,
    expected: Expected,
    memories: Vec<Memory>,
    /// Whose turn it is in the background.
    turn: usize,
    finished: Option<Instant>,
    deadline: Instant,
    limit: Duration,
    work: Work,
    /// The caller has said that all mappings exist.
    begun: bool,
}

/// Who has something to say.
struct Ready {
    listener: bool,
    criu: bool,
    caller: bool,
}

impl Loop {
    pub(super) fn new(listener: UnixListener, caller: UnixStream, expected: Expected, limit: Duration) -> Self {
        Self {
            listener,
            criu: None,
            caller,
            expected,
            memories: Vec::new(),
            turn: 0,
            finished: None,
            deadline: Instant::now() + limit,
            limit,
            work: Work::new(),
            begun: false,
        }
    }

    /// Until all is in.
    pub(super) fn run(&mut self) -> Result<Report, LazyError> {
        loop {
            let ready = self.wait()?;
            if ready.caller && self.finished.is_none() {
                self.begun = match (&self.caller).read(&mut [0])? {
                    0 => return Err(LazyError::Cancelled),
                    _ => true,
                };
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
                    return Ok(Report { filled_in: finished.elapsed(), ..self.work.report });
                }
                self.fill()?;
            } else if self.begun {
                // What cannot be placed now has time until the restore is finished.
                self.begun = self.fill()?;
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
        let timeout =
            if self.finished.is_some() || self.begun { PollTimeout::ZERO } else { PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX) };
        let criu = self.criu.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd);
        let mut fds = vec![PollFd::new(criu, PollFlags::POLLIN), PollFd::new(self.caller.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.memories.iter().map(|memory| PollFd::new(memory.descriptor(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any) == Some(true);
        Ok(Ready { listener: self.criu.is_none() && ready(0), criu: self.criu.is_some() && ready(0), caller: ready(1) })
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
                self.work.restored = true;
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
            children.extend(memory.read_events(&mut self.work)?);
            memory.serve_faults(&mut self.work)?;
        }
        self.memories.append(&mut children);
        Ok(())
    }

    /// Copies some pages of the next process that can take them. Returns whether any could be placed.
    fn fill(&mut self) -> Result<bool, LazyError> {
        let mut placed = false;
        for _ in 0..self.memories.len() {
            self.turn = self.turn.wrapping_add(1) % self.memories.len();
            if let Some(memory) = self.memories.get_mut(self.turn) {
                placed = memory.fill(&mut self.work)?;
            }
            if placed {
                break;
            }
        }
        Ok(placed)
    }
}
