//! `iter/task`: one [`TaskRecord`] for each thread, into the stream that user space reads.

use super::{
    kernel::{Object, load, off, read, read_into},
    pids::{PidType, Viewer, inner_number, shared_pid},
};
use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use mosix_ebpf::{ABSENT, TaskRecord, flags};

/// `PF_KTHREAD`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Indices of the memory counters (unchanged since 4.5).
const MM_FILEPAGES: u32 = 0;
const MM_ANONPAGES: u32 = 1;
const MM_SWAPENTS: u32 = 2;
const MM_SHMEMPAGES: u32 = 3;

/// What the kernel hands to the program (`struct bpf_iter__task`).
#[repr(C)]
pub(super) struct Context {
    meta: *const Meta,
    task: Object,
}

/// `struct bpf_iter_meta`; only the first member is used.
#[repr(C)]
pub(super) struct Meta {
    seq: *mut seq_file,
}

/// Called once for each task, and once more without a task at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(super) extern "C" fn mosix_iter_task(context: &Context) -> i32 {
    let task = context.task;
    if task.is_null() {
        return 0;
    }
    // Filled in place: the stack has room for one record, not for two.
    let mut record = TaskRecord::default();
    if describe(task, &mut record) {
        write(context, &record);
    }
    0
}

/// Appends the record to the stream. If its buffer is full the kernel hands over what is there and calls again.
#[inline(always)]
fn write(context: &Context, record: &TaskRecord) {
    // SAFETY: the kernel passes a valid context; the record is as long as stated and has no padding.
    unsafe {
        let seq = (*context.meta).seq;
        let _full = bpf_seq_write(seq, core::ptr::from_ref(record).cast(), TaskRecord::SIZE as u32);
    }
}

/// Everything about one thread; false if it is just vanishing.
#[inline(always)]
fn describe(task: Object, record: &mut TaskRecord) -> bool {
    let viewer = Viewer::current();
    let pid: Object = load(task, off!(task_thread_pid));
    record.tid = viewer.number(pid);
    if record.tid == 0 {
        return false;
    }
    let level: u32 = load(pid, off!(pid_level));
    record.inner_tid = record.tid;
    if level > viewer.level {
        record.inner_tid = inner_number(pid, level);
        record.flags |= flags::NESTED;
    }
    record.start_boottime_ns = load(task, off!(task_start_boottime));
    record.run_ns = load(task, off!(task_run));
    record.nvcsw = load(task, off!(task_nvcsw));
    record.nivcsw = load(task, off!(task_nivcsw));
    record.state = load(task, off!(task_state));
    record.exit_state = load(task, off!(task_exit_state));
    let signal: Object = load(task, off!(task_signal));
    record.dead_run_ns = load(signal, off!(signal_dead_run));
    if off!(task_run_delay) != ABSENT {
        record.wait_ns = load(task, off!(task_run_delay));
        record.flags |= flags::HAS_WAIT;
    }
    let task_flags: u32 = load(task, off!(task_flags));
    if task_flags & PF_KTHREAD != 0 {
        record.flags |= flags::KERNEL_THREAD;
    }
    let group_leader: Object = load(task, off!(task_group_leader));
    let global_tid: u32 = load(task, off!(task_pid));
    let global_tgid: u32 = load(task, off!(task_tgid));
    if global_tid == global_tgid {
        record.flags |= flags::LEADER;
        record.tgid = record.tid;
        describe_process(task, signal, viewer, record);
    } else {
        record.tgid = viewer.number(load(group_leader, off!(task_thread_pid)));
    }
    // A leader that has ended has no memory any more while its threads live on: they report it instead.
    let leader_ended: u32 = load(group_leader, off!(task_exit_state));
    if global_tid == global_tgid || leader_ended != 0 {
        describe_memory(task, record);
    }
    true
}

/// What only the leader's record carries.
#[inline(always)]
fn describe_process(task: Object, signal: Object, viewer: Viewer, record: &mut TaskRecord) {
    record.threads = load(signal, off!(signal_threads));
    read_into(&mut record.comm, task, off!(task_comm));
    let cred: Object = load(task, off!(task_real_cred));
    record.uid = load(cred, off!(cred_uid));
    let parent: Object = load(task, off!(task_real_parent));
    let parent_leader: Object = load(parent, off!(task_group_leader));
    record.ppid = viewer.number(load(parent_leader, off!(task_thread_pid)));
    if record.flags & flags::KERNEL_THREAD != 0 {
        return;
    }
    record.pgid = viewer.number(shared_pid(signal, PidType::Group));
    record.sid = viewer.number(shared_pid(signal, PidType::Session));
    let tty: Object = load(signal, off!(signal_tty));
    if !tty.is_null() {
        record.tty = device_number(tty);
    }
}

/// `major << 20 | minor` of a terminal.
#[inline(always)]
fn device_number(tty: Object) -> u32 {
    let driver: Object = load(tty, off!(tty_driver));
    let major: u32 = load(driver, off!(tty_major));
    let first: u32 = load(driver, off!(tty_minor_start));
    let index: u32 = load(tty, off!(tty_index));
    major << 20 | first.wrapping_add(index)
}

/// Resident and swapped pages by kind.
#[inline(always)]
fn describe_memory(task: Object, record: &mut TaskRecord) {
    let mm: Object = load(task, off!(task_mm));
    if mm.is_null() {
        return;
    }
    record.file_pages = counter(mm, MM_FILEPAGES);
    record.anon_pages = counter(mm, MM_ANONPAGES);
    record.swap_pages = counter(mm, MM_SWAPENTS);
    record.shmem_pages = counter(mm, MM_SHMEMPAGES);
}

/// One memory counter. By copy: 6.1's verifier refuses to look into an array of `atomic_long_t`.
#[inline(always)]
fn counter(mm: Object, index: u32) -> u64 {
    let value: i64 = read(mm, off!(mm_counters) + index * off!(mm_counters_stride));
    // Per-CPU counters may lag below zero.
    if value < 0 { 0 } else { value as u64 }
}
