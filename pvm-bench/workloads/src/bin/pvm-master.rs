//! `pvm-master K CPU_S [--no-barrier]`: one `pvm_spawn` of K workers with PVM's own placement, then GO for all at once.
//!
//! Prints `placed HOST...` when all are ready, waits for a line on stdin (unless --no-barrier), lets them go, and prints
//! `elapsed_s SECONDS`: from GO to the last result, as it arrives here.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, bail};
use mosix_workloads::burn::parse_seconds;
use mosix_workloads::pvm::Pvm;
use mosix_workloads::tasks::{DONE, ELAPSED, GO, GONE, PLACED, READY};

const USAGE: &str = "usage: pvm-master K CPU_S [--no-barrier]";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (count, cpu_s, barrier) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [count, cpu_s] => (count, cpu_s, true),
        [count, cpu_s, "--no-barrier"] => (count, cpu_s, false),
        _ => bail!("{USAGE}"),
    };
    let count: usize = count.parse().context(USAGE)?;
    let cpu = parse_seconds(cpu_s).map_err(anyhow::Error::msg)?;
    if count == 0 {
        bail!("{USAGE}");
    }
    let worker = std::env::current_exe()?.with_file_name("pvm-worker");
    let pvm = Pvm::load()?;
    let tids = pvm.spawn(worker.to_str().context("the worker's path is not text")?, &[], count)?;
    pvm.notify_exit(&tids, GONE)?;
    collect(&pvm, &tids, READY)?;
    say(&format!("{PLACED} {}", hosts_of(&pvm, &tids)?.join(" ")))?;
    if barrier && std::io::stdin().read_line(&mut String::new())? == 0 {
        bail!("stdin was closed before the start signal");
    }
    let started = Instant::now();
    pvm.send(&tids, GO, cpu.as_secs_f64())?;
    collect(&pvm, &tids, DONE)?;
    say(&format!("{ELAPSED} {:.6}", started.elapsed().as_secs_f64()))?;
    Ok(pvm.exit()?)
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Waits until every worker has sent `tag`.
fn collect(pvm: &Pvm, tids: &[i32], tag: i32) -> anyhow::Result<()> {
    let mut missing: HashSet<i32> = tids.iter().copied().collect();
    while !missing.is_empty() {
        let (sender, got) = pvm.receive()?;
        if got == tag {
            missing.remove(&sender);
        } else if got != GONE || tag != DONE {
            // While results come in, those who have sent theirs end; at any other time nobody should.
            bail!("message {got} instead of {tag}: a worker ended too early");
        } else if missing.contains(&pvm.gone()?) {
            bail!("a worker ended without a result");
        }
    }
    Ok(())
}

/// The host of every task, in order.
fn hosts_of(pvm: &Pvm, tids: &[i32]) -> anyhow::Result<Vec<String>> {
    let names: HashMap<i32, String> = pvm.hosts()?.into_iter().map(|host| (host.tid, host.name)).collect();
    let host = |tid: &i32| names.get(&pvm.host_of(*tid)?).cloned().context("a task on an unknown host");
    tids.iter().map(host).collect()
}
