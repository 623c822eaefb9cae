//! What all parts of the daemon share: who this node is, what it knows, and what it counts.
//!
//! The daemon runs on one thread (blocking work goes to helper threads), so the state sits in cells and is never borrowed across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mosix_criu::Criu;
use mosix_deputy::Watcher;
use mosix_policy::{Figures, Ledger, NodeId, Params, Record, Window};
use mosix_probe::Sample;
use mosix_wire::cluster::Identity;
use mosix_wire::control::Stats;
use mosix_wire::tls::Tls;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;

use crate::commit_log::CommitLog;
use crate::config::Config;
use crate::home::Deputy;
use crate::host::Guest;

/// Decisions that are kept for `explain`.
const MAX_DECISIONS: usize = 1024;
/// Freeze times that are kept.
const MAX_FREEZES: usize = 1000;

/// One remembered decision.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) at: Instant,
    pub(crate) rule: &'static str,
    /// The process that it concerned (policy key); `None` for "nothing to do".
    pub(crate) key: Option<u64>,
    pub(crate) text: String,
}

/// A process that is left alone for a while, because it could not be moved.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    pub(crate) until: Instant,
    pub(crate) failures: u32,
}

/// The node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) tls: Tls,
    pub(crate) criu: Criu,
    /// CRIU's cache of kernel features, if it is one with our patches: then memory is copied beforehand. Else why not.
    pub(crate) kerndat: Result<PathBuf, String>,
    pub(crate) agent_program: PathBuf,
    pub(crate) freezer_root: PathBuf,
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) params: Params,
    pub(crate) started: Instant,
    pub(crate) incarnation: u32,
    pub(crate) probe: RefCell<String>,
    pub(crate) log: RefCell<CommitLog>,
    pub(crate) rng: RefCell<ChaCha8Rng>,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) window: RefCell<Window>,
    pub(crate) sample: RefCell<Sample>,
    pub(crate) record_seq: Cell<u32>,
    /// Processes of this home that are or were away, by pid.
    pub(crate) deputies: RefCell<BTreeMap<i32, Deputy>>,
    /// Processes that this node holds for a home, by group.
    pub(crate) guests: RefCell<BTreeMap<u64, Guest>>,
    pub(crate) next_group: Cell<u32>,
    /// Policy keys of what is being moved away from here.
    pub(crate) leaving: RefCell<BTreeSet<u64>>,
    /// Policy keys of what this node wants to move and the target has not answered yet.
    pub(crate) asking: RefCell<BTreeSet<u64>>,
    /// Nodes that refused lately, and when.
    pub(crate) refused_by: RefCell<Vec<(NodeId, Instant)>>,
    pub(crate) pinned: RefCell<BTreeMap<u64, Pinned>>,
    pub(crate) decisions: RefCell<VecDeque<Decision>>,
    pub(crate) stats: RefCell<Stats>,
    pub(crate) balance: Cell<bool>,
    pub(crate) closing: Cell<bool>,
    /// Measured cost of a move (freeze), EWMA, seconds.
    pub(crate) move_cost_s: Cell<f64>,
    /// Something changed that calls for a decision.
    pub(crate) news: Notify,
}

/// Node numbers are the top 16 bits of group numbers.
const MAX_NODE: u32 = 0xffff;
/// Cost of a move before one was measured, in seconds.
const FIRST_COST_S: f64 = 0.1;

