//! The processes around the guest that make its numbers true: its parent's pid, its session and its process group.
//!
//! CRIU takes the session and group of a job's root from the process that restores it, and (as a sibling) gives it that process's
//! parent. So CRIU is started by a *parent* with the number of the real one, inside a session and a group of the real numbers:
//!
//! | at home                       | here |
//! |---|---|
//! | it leads its session          | CRIU makes the session |
//! | its parent leads the session  | the parent calls setsid |
//! | another process leads it      | a *leader* with that number calls setsid and forks the parent |
//! | session 1                     | init's own session |
//! | parent is init (1)            | the parent ends after the restore, init inherits the guest |
//! | group of a third process      | a *place-holder* with that number holds the group |

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mosix_guest::Setup;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, getpid, pause, setpgid, setsid};

use super::parent::{self, Link};
use super::sys::{self, Fork};
use super::tty::Terminal;

/// What the parent needs to restore.
pub(crate) struct Ends {
    /// CRIU key and the guest's end of each pipe.
    pub(crate) pipes: Vec<(String, OwnedFd)>,
    pub(crate) terminal: Option<OwnedFd>,
}

/// Starts the family; returns init's link to the parent.
pub(crate) fn start(setup: &Setup, terminal: Option<&Terminal>, pipes: Vec<(String, OwnedFd)>) -> Result<Link> {
    let ends = Ends { pipes, terminal: terminal.map(Terminal::slave_for_restore).transpose()? };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    if setup.sid == 1 {
        take_terminal(&ends)?;
    }
    let needs_leader = setup.sid > 1 && setup.sid != setup.pid && setup.sid != setup.ppid;
    let number = if needs_leader { setup.sid } else { parent_number(setup)? };
    match sys::fork_as(number).with_context(|| format!("cannot make a process with the number {number}"))? {
        Fork::Parent(_) => Ok(Link::new(ours)),
        Fork::Child => {
            drop(ours);
            let code = match as_child(setup, needs_leader, Link::new(theirs), ends) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("mosix-agent: {error:#}");
                    1
                }
            };
            std::process::exit(code)
        }
    }
}

fn as_child(setup: &Setup, is_leader: bool, link: Link, ends: Ends) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // Init's ends of the pipes, its terminal master and its control socket must not live on here: the guest would never see an end of file.
    let mut keep = vec![link.as_fd().as_raw_fd()];
    keep.extend(ends.pipes.iter().map(|(_, fd)| fd.as_raw_fd()));
    keep.extend(ends.terminal.iter().map(AsRawFd::as_raw_fd));
    sys::close_all_but(&keep)?;
    if is_leader { lead(setup, link, ends) } else { be_parent(setup, link, ends) }
}

/// The session's leader: only its number and its session matter; it stays until the namespace ends, because the end of a
/// leader hangs up the terminal.
fn lead(setup: &Setup, link: Link, ends: Ends) -> Result<()> {
    setsid()?;
    take_terminal(&ends)?;
    match sys::fork_as(parent_number(setup)?).with_context(|| format!("cannot make a parent with the number {}", setup.ppid))? {
        Fork::Child => be_parent(setup, link, ends),
        Fork::Parent(_) => {
            drop((link, ends));
            ignore_terminal_signals()?;
            while sys::wait_child(-1, true).is_some() {}
            loop {
                pause();
            }
        }
    }
}

fn be_parent(setup: &Setup, link: Link, ends: Ends) -> Result<()> {
    reserve_numbers(setup, setup.pid).context("cannot keep the guest's numbers free")?;
    if setup.sid == setup.ppid && setup.sid > 1 {
        setsid()?;
        take_terminal(&ends)?;
    }
    join_group(setup).with_context(|| format!("cannot form the process group {}", setup.pgid))?;
    ignore_terminal_signals()?;
    parent::run(setup, link, ends)
}

/// The number of the guest's parent; if that is init, one that the guest hardly has.
fn parent_number(setup: &Setup) -> Result<i32> {
    if setup.ppid > 1 { Ok(setup.ppid) } else { Ok(largest_number().context("cannot read the largest process number")? - 2) }
}

fn largest_number() -> io::Result<i32> {
    Ok(fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse().unwrap_or(32768))
}

fn take_terminal(ends: &Ends) -> Result<()> {
    match &ends.terminal {
        Some(slave) => sys::take_terminal(slave.as_fd()).context("cannot make the terminal the controlling one"),
        None => Ok(()),
    }
}

fn join_group(setup: &Setup) -> Result<()> {
    let myself = Pid::from_raw(0);
    if setup.pgid == setup.pid || setup.pgid == nix::unistd::getpgrp().as_raw() {
        return Ok(());
    }
    if setup.pgid == getpid().as_raw() {
        return Ok(setpgid(myself, myself)?);
    }
    if setup.pgid == setup.sid {
        return Ok(setpgid(myself, Pid::from_raw(setup.sid))?);
    }
    match sys::fork_as(setup.pgid)? {
        Fork::Child => loop {
            pause();
        },
        Fork::Parent(holder) => {
            setpgid(holder, holder)?;
            Ok(setpgid(myself, holder)?)
        }
    }
}

/// Keys pressed at home arrive as signals by the control socket; members of the family that share the guest's group must not act on the guest's own
/// kill(0, ..).
fn ignore_terminal_signals() -> Result<()> {
    use nix::sys::signal::Signal;
    const KEYS: [Signal; 9] = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ];
    KEYS.into_iter().try_for_each(sys::ignore_signal).context("cannot ignore signals")
}

/// Lets numbers that nobody chose (CRIU, its helpers) come from far away of those that the group has, or may get while it is still elsewhere:
/// new threads get the next numbers there.
pub(crate) fn reserve_numbers(setup: &Setup, max_tid: i32) -> io::Result<()> {
    /// Below are the numbers of a machine's first processes.
    const LOWEST: i32 = 300;
    let highest = [max_tid, setup.pid, setup.ppid, setup.sid, setup.pgid].into_iter().max().unwrap_or(1);
    let largest = largest_number()?;
    // By chance: the group's newest threads may have been made on a node where it was before, beside numbers that were chosen there like this.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let away = largest / 4 + i32::try_from(clock % u32::try_from(largest / 2).unwrap_or(1)).unwrap_or(0);
    let start = LOWEST + (highest + away) % (largest - 2 * LOWEST).max(1);
    fs::write("/proc/sys/kernel/ns_last_pid", start.to_string())
}
