//! What is shown of the node's state: status, processes, explanations, counters.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mosix_engine::eligible::automatic;
use mosix_policy::{NodeId, Record};
use mosix_wire::control::{DecisionRow, Explained, NodeRow, ProcessRow, Stats, Status};

use crate::home;
use crate::measure;
use crate::node::Node;

/// A node that was not heard of for so many periods is silent. Gossip reaches everybody in about ln(n) of them.
const SILENT_PERIODS: f64 = 20.0;
/// ... but not before so many seconds.
const SILENT_S: f64 = 3.0;
/// Decisions shown for one process.
const MAX_SHOWN: usize = 20;
/// A native process is listed by `ps` if it wants at least so much CPU.
const LISTED_DEMAND: f64 = 0.2;

pub(crate) fn status(node: &Node) -> Status {
    let now_s = node.now_s();
    let mut nodes: Vec<NodeRow> = node.identity.members().iter().map(|member| row(node, NodeId(member.id), &member.name, now_s)).collect();
    nodes.sort_by_key(|row| natural(&row.name));
    let up = nodes.iter().filter(|row| row.state == "up").count();
    let missing: Vec<&str> = nodes.iter().filter(|row| row.state != "up").map(|row| row.name.as_str()).collect();
    let mut health =
        format!("{up} of {} nodes up, {:.0} processes want a CPU", nodes.len(), nodes.iter().fold(0.0, |sum, row| sum + row.load));
    if !missing.is_empty() {
        health.push_str(&format!("; not heard of: {}", missing.join(", ")));
    }
    if !node.balance.get() {
        health.push_str("; balancing is off at this node");
    }
    Status { health, this_node: node.identity.name().to_owned(), nodes }
}

/// Names with numbers in them in the order of the numbers.
fn natural(name: &str) -> (String, u64) {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    (name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), digits.parse().unwrap_or(0))
}

fn row(node: &Node, id: NodeId, name: &str, now_s: f64) -> NodeRow {
    if id == node.id() {
        return from_record(name, "up", &node.record(), Some(0.0));
    }
    let window = node.window.borrow();
    let Some(heard) = window.get(id) else {
        return NodeRow {
            name: name.to_owned(),
            state: "unknown".to_owned(),
            speed: 0.0,
            cpus: 0,
            load: 0.0,
            memory_total_bytes: 0,
            memory_free_bytes: 0,
            guests: 0,
            away: 0,
            age_s: None,
        };
    };
    let age_s = heard.age_s(now_s);
    let limit_s = (SILENT_PERIODS * node.params.period_s).max(SILENT_S);
    from_record(name, if age_s < limit_s { "up" } else { "silent" }, &heard.record, Some(age_s))
}

fn from_record(name: &str, state: &str, record: &Record, age_s: Option<f64>) -> NodeRow {
    NodeRow {
        name: name.to_owned(),
        state: state.to_owned(),
        speed: f64::from(record.speed),
        cpus: u32::from(record.cpus),
        load: f64::from(record.load),
        memory_total_bytes: record.memory_total_bytes,
        memory_free_bytes: record.memory_free_bytes,
        guests: u32::from(record.guests),
        away: u32::from(record.away),
        age_s,
    }
}

/// The processes of this home.
pub(crate) fn processes(node: &Node, all: bool) -> Vec<ProcessRow> {
    let mut rows: Vec<ProcessRow> = node
        .deputies
        .borrow()
        .iter()
        .filter(|(_, deputy)| deputy.info.borrow().is_stub)
        .map(|(pid, deputy)| deputy_row(node, *pid, deputy))
        .collect();
    let away: BTreeSet<i32> = rows.iter().map(|row| row.pid).collect();
    let sample = node.sample.borrow();
    let natives = sample.processes.iter().filter(|process| !process.nested && !away.contains(&(process.pid as i32)));
    rows.extend(natives.filter(|process| all || process.demand >= LISTED_DEMAND).map(|process| native_row(node, process)));
    rows.sort_by_key(|row| row.pid);
    rows
}

fn deputy_row(node: &Node, pid: i32, deputy: &home::Deputy) -> ProcessRow {
    let info = deputy.info.borrow();
    let state = match (info.moving, info.stopped) {
        (true, _) => "moving",
        (_, true) => "stopped",
        _ => "running",
    };
    ProcessRow {
        pid,
        command: info.comm.clone(),
        uid: info.uid,
        node: node.name_of(info.node),
        since_s: info.since.elapsed().as_secs_f64(),
        cpu_s: info.work_s / node.config.node.speed,
        rss_bytes: info.rss_bytes,
        moves: info.moves,
        state: state.to_owned(),
    }
}

