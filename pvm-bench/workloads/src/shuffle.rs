//! What the program `shuffle` is made of: a process that does to its memory all that processes do, and knows what each page must hold.
//!
//! It draws operations from a generator of random numbers: writes, MADV_DONTNEED, MADV_FREE, mprotect, mmap and munmap (so that mappings merge
//! and split), mremap (move and grow), brk, huge pages wanted or not, code that is written and called, memory of which most is never touched
//! (MAP_NORESERVE), and forks whose children and parent write to the same pages. Beside it threads write to their stacks. The same seed gives
//! the same operations on the same kernel.
//!
//! * [`model`]: what must be where, without a system call.
//! * [`memory`]: the system calls, and the only unsafe code.
//! * [`play`]: one operation after the other on both, and the comparison.
//! * `family`: forked children. [`stacks`]: the threads.
//! * [`args`]: the command line.

pub mod args;
mod family;
pub mod memory;
pub mod model;
pub mod play;
pub mod stacks;
