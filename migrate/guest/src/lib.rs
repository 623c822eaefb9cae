//! The guest side of a move: the agent process that restores and holds one guest, and the protocol between it and `mosixd`.
//!
//! `mosixd` starts one `mosix-agent` a guest, with a Unix stream socket as its standard input. Messages are
//! length-prefixed postcard ([`ToAgent`], [`FromAgent`]), in this order:
//!
//! ```text
//! mosixd                          agent
//!   Setup            ------->       makes the namespaces, shadow parent, pipes, terminal
//!                    <-------     Ready               (with premem: CRIU waits for its memory; it is the one process in the freezer)
//!   Window           ------->       a region in the waiting CRIU
//!                    <-------     Window              (mosixd writes the pages there itself)
//!   Restore          ------->       criu restore ... post-restore hook
//!                    <-------     Prepared            (restored completely, not one instruction run)
//!   Commit | Abort   ------->
//!                    <-------     Running             (or Failed, and the copy is gone)
//!   Signal, Data, Credit, Closed, Pending            Data, Wants, Eof, Stopped, Continued, Exited, Gone
//!   Dump             ------->       criu dump, frozen         (the next hop)
//!                    <-------     Step Before .. Stopped .. Held
//!   GoOn             ------->       after Before and Held
//!                    <-------     Data* Dumped | DumpFailed
//!   Thaw | Release   ------->       runs on | the frozen body is killed and the agent ends
//! ```
//!
//! If the socket ends, the agent kills what it holds and ends: a guest without its home may not go on.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Bytes that may be under way to home for each output channel.
pub const OUTPUT_WINDOW_BYTES: usize = 256 << 10;
/// Most data bytes in one message.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Longest accepted message in bytes: a `Dumped` with every channel's unread input is the largest.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Which way a channel's data flows, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The guest reads; home delivers.
    Input,
    /// The guest writes; home writes it on to the real description.
    Output,
}

/// One pipe between the guest and home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSpec {
    /// Number, unique in the group.
    pub id: u16,
    /// See [`Direction`].
    pub direction: Direction,
    /// CRIU's key of the dumped description that the pipe replaces.
    pub key: String,
    /// Others at home read the same pipe: a guest that only polls it is given nothing, since it may not read it after all.
    pub shared: bool,
}

/// The controlling terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySpec {
    /// Channel number; both directions.
    pub id: u16,
    /// Home's terminal hands out whole lines (ICANON).
    pub canonical: bool,
    /// Rows and columns.
    pub size: (u16, u16),
}

/// Everything the agent must know before anything is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Pid of the process at home, and here.
    pub pid: i32,
    /// Parent at home; 1 if it is init (or outside).
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Home's host name.
    pub hostname: String,
    /// Pipes to home.
    pub channels: Vec<ChannelSpec>,
    /// Controlling terminal, if it has one.
    pub tty: Option<TtySpec>,
    /// Program path of CRIU.
    pub criu: String,
    /// Control groups (v1 or v2 folders) that the guest joins before it runs.
    pub cgroups: Vec<String>,
    /// Folder of the guest's own cgroup-v2 group, existing, used to freeze it.
    pub freezer: String,
    /// Cgroup folders in which a guest is while it is being dumped (no CPU quota); empty: stays where it is.
    pub dump_cgroups: Vec<String>,
    /// CPUs that the guest may use; empty: all.
    pub cpus: Vec<u32>,
    /// Deadline for each CRIU run, ms.
    pub criu_deadline_ms: u64,
    /// Folder for the images, existing; they may come later.
    pub images_dir: String,
    /// Start the restore at once and let it wait for its memory; needs a patched CRIU. CRIU's cache of kernel features.
    pub premem: Option<String>,
}

/// How the guest is to be dumped for its next hop without the contents of its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkeletonSpec {
    /// File that will list memory which CRIU need not look at; complete when the step *Before* is answered.
    pub trust: String,
    /// Folder that will hold a copy of the guest's mappings; the same.
    pub smaps: String,
    /// CRIU's cache of kernel features.
    pub kerndat: String,
}

/// Where a dump is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpStep {
    /// Nothing is stopped yet. Waits for an answer.
    Before,
    /// All threads are stopped. CRIU goes on.
    Stopped,
    /// The images are complete, the guest is frozen, all its output so far has been sent. Waits for an answer; if that is yes, the dump is done.
    Held {
        /// What must go with the images.
        carried: Carried,
        /// Microseconds for which nothing of it had run.
        frozen_us: u64,
    },
}

/// What goes with the images of a move but is not in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Largest thread or process number in use by the group.
    pub max_tid: i32,
    /// Input that the guest had been given and had not read, by channel.
    pub unread: Vec<(u16, Vec<u8>)>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Called exit.
    Exited(i32),
    /// Killed by a signal.
    Signaled {
        /// Which.
        signal: i32,
        /// It dumped core.
        core: bool,
    },
}

