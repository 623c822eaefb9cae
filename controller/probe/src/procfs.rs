//! Reads the counters from `/proc`, where BPF is not to be had.
//!
//! A process costs two small files (`stat`, `schedstat`) as long as it sleeps, a third (`status`: user, switches, inner
//! pid) when its counters have moved; each further thread costs one or three. What `status` said is kept until
//! the thread runs again, since none of it can change before. CPU time of threads that have ended is known to a clock
//! tick only.

mod parse;

use crate::{
    ProbeError, State,
    collector::Collector,
    idmap::{IdMap, prune},
    system::ticks_per_second,
};
use mosix_ebpf::{TaskRecord, flags};
use nix::unistd::getpid;
use parse::{Schedstat, Stat, Status};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _},
};

const PROC: &str = "/proc";
/// `PF_KTHREAD`.
const PF_KTHREAD: u32 = 0x0020_0000;
/// No file that is read here is longer; a longer one is cut.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// Length of a clock tick, the unit of most times in `/proc`, in ns.
pub(crate) fn tick_ns() -> u64 {
    1_000_000_000 / ticks_per_second()
}

/// What `/proc` says of this process.
///
/// # Errors
/// There is no `/proc`, or it belongs to another pid namespace.
pub(crate) fn own_stat() -> Result<Stat, ProbeError> {
    let mut files = Files::default();
    files.check_namespace()?;
    let path = "/proc/self/stat";
    let bytes = files.read(format_args!("{path}")).map_err(|error| ProbeError::read(path, error))?;
    Stat::parse(bytes, tick_ns()).ok_or_else(|| ProbeError::content(path, "not as documented"))
}

/// Reads `/proc` and remembers what cannot have changed.
pub(crate) struct ProcCollector {
    files: Files,
    tick_ns: u64,
    known: IdMap<Known>,
    round: u64,
    /// Records of the process at hand.
    group: Vec<TaskRecord>,
}

/// The record of a thread when its counters last moved.
struct Known {
    record: TaskRecord,
    round: u64,
}

/// Buffers for path and content, used again and again.
#[derive(Default)]
struct Files {
    path: String,
    content: Vec<u8>,
}

impl Files {
    fn read(&mut self, path: std::fmt::Arguments<'_>) -> io::Result<&[u8]> {
        self.path.clear();
        self.content.clear();
        // Writing to a string cannot fail.
        let _written = self.path.write_fmt(path);
        File::open(&self.path)?.take(MAX_FILE_BYTES).read_to_end(&mut self.content)?;
        Ok(&self.content)
    }

    /// In a new pid namespace the old `/proc` is still mounted until somebody mounts a new one.
    fn check_namespace(&self) -> Result<(), ProbeError> {
        let own = fs::read_link("/proc/self").map_err(|error| ProbeError::read("/proc/self", error))?;
        if own.as_os_str() == getpid().to_string().as_str() { Ok(()) } else { Err(ProbeError::ForeignProc) }
    }
}

impl ProcCollector {
    pub(crate) fn new() -> Self {
        Self { files: Files::default(), tick_ns: tick_ns(), known: IdMap::default(), round: 0, group: Vec::new() }
    }

    /// Reads one process with its threads into `group`. `None` if it vanished meanwhile.
    fn read_process(&mut self, pid: u32) -> io::Result<Option<()>> {
        self.group.clear();
        let bytes = self.files.read(format_args!("{PROC}/{pid}/stat"))?;
        let Some(stat) = Stat::parse(bytes, self.tick_ns) else { return Ok(None) };
        let mut leader = self.read_thread(pid, pid, Some(&stat))?;
        leader.describe(&stat);
        self.group.push(leader);
        if stat.threads > 1 {
            self.read_threads(pid, leader.exit_state != 0)?;
        }
        let live: u64 = self.group.iter().map(|record| record.run_ns).sum();
        let dead = stat.cpu_ns.saturating_sub(live);
        self.group.iter_mut().for_each(|record| record.dead_run_ns = dead);
        Ok(Some(()))
    }

    /// The threads beside the leader. If the leader has ended, the memory of the process is theirs to tell.
    fn read_threads(&mut self, pid: u32, leader_ended: bool) -> io::Result<()> {
        for entry in fs::read_dir(format!("{PROC}/{pid}/task"))? {
            let Some(tid) = number(&entry?.file_name()) else { continue };
            if tid == pid {
                continue;
            }
            let mut record = match self.read_thread(pid, tid, None) {
                Ok(record) => record,
                Err(error) if vanished(&error) => continue,
                Err(error) => return Err(error),
            };
            if leader_ended {
                record.anon_pages = self.resident_pages(pid, tid)?;
            }
            self.group.push(record);
        }
        Ok(())
    }

