//! CPU time, waiting time and memory.

use crate::help::{Guard, find, memory_slack_bytes, probes, schedstat, state, tick_ns, wait_for};
use mosix_probe::State;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use std::{
    fs, process,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

#[test]
fn cpu_and_wait_are_those_of_schedstat() {
    if fs::metadata("/proc/self/schedstat").is_err() {
        return println!("skipped: this kernel has no /proc/PID/schedstat");
    }
    let burners = [Guard::burner(), Guard::burner()];
    // On one CPU, so that they have to wait for each other.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    for burner in &burners {
        if let Err(why) = sched_setaffinity(Pid::from_raw(burner.pid() as i32), &one) {
            return println!("skipped: cannot choose a CPU: {why}");
        }
    }
    for mut probe in probes() {
        for burner in &burners {
            wait_for("run and wait", || schedstat(burner.pid()).0.min(schedstat(burner.pid()).1) > 1_000_000);
        }
        probe.sample().unwrap();
        let before: Vec<_> = burners.iter().map(|burner| schedstat(burner.pid())).collect();
        let sample = probe.sample().unwrap();
        for (burner, before) in burners.iter().zip(before) {
            let (after, told) = (schedstat(burner.pid()), find(&sample, burner.pid()));
            assert!((before.0..=after.0).contains(&told.cpu_ns), "{}: {before:?} {told:?} {after:?}", probe.backend());
            assert!((before.1..=after.1).contains(&told.wait_ns), "{}: {before:?} {told:?} {after:?}", probe.backend());
            // Runnable at both ends and never asleep in between.
            assert_eq!(told.demand, 1.0, "{}: {told:?}", probe.backend());
        }
        assert!(sample.load >= 2.0);
    }
}

#[test]
fn memory_is_that_of_statm() {
    let child = Guard::spawn(Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=64M", "status=none"]));
    let statm = || {
        let content = fs::read_to_string(format!("/proc/{}/statm", child.pid())).unwrap();
        content.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    wait_for("the memory to be used", || statm() > 60 << 20);
    child.stop();
    for mut probe in probes() {
        let sample = probe.sample().unwrap();
        let told = find(&sample, child.pid()).rss_bytes;
        assert!(told.abs_diff(statm()) <= memory_slack_bytes(&sample), "{}: {told} {}", probe.backend(), statm());
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let total = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
        assert_eq!(sample.memory_total_bytes, total);
        assert!(sample.memory_available_bytes > 0 && sample.memory_available_bytes < total);
    }
}

fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

#[test]
fn threads_count_while_they_live_and_after() {
    let (stop, spinning) = (AtomicBool::new(false), AtomicU32::new(0));
    let spin = || {
        spinning.fetch_add(1, Ordering::SeqCst);
        while !stop.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    let mut probes = probes();
    thread::scope(|scope| {
        scope.spawn(spin);
        scope.spawn(spin);
        wait_for("the threads", || spinning.load(Ordering::SeqCst) == 2);
        for probe in &mut probes {
            probe.sample().unwrap();
            wait_for("some CPU time", || process_cpu_ns() > 50_000_000);
            let sample = probe.sample().unwrap();
            let own = find(&sample, process::id());
            assert!(own.demand >= 2.0, "{}: {own:?}", probe.backend());
            assert!(own.threads >= 3);
        }
        stop.store(true, Ordering::Relaxed);
    });
    for probe in &mut probes {
        // The clock is exact; /proc knows threads that have ended to a tick of user and one of system time.
        let slack_ns = if probe.backend().starts_with("/proc") { 2 * tick_ns() } else { 0 };
        let before = process_cpu_ns();
        let told = find(&probe.sample().unwrap(), process::id()).cpu_ns;
        let after = process_cpu_ns();
        assert!(before - slack_ns <= told && told <= after, "{}: {before} {told} {after}", probe.backend());
    }
}

#[test]
fn states_are_told() {
    let (stopped, zombie) = (Guard::burner(), Guard::shell("exit 3"));
    stopped.stop();
    wait_for("the child to end", || state(zombie.pid()) == Some('Z'));
    for mut probe in probes() {
        probe.sample().unwrap();
        let sample = probe.sample().unwrap();
        let (stopped, zombie) = (find(&sample, stopped.pid()), find(&sample, zombie.pid()));
        assert_eq!((stopped.state, stopped.demand, stopped.cpu_rate), (State::Stopped, 0.0, 0.0));
        assert_eq!((zombie.state, zombie.demand, zombie.rss_bytes), (State::Zombie, 0.0, 0));
        assert_eq!((stopped.ppid, zombie.ppid), (process::id(), process::id()));
    }
}
