//! From counters to rates: compares each reading with the one before.
//!
//! *Demand.* A thread that is on a CPU or waits for one wants one; over a period that is `(d run + d wait) / period`,
//! at most 1. The kernel's wait counter includes the time for which a CPU quota held the thread back, but grows only
//! when a wait ends, and the run counter only when the scheduler looks. So a thread that was runnable at both ends and
//! did not go to sleep of its own in between (no voluntary switch) has demand 1, whatever the counters have yet seen.
//! Threads that ended within the period count with the CPU time that they left to their process.
//!
//! *First sight.* Without a reading before, the average over the life so far takes its place: a burner that was
//! running for an hour shows a demand of 1 at once.
//!
//! *Identity.* A thread is its id with its start time, so a reused pid starts anew. Counters may seem to run backwards
//! (a thread may end between two records of its process, `exec` from a second thread takes over the leader's id): such
//! differences count as zero and the totals that are handed out never decrease.
//!
//! *Bounds.* What is kept is one entry per thread and one per process of the last reading; the others are dropped at
//! the end of each.

use crate::{
    Comm, ProcessSample, Sample, State,
    idmap::{IdMap, prune},
    system::{Machine, Now, page_bytes},
};
use mosix_ebpf::{TaskRecord, flags};

/// Remembers the last reading.
#[derive(Default)]
pub(crate) struct Tracker {
    threads: IdMap<Thread>,
    processes: IdMap<Process>,
    /// Time of the last reading that was finished.
    last_ns: Option<u64>,
    /// Number of the reading under way or last done; marks what was seen in it.
    round: u64,
    /// A reading was begun and not finished.
    unfinished: bool,
}

/// What is remembered of a thread.
#[derive(Clone, Copy)]
struct Thread {
    start_ns: u64,
    run_ns: u64,
    wait_ns: u64,
    nvcsw: u64,
    runnable: bool,
    round: u64,
}

/// What is remembered of a process.
#[derive(Clone, Copy)]
struct Process {
    start_ns: u64,
    cpu_ns: u64,
    wait_ns: u64,
    round: u64,
}

/// A process while its records come in.
#[derive(Default)]
struct Draft {
    sample: ProcessSample,
    /// The leader's record was there.
    complete: bool,
    live_run_ns: u64,
    /// Smallest value seen: a thread that ended between two records must not count twice.
    dead_run_ns: Option<u64>,
    /// Growth of the live threads' counters.
    run_growth_ns: u64,
    wait_growth_ns: u64,
}

/// One reading under way.
pub(crate) struct Reading<'a> {
    tracker: &'a mut Tracker,
    now: Now,
    machine: Machine,
    /// 0 for the first reading.
    period_ns: u64,
    page_bytes: u64,
    drafts: Vec<Draft>,
    /// Drafts of processes with more than one thread, by pid.
    index: IdMap<usize>,
}

impl Tracker {
    /// Starts a reading. If it is dropped without [`Reading::finish`], the next one is a first reading again: what is
    /// remembered would be of two different times.
    pub(crate) fn begin(&mut self, now: Now, machine: Machine) -> Reading<'_> {
        if self.unfinished {
            *self = Self { round: self.round, ..Self::default() };
        }
        self.unfinished = true;
        self.round += 1;
        // Two readings in the same nanosecond: any positive period avoids a division by zero.
        let period_ns = self.last_ns.map_or(0, |last| now.monotonic_ns.saturating_sub(last).max(1));
        let drafts = Vec::with_capacity(self.processes.len() + 16);
        Reading { tracker: self, now, machine, period_ns, page_bytes: page_bytes(), drafts, index: IdMap::default() }
    }

    /// Forgets what the finished reading has not seen.
    fn prune(&mut self) {
        let round = self.round;
        prune(&mut self.threads, |thread| thread.round == round);
        prune(&mut self.processes, |process| process.round == round);
    }
}

