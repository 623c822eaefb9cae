//! Other processes made to stop, and to run system calls for us.
//!
//! * [`sys`]: the system calls on tracees, each wrapped once. All `unsafe` is there.
//! * [`tracee`]: [`Injector`](tracee::Injector), by which a stopped process runs system calls.
//! * [`mod@visit`]: the short visit: stop a running process, make some calls, let it go on as if nothing had happened.
//! * [`procfs`]: what must be known of a process before.
//!
//! No byte of the program's text is changed, so its other threads may run meanwhile.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mosix-ptrace injects x86_64 Linux system calls and runs nowhere else");

pub mod procfs;
pub mod sys;
pub mod tracee;
pub mod visit;

pub use visit::{Stopped, Threads, VisitError, visit};