    fn resident_pages(&mut self, pid: u32, tid: u32) -> io::Result<u64> {
        let tick_ns = self.tick_ns;
        let bytes = self.files.read(format_args!("{PROC}/{pid}/task/{tid}/stat"))?;
        Ok(Stat::parse(bytes, tick_ns).map_or(0, |stat| stat.rss_pages))
    }

    /// The counters of one thread. `stat` is given if it has just been read.
    fn read_thread(&mut self, pid: u32, tid: u32, stat: Option<&Stat>) -> io::Result<TaskRecord> {
        let times = match self.files.read(format_args!("{PROC}/{pid}/task/{tid}/schedstat")) {
            Ok(bytes) => Schedstat::parse(bytes),
            // The kernel was built without CONFIG_SCHED_INFO, or the thread has vanished: then the next read fails too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let round = self.round;
        let start_ns = stat.map(|stat| stat.start_time_ns);
        if let (Some(times), Some(known)) = (times, self.known.get_mut(&tid))
            && (known.record.run_ns, known.record.wait_ns) == (times.run_ns, times.wait_ns)
            && start_ns.is_none_or(|start| start == known.record.start_boottime_ns)
            && known.record.exit_state == 0
        {
            known.round = round;
            return Ok(known.record);
        }
        let record = self.read_thread_anew(pid, tid, stat, times)?;
        self.known.insert(tid, Known { record, round });
        Ok(record)
    }

    fn read_thread_anew(&mut self, pid: u32, tid: u32, stat: Option<&Stat>, times: Option<Schedstat>) -> io::Result<TaskRecord> {
        let read;
        let stat = match stat {
            Some(stat) => stat,
            None => {
                let bytes = self.files.read(format_args!("{PROC}/{pid}/task/{tid}/stat"))?;
                read = Stat::parse(bytes, self.tick_ns).ok_or(io::ErrorKind::NotFound)?;
                &read
            }
        };
        let status = Status::parse(self.files.read(format_args!("{PROC}/{pid}/task/{tid}/status"))?);
        let (state, exit_state) = State::bits_of(stat.state);
        Ok(TaskRecord {
            start_boottime_ns: stat.start_time_ns,
            run_ns: times.map_or(stat.cpu_ns, |times| times.run_ns),
            wait_ns: times.map_or(0, |times| times.wait_ns),
            nvcsw: status.nvcsw,
            nivcsw: status.nivcsw,
            tid,
            tgid: pid,
            inner_tid: status.inner_pid.unwrap_or(tid),
            uid: status.uid,
            state,
            exit_state,
            flags: flags_of(stat, &status, times.is_some()),
            ..TaskRecord::default()
        })
    }
}

impl Collector for ProcCollector {
    fn collect(&mut self, each: &mut dyn FnMut(&TaskRecord)) -> Result<(), ProbeError> {
        self.files.check_namespace()?;
        self.round += 1;
        for entry in fs::read_dir(PROC).map_err(|error| ProbeError::read(PROC, error))? {
            let entry = entry.map_err(|error| ProbeError::read(PROC, error))?;
            let Some(pid) = number(&entry.file_name()) else { continue };
            match self.read_process(pid) {
                Ok(Some(())) => self.group.iter().for_each(&mut *each),
                Ok(None) => {}
                Err(error) if vanished(&error) => {}
                Err(error) => return Err(ProbeError::read(&self.files.path, error)),
            }
        }
        let round = self.round;
        prune(&mut self.known, |known| known.round == round);
        Ok(())
    }

    fn name(&self) -> String {
        PROC.to_owned()
    }
}

/// Fields that the leader's record carries, and those that can change while the process sleeps.
trait Describe {
    fn describe(&mut self, stat: &Stat);
}

impl Describe for TaskRecord {
    fn describe(&mut self, stat: &Stat) {
        (self.state, self.exit_state) = State::bits_of(stat.state);
        self.flags |= flags::LEADER;
        self.ppid = stat.ppid;
        self.pgid = stat.pgid;
        self.sid = stat.sid;
        self.tty = stat.tty;
        self.threads = stat.threads;
        self.comm = stat.comm;
        // `stat` tells only the sum.
        self.anon_pages = stat.rss_pages;
    }
}

fn flags_of(stat: &Stat, status: &Status, has_wait: bool) -> u32 {
    let mut bits = 0;
    if stat.flags & PF_KTHREAD != 0 {
        bits |= flags::KERNEL_THREAD;
    }
    if status.nested {
        bits |= flags::NESTED;
    }
    if has_wait {
        bits |= flags::HAS_WAIT;
    }
    bits
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// Errors that mean "it is gone" or "it is not yours to see", which is no reason to see nothing at all.
fn vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) || error.raw_os_error() == Some(libc::ESRCH)
}
