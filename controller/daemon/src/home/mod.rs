//! Home's side: the processes that were started here and are, or are about to be, elsewhere.
//!
//! For each there is one *deputy task* ([`deputy::run`]): it drives the commit protocol as home, keeps the link to the holder, and stands between the
//! stub's signals, pipes and terminal here and the guest there. This file has the registry and the ways to start a move.

pub(crate) mod deputy;
mod link;
mod mailbox;
mod native;
mod stdio;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use mosix_engine::eligible::{Plan, Verdict, judge};
use mosix_engine::facts::{self, Facts, Own};
use mosix_policy::{NodeId, Request};
use mosix_wire::control::Moved;
use rand::RngCore;
use tokio::sync::{mpsc, oneshot};

use crate::node::Node;
pub(crate) use deputy::Event;

/// Kappa of all processes until home traffic is measured: no extra time away from home.
pub(crate) const KAPPA: f64 = 0.0;

/// Events that may wait for a deputy task. Output is bounded by credits, signals coalesce in the kernel.
const QUEUE: usize = 512;

/// What is shown of a process of this home.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub(crate) group: u64,
    pub(crate) comm: String,
    pub(crate) uid: u32,
    /// Where the body is.
    pub(crate) node: NodeId,
    /// The home body is a stub: the body is at `node`, which may be this one.
    pub(crate) is_stub: bool,
    pub(crate) since: Instant,
    pub(crate) born: Instant,
    pub(crate) work_s: f64,
    pub(crate) rss_bytes: u64,
    pub(crate) moves: u32,
    pub(crate) moving: bool,
    pub(crate) stopped: bool,
}

/// Handle of a deputy task.
pub(crate) struct Deputy {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) info: Rc<RefCell<Info>>,
}

impl Deputy {
    /// The process runs on another node.
    pub(crate) fn is_away(&self, node: &Node) -> bool {
        let info = self.info.borrow();
        info.is_stub && info.node != node.id()
    }
}

/// A wish to move a process of this home.
pub(crate) struct MoveOrder {
    pub(crate) target: NodeId,
    pub(crate) request: Request,
    pub(crate) progress: Option<mpsc::UnboundedSender<String>>,
    pub(crate) reply: oneshot::Sender<Result<Moved, Stay>>,
    pub(crate) asked: Instant,
}

/// Why a process was not moved. Unless it is gone it runs on where it was.
#[derive(Debug, Clone)]
pub(crate) struct Stay {
    pub(crate) why: String,
    /// The target said no (and nothing went wrong): another one may be tried.
    pub(crate) refused: bool,
    /// It does not run any more.
    pub(crate) gone: bool,
}

impl Stay {
    pub(crate) fn failed(why: impl ToString) -> Self {
        Self { why: why.to_string(), refused: false, gone: false }
    }

    pub(crate) fn ended(why: impl ToString) -> Self {
        Self { gone: true, ..Self::failed(why) }
    }
}

/// Moves a process of this home; resolves when it runs there, or stays.
pub(crate) async fn move_process(
    node: &Rc<Node>,
    pid: i32,
    target: NodeId,
    manual: bool,
    progress: Option<mpsc::UnboundedSender<String>>,
) -> Result<Moved, Stay> {
    let (reply, answer) = oneshot::channel();
    let (events, source) = match handle_of(node, pid) {
        Some(found) => found,
        None => (adopt(node, pid).map_err(Stay::failed)?, node.id()),
    };
    let request = request_for(node, pid, source, manual);
    let order = MoveOrder { target, request, progress, reply, asked: Instant::now() };
    events.send(Event::Move(order)).await.map_err(|_| Stay::ended("the process has just ended"))?;
    answer.await.map_err(|_| Stay::ended("the process has just ended"))?
}

fn handle_of(node: &Node, pid: i32) -> Option<(mpsc::Sender<Event>, NodeId)> {
    let deputies = node.deputies.borrow();
    let deputy = deputies.get(&pid)?;
    Some((deputy.events.clone(), deputy.info.borrow().node))
}