fn native_row(node: &Node, process: &mosix_probe::ProcessSample) -> ProcessRow {
    let is_moving = node.leaving.borrow().contains(&u64::from(process.pid));
    let state = match process.state {
        _ if is_moving => "moving",
        mosix_probe::State::Stopped | mosix_probe::State::Traced => "stopped",
        _ if process.demand >= LISTED_DEMAND => "running",
        _ => "idle",
    };
    ProcessRow {
        pid: process.pid as i32,
        command: process.comm.to_string(),
        uid: process.uid,
        node: node.identity.name().to_owned(),
        since_s: measure::age_s(process),
        cpu_s: process.cpu_ns as f64 / 1e9,
        rss_bytes: process.rss_bytes,
        moves: 0,
        state: state.to_owned(),
    }
}

/// Owner of a process of this home.
pub(crate) fn owner(node: &Node, pid: i32) -> Option<u32> {
    if let Some(deputy) = node.deputies.borrow().get(&pid) {
        return Some(deputy.info.borrow().uid);
    }
    use std::os::unix::fs::MetadataExt;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let real = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok());
    real.or_else(|| std::fs::metadata(format!("/proc/{pid}")).ok().map(|metadata| metadata.uid()))
}

/// Why a process did or did not move.
pub(crate) fn explain(node: &Node, pid: i32) -> Result<Explained> {
    let away = node.deputies.borrow().get(&pid).filter(|deputy| deputy.info.borrow().is_stub).map(|deputy| deputy.info.clone());
    let mut explained = match away {
        Some(info) => {
            let info = info.borrow();
            Explained {
                pid,
                command: info.comm.clone(),
                node: node.name_of(info.node),
                movable: !info.moving,
                refusals: if info.moving { vec!["it is being moved".to_owned()] } else { Vec::new() },
                not_automatic: Vec::new(),
                decisions: Vec::new(),
            }
        }
        None => explain_native(node, pid)?,
    };
    let decisions = node.decisions.borrow();
    let mine = decisions.iter().filter(|decision| decision.key.is_none_or(|key| key == pid as u64));
    let rows: Vec<DecisionRow> = mine
        .map(|decision| DecisionRow {
            ago_s: decision.at.elapsed().as_secs_f64(),
            rule: decision.rule.to_owned(),
            text: decision.text.clone(),
        })
        .collect();
    explained.decisions = rows.into_iter().rev().take(MAX_SHOWN).rev().collect();
    Ok(explained)
}

fn explain_native(node: &Node, pid: i32) -> Result<Explained> {
    use mosix_engine::eligible::{Verdict, judge};
    use mosix_engine::facts::{self, Own};
    let facts = facts::collect(pid).with_context(|| format!("cannot look at process {pid}"))?;
    let own = Own::collect(&home::helper_pids(node)).context("cannot look at this daemon itself")?;
    let refusals = match judge(&facts, &own) {
        Verdict::Movable(_) => Vec::new(),
        Verdict::Stays(refusals) => refusals.iter().map(ToString::to_string).collect(),
    };
    let mut not_automatic = automatic(&facts, &node.config.automatic);
    if let Some(pin) = node.pinned.borrow().get(&(pid as u64)).filter(|pin| pin.until > Instant::now()) {
        let wait_s = pin.until.saturating_duration_since(Instant::now()).as_secs_f64();
        not_automatic.push(format!("it could not be moved {} times in a row and is left alone for another {wait_s:.0} s", pin.failures));
    }
    Ok(Explained {
        pid,
        command: facts.comm.clone(),
        node: node.identity.name().to_owned(),
        movable: refusals.is_empty(),
        refusals,
        not_automatic,
        decisions: Vec::new(),
    })
}

/// Counters, with this daemon's own use.
pub(crate) fn stats(node: &Node) -> Stats {
    let mut stats = node.stats.borrow().clone();
    stats.probe = node.probe.borrow().clone();
    stats.daemon_cpu_s = cpu_of(nix::sys::resource::UsageWho::RUSAGE_SELF) + cpu_of(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    stats.daemon_rss_bytes = resident_bytes().unwrap_or(0);
    stats
}

fn cpu_of(who: nix::sys::resource::UsageWho) -> f64 {
    let seconds =
        |time: nix::sys::time::TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64).as_secs_f64();
    nix::sys::resource::getrusage(who).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
