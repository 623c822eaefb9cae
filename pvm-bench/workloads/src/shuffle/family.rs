//! Forked children of `shuffle`: they share their parent's pages until one of both writes.

use std::io;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::memory::{end_child, fork};
use super::model::{Access, Content, Expect, Op};
use super::play::Play;

/// Children at a time.
const MAX_CHILDREN: usize = 3;
/// Of so many pages a child writes one.
const CHILD_WRITES_OF: usize = 5;

impl Play {
    /// Forks a child that compares and writes; waits for it if it is to live for no time.
    ///
    /// # Errors
    /// From the kernel.
    pub(super) fn fork(&mut self) -> io::Result<()> {
        if self.children.len() >= MAX_CHILDREN {
            return Ok(());
        }
        self.last_fork = self.step;
        let Some(pid) = fork()? else { end_child(i32::from(!self.live_as_child())) };
        self.children.push(Pid::from_raw(pid));
        if self.child_life.is_zero() { self.reap(true) } else { Ok(()) }
    }

    /// The child's life: everything is as it was at the fork, what it writes is its own, and what the parent writes is not its. No memory is
    /// allocated. `true` if all was right.
    fn live_as_child(&mut self) -> bool {
        let before = self.all_right();
        let (number, step) = (self.next_number, self.step);
        for (index, (page_number, page)) in self.model.pages.iter_mut().enumerate() {
            if index % CHILD_WRITES_OF == 0 && page.access.writes() {
                let content = Content { number: number + index as u64, version: u32::MAX, code: page.access == Access::Code };
                if self.memory.write(*page_number, &content.words()).is_err() {
                    return false;
                }
                page.expect = Expect::Content(content);
                page.note(step, Op::Write);
            }
        }
        let after = self.all_right();
        std::thread::sleep(self.child_life);
        before && after && self.all_right()
    }

    fn all_right(&mut self) -> bool {
        let (memory, step) = (&self.memory, self.step);
        let mut pages = self.model.pages.iter_mut().filter(|(_, page)| page.access.reads());
        pages.all(|(number, page)| memory.read(*number).is_ok_and(|words| page.compare(&words, step).is_ok()))
    }

    /// Looks after children, or waits for all of them.
    ///
    /// # Errors
    /// From the kernel.
    pub fn reap(&mut self, wait: bool) -> io::Result<()> {
        let flags = if wait { None } else { Some(WaitPidFlag::WNOHANG) };
        for child in std::mem::take(&mut self.children) {
            match waitpid(child, flags) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => self.children.push(child),
                Ok(WaitStatus::Exited(_, 0)) => {}
                Ok(other) => self.note_bad(format!("a child forked at step {} or before ended with {other:?}", self.last_fork)),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
