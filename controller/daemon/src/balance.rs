//! Balancing: asks the policy, and carries out what it says.
//!
//! One decision at a time: while a target has not answered, nothing else is decided, so that the same imbalance is not acted upon twice.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mosix_engine::eligible::automatic;
use mosix_policy::{Candidate, Features, Local, Move, NodeId, Request, Stance, decide};
use mosix_probe::ProcessSample;
use rand::RngCore;

use crate::home::{self, KAPPA};
use crate::host::Event;
use crate::node::{Node, Pinned};
use crate::{host, measure};

/// A process that wants less than half a CPU would not run faster elsewhere.
const WANTS_A_CPU: f64 = 0.5;
/// A process that may not move is looked at again after so long; each failure in a row doubles it.
const PIN: Duration = Duration::from_secs(1);
const MAX_PIN_DOUBLINGS: u32 = 8;
/// Pins that are remembered.
const MAX_PINS: usize = 10_000;

/// Decides whenever there is news, at most so often.
pub(crate) async fn run(node: Rc<Node>) {
    let pause = (node.config.period() / 8).max(Duration::from_millis(2));
    loop {
        node.news.notified().await;
        if node.balance.get() && !node.closing.get() && node.asking.borrow().is_empty() {
            decide_once(&node);
        }
        tokio::time::sleep(pause).await;
    }
}

fn decide_once(node: &Rc<Node>) {
    let period = node.config.period();
    node.refused_by.borrow_mut().retain(|(_, at)| at.elapsed() < period);
    let tried: Vec<NodeId> = node.refused_by.borrow().iter().map(|(id, _)| *id).collect();
    let local = local_state(node);
    let outcome = decide(&node.params, &local, &node.window.borrow(), node.now_s(), &mut *node.rng.borrow_mut(), &tried);
    let Some(action) = outcome.action else {
        return node.remember("none", None, outcome.explanation.to_string());
    };
    node.remember(action.rule.name(), Some(action.key), outcome.explanation.to_string());
    let Some(candidate) = local.candidates.iter().find(|candidate| candidate.key == action.key) else { return };
    if action.key <= u64::from(u32::MAX) { move_native(node, action) } else { wish(node, action, candidate) }
}

fn local_state(node: &Node) -> Local {
    let (incoming, outgoing) = {
        let ledger = node.ledger.borrow();
        (ledger.incoming(), ledger.outgoing())
    };
    Local { figures: node.figures(), incoming, outgoing, stance: Stance::Open, candidates: candidates(node) }
}

fn candidates(node: &Node) -> Vec<Candidate> {
    let sample = node.sample.borrow();
    let guests = node.guests.borrow();
    let by_pid: BTreeMap<i32, (u64, &host::Guest)> = guests
        .iter()
        .filter(|(_, guest)| guest.info.borrow().running)
        .filter_map(|(group, guest)| guest.info.borrow().outer_pid.map(|pid| (pid, (*group, guest))))
        .collect();
    let wanting = sample.processes.iter().filter(|process| process.demand >= WANTS_A_CPU);
    wanting
        .filter_map(|process| match by_pid.get(&(process.pid as i32)) {
            Some((group, guest)) => Some(guest_candidate(node, process, *group, guest)),
            None if process.nested => None,
            None => Some(native_candidate(node, process)),
        })
        .collect()
}

fn native_candidate(node: &Node, process: &ProcessSample) -> Candidate {
    let key = u64::from(process.pid);
    let rules = &node.config.automatic;
    let age_s = measure::age_s(process);
    // The cheap rules here; the rest when it has been chosen.
    let system = process.uid < rules.min_uid;
    Candidate {
        key,
        cpu_age_s: measure::work(node, process),
        wall_age_s: age_s,
        resident_s: age_s,
        memory_bytes: process.rss_bytes,
        home: node.id(),
        kappa: KAPPA,
        cost_s: node.move_cost_s.get(),
        in_flight: node.leaving.borrow().contains(&key) || node.deputies.borrow().contains_key(&(process.pid as i32)),
        pinned: system || is_pinned(node, key),
        needs: Features::default(),
        lag_s: 0.0,
        restless: 0.0,
        partners: Vec::new(),
    }
}

