//! Measuring: one sample a period, and what it means for the committed counts.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use mosix_probe::{Probe, ProcessSample, State};

use crate::home::is_ours;
use crate::host::Event;
use crate::node::Node;

/// A process younger than this has no history worth the name: if it is runnable now, it counts as one that wants a CPU.
const NO_HISTORY_PERIODS: f64 = 3.0;
const NO_HISTORY_S: f64 = 0.3;
/// How often holders tell homes about their guests.
const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// Samples until the daemon ends.
pub(crate) async fn run(node: Rc<Node>, mut probe: Box<dyn Probe>) {
    *node.probe.borrow_mut() = probe.backend();
    tracing::info!(backend = probe.backend(), "measuring");
    let mut figures_due = std::time::Instant::now();
    let mut broken = false;
    loop {
        match probe.sample() {
            Ok(sample) => {
                broken = false;
                take(&node, sample);
            }
            Err(error) if !broken => {
                broken = true;
                tracing::error!("cannot measure: {error}");
            }
            Err(_) => {}
        }
        if figures_due.elapsed() >= FIGURES_EVERY {
            figures_due = std::time::Instant::now();
            tell_homes(&node);
        }
        node.news.notify_one();
        tokio::time::sleep(node.config.period()).await;
    }
}

fn take(node: &Node, mut sample: mosix_probe::Sample) {
    let taken_at_s = node.now_s();
    let unborn = unborn(node, &sample);
    sample.processes.retain(|process| !process.kernel_thread && !is_ours(&process.comm) && !unborn.contains(&process.pid));
    // From 0: the empty sum of floats is -0.
    sample.load = sample.processes.iter().fold(0.0, |load, process| load + process.demand);
    let running: f64 = sample.processes.iter().map(|process| wants(node, process)).sum();
    let used_bytes = sample.memory_total_bytes.saturating_sub(sample.memory_available_bytes);
    let mut ledger = node.ledger.borrow_mut();
    tracing::trace!(running, load = sample.load, processes = ?sample.processes.iter().filter(|p| p.demand > 0.01).map(|p| (p.pid, p.state, p.demand)).collect::<Vec<_>>(), "sample");
    ledger.sample(running.round().clamp(0.0, f64::from(u16::MAX)) as u16, used_bytes, taken_at_s);
    for (peer, id) in ledger.expire(taken_at_s) {
        tracing::warn!(peer, id, "a reserved process did not come in time");
    }
    tracing::trace!(committed = ledger.committed(), incoming = ledger.incoming(), outgoing = ledger.outgoing(), "ledger");
    drop(ledger);
    *node.sample.borrow_mut() = sample;
}

/// Copies that have been restored and wait for home's word: the reservation counts them already, and they may never run.
fn unborn(node: &Node, sample: &mosix_probe::Sample) -> BTreeSet<u32> {
    let guests = node.guests.borrow();
    let running: BTreeSet<i32> = guests.values().filter_map(|guest| guest.info.borrow().outer_pid).collect();
    if running.len() == guests.len() {
        return BTreeSet::new();
    }
    let agents: BTreeSet<u32> = sample.processes.iter().filter(|process| is_ours(&process.comm)).map(|process| process.pid).collect();
    let restored = sample.processes.iter().filter(|process| process.nested && agents.contains(&process.ppid));
    restored.map(|process| process.pid).filter(|pid| !running.contains(&(*pid as i32))).collect()
}

/// How many CPUs a process wants, for the committed count.
fn wants(node: &Node, process: &ProcessSample) -> f64 {
    if is_leaving(node, process) {
        // Frozen or not, it counts until it is gone: the ledger subtracts it.
        return process.demand.max(1.0);
    }
    let young_s = (NO_HISTORY_PERIODS * node.params.period_s).max(NO_HISTORY_S);
    if process.state == State::Running && age_s(process) < young_s { process.demand.max(1.0) } else { process.demand }
}

fn is_leaving(node: &Node, process: &ProcessSample) -> bool {
    let leaving = node.leaving.borrow();
    if leaving.is_empty() {
        return false;
    }
    leaving.contains(&u64::from(process.pid))
        || node
            .guests
            .borrow()
            .iter()
            .any(|(group, guest)| leaving.contains(group) && guest.info.borrow().outer_pid == Some(process.pid as i32))
}

/// Seconds since a process was started.
pub(crate) fn age_s(process: &ProcessSample) -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.saturating_sub(Duration::from_nanos(process.start_time_ns)).as_secs_f64()
}

/// Work that a process has done on this node: CPU seconds times speed.
pub(crate) fn work_of(node: &Node, pid: i32) -> f64 {
    let sample = node.sample.borrow();
    sample.processes.iter().find(|process| process.pid as i32 == pid).map_or(0.0, |process| work(node, process))
}

/// The same, from its sample.
pub(crate) fn work(node: &Node, process: &ProcessSample) -> f64 {
    process.cpu_ns as f64 / 1e9 * node.config.node.speed
}

fn tell_homes(node: &Node) {
    let sample = node.sample.borrow();
    for guest in node.guests.borrow().values() {
        let info = guest.info.borrow();
        let Some(process) = sample.processes.iter().find(|process| info.running && Some(process.pid as i32) == info.outer_pid) else {
            continue;
        };
        let event = Event::Figures { work_s: info.work_before_s + work(node, process), rss_bytes: process.rss_bytes };
        // A task that is busy gets the next one.
        let _ = guest.events.try_send(event);
    }
}