/// To the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// First message.
    Setup(Box<Setup>),
    /// A window of the guest's addresses whose pages will be supplied; answered by [`FromAgent::Window`].
    Window {
        /// First address.
        start: u64,
        /// Length.
        length_bytes: u64,
        /// What is mapped there has MAP_NORESERVE.
        no_reserve: bool,
    },
    /// Images are complete.
    Restore {
        /// What came with them.
        carried: Carried,
    },
    /// Let it run.
    Commit,
    /// Destroy the copy.
    Abort,
    /// Deliver a signal to the guest.
    Signal {
        /// Number.
        signo: i32,
        /// Its value if it was sent by sigqueue(3).
        value: Option<i64>,
    },
    /// Input for the guest.
    Data {
        /// Channel.
        id: u16,
        /// At most [`CHUNK_BYTES`].
        bytes: Vec<u8>,
    },
    /// Home has input: tell (once) when the guest waits for it.
    Pending {
        /// Channel.
        id: u16,
    },
    /// No more input will come.
    EndOfInput {
        /// Channel.
        id: u16,
    },
    /// Home has passed on so many output bytes.
    Credit {
        /// Channel.
        id: u16,
        /// Count.
        bytes: u32,
    },
    /// Home cannot pass on output any more (its reader has gone).
    Closed {
        /// Channel.
        id: u16,
    },
    /// The terminal's size.
    WindowSize {
        /// Rows, columns.
        size: (u16, u16),
    },
    /// Dump the guest into this existing, empty folder and keep it frozen.
    Dump {
        /// Folder.
        images_dir: String,
        /// Without memory.
        skeleton: Option<SkeletonSpec>,
    },
    /// Answer to a step of the dump.
    GoOn {
        /// Give the dump up, for this reason.
        veto: Option<String>,
    },
    /// The hop was given up: go on.
    Thaw,
    /// The hop is done: kill the frozen body and end.
    Release,
    /// Kill the guest and end (the home process was killed).
    Kill,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// Namespaces stand; nothing restored. The CRIU keys of the new pipes, for the next hop.
    Ready {
        /// Channel and key.
        keys: Vec<(u16, String)>,
    },
    /// Answer to [`ToAgent::Window`].
    Window {
        /// Address of its first page in the waiting CRIU; or why there is none.
        address: Result<u64, String>,
    },
    /// The dump has come so far.
    Step(DumpStep),
    /// Restored, waiting for the word.
    Prepared,
    /// It runs.
    Running,
    /// Could not restore, or aborted; nothing is left.
    Failed {
        /// Why, in words.
        why: String,
    },
    /// Output of the guest.
    Data {
        /// Channel.
        id: u16,
        /// At most [`CHUNK_BYTES`].
        bytes: Vec<u8>,
    },
    /// The guest waits for input on this channel.
    Wants {
        /// Channel.
        id: u16,
        /// How much it asks for; never deliver more.
        bytes: u32,
    },
    /// The guest closed this output.
    Eof {
        /// Channel.
        id: u16,
    },
    /// Stopped by a signal.
    Stopped {
        /// Which.
        signal: i32,
    },
    /// Continued.
    Continued,
    /// The root ended; all its output has been sent before.
    Exited {
        /// How.
        end: End,
        /// CPU time that it and its waited-for children used since it came here, ms.
        cpu_ms: u64,
    },
    /// CRIU has let go of the frozen guest.
    Dumped,
    /// No dump; the guest runs on.
    DumpFailed {
        /// Why.
        why: String,
    },
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket ended or broke.
    #[error("the connection between mosixd and its agent broke: {0}")]
    Io(#[from] io::Error),
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// Not ours.
    #[error("malformed message: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Encodes a message with its length in front.
///
/// # Errors
/// Only if it is longer than [`MAX_MESSAGE_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong(length));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Writes one message; blocks until it is written.
///
/// # Errors
/// See [`ProtocolError`].
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), ProtocolError> {
    Ok(to.write_all(&encode(message)?)?)
}

/// Reads one message; blocks until it is there.
///
/// # Errors
/// See [`ProtocolError`]; an end of stream is `Io(UnexpectedEof)`.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, ProtocolError> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = checked_length(length)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(postcard::from_bytes(&bytes)?)
}

/// Length of the message that follows this prefix.
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn checked_length(prefix: [u8; 4]) -> Result<usize, ProtocolError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_MESSAGE_BYTES { Err(ProtocolError::TooLong(length)) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let message = ToAgent::Data { id: 3, bytes: vec![1; 1000] };
        let mut bytes = Vec::new();
        send(&mut bytes, &message).unwrap();
        assert_eq!(receive::<ToAgent>(&mut bytes.as_slice()).unwrap(), message);
    }

    #[test]
    fn a_hostile_length_is_refused_before_memory_is_taken() {
        let bytes = [0xff_u8; 8];
        assert!(matches!(receive::<ToAgent>(&mut bytes.as_slice()), Err(ProtocolError::TooLong(_))));
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let mut bytes = encode(&FromAgent::Failed { why: "x".repeat(100) }).unwrap();
        bytes.truncate(50);
        assert!(matches!(receive::<FromAgent>(&mut bytes.as_slice()), Err(ProtocolError::Io(_))));
    }
}
