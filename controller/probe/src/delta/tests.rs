use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const MACHINE: Machine = Machine { memory_total_bytes: 2, memory_available_bytes: 1, cpus: 4 };

fn at(ns: u64) -> Now {
    // Boot time runs ahead: the machine has slept.
    Now { monotonic_ns: ns, boottime_ns: ns + SECOND }
}

/// The single thread of a process that was started at time 0, asleep.
fn process(pid: u32) -> TaskRecord {
    TaskRecord {
        start_boottime_ns: SECOND,
        tid: pid,
        tgid: pid,
        threads: 1,
        state: 1,
        nvcsw: 1,
        anon_pages: 3,
        flags: flags::LEADER | flags::HAS_WAIT,
        ..TaskRecord::default()
    }
}

fn thread(pid: u32, tid: u32) -> TaskRecord {
    TaskRecord { tid, threads: 0, anon_pages: 0, flags: flags::HAS_WAIT, ..process(pid) }
}

fn sample(tracker: &mut Tracker, ns: u64, records: &[TaskRecord]) -> Sample {
    let mut reading = tracker.begin(at(ns), MACHINE);
    records.iter().for_each(|record| reading.add(record));
    reading.finish()
}

#[test]
fn the_first_sample_tells_averages_over_life() {
    let record = TaskRecord { run_ns: 2 * SECOND, wait_ns: SECOND, ..process(7) };
    let sample = sample(&mut Tracker::default(), 10 * SECOND, &[record]);
    let p = &sample.processes[0];
    assert_eq!((sample.period_s, sample.cpus, sample.memory_total_bytes), (0.0, 4, 2));
    assert_eq!((p.pid, p.cpu_ns, p.wait_ns, p.rss_bytes), (7, 2 * SECOND, SECOND, 3 * page_bytes()));
    assert!((p.demand - 0.3).abs() < 1e-9 && (p.cpu_rate - 0.2).abs() < 1e-9);
    assert_eq!(sample.load, p.demand);
}

#[test]
fn later_samples_tell_the_period() {
    let mut tracker = Tracker::default();
    let mut record = process(7);
    sample(&mut tracker, SECOND, &[record]);
    (record.run_ns, record.wait_ns, record.nvcsw) = (100 * MS, 150 * MS, 9);
    let p = sample(&mut tracker, SECOND + 500 * MS, &[record]).processes.remove(0);
    assert!((p.demand - 0.5).abs() < 1e-9 && (p.cpu_rate - 0.2).abs() < 1e-9);
    let p = sample(&mut tracker, 2 * SECOND, &[record]).processes.remove(0);
    assert_eq!((p.demand, p.cpu_rate, p.cpu_ns), (0.0, 0.0, 100 * MS));
}

#[test]
fn who_stays_runnable_without_sleeping_wants_a_cpu_all_the_time() {
    let mut tracker = Tracker::default();
    let burner = TaskRecord { state: 0, ..process(7) };
    sample(&mut tracker, SECOND, &[burner]);
    // It waits since: no counter has moved yet.
    assert_eq!(sample(&mut tracker, 2 * SECOND, &[burner]).load, 1.0);
    // It slept and woke: only the counters count.
    assert_eq!(sample(&mut tracker, 3 * SECOND, &[TaskRecord { nvcsw: 2, ..burner }]).load, 0.0);
    // A zombie has state 0 too.
    let zombie = TaskRecord { exit_state: 0x20, nvcsw: 2, ..burner };
    assert_eq!(sample(&mut tracker, 4 * SECOND, &[zombie]).load, 0.0);
}

#[test]
fn a_newborn_that_never_slept_wants_a_cpu() {
    let mut tracker = Tracker::default();
    sample(&mut tracker, SECOND, &[]);
    let newborn = TaskRecord { state: 0, nvcsw: 0, start_boottime_ns: 2 * SECOND, ..process(7) };
    assert_eq!(sample(&mut tracker, 2 * SECOND, &[newborn]).load, 1.0);
    let zombie = TaskRecord { exit_state: 0x20, tid: 8, tgid: 8, run_ns: SECOND, ..newborn };
    assert_eq!(sample(&mut tracker, 3 * SECOND, &[zombie]).processes[0].demand, 0.0);
}

