//! Reads the counters by a BPF program that walks all tasks in the kernel (`iter/task`).
//!
//! [`BpfCollector::open`] looks up where this kernel keeps its fields ([`crate::btf`]), hands the offsets over as
//! frozen read-only data, loads the program and compares what it says of this very process with the truth. After that
//! only the loaded program and one buffer remain. A pass makes a new iterator (a file), reads it to its end and closes
//! it; nothing runs in the kernel between passes, nothing is pinned, nothing stays behind.

use crate::{
    ProbeError,
    btf::{Btf, BtfError},
    collector::Collector,
    procfs,
};
use aya::{Ebpf, EbpfLoader, programs::Iter};
use mosix_ebpf::{ABSENT, Field, ITER_TASK, OFFSETS, Offsets, TaskRecord, What, flags};
use nix::unistd;
use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// The kernel collects this much (8 pages) before it hands over.
const BUFFER_BYTES: usize = 32 << 10;
/// More tasks than Linux can have (PID_MAX_LIMIT): a stream that is longer makes no sense.
const MAX_RECORDS: usize = 4 << 20;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mosix-bpf.o"));

/// The loaded program.
pub(crate) struct BpfCollector {
    ebpf: Ebpf,
    buffer: Vec<u8>,
    /// The kernel counts waits for a CPU.
    has_wait: bool,
}

impl BpfCollector {
    /// Loads the program and tries it out.
    pub(crate) fn open() -> Result<Self, ProbeError> {
        let offsets = find_offsets()?;
        let ebpf = load(&offsets)?;
        release_free_memory();
        let has_wait = offsets.task_run_delay != ABSENT;
        let mut collector = Self { ebpf, buffer: vec![0; BUFFER_BYTES], has_wait };
        collector.check_against_self()?;
        Ok(collector)
    }

    /// A new pass over all tasks.
    fn pass(&mut self) -> Result<File, ProbeError> {
        let program = program(&mut self.ebpf)?;
        let id = program.attach().map_err(|error| ProbeError::bpf("attaching it", &error))?;
        let link = program.take_link(id).map_err(|error| ProbeError::bpf("attaching it", &error))?;
        link.into_file().map_err(|error| ProbeError::bpf("making an iterator", &error))
    }

    /// A wrong offset shows here: this process knows itself.
    fn check_against_self(&mut self) -> Result<(), ProbeError> {
        let pid = unistd::getpid().as_raw() as u32;
        let mut found = None;
        self.collect(&mut |record| {
            if record.tid == pid {
                found = Some(*record);
            }
        })?;
        let record = found.ok_or_else(|| ProbeError::Implausible(format!("this process ({pid}) is not in its list")))?;
        check(&record)
    }
}

impl Collector for BpfCollector {
    fn collect(&mut self, each: &mut dyn FnMut(&TaskRecord)) -> Result<(), ProbeError> {
        let mut file = self.pass()?;
        let mut records = 0;
        // Bytes of an incomplete record at the front of the buffer.
        let mut rest = 0;
        loop {
            let length = match file.read(&mut self.buffer[rest..]) {
                Ok(0) => return end_of_stream(rest),
                Ok(length) => rest + length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(ProbeError::bpf("running it", &error)),
            };
            let whole = length - length % TaskRecord::SIZE;
            self.buffer[..whole].chunks_exact(TaskRecord::SIZE).filter_map(TaskRecord::from_bytes).for_each(|record| each(&record));
            records += whole / TaskRecord::SIZE;
            if records > MAX_RECORDS {
                return Err(ProbeError::Implausible(format!("more than {MAX_RECORDS} tasks")));
            }
            self.buffer.copy_within(whole..length, 0);
            rest = length - whole;
        }
    }

    fn name(&self) -> String {
        if self.has_wait { "bpf iter/task".to_owned() } else { "bpf iter/task, without waiting times".to_owned() }
    }
}