/// What the target's policy is asked, for a move from `source`.
fn request_for(node: &Node, pid: i32, source: NodeId, manual: bool) -> Request {
    let figures = if source == node.id() {
        node.figures()
    } else {
        let window = node.window.borrow();
        window.get(source).map_or_else(|| mosix_policy::Figures { node: source, ..node.figures() }, |heard| heard.record.figures())
    };
    let sample = node.sample.borrow();
    let deputy_rss = node.deputies.borrow().get(&pid).map(|deputy| deputy.info.borrow().rss_bytes);
    let rss = sample.processes.iter().find(|process| process.pid == pid as u32).map(|process| process.rss_bytes);
    Request {
        id: u64::from(node.rng.borrow_mut().next_u32()) << 32 | pid as u64,
        source: figures,
        home: node.id(),
        memory_bytes: deputy_rss.filter(|bytes| *bytes > 0).or(rss).unwrap_or(0),
        kappa: KAPPA,
        manual,
        needs: mosix_policy::Features::default(),
        apart_here: 0.0,
        apart_there: 0.0,
        // A move by another rule brings its own terms with the wish or the order; so far only balance does.
        terms: mosix_policy::Terms::Faster,
    }
}

/// Starts the deputy task of a process that has not been moved before.
fn adopt(node: &Rc<Node>, pid: i32) -> Result<mpsc::Sender<Event>> {
    if node.closing.get() {
        bail!("this daemon is stopping");
    }
    let (plan, facts) = plan_of(node, pid)?;
    let (events, queue) = mpsc::channel(QUEUE);
    let info = Rc::new(RefCell::new(Info {
        group: node.new_group(),
        comm: plan.comm.clone(),
        uid: plan.uid,
        node: node.id(),
        is_stub: false,
        since: Instant::now(),
        born: Instant::now().checked_sub(Duration::from_millis(facts.age_ms)).unwrap_or_else(Instant::now),
        work_s: 0.0,
        rss_bytes: plan.memory_bytes,
        moves: 0,
        moving: false,
        stopped: false,
    }));
    node.deputies.borrow_mut().insert(pid, Deputy { events: events.clone(), info: info.clone() });
    tokio::task::spawn_local(deputy::run(node.clone(), plan, info, events.clone(), queue));
    Ok(events)
}

/// Judges a process of this home that runs here.
pub(crate) fn plan_of(node: &Node, pid: i32) -> Result<(Plan, Facts)> {
    judge_process(pid, &helper_pids(node))
}

/// The same, without the node: for helper threads.
fn judge_process(pid: i32, helpers: &[i32]) -> Result<(Plan, Facts)> {
    judge_with(pid, helpers, |_| ())
}

fn judge_with(pid: i32, helpers: &[i32], but: impl FnOnce(&mut Facts)) -> Result<(Plan, Facts)> {
    let mut facts = facts::collect(pid).map_err(|error| anyhow!("{error}"))?;
    // This daemon's own copies, taken for a move that is under way, are not somebody else's.
    let own_pid = std::process::id() as i32;
    facts.fds.iter_mut().for_each(|fd| fd.holders.retain(|holder| holder.pid != own_pid));
    but(&mut facts);
    let own = Own::collect(helpers).map_err(|error| anyhow!("{error}"))?;
    match judge(&facts, &own) {
        Verdict::Movable(plan) => Ok((plan, facts)),
        Verdict::Stays(refusals) => {
            let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            bail!("{} (process {pid}) stays here: {}", facts.comm, reasons.join("; "))
        }
    }
}

/// The same, for one that our CRIU holds: that it is traced is our doing.
fn judge_held(pid: i32, helpers: &[i32]) -> Result<(Plan, Facts)> {
    judge_with(pid, helpers, |facts| {
        facts.state = if facts.state == 't' { 'S' } else { facts.state };
        facts.threads.iter_mut().for_each(|thread| thread.tracer_pid = 0);
    })
}

/// Equal but for the memory in use.
fn same_plan(new: &Plan, old: &Plan) -> bool {
    Plan { memory_bytes: 0, ..new.clone() } == Plan { memory_bytes: 0, ..old.clone() }
}

/// Agents and CRIU runs of this daemon.
pub(crate) fn helper_pids(node: &Node) -> Vec<i32> {
    let sample = node.sample.borrow();
    sample.processes.iter().filter(|process| is_ours(&process.comm)).map(|process| process.pid as i32).collect()
}

/// Programs of this system, by name: never moved, never counted as load.
pub(crate) fn is_ours(comm: &str) -> bool {
    comm.starts_with("mosix") || comm == "criu"
}
