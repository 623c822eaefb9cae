//! What a move must bring along or leave connected.

use serde::{Deserialize, Serialize};

use crate::facts::Facts;

/// How a movable process is moved. Two plans of the same process are equal exactly if nothing that matters to the move changed,
/// but for [`Plan::memory_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Pid at home.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// Its threads, the leader among them.
    pub tids: Vec<i32>,
    /// Real uid.
    pub uid: u32,
    /// Real gid.
    pub gid: u32,
    /// Short name.
    pub comm: String,
    /// Arguments.
    pub cmdline: Vec<String>,
    /// Start time in clock ticks since home's boot: with the pid it names the process for ever.
    pub start_time_ticks: u64,
    /// Home's host name: the guest keeps seeing it.
    pub hostname: String,
    /// Resident memory in bytes when it was looked at.
    pub memory_bytes: u64,
    /// What is pumped, by id from 0.
    pub channels: Vec<Channel>,
    /// Its terminal, if it has one open.
    pub tty: Option<Tty>,
}

/// What kind of stream a [`Channel`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelKind {
    /// The process reads a pipe; home's stub reads the real one and sends the bytes to the guest.
    PipeIn,
    /// The process writes a pipe; the agent reads the guest's one, home's stub writes into the real one.
    PipeOut,
    /// The process writes a file whose offset it shares with others; the guest writes into a pipe, home's stub into the file.
    FileOut,
}

/// One stream between home's stub and the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Its number within the move.
    pub id: u16,
    /// What it is.
    pub kind: ChannelKind,
    /// CRIU's name of it in `--inherit-fd fd[N]:KEY` on restore.
    pub key: String,
    /// What `--external` must say on dump, if anything.
    pub external: Option<String>,
    /// The descriptors that lead to it, all of which are the guest's end of it. Any of them serves home's stub.
    pub fds: Vec<i32>,
    /// Others use the same end: bytes of one write must not be torn apart more than home's own kernel would, and none may be
    /// read that the guest does not ask for.
    pub shared: bool,
}

/// The controlling terminal and the descriptors that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// All descriptors of the terminal.
    pub fds: Vec<i32>,
    /// `st_rdev` of the terminal: which one it is.
    pub rdev: u64,
    /// `st_dev` of its node: the file system it is on.
    pub dev: u64,
    /// The process's group is the terminal's foreground group.
    pub foreground: bool,
}

impl Tty {
    /// CRIU's name of the terminal, for `--external` and `--inherit-fd`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("tty[{:x}:{:x}]", self.rdev, self.dev)
    }
}

impl Plan {
    pub(super) fn new(facts: &Facts, channels: Vec<Channel>, tty: Option<Tty>) -> Self {
        Self {
            pid: facts.pid,
            ppid: facts.ppid,
            pgid: facts.pgid,
            sid: facts.sid,
            tids: facts.threads.iter().map(|thread| thread.tid).collect(),
            uid: facts.uids[0],
            gid: facts.gids[0],
            comm: facts.comm.clone(),
            cmdline: facts.cmdline.clone(),
            start_time_ticks: facts.start_time_ticks,
            hostname: facts.hostname.clone(),
            memory_bytes: facts.memory_bytes,
            channels,
            tty,
        }
    }
}