fn end_of_stream(rest: usize) -> Result<(), ProbeError> {
    if rest == 0 { Ok(()) } else { Err(ProbeError::Implausible(format!("the list ends with a part of a record ({rest} bytes)"))) }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter, ProbeError> {
    let missing = || ProbeError::Bpf { step: "looking for it", why: format!("the object has no program {ITER_TASK}") };
    let program = ebpf.program_mut(ITER_TASK).ok_or_else(missing)?;
    program.try_into().map_err(|error: aya::programs::ProgramError| ProbeError::bpf("looking for it", &error))
}

/// Looks up all fields. The type information is read and given back in here.
fn find_offsets() -> Result<Offsets, ProbeError> {
    let data = fs::read(VMLINUX).map_err(|error| ProbeError::read(VMLINUX, error))?;
    let mut wanted = Vec::new();
    Offsets::resolve(|field| {
        wanted.push(field.structure);
        Ok::<_, BtfError>(0)
    })?;
    let btf = Btf::parse(&data, &wanted)?;
    Ok(Offsets::resolve(|field| find(&btf, field))?)
}

/// The first of a field's paths that this kernel has.
fn find(btf: &Btf<'_>, field: &Field) -> Result<u32, BtfError> {
    let mut last = None;
    for path in field.paths {
        let found = match field.what {
            What::Offset => btf.offset(field.structure, path),
            What::Stride => btf.stride(field.structure, path),
        };
        match found {
            Ok(value) => return Ok(value),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if field.required || matches!(error, BtfError::Malformed { .. }) => Err(error),
        _ => Ok(ABSENT),
    }
}

fn load(offsets: &Offsets) -> Result<Ebpf, ProbeError> {
    let btf = aya::Btf::from_sys_fs().map_err(|error| ProbeError::bpf("reading its types", &error))?;
    let words = offsets.to_words();
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf)).override_global(OFFSETS, words.as_slice(), true);
    let mut ebpf = loader.load(OBJECT).map_err(|error| ProbeError::bpf("preparing it", &error))?;
    program(&mut ebpf)?.load("task", &btf).map_err(|error| ProbeError::bpf("loading it", &error))?;
    Ok(ebpf)
}

/// Gives back to the system what the type information occupied: a daemon that idles should be small.
fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; only memory that the allocator has free is touched.
    let _released = unsafe { libc::malloc_trim(0) };
}

/// Compares what the program says of this process with what the system calls say.
fn check(record: &TaskRecord) -> Result<(), ProbeError> {
    let pid = unistd::getpid().as_raw() as u32;
    let id = |result: nix::Result<unistd::Pid>| result.map_or(0, |pid| pid.as_raw() as u32);
    let facts = [
        ("pid", record.tgid, pid),
        ("leader", u32::from(record.has(flags::LEADER)), 1),
        ("parent", record.ppid, unistd::getppid().as_raw() as u32),
        ("process group", record.pgid, unistd::getpgrp().as_raw() as u32),
        ("session", record.sid, id(unistd::getsid(None))),
        ("user", record.uid, unistd::getuid().as_raw()),
        ("kernel thread", u32::from(record.has(flags::KERNEL_THREAD)), 0),
        ("end", record.exit_state, 0),
    ];
    if let Some((what, told, truth)) = facts.into_iter().find(|(_, told, truth)| told != truth) {
        return Err(ProbeError::Implausible(format!("{what} of this process is {truth}, not {told}")));
    }
    if record.anon_pages == 0 || record.threads == 0 {
        return Err(ProbeError::Implausible("this process has no memory or no threads".to_owned()));
    }
    // The rest can be compared only where a /proc of this namespace is mounted.
    let Ok(stat) = procfs::own_stat() else { return Ok(()) };
    let tick_ns = procfs::tick_ns();
    if stat.comm != record.comm || stat.start_time_ns.abs_diff(record.start_boottime_ns) > 2 * tick_ns {
        return Err(ProbeError::Implausible("name or start time of this process".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_is_found_in_this_kernel() {
        if !std::path::Path::new(VMLINUX).exists() {
            return println!("skipped: this kernel has no {VMLINUX}");
        }
        let offsets = find_offsets().unwrap();
        assert_eq!(offsets.upid_nr, 0);
        assert!(offsets.task_comm > 0 && offsets.task_comm < 1 << 16);
        assert!(offsets.mm_counters_stride >= 8 && offsets.pid_numbers_stride == 16);
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        assert!(end_of_stream(0).is_ok());
        assert!(end_of_stream(1).unwrap_err().to_string().contains("part of a record"));
    }

    #[test]
    fn wrong_facts_are_noticed() {
        let record = TaskRecord { tgid: unistd::getpid().as_raw() as u32, ..TaskRecord::default() };
        assert!(check(&record).unwrap_err().to_string().contains("leader"));
    }
}
