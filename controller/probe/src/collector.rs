//! What the two ways to read the kernel's counters have in common.

use crate::ProbeError;
use mosix_ebpf::TaskRecord;

/// Reads the counters of all threads.
///
/// Both give the records of the `iter/task` program: [`mosix_ebpf::flags::LEADER`] marks the one that describes the
/// process, times are totals since the start of the thread.
pub(crate) trait Collector: Send {
    /// Calls `each` once for every thread there is. Threads that come or go meanwhile may be missed.
    fn collect(&mut self, each: &mut dyn FnMut(&TaskRecord)) -> Result<(), ProbeError>;

    /// How it reads, in words for a person.
    fn name(&self) -> String;
}
