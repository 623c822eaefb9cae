//! Prints a sample each second: `cargo run -p mosix-probe --example top [SECONDS] [proc]`.

use anyhow::Result;
use std::{env, thread, time::Duration};

fn main() -> Result<()> {
    let seconds = env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(5);
    let mut probe = if env::args().nth(2).as_deref() == Some("proc") { mosix_probe::open_proc() } else { mosix_probe::open() };
    println!("{}", probe.backend());
    for _ in 0..seconds {
        let mut sample = probe.sample()?;
        sample.processes.sort_by(|a, b| b.demand.total_cmp(&a.demand));
        println!(
            "\n{:.2} s, load {:.2}, {} processes, {} CPUs, {} of {} MiB available",
            sample.period_s,
            sample.load,
            sample.processes.len(),
            sample.cpus,
            sample.memory_available_bytes >> 20,
            sample.memory_total_bytes >> 20,
        );
        println!("    PID    PPID   INNER    SID    UID S THR  DEMAND    RATE  RSS KiB  CPU ms WAIT ms COMMAND");
        for p in sample.processes.iter().take(15) {
            let (rss, cpu, wait) = (p.rss_bytes >> 10, p.cpu_ns / 1_000_000, p.wait_ns / 1_000_000);
            println!(
                "{:7} {:7} {:7} {:6} {:6} {} {:3} {:7.3} {:7.3} {rss:8} {cpu:7} {wait:7} {}",
                p.pid, p.ppid, p.inner_pid, p.sid, p.uid, p.state, p.threads, p.demand, p.cpu_rate, p.comm,
            );
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
