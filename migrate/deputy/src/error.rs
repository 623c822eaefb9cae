//! Errors, and what each of them means for the processes.

use std::io;

use mosix_ptrace::sys::End;

/// A group could not be adopted.
///
/// Effect on state: members that are not stubs yet are frozen and untraced again, with registers, memory,
/// descriptors and signal mask as before, and did not run: the caller decides. Members that were already
/// made stubs (possible only if a later member of the same group failed in its `execve`) stay watched, and
/// are frozen along with the others.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} cannot become a deputy: {reason}")]
pub struct AdoptError {
    /// The member that failed.
    pub pid: i32,
    /// Why.
    #[source]
    pub reason: AdoptReason,
}

/// Why a process could not be adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptReason {
    /// The cgroup is not frozen, so nothing was touched.
    #[error("its cgroup is not frozen; write 1 to cgroup.freeze and wait for `frozen 1` first")]
    NotFrozen,
    /// Thawing would let somebody else run.
    #[error("its cgroup also holds process {other}; adopt the whole group at once, or move that process out")]
    NotAlone {
        /// One process that is in the cgroup but not in the group.
        other: i32,
    },
    /// The freezer acts on child cgroups too.
    #[error("its cgroup has child cgroups, which would be thawed too; give the group a cgroup without children")]
    ChildCgroups,
    /// Not in the cgroup that was named.
    #[error("it is not in the cgroup {cgroup}; move it there and freeze it first")]
    NotInCgroup {
        /// The directory that was given.
        cgroup: String,
    },
    /// Tracer and parent would be the same process.
    #[error("it is a child of this daemon, whose wait() would be confused with ptrace; start it from another process")]
    OwnChild,
    /// Somebody else traces it.
    #[error("process {tracer} traces it; detach the debugger first")]
    Traced {
        /// The tracer.
        tracer: i32,
    },
    /// Its leader thread has exited, so it has nothing to run the stub in.
    #[error("its main thread has exited (state {state})")]
    LeaderGone {
        /// State letter of `/proc/PID/status`.
        state: char,
    },
    /// Neither seccomp can be suspended nor calls be injected.
    #[error("it has a seccomp filter, which cannot be suspended ({source}); CAP_SYS_ADMIN is needed")]
    Seccomp {
        /// What the kernel said.
        source: io::Error,
    },
    /// Only 64-bit programs are supported.
    #[error("it runs 32-bit code; such programs stay at home")]
    Not64Bit,
    /// Some thread did not come to its ptrace stop.
    #[error("thread {tid} did not stop within the time allowed; it may wait in the kernel without reacting to signals")]
    NotStopping {
        /// One thread that did not stop.
        tid: i32,
    },
    /// No place to run a system call from.
    #[error("its memory holds no syscall instruction that could be used")]
    NoSyscallInstruction,
    /// A system call that we made it do failed.
    #[error("the injected {call} failed: {source}")]
    Injected {
        /// Name of the call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It died on the way.
    #[error("it was {end} meanwhile")]
    Died {
        /// How; the parent sees the same.
        end: End,
    },
    /// It did not get on in the time allowed.
    #[error("it did not respond within the time allowed, while {doing}; is its cgroup frozen by someone else?")]
    Timeout {
        /// What was to be done.
        doing: &'static str,
    },
    /// Any other refusal by the kernel.
    #[error("{doing} failed: {source}")]
    Os {
        /// What was to be done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The watcher could not take the order; nothing was touched.
    #[error(transparent)]
    Watcher(Box<StubError>),
}

/// An order for a stub was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StubError {
    /// No stub of this watcher has that pid. Nothing was done.
    #[error("{pid} is no deputy watched here (it may have ended, or was never adopted)")]
    Unknown {
        /// The pid that was given.
        pid: i32,
    },
    /// It died before the order was carried out. No [`StubEvent::Gone`](crate::StubEvent::Gone) follows if the order was `finish`.
    #[error("deputy {pid} was {end} before the order was carried out")]
    Gone {
        /// The stub.
        pid: i32,
        /// How it ended.
        end: End,
    },
    /// That signal does not kill (or stop) by default. Nothing was done.
    #[error("signal {signal} does not {what} a process by default; the guest cannot have reported it")]
    WrongSignal {
        /// The signal that was given.
        signal: i32,
        /// "end" or "stop".
        what: &'static str,
    },
    /// The kernel ignores terminal stops in an orphaned process group; the stub goes on.
    #[error("deputy {pid} cannot be stopped by signal {signal}: its process group is orphaned at home")]
    Orphaned {
        /// The stub.
        pid: i32,
        /// The signal.
        signal: i32,
    },
    /// It is still watched, and the order may take effect later.
    #[error("deputy {pid} did not respond within the time allowed; is its cgroup frozen?")]
    Timeout {
        /// The stub.
        pid: i32,
    },
    /// The watcher did not take the order in time and will not carry it out.
    #[error("the watcher is too busy to take the order; is an event handler blocking it?")]
    Busy,
    /// The watcher thread has ended, and the kernel has killed its stubs.
    #[error("the watcher has ended")]
    WatcherEnded,
    /// Any other refusal by the kernel.
    #[error("deputy {pid}: {doing} failed: {source}")]
    Os {
        /// The stub.
        pid: i32,
        /// What was to be done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
