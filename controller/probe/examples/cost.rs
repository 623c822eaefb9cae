//! What a sample costs: `cargo run --release -p mosix-probe --example cost [IDLE_PROCESSES] [IDLE_THREADS]`.
//!
//! Starts that many idle processes and threads, then takes samples by BPF and from `/proc` and prints the time of a
//! pass, with the memory that the probe itself occupies.

use anyhow::{Context as _, Result};
use mosix_probe::Probe;
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pause},
};
use std::{env, fs, thread, time::Duration, time::Instant};

const PASSES: usize = 21;

fn main() -> Result<()> {
    let mut counts = env::args().skip(1).map(|word| word.parse::<usize>().context("a number is wanted"));
    let processes = counts.next().transpose()?.unwrap_or(0);
    let threads = counts.next().transpose()?.unwrap_or(0);
    let idlers = Idlers::start(processes)?;
    for _ in 0..threads {
        thread::Builder::new().stack_size(16 << 10).spawn(thread::park)?;
    }
    println!("{processes} idle processes, {threads} idle threads added");
    println!("memory before: {}", memory()?);
    let (before, start) = (cpu_us()?, Instant::now());
    match mosix_probe::open_bpf() {
        Ok(probe) => {
            println!("open by BPF: {} us, {} us CPU", start.elapsed().as_micros(), cpu_us()? - before);
            println!("memory with it: {}", memory()?);
            measure(probe)?;
        }
        Err(why) => println!("skipped: {why}"),
    }
    measure(mosix_probe::open_proc())?;
    println!("memory after: {}", memory()?);
    drop(idlers);
    Ok(())
}

/// Prints the least and the median time of a pass.
fn measure(mut probe: Box<dyn Probe>) -> Result<()> {
    let mut times = Vec::new();
    let mut count = 0;
    for _ in 0..PASSES {
        let before = cpu_us()?;
        let sample = probe.sample()?;
        times.push(cpu_us()? - before);
        count = sample.processes.iter().map(|process| process.threads as usize).sum();
        thread::sleep(Duration::from_millis(20));
    }
    // The first one fills the tables.
    let first = times.remove(0);
    times.sort_unstable();
    let (least, median) = (times[0], times[times.len() / 2]);
    let each_ns = least * 1000 / count.max(1) as i64;
    println!("{}: {count} threads: CPU us per pass: first {first}, least {least}, median {median} ({each_ns} ns each)", probe.backend());
    Ok(())
}

/// CPU time of this process, in us: not disturbed by what else runs.
fn cpu_us() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(us(usage.user_time()) + us(usage.system_time()))
}

fn memory() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon") || line.starts_with("VmHWM"));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}

/// Children that do nothing, until this is dropped.
struct Idlers(Vec<Pid>);

impl Idlers {
    fn start(count: usize) -> Result<Self> {
        let mut idlers = Self(Vec::with_capacity(count));
        for _ in 0..count {
            // SAFETY: this process has one thread yet, and the child only waits for a signal.
            match unsafe { fork() }? {
                ForkResult::Parent { child } => idlers.0.push(child),
                ForkResult::Child => loop {
                    pause();
                },
            }
        }
        Ok(idlers)
    }
}

impl Drop for Idlers {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _gone = kill(*pid, Signal::SIGKILL);
        }
        for pid in &self.0 {
            let _gone = waitpid(*pid, None);
        }
    }
}