impl Node {
    /// Puts a node together. Nothing runs yet.
    pub(crate) fn new(config: Config, identity: Identity, log: CommitLog) -> Result<Self> {
        let tls = Tls::new(&identity)?;
        let id = NodeId(identity.id());
        if id.0 > MAX_NODE {
            bail!("this node has the number {}; groups are numbered for at most {MAX_NODE} nodes", id.0);
        }
        let members = identity.members().len();
        let mut params = Params::scaled(config.period().as_secs_f64()).for_cluster(members);
        params.max_in = config.policy.max_in;
        params.max_out = config.policy.max_out;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let criu = Criu::at(config.criu()?);
        let agent_program = config.agent()?;
        let freezer_root = config.freezer_root()?;
        let balance = Cell::new(config.policy.balance);
        Ok(Self {
            tls,
            kerndat: kerndat(&config, &criu),
            criu,
            agent_program,
            freezer_root,
            watcher: Arc::new(Watcher::start().context("cannot start the watcher of deputies")?),
            params,
            started: Instant::now(),
            incarnation: u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX),
            probe: RefCell::default(),
            log: RefCell::new(log),
            rng: RefCell::new(ChaCha8Rng::seed_from_u64(since_epoch.as_nanos() as u64 ^ u64::from(id.0))),
            ledger: RefCell::new(Ledger::new()),
            window: RefCell::new(Window::new(id)),
            sample: RefCell::default(),
            record_seq: Cell::new(0),
            deputies: RefCell::default(),
            guests: RefCell::default(),
            next_group: Cell::new(1),
            leaving: RefCell::default(),
            asking: RefCell::default(),
            refused_by: RefCell::default(),
            pinned: RefCell::default(),
            decisions: RefCell::default(),
            stats: RefCell::default(),
            balance,
            closing: Cell::new(false),
            move_cost_s: Cell::new(FIRST_COST_S),
            news: Notify::new(),
            config,
            identity,
        })
    }

    /// This node's number.
    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.identity.id())
    }

    /// Seconds on this daemon's own clock.
    pub(crate) fn now_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn name_of(&self, id: NodeId) -> String {
        self.identity.members().by_id(id.0).map_or_else(|| id.to_string(), |member| member.name.clone())
    }

    pub(crate) fn id_of(&self, name: &str) -> Option<NodeId> {
        self.identity.members().get(name).map(|member| NodeId(member.id))
    }

    /// Work per CPU second and its share: what one CPU of this node gives in a second.
    pub(crate) fn effective_speed(&self) -> f64 {
        self.config.node.speed * self.config.node.cpu_share
    }

    fn cpus(&self) -> u16 {
        self.config.node.cpus.unwrap_or_else(|| u16::try_from(self.sample.borrow().cpus.max(1)).unwrap_or(u16::MAX))
    }

    /// Committed figures: what decisions use.
    pub(crate) fn figures(&self) -> Figures {
        let ledger = self.ledger.borrow();
        Figures {
            node: self.id(),
            speed: self.effective_speed(),
            cpus: self.cpus(),
            committed: ledger.committed(),
            memory_total_bytes: self.sample.borrow().memory_total_bytes,
            memory_used_bytes: ledger.memory_used_bytes(),
        }
    }

    /// A fresh record of this node.
    pub(crate) fn record(&self) -> Record {
        let figures = self.figures();
        self.record_seq.set(self.record_seq.get() + 1);
        let away = self.deputies.borrow().values().filter(|deputy| deputy.is_away(self)).count();
        Record {
            node: figures.node,
            incarnation: self.incarnation,
            seq: self.record_seq.get(),
            age_ms: 0,
            committed: figures.committed,
            load: self.sample.borrow().load as f32,
            speed: figures.speed as f32,
            cpus: figures.cpus,
            memory_total_bytes: figures.memory_total_bytes,
            memory_free_bytes: figures.memory_total_bytes.saturating_sub(figures.memory_used_bytes),
            guests: u16::try_from(self.guests.borrow().values().filter(|guest| guest.is_foreign(self)).count()).unwrap_or(u16::MAX),
            away: u16::try_from(away).unwrap_or(u16::MAX),
            closed: !self.config.node.accept_guests || self.closing.get(),
            features: mosix_policy::Features::default(),
            lag_mean_s: 0.0,
            lag_min_s: 0.0,
        }
    }

    /// Takes in a record that came outside of gossip, with an answer.
    pub(crate) fn learn(&self, record: Record) {
        self.window.borrow_mut().learn(&self.params, record, self.now_s());
    }

    /// Remembers a decision for `explain`.
    pub(crate) fn remember(&self, rule: &'static str, key: Option<u64>, text: String) {
        let mut decisions = self.decisions.borrow_mut();
        // An unchanged "nothing to do" is kept once.
        if key.is_none() && decisions.back().is_some_and(|last| last.key.is_none()) {
            decisions.pop_back();
        }
        if decisions.len() >= MAX_DECISIONS {
            decisions.pop_front();
        }
        decisions.push_back(Decision { at: Instant::now(), rule, key, text });
    }

    /// Counts a completed move.
    pub(crate) fn count_move(&self, freeze_ms: f64) {
        let mut stats = self.stats.borrow_mut();
        stats.migrations += 1;
        if stats.freeze_ms.len() >= MAX_FREEZES {
            stats.freeze_ms.remove(0);
        }
        stats.freeze_ms.push(freeze_ms);
        self.move_cost_s.set(0.8 * self.move_cost_s.get() + 0.2 * freeze_ms / 1000.0);
    }

    /// A number for a new group, unique in the cluster as long as this daemon runs; the incarnation keeps runs apart.
    pub(crate) fn new_group(&self) -> u64 {
        let number = self.next_group.get();
        self.next_group.set(number.wrapping_add(1));
        (u64::from(self.id().0) << 48) | (u64::from(self.incarnation & 0xffff) << 32) | u64::from(number)
    }

    /// Folder for images of one epoch of a group.
    pub(crate) fn images_dir(&self, role: &str, group: u64, epoch: u32) -> PathBuf {
        self.config.state_dir.join("images").join(format!("{role}-{group:x}-{epoch}"))
    }
}

/// Has the cache made if memory can be copied beforehand; else says why not.
fn kerndat(config: &Config, criu: &Criu) -> Result<PathBuf, String> {
    let file = config.state_dir.join("criu.kdat");
    let prepared = match criu.features() {
        _ if !config.moving.precopy => Err("moving.precopy is off".to_owned()),
        Ok(features) if !features.complete() => Err(format!(
            "{} lacks our patches: name in programs.criu one that has them (`cargo xtask setup` builds it)",
            criu.path().display()
        )),
        Ok(_) => mosix_criu::kerndat::prepare(criu, &file).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = &prepared {
        tracing::warn!("memory is not copied beforehand, so processes stand still for as long as it takes to send it: {why}");
    }
    prepared.map(|()| file)
}
