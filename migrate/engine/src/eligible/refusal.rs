//! Why a process stays, in words: what it has, why that cannot move, what to do.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One reason to stay. Its `Display` is what a user is shown.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Pid 1.
    #[error("it is the first process of the machine: everything depends on it here")]
    Init,
    /// No user process.
    #[error("it is a thread of the kernel: it has no program to move")]
    KernelThread,
    /// Zombie.
    #[error("it has ended and waits for its parent to notice: there is nothing left to move")]
    Ended,
    /// On the caller's list.
    #[error("it belongs to MOSIX itself, or MOSIX was started from it: it has to stay where it works")]
    OurOwn,
    /// State T.
    #[error("it is stopped: continue it first (kill -CONT, fg)")]
    Stopped,
    /// A debugger.
    #[error("process {tracer} traces it (a debugger, strace): it can move when that lets go")]
    Traced {
        /// The tracer; 0 if unknown.
        tracer: i32,
    },
    /// Any seccomp mode.
    #[error("it runs in a seccomp sandbox, whose filters this version does not carry: run it without the sandbox")]
    Seccomp,
    /// Threads with descriptor tables of their own.
    #[error("its threads do not share one table of open files, which CRIU cannot carry: it stays")]
    ThreadsDiffer,
    /// Blocked in a lock call.
    #[error("it waits for a file lock: try again when it has it and gave it back")]
    WaitsForLock,
    /// Container.
    #[error("it lives in namespaces of its own ({}), like a container: move only what runs directly on the machine", names.join(", "))]
    OtherNamespaces {
        /// Which differ from ours.
        names: Vec<String>,
    },
    /// The session or group has no number in this pid namespace.
    #[error(
        "its session or process group is led from outside of this machine's process numbers (a container's entry, an init that made no session): CRIU cannot carry it; start it under `setsid`"
    )]
    LedFromOutside,
    /// A tree.
    #[error("it has {} (pid {}): this version moves single processes; try again when they have ended, or move a child", counted(pids.len(), "child", "children"), listed(pids))]
    HasChildren {
        /// Them.
        pids: Vec<i32>,
    },
    /// `CLONE_VM`.
    #[error("it shares its memory with process {pid}: both would have to move at once, which this version does not")]
    SharesMemory {
        /// The other.
        pid: i32,
    },
    /// `CLONE_FILES`.
    #[error("it shares its table of open files with process {pid}: both would have to move at once, which this version does not")]
    SharesFiles {
        /// The other.
        pid: i32,
    },
    /// `CLONE_FS`.
    #[error("it shares its working directory with process {pid}: both would have to move at once, which this version does not")]
    SharesDirectory {
        /// The other.
        pid: i32,
    },
    /// Not `/`.
    #[error("its root directory is {path}, not /: this version does not carry a changed root")]
    Chroot {
        /// Its root.
        path: String,
    },
    /// Deleted or hidden.
    #[error("its working directory {path} was deleted or replaced: it could not be entered elsewhere")]
    DirectoryGone {
        /// The link's text.
        path: String,
    },
    /// Deleted or replaced.
    #[error("its program {path} was deleted or replaced since it started (an upgrade?): start it anew")]
    ProgramGone {
        /// The link's text.
        path: String,
    },
    /// A shared mapping.
    #[error("it shares memory with others through {}: each node would see only its own changes", named(name))]
    SharedMapping {
        /// The mapping's name.
        name: String,
    },
    /// A device, or a deleted file.
    #[error("it has {name} mapped, a device or a file that was deleted: it does not exist elsewhere")]
    SpecialMapping {
        /// The mapping's name.
        name: String,
    },
    /// Hugetlb.
    #[error("it uses reserved huge pages, which another node may not have: use transparent huge pages instead")]
    HugePages,
    /// A process that we may not look into.
    #[error("the kernel does not show what process {pid} shares with it: run mosixd with all capabilities")]
    Opaque {
        /// The other.
        pid: i32,
    },
    /// Any socket.
    #[error("descriptor {fd} is a socket ({protocol}): sockets come with a later version; it can move when it has closed it")]
    Socket {
        /// Which.
        fd: i32,
        /// TCP, UNIX-STREAM, ...
        protocol: String,
    },
    /// A named pipe.
    #[error("descriptor {fd} is the named pipe {path}: its other end may be opened by anyone here, so it stays")]
    NamedPipe {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
    },
    /// `O_DIRECT` pipe.
    #[error("descriptor {fd} is a pipe in packet mode (O_DIRECT), which CRIU cannot carry: it stays")]
    PacketPipe {
        /// Which.
        fd: i32,
    },
    /// Both ends inside, and one outside.
    #[error(
        "it holds both ends of {link} (descriptor {fd}) and process {pid} holds one, too: like a job server's tokens, the bytes have no direction to be carried in"
    )]
    PipeBothWays {
        /// A descriptor.
        fd: i32,
        /// The pipe.
        link: String,
        /// Who else.
        pid: i32,
    },
    /// A device.
    #[error("descriptor {fd} is the device {path}: only this machine has it")]
    DeviceFile {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
    },
    /// A terminal that is not its own.
    #[error("descriptor {fd} is the terminal {path}, which is not the one it is controlled from: only that one can be carried")]
    OtherTerminal {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
    },
    /// `/dev/tty`.
    #[error("descriptor {fd} is /dev/tty, the terminal under its general name: this version carries it only by its own name")]
    GeneralTerminal {
        /// Which.
        fd: i32,
    },
    /// io_uring, inotify, ...
    #[error("descriptor {fd} is {}: its state is inside this machine's kernel and cannot be carried", kind_in_words(kind))]
    KernelObject {
        /// Which.
        fd: i32,
        /// The kernel's name.
        kind: String,
    },
    /// An anonymous inode that another process holds.
    #[error("descriptor {fd} ({kind}) is shared with process {pid}: each would have its own after a move")]
    SharedObject {
        /// Which.
        fd: i32,
        /// The kernel's name.
        kind: String,
        /// Who else.
        pid: i32,
    },
    /// Deleted file.
    #[error("descriptor {fd} is the deleted or replaced file {path}: it could not be opened elsewhere")]
    FileGone {
        /// Which.
        fd: i32,
        /// The link's text.
        path: String,
    },
    /// From another mount namespace.
    #[error(
        "descriptor {fd} ({path}) was opened in another mount namespace and handed over: its path means nothing here, so it could not be opened elsewhere"
    )]
    ForeignMount {
        /// Which.
        fd: i32,
        /// The link's text.
        path: String,
    },
    /// /proc, /sys.
    #[error("descriptor {fd} is {path}, which tells of this machine: another node's would tell something else")]
    MachineFile {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
    },
    /// Locks.
    #[error("it holds a lock on descriptor {fd} ({path}): this version does not carry locks; try again when it gave it back")]
    Locked {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
    },
    /// A description shared with an outside process.
    #[error(
        "descriptor {fd} ({path}) shares its offset with process {pid}: they would part on a move; only writing (> or >>) can be shared"
    )]
    SharedOffset {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
        /// Who else.
        pid: i32,
    },
    /// A shared file that is also open otherwise or mapped.
    #[error(
        "it writes {path} (descriptor {fd}) together with process {pid}, and has it open or mapped in a second way: CRIU cannot tell the two apart"
    )]
    MixedFile {
        /// Which.
        fd: i32,
        /// Its path.
        path: String,
        /// Who else.
        pid: i32,
    },
    /// Of a kind that this version does not know.
    #[error("descriptor {fd} ({link}) is of a kind that this version does not know: it stays")]
    UnknownFile {
        /// Which.
        fd: i32,
        /// The link's text.
        link: String,
    },
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("a {one}") } else { format!("{count} {many}") }
}

/// The first few, so that a message stays a line.
fn listed(pids: &[i32]) -> String {
    let shown: Vec<String> = pids.iter().take(5).map(ToString::to_string).collect();
    let more = if pids.len() > 5 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn named(name: &str) -> &str {
    if name.is_empty() { "a nameless mapping" } else { name }
}

fn kind_in_words(kind: &str) -> String {
    let words = match kind {
        "inotify" | "fanotify" => "a watch on files",
        "pidfd" => "a handle on a process",
        "io_uring" => "an io_uring",
        "perf_event" => "a performance counter",
        "userfaultfd" => "a page-fault handler",
        "mount" | "fscontext" => "a mount in the making",
        _ if kind.starts_with("bpf") => "a BPF object",
        _ if kind.starts_with("kvm") => "a virtual machine",
        _ => return format!("a kernel object ({kind})"),
    };
    format!("{words} ({kind})")
}
