//! The records that the BPF programs and `mosix-probe` share.
//!
//! The kernel side (`src/bpf/`, compiled for `bpfel-unknown-none`) walks all tasks and writes one [`TaskRecord`] for
//! each. It needs to know where the running kernel keeps its fields: user space looks them up in the kernel's BTF and
//! hands them over as [`Offsets`], a frozen read-only global, so that the verifier can type-check every access.
//!
//! This library is all that host code sees. It is `no_std`, has no dependencies and does no I/O.

#![no_std]

mod offsets;
mod record;

pub use offsets::{ABSENT, Field, Offsets, What};
pub use record::{COMM_LEN, STATE_WAKING, TaskRecord, flags};

/// Name of the program that writes the task records (also its symbol in the object).
pub const ITER_TASK: &str = "mosix_iter_task";

/// Name of the global that holds the [`Offsets`].
pub const OFFSETS: &str = "OFFSETS";
