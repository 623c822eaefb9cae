//! What the `iter/task` program writes for each thread.
//!
//! The stream is a plain sequence of [`TaskRecord`]s in ascending order of thread id, in the machine's byte order.

/// Length of the kernel's `comm`, with its closing zero byte.
pub const COMM_LEN: usize = 16;

/// Bits of [`TaskRecord::flags`].
pub mod flags {
    /// The thread leads its thread group: the fields that describe the process are filled in.
    pub const LEADER: u32 = 1;
    /// A kernel thread.
    pub const KERNEL_THREAD: u32 = 1 << 1;
    /// The thread lives in a pid namespace below the reader's.
    pub const NESTED: u32 = 1 << 2;
    /// `wait_ns` is measured (the kernel counts run-queue waits).
    pub const HAS_WAIT: u32 = 1 << 3;
}

/// Bits of [`TaskRecord::state`] of a thread that is just being woken (TASK_WAKING) or born (TASK_NEW): it is about to
/// be runnable.
pub const STATE_WAKING: u32 = 0xa00;

/// One thread as the kernel sees it. Process-wide fields are zero unless [`flags::LEADER`] is set.
///
/// All pids are as seen from the reader's own pid namespace, unless they are called `inner`. There is no padding:
/// every byte is written by the kernel side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// Start time in ns since boot, suspended time included. With `tid` it names the thread for ever.
    pub start_boottime_ns: u64,
    /// CPU time this thread has used, in ns.
    pub run_ns: u64,
    /// Time this thread has waited on a run queue, in ns.
    pub wait_ns: u64,
    /// CPU time of threads of this process that have ended, in ns (in the record of every thread).
    pub dead_run_ns: u64,
    /// Voluntary context switches: the thread went to sleep.
    pub nvcsw: u64,
    /// Involuntary context switches: the thread was preempted.
    pub nivcsw: u64,
    /// Anonymous memory, in pages. The kernel's per-CPU batching makes it approximate.
    pub anon_pages: u64,
    /// Mapped file pages.
    pub file_pages: u64,
    /// Shared memory, in pages.
    pub shmem_pages: u64,
    /// Memory that was swapped out, in pages.
    pub swap_pages: u64,
    /// Thread id.
    pub tid: u32,
    /// Process id.
    pub tgid: u32,
    /// Thread id in the innermost pid namespace of the thread.
    pub inner_tid: u32,
    /// Process id of the parent; 0 if it is outside the reader's pid namespace.
    pub ppid: u32,
    /// Process group; 0 if it is outside the reader's pid namespace.
    pub pgid: u32,
    /// Session; 0 if it is outside the reader's pid namespace.
    pub sid: u32,
    /// Device number of the controlling terminal as `major << 20 | minor`, or 0.
    pub tty: u32,
    /// Real user id, as the initial user namespace sees it.
    pub uid: u32,
    /// `task_struct.__state`; 0 is runnable.
    pub state: u32,
    /// `task_struct.exit_state`; 0 unless the thread is a zombie or dead.
    pub exit_state: u32,
    /// Number of threads of the process.
    pub threads: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Command name, closed by a zero byte.
    pub comm: [u8; COMM_LEN],
}

impl TaskRecord {
    /// Size of a record in the stream, in bytes.
    pub const SIZE: usize = core::mem::size_of::<Self>();

    /// Reads one record from the front of `bytes`. `None` if there are fewer than [`Self::SIZE`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::SIZE)?;
        // SAFETY: `bytes` has SIZE readable bytes, the read does not need alignment, and every bit pattern is a valid
        // record because all fields are integers.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// True if all bits of `flag` (see [`flags`]) are set.
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// The thread has something to run: it is on a CPU, waits for one, or is held back by a CPU quota.
    #[must_use]
    pub const fn is_runnable(&self) -> bool {
        self.state & !STATE_WAKING == 0 && self.exit_state == 0
    }
}

// A record with padding would leak kernel stack through the stream, and the verifier would refuse it.
const _: () = assert!(TaskRecord::SIZE == 10 * 8 + 12 * 4 + COMM_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_bytes_needs_a_whole_record() {
        let bytes = [7u8; TaskRecord::SIZE + 1];
        assert!(TaskRecord::from_bytes(&bytes[..TaskRecord::SIZE - 1]).is_none());
        // Unaligned on purpose.
        let record = TaskRecord::from_bytes(&bytes[1..]);
        assert_eq!(record.map(|r| r.tid), Some(0x0707_0707));
    }

    #[test]
    fn runnable_means_neither_asleep_nor_dead() {
        let mut record = TaskRecord::default();
        assert!(record.is_runnable());
        record.exit_state = 0x20;
        assert!(!record.is_runnable());
        record = TaskRecord { state: 1, ..TaskRecord::default() };
        assert!(!record.is_runnable());
    }
}