#[test]
fn threads_count_for_their_process_in_any_order() {
    let mut tracker = Tracker::default();
    let leader = TaskRecord { threads: 3, ..process(9) };
    let mut records = [thread(9, 5), process(6), leader, process(10), thread(9, 11)];
    sample(&mut tracker, SECOND, &records);
    records[0].run_ns = SECOND / 2;
    records[4].wait_ns = SECOND / 4;
    let sample = sample(&mut tracker, 2 * SECOND, &records);
    let mut pids: Vec<_> = sample.processes.iter().map(|p| p.pid).collect();
    pids.sort_unstable();
    assert_eq!(pids, [6, 9, 10]);
    let p = sample.processes.iter().find(|p| p.pid == 9).unwrap();
    assert!((p.demand - 0.75).abs() < 1e-9);
    assert_eq!((p.cpu_ns, p.wait_ns, p.threads), (SECOND / 2, SECOND / 4, 3));
}

#[test]
fn threads_that_ended_leave_their_time() {
    let mut tracker = Tracker::default();
    let mut leader = TaskRecord { threads: 2, ..process(9) };
    let other = TaskRecord { run_ns: SECOND, ..thread(9, 10) };
    sample(&mut tracker, SECOND, &[leader, other]);
    leader.dead_run_ns = SECOND + 200 * MS;
    let p = sample(&mut tracker, 2 * SECOND, &[leader]).processes.remove(0);
    assert_eq!(p.cpu_ns, SECOND + 200 * MS);
    assert!((p.cpu_rate - 0.2).abs() < 1e-9 && (p.demand - 0.2).abs() < 1e-9);
}

#[test]
fn a_thread_that_ends_during_the_reading_counts_once() {
    let mut tracker = Tracker::default();
    // The thread was seen alive (with nobody dead yet), then ended before the leader was seen.
    let other = TaskRecord { run_ns: SECOND, ..thread(9, 5) };
    let leader = TaskRecord { dead_run_ns: SECOND, threads: 2, ..process(9) };
    assert_eq!(sample(&mut tracker, 3 * SECOND, &[other, leader]).processes[0].cpu_ns, SECOND);
}

#[test]
fn a_reused_pid_starts_anew() {
    let mut tracker = Tracker::default();
    let old = TaskRecord { run_ns: 5 * SECOND, wait_ns: 5 * SECOND, ..process(7) };
    sample(&mut tracker, 20 * SECOND, &[old]);
    let new = TaskRecord { start_boottime_ns: 21 * SECOND, run_ns: MS, ..process(7) };
    let p = sample(&mut tracker, 21 * SECOND, &[new]).processes.remove(0);
    assert_eq!((p.cpu_ns, p.wait_ns, p.start_time_ns), (MS, 0, 21 * SECOND));
    assert!((p.demand - 0.001).abs() < 1e-9);
}

#[test]
fn a_record_that_comes_twice_counts_once() {
    let mut tracker = Tracker::default();
    let mut record = process(7);
    sample(&mut tracker, SECOND, &[record]);
    record.run_ns = 100 * MS;
    let again = TaskRecord { run_ns: 110 * MS, ..record };
    assert_eq!(sample(&mut tracker, 2 * SECOND, &[record, again]).processes[0].cpu_ns, 100 * MS);
    assert_eq!(sample(&mut tracker, 3 * SECOND, &[again]).processes[0].cpu_ns, 110 * MS);
}

#[test]
fn threads_without_their_leader_are_left_out() {
    let mut tracker = Tracker::default();
    assert!(sample(&mut tracker, SECOND, &[thread(9, 10)]).processes.is_empty());
}

#[test]
fn a_reading_that_failed_makes_the_next_one_a_first() {
    let mut tracker = Tracker::default();
    let record = TaskRecord { run_ns: SECOND, wait_ns: SECOND, ..process(7) };
    sample(&mut tracker, 9 * SECOND, &[record]);
    tracker.begin(at(10 * SECOND), MACHINE).add(&record);
    let next = sample(&mut tracker, 11 * SECOND, &[record]);
    assert_eq!((next.period_s, next.processes[0].wait_ns), (0.0, SECOND));
    assert_eq!(sample(&mut tracker, 12 * SECOND, &[record]).period_s, 1.0);
}

