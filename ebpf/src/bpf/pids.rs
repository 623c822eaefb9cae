//! Pids as the reader sees them.
//!
//! The program runs in the context of the process that reads the stream, and the kernel's iterator already visits only
//! tasks of that process's pid namespace and of those below. What remains is to pick the right number of each pid.

use super::kernel::{Object, load, off, read};
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

/// Which `struct pid` of `signal_struct.pids` (enum pid_type, unchanged since 4.19).
#[derive(Clone, Copy)]
pub(super) enum PidType {
    Group = 2,
    Session = 3,
}

/// The pid namespace of the process that reads.
#[derive(Clone, Copy)]
pub(super) struct Viewer {
    pub(super) level: u32,
    namespace: u64,
}

impl Viewer {
    /// The namespace of the current process.
    #[inline(always)]
    pub(super) fn current() -> Self {
        // SAFETY: no preconditions; the helper returns the running task.
        let task = unsafe { bpf_get_current_task_btf() } as Object;
        let pid: Object = load(task, off!(task_thread_pid));
        let level: u32 = load(pid, off!(pid_level));
        // In the initial namespace every pid has a number: no need to compare.
        let namespace = if level == 0 { 0 } else { read(entry(pid, level), off!(upid_ns)) };
        Self { level, namespace }
    }

    /// The number of `pid` in the reader's namespace, 0 if it has none there (or `pid` is null).
    #[inline(always)]
    pub(super) fn number(self, pid: Object) -> u32 {
        if self.level == 0 {
            return read(entry(pid, 0), off!(upid_nr));
        }
        let level: u32 = read(pid, off!(pid_level));
        if level < self.level {
            return 0;
        }
        let entry = entry(pid, self.level);
        let namespace: u64 = read(entry, off!(upid_ns));
        if namespace == self.namespace { read(entry, off!(upid_nr)) } else { 0 }
    }
}

/// The number of `pid` in its own, innermost namespace of depth `level`.
#[inline(always)]
pub(super) fn inner_number(pid: Object, level: u32) -> u32 {
    read(entry(pid, level), off!(upid_nr))
}

/// The `struct pid` of a process's group or session.
#[inline(always)]
pub(super) fn shared_pid(signal: Object, which: PidType) -> Object {
    let index = which as u32 * size_of::<u64>() as u32;
    read::<u64>(signal, off!(signal_pids) + index) as Object
}

/// Entry for the namespace of depth `level`. The result is only for [`read`].
#[inline(always)]
fn entry(pid: Object, level: u32) -> Object {
    let offset = u64::from(off!(pid_numbers)) + u64::from(level) * u64::from(off!(pid_numbers_stride));
    // As an integer: the verifier forgets the pointer's type, which it would refuse to index by a variable.
    (pid as u64).wrapping_add(offset) as Object
}
