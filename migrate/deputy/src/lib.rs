//! What stays at home when a process has been migrated: the stub that its body becomes, the injector that
//! makes it so, and the watcher that lets it stop, continue and die exactly as the guest does.
//!
//! # How it works
//!
//! Once the guest runs elsewhere, the frozen home body is of no more use but for what the kernel ties to
//! its pid: parent, process group, session, terminal, open file descriptions, locks, and the `wait()` of
//! its parent. [`Watcher::adopt`] keeps exactly that:
//!
//! 1. every thread is seized by ptrace and stopped while the cgroup freezer still holds it, so none of
//!    them ever executes another instruction of the program (module `inject`);
//! 2. the leader is made to `execveat` a [stub](stub_image) of 185 bytes whose only instruction is
//!    `pause()`: the memory is gone, everything named above remains;
//! 3. one thread of the daemon traces all stubs and sees each signal before it acts. It is suppressed and
//!    handed on as a [`StubEvent`]; what the guest then did comes back through [`Watcher::stop`],
//!    [`Watcher::cont`] and [`Watcher::finish`].
//!
//! The stub has no code to attack, no descriptor of ours and no connection: the daemon does all pumping
//! itself, with pipes and terminals that it opens anew through `/proc/PID/fd`. If the daemon dies, its stubs are killed by the kernel
//! (`PTRACE_O_EXITKILL`), so that nothing looks alive that is not.
//!
//! # What a stub keeps and what it does not
//!
//! Kept: pid, parent, process group, session, terminal, cgroup, namespaces, credentials, nice value,
//! limits, all descriptors (the close-on-exec ones too: the flag is cleared before), POSIX and flock
//! locks, `comm`, `/proc/PID/cmdline` (its first 64 KiB), pending signals (reported one by one).
//! Changed: one thread; `/proc/PID/exe` names a memfd; interval timers are disarmed, because the guest
//! has them; dispositions are default, but SIGCHLD is ignored, so that stubs of children leave no zombies;
//! a pending SIGCHLD is dropped by that.
//!
//! # Rules for the program that uses it
//!
//! * No thread may call `waitpid(-1)` or `wait()` without `__WNOTHREAD`: it would take the watcher's events.
//! * The process gets a SIGCHLD for each ptrace stop, as any tracer does: a handler must look by pid whose it is.
//! * A child of the daemon's own process cannot be adopted ([`AdoptReason::OwnChild`]): to the kernel tracer
//!   and parent would be the same, and job control would be hidden from the parent.
//! * Not for a memory map, descriptor table or tree shared with processes outside the group: whoever
//!   chooses what to migrate must have refused those.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mosix-deputy injects x86_64 Linux system calls and runs nowhere else");

mod error;
mod freezer;
mod inject;
mod keeper;
mod procfs;
pub mod stub_image;
mod sys;
mod watcher;

pub use error::{AdoptError, AdoptReason, StubError};
pub use keeper::{Member, StubEvent};
pub use mosix_ptrace::sys::End;
pub use watcher::Watcher;