#[test]
fn what_is_gone_is_forgotten_and_its_memory_given_back() {
    let mut tracker = Tracker::default();
    let many: Vec<_> = (1..10_000).map(process).collect();
    sample(&mut tracker, SECOND, &many);
    sample(&mut tracker, 2 * SECOND, &many[..3]);
    assert_eq!((tracker.threads.len(), tracker.processes.len()), (3, 3));
    assert!(tracker.threads.capacity() < 100 && tracker.processes.capacity() < 100);
}

/// What a thread does in one period: shares of it spent running and waiting (the rest asleep), in per mille.
fn life() -> impl Strategy<Value = Vec<Vec<(u64, u64)>>> {
    let step = (0..=1000u64).prop_flat_map(|run| (Just(run), 0..=1000 - run));
    proptest::collection::vec(proptest::collection::vec(step, 3), 1..8)
}

proptest! {
    /// Sleepers' demands add up to exactly the time that was run and waited.
    #[test]
    fn no_time_is_lost_or_invented(life in life(), periods_ms in proptest::collection::vec(1..5_000u64, 8)) {
        let mut tracker = Tracker::default();
        let mut records = [process(20), TaskRecord { threads: 2, ..process(30) }, thread(30, 31)];
        let mut now = 100 * SECOND;
        sample(&mut tracker, now, &records);
        let (mut told_ns, mut told_run_ns) = (0.0, 0.0);
        for (step, period_ms) in life.iter().zip(&periods_ms) {
            for (record, (run, wait)) in records.iter_mut().zip(step) {
                record.run_ns += period_ms * 1_000 * run;
                record.wait_ns += period_ms * 1_000 * wait;
                record.nvcsw += 1;
            }
            now += period_ms * MS;
            let sample = sample(&mut tracker, now, &records);
            told_ns += sample.load * sample.period_s * 1e9;
            told_run_ns += sample.processes.iter().map(|p| p.cpu_rate).sum::<f64>() * sample.period_s * 1e9;
        }
        let run: u64 = records.iter().map(|r| r.run_ns).sum();
        let wait: u64 = records.iter().map(|r| r.wait_ns).sum();
        prop_assert!((told_ns - (run + wait) as f64).abs() < 1_000.0);
        prop_assert!((told_run_ns - run as f64).abs() < 1_000.0);
    }

    /// Whatever the counters do: no panic, demands within bounds, totals never decrease, memory bounded.
    #[test]
    fn any_counters_give_sane_samples(
        rounds in proptest::collection::vec(proptest::collection::vec((0..6u32, 0..6u32, any::<[u64; 5]>(), any::<[u32; 4]>()), 0..12), 1..6),
        times in proptest::collection::vec(any::<u64>(), 6),
    ) {
        let mut tracker = Tracker::default();
        let mut totals: HashMap<(u32, u64), (u64, u64)> = HashMap::new();
        for (round, ns) in rounds.iter().zip(times) {
            let records: Vec<_> = round.iter().map(|(tid, tgid, long, short)| TaskRecord {
                tid: *tid, tgid: *tgid, run_ns: long[0], wait_ns: long[1], dead_run_ns: long[2], nvcsw: long[3] % 2,
                start_boottime_ns: long[4] % 2, state: short[0] % 2, exit_state: short[1] % 2 * 0x20, threads: short[2] % 3,
                flags: if tid == tgid { flags::LEADER } else { 0 }, anon_pages: long[0], ..TaskRecord::default()
            }).collect();
            let sample = sample(&mut tracker, ns % (1 << 60), &records);
            let mut now = HashMap::new();
            for p in &sample.processes {
                prop_assert!(p.demand >= 0.0 && p.demand <= (round.len() + 4) as f64, "{p:?}");
                prop_assert!(p.cpu_rate >= 0.0 && p.cpu_rate <= 4.0);
                if let Some((cpu, wait)) = totals.get(&(p.pid, p.start_time_ns)) {
                    prop_assert!(p.cpu_ns >= *cpu && p.wait_ns >= *wait);
                }
                now.insert((p.pid, p.start_time_ns), (p.cpu_ns, p.wait_ns));
            }
            prop_assert!((sample.load - sample.processes.iter().map(|p| p.demand).sum::<f64>()).abs() < 1e-6);
            prop_assert!(tracker.threads.len() <= records.len() && tracker.processes.len() <= records.len());
            totals = now;
        }
    }
}