impl Reading<'_> {
    /// Takes in the record of one thread. If an id is told twice, the first counts.
    pub(crate) fn add(&mut self, record: &TaskRecord) {
        let past = self.tracker.threads.insert(record.tid, Thread::remember(record, self.tracker.round));
        if let Some(twice) = past.filter(|past| past.round == self.tracker.round) {
            self.tracker.threads.insert(record.tid, twice);
            return;
        }
        let past = past.filter(|past| past.start_ns == record.start_boottime_ns);
        let demand = self.demand(past, record);
        let page_bytes = self.page_bytes;
        let draft = self.draft(record);
        draft.sample.demand += demand;
        draft.live_run_ns = draft.live_run_ns.saturating_add(record.run_ns);
        draft.dead_run_ns = Some(draft.dead_run_ns.map_or(record.dead_run_ns, |least| least.min(record.dead_run_ns)));
        let (run, wait) = past.map_or((0, 0), |past| (past.run_ns, past.wait_ns));
        draft.run_growth_ns = draft.run_growth_ns.saturating_add(record.run_ns.saturating_sub(run));
        draft.wait_growth_ns = draft.wait_growth_ns.saturating_add(record.wait_ns.saturating_sub(wait));
        if record.has(flags::LEADER) {
            draft.complete = true;
            draft.sample.describe(record);
        }
        let resident = record.anon_pages.saturating_add(record.file_pages).saturating_add(record.shmem_pages);
        draft.sample.rss_bytes = draft.sample.rss_bytes.max(resident.saturating_mul(page_bytes));
        draft.sample.swap_bytes = draft.sample.swap_bytes.max(record.swap_pages.saturating_mul(page_bytes));
    }

    /// Turns what came in into a sample and remembers it for the next.
    pub(crate) fn finish(mut self) -> Sample {
        let drafts = std::mem::take(&mut self.drafts);
        let complete = drafts.into_iter().filter(|draft| draft.complete);
        let processes: Vec<_> = complete.map(|draft| self.settle(draft)).collect();
        self.tracker.prune();
        self.tracker.last_ns = Some(self.now.monotonic_ns);
        self.tracker.unfinished = false;
        Sample {
            period_s: self.period_ns as f64 / 1e9,
            load: processes.iter().map(|process| process.demand).sum(),
            processes,
            memory_total_bytes: self.machine.memory_total_bytes,
            memory_available_bytes: self.machine.memory_available_bytes,
            cpus: self.machine.cpus,
        }
    }

    /// Share of the period in which the thread wanted a CPU, 0 to 1.
    fn demand(&self, past: Option<Thread>, record: &TaskRecord) -> f64 {
        let runnable = record.is_runnable();
        let Some(past) = past.filter(|_| self.period_ns > 0) else {
            if record.exit_state != 0 {
                return 0.0;
            }
            if runnable && record.nvcsw == 0 {
                return 1.0;
            }
            return ratio(record.run_ns.saturating_add(record.wait_ns), self.age_ns(record.start_boottime_ns)).min(1.0);
        };
        if past.runnable && runnable && past.nvcsw == record.nvcsw {
            return 1.0;
        }
        let run = record.run_ns.saturating_sub(past.run_ns);
        let wait = record.wait_ns.saturating_sub(past.wait_ns);
        ratio(run.saturating_add(wait), self.period_ns).min(1.0)
    }

    fn age_ns(&self, start_ns: u64) -> u64 {
        self.now.boottime_ns.saturating_sub(start_ns)
    }

    /// Where the records of this thread's process are put together.
    fn draft(&mut self, record: &TaskRecord) -> &mut Draft {
        // Records come in the order of thread ids: most processes have one thread, most others come in one piece.
        let alone = record.has(flags::LEADER) && record.threads <= 1;
        let last = self.drafts.last().is_some_and(|draft| draft.sample.pid == record.tgid);
        let known = if last { Some(self.drafts.len() - 1) } else { self.index.get(&record.tgid).copied() };
        let at = known.unwrap_or(self.drafts.len());
        if known.is_none() {
            let sample = ProcessSample { pid: record.tgid, ..ProcessSample::default() };
            self.drafts.push(Draft { sample, ..Draft::default() });
        }
        if !alone {
            self.index.insert(record.tgid, at);
        }
        &mut self.drafts[at]
    }

    /// Fills in what needs all threads of a process.
    fn settle(&mut self, draft: Draft) -> ProcessSample {
        let mut sample = draft.sample;
        let past = self.tracker.processes.get(&sample.pid).copied();
        let past = past.filter(|past| past.start_ns == sample.start_time_ns && self.period_ns > 0);
        let total = draft.live_run_ns.saturating_add(draft.dead_run_ns.unwrap_or(0));
        let (cpu_before, wait_before) = past.map_or((0, 0), |past| (past.cpu_ns, past.wait_ns));
        let span_ns = if past.is_some() { self.period_ns } else { self.age_ns(sample.start_time_ns) };
        let cpus = f64::from(self.machine.cpus.max(1));
        sample.cpu_ns = total.max(cpu_before);
        sample.wait_ns = wait_before.saturating_add(draft.wait_growth_ns);
        let growth = sample.cpu_ns - cpu_before;
        sample.cpu_rate = ratio(growth, span_ns).min(cpus);
        sample.demand += ratio(growth.saturating_sub(draft.run_growth_ns), span_ns).min(cpus);
        let round = self.tracker.round;
        let process = Process { start_ns: sample.start_time_ns, cpu_ns: sample.cpu_ns, wait_ns: sample.wait_ns, round };
        self.tracker.processes.insert(sample.pid, process);
        sample
    }
}

impl Thread {
    fn remember(record: &TaskRecord, round: u64) -> Self {
        Self {
            start_ns: record.start_boottime_ns,
            run_ns: record.run_ns,
            wait_ns: record.wait_ns,
            nvcsw: record.nvcsw,
            runnable: record.is_runnable(),
            round,
        }
    }
}

impl ProcessSample {
    /// Takes over what the leader's record says of the process.
    fn describe(&mut self, record: &TaskRecord) {
        self.ppid = record.ppid;
        self.inner_pid = record.inner_tid;
        self.nested = record.has(flags::NESTED);
        self.pgid = record.pgid;
        self.sid = record.sid;
        self.tty = record.tty;
        self.start_time_ns = record.start_boottime_ns;
        self.uid = record.uid;
        self.comm = Comm::new(record.comm);
        self.state = State::from_bits(record.state, record.exit_state);
        self.kernel_thread = record.has(flags::KERNEL_THREAD);
        self.threads = record.threads;
    }
}

/// `part / whole`; a part of nothing is nothing.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests;