fn guest_candidate(node: &Node, process: &ProcessSample, group: u64, guest: &host::Guest) -> Candidate {
    let info = guest.info.borrow();
    let here_s = info.since.elapsed().as_secs_f64();
    Candidate {
        key: group,
        cpu_age_s: info.work_before_s + measure::work(node, process),
        wall_age_s: info.age_before_s + here_s,
        resident_s: here_s,
        memory_bytes: process.rss_bytes,
        home: node.id_of(&info.home).unwrap_or(node.id()),
        kappa: KAPPA,
        cost_s: node.move_cost_s.get(),
        in_flight: node.leaving.borrow().contains(&group) || node.asking.borrow().contains(&group),
        pinned: is_pinned(node, group),
        needs: Features::default(),
        lag_s: 0.0,
        restless: 0.0,
        partners: Vec::new(),
    }
}

/// A process of this home that runs here.
fn move_native(node: &Rc<Node>, action: Move) {
    let pid = action.key as i32;
    match home::plan_of(node, pid).map(|(_, facts)| automatic(&facts, &node.config.automatic)) {
        Ok(reasons) if reasons.is_empty() => {}
        Ok(reasons) => return pin(node, action.key, reasons.join("; ")),
        Err(error) => return pin(node, action.key, error.to_string()),
    }
    node.asking.borrow_mut().insert(action.key);
    let node = node.clone();
    tokio::task::spawn_local(async move {
        match home::move_process(&node, pid, action.target, false, None).await {
            Ok(_) => drop(node.pinned.borrow_mut().remove(&action.key)),
            Err(stay) => failed(&node, action.key, action.target, &stay.why, stay.refused),
        }
        answered(&node, action.key);
    });
}

/// A guest: its home moves it.
fn wish(node: &Node, action: Move, candidate: &Candidate) {
    let guests = node.guests.borrow();
    let Some(guest) = guests.get(&action.key) else { return };
    let request = Request {
        id: node.rng.borrow_mut().next_u64(),
        source: node.figures(),
        home: candidate.home,
        memory_bytes: candidate.memory_bytes,
        kappa: candidate.kappa,
        manual: false,
        needs: candidate.needs,
        apart_here: 0.0,
        apart_there: 0.0,
        terms: action.terms,
    };
    if guest.events.try_send(Event::Wish { target: action.target.0, request }).is_ok() {
        node.asking.borrow_mut().insert(action.key);
    }
}

/// The target has answered (or the move is off): other decisions may follow.
pub(crate) fn answered(node: &Node, key: u64) {
    if node.asking.borrow_mut().remove(&key) {
        node.news.notify_one();
    }
}

/// A move that this node wanted came to nothing.
pub(crate) fn failed(node: &Node, key: u64, target: NodeId, why: &str, refused: bool) {
    if refused {
        // Another target may say yes.
        node.remember("refused", Some(key), format!("{} refused: {why}", node.name_of(target)));
        node.refused_by.borrow_mut().push((target, Instant::now()));
    } else {
        pin(node, key, why.to_owned());
    }
    answered(node, key);
}

fn pin(node: &Node, key: u64, why: String) {
    node.remember("stays", Some(key), why.clone());
    let mut pinned = node.pinned.borrow_mut();
    if pinned.len() >= MAX_PINS {
        pinned.retain(|_, pin| pin.until > Instant::now());
    }
    let failures = pinned.get(&key).map_or(0, |pin| pin.failures);
    let until = Instant::now() + PIN * 2_u32.pow(failures.min(MAX_PIN_DOUBLINGS));
    pinned.insert(key, Pinned { until, failures: failures + 1 });
    node.news.notify_one();
}

fn is_pinned(node: &Node, key: u64) -> bool {
    node.pinned.borrow().get(&key).is_some_and(|pin| pin.until > Instant::now())
}
