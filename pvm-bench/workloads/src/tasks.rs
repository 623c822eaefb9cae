//! What the PVM master and its workers say to each other.
//!
//! worker → master `READY`; master → all `GO` (value: CPU seconds to use); worker → master `DONE` (value: CPU seconds
//! used). PVM itself sends `GONE` to the master for each worker that ends.

/// A worker has reached the barrier.
pub const READY: i32 = 1;
/// The barrier falls.
pub const GO: i32 = 2;
/// A worker has done its work.
pub const DONE: i32 = 3;
/// A worker has ended (by `pvm_notify`).
pub const GONE: i32 = 4;
/// First word of the master's line that names the hosts, in the order of the tasks.
pub const PLACED: &str = "placed";
/// First word of the master's line with the seconds from GO to the last result.
pub const ELAPSED: &str = "elapsed_s";
