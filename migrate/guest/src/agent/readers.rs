//! Finds out whether the guest waits for input, so that home takes from its own pipe or terminal no more than the guest reads.
//!
//! Bytes that were read ahead at home would be lost for whoever reads the same pipe or terminal next (a shell after its job), so input is
//! pulled: home says that it has some, and it is fetched when a thread of the guest is seen sleeping in a call that waits for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(250);
/// Given to a thread that waits in poll(2) or the like, where the amount is not known. POSIX's atomic pipe size.
const UNKNOWN_AMOUNT: u32 = 4096;

/// What a description is, to compare a guest's descriptor with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A pipe's inode.
    Pipe(u64),
    /// A terminal's device number.
    Terminal(u64),
}

/// When to look again for a channel on which home has input.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) id: u16,
    next: Instant,
    pause: Duration,
}

impl Watch {
    pub(crate) fn new(id: u16, now: Instant) -> Self {
        Self { id, next: now, pause: SHORTEST }
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Not yet: look again later, more and more seldom.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST);
    }
}

/// How many bytes some thread of the processes `pids` waits for on the description, if one does. A thread in poll(2) or the like counts
/// only with `polls`: it may go on without reading.
pub(crate) fn wanted(pids: &[i32], what: Identity, polls: bool) -> Option<u32> {
    pids.iter().find_map(|pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        tasks.flatten().find_map(|task| {
            let call = fs::read_to_string(task.path().join("syscall")).ok()?;
            waits_for(&call, polls, |fd| identity_of(*pid, fd) == Some(what))
        })
    })
}

/// Reads one line of /proc/PID/task/TID/syscall: number and arguments in hexadecimal, or `running`.
fn waits_for(line: &str, polls: bool, is_it: impl Fn(i32) -> bool) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace();
    let number: i64 = fields.next()?.parse().ok()?;
    let mut argument = || fields.next().and_then(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok());
    match number {
        libc::SYS_read => {
            let (fd, _, count) = (argument()?, argument()?, argument()?);
            is_it(fd as i32).then(|| u32::try_from(count).unwrap_or(u32::MAX).clamp(1, mosix_guest::CHUNK_BYTES as u32))
        }
        libc::SYS_readv | libc::SYS_splice => is_it(argument()? as i32).then_some(UNKNOWN_AMOUNT),
        libc::SYS_poll | libc::SYS_ppoll | libc::SYS_select | libc::SYS_pselect6 | libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            polls.then_some(UNKNOWN_AMOUNT)
        }
        _ => None,
    }
}

fn identity_of(pid: i32, fd: i32) -> Option<Identity> {
    let metadata = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?;
    match metadata.mode() & libc::S_IFMT {
        libc::S_IFIFO => Some(Identity::Pipe(metadata.ino())),
        libc::S_IFCHR => Some(Identity::Terminal(metadata.rdev())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_tells_how_much_it_wants() {
        assert_eq!(waits_for("0 0x3 0x7ffd 0x1000 0x0 0x0 0x0 0x7ffd 0x7f00", true, |fd| fd == 3), Some(4096));
        assert_eq!(waits_for("0 0x4 0x7ffd 0x1000 0x0 0x0 0x0 0x7ffd 0x7f00", true, |fd| fd == 3), None);
    }

    #[test]
    fn running_and_other_calls_do_not_wait_for_input() {
        assert_eq!(waits_for("running", true, |_| true), None);
        assert_eq!(waits_for("35 0x3 0x0 0x0 0x0 0x0 0x0 0x0 0x0", true, |_| true), None);
        assert_eq!(waits_for("", true, |_| true), None);
    }

    #[test]
    fn a_poll_may_wait_for_it() {
        assert_eq!(waits_for("7 0x7ffd 0x1 0xffff 0x0 0x0 0x0 0x0 0x0", true, |_| false), Some(4096));
    }

    #[test]
    fn a_poll_is_not_trusted_with_what_others_read() {
        assert_eq!(waits_for("7 0x7ffd 0x1 0xffff 0x0 0x0 0x0 0x0 0x0", false, |_| true), None);
    }

    #[test]
    fn looking_gets_more_and_more_seldom() {
        let start = Instant::now();
        let mut watch = Watch::new(1, start);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let before = watch.due();
            watch.postpone(before);
            waits.push(watch.due() - before);
        }
        assert_eq!(waits.first(), Some(&SHORTEST));
        assert_eq!(waits.last(), Some(&LONGEST));
    }
}
