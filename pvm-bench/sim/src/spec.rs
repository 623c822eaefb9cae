//! Scenario files: what they say, and what they may say.

use mosix_policy::Params;
use serde::Deserialize;

use crate::chances::Chance;
use crate::{Result, bad};

/// Most nodes.
pub(crate) const MAX_NODES: usize = 100_000;
/// Most processes that ever run.
pub(crate) const MAX_PROCESSES: usize = 2_000_000;
const MAX_SECONDS: f64 = 1e7;

/// One run's set-up. All sizes are in units of their names; speeds are relative to the cluster's unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Short name.
    pub name: String,
    /// What it shows.
    #[serde(default)]
    pub about: String,
    /// Runs, with seeds that follow each other.
    #[serde(default = "one")]
    pub runs: u32,
    /// The first seed.
    #[serde(default = "one_u64")]
    pub seed: u64,
    /// Seconds before the first job, in which nodes get to know each other. Results count from its end.
    #[serde(default)]
    pub warmup_s: f64,
    /// Ends here even if jobs still run, counted from the end of the warm-up.
    #[serde(default = "a_day")]
    pub limit_s: f64,
    /// The run goes on until the limit, though all jobs have ended.
    #[serde(default)]
    pub to_the_limit: bool,
    /// Groups of equal nodes.
    pub nodes: Vec<NodeSpec>,
    /// How decisions are made.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Messages between nodes.
    #[serde(default)]
    pub network: NetworkSpec,
    /// What moving costs.
    #[serde(default)]
    pub migration: MigrationSpec,
    /// The jobs.
    #[serde(default)]
    pub jobs: Vec<JobSpec>,
    /// Load of others.
    #[serde(default)]
    pub background: Vec<BackgroundSpec>,
    /// Nodes that fail.
    #[serde(default)]
    pub churn: ChurnSpec,
    /// Owners who come back to their nodes.
    #[serde(default)]
    pub owners: Vec<OwnerSpec>,
}

fn one() -> u32 {
    1
}
fn one_u64() -> u64 {
    1
}
fn a_day() -> f64 {
    86_400.0
}

/// Equal nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// How many.
    pub count: usize,
    /// Speed of a CPU.
    #[serde(default = "unit")]
    pub speed: f64,
    /// CPUs.
    #[serde(default = "single")]
    pub cpus: u16,
    /// Memory.
    #[serde(default = "roomy")]
    pub memory_mb: f64,
    /// CPU features, a bit for each.
    #[serde(default = "all_features")]
    pub features: u32,
}

fn unit() -> f64 {
    1.0
}
fn single() -> u16 {
    1
}
fn roomy() -> f64 {
    1e6
}
fn all_features() -> u32 {
    u32::MAX
}

/// Whether targets are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handshake {
    /// They are, and reserve.
    #[default]
    Full,
    /// They are not; the sender counts what it sent.
    Bump,
    /// They are not, and nobody counts.
    None,
}

/// How decisions are made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Nothing is ever moved.
    pub fixed: bool,
    /// New processes start where they are predicted to run fastest, instead of where they are born.
    pub place_at_birth: bool,
    /// Ablation: targets are not asked.
    pub handshake: Handshake,
    /// Ablation: decisions use a load that is smoothed over so many seconds. 0: committed counts.
    pub smoothing_s: f64,
    /// Moves cost nothing in predictions.
    pub ignore_cost: bool,
    /// Processes' ties to home and partners are not known.
    pub ignore_ties: bool,
    /// Ablation: memory counts for nothing.
    pub ignore_memory: bool,
    /// Constants of `mosix_policy::Params` that differ from the recommended for so many nodes.
    pub params: toml::Table,
}

/// Messages between nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Time of a message, ms.
    pub delay_ms: Chance,
    /// Share that is lost.
    pub loss: f64,
    /// Share that comes twice.
    pub duplicates: f64,
    /// What a node's network interface carries in each direction, all its transfers together.
    pub interface_mb_s: f64,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self { delay_ms: Chance::Constant(0.2), loss: 0.0, duplicates: 0.0, interface_mb_s: 110.0 }
    }
}

/// What moving costs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationSpec {
    /// Part of the freeze that does not depend on size, s.
    pub base_s: f64,
    /// Clean pages are copied while the process runs; else all of it is in the freeze.
    pub precopy: bool,
    /// CPU that a transfer takes at both ends, in processes.
    pub copy_share: f64,
    /// Slowdown of a node is `1 + this * (use of memory - 1)` when its memory is overcommitted ...
    pub paging_slope: f64,
    /// ... or this factor at once, if not 0.
    pub paging_factor: f64,
}

impl Default for MigrationSpec {
    fn default() -> Self {
        Self { base_s: 0.2, precopy: true, copy_share: 0.3, paging_slope: 100.0, paging_factor: 0.0 }
    }
}

/// Where processes are born.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Born {
    /// One after the other, as PVM places them.
    #[default]
    RoundRobin,
    /// All at the first.
    First,
    /// Anywhere.
    Random,
}

/// A group of jobs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// How many, all at once; or with `rate_per_s` the most.
    #[serde(default)]
    pub count: usize,
    /// They come at random, so many a second on average, instead of all at once.
    #[serde(default)]
    pub rate_per_s: f64,
    /// When the first may come, after the warm-up.
    #[serde(default)]
    pub from_s: f64,
    /// When the last may come.
    #[serde(default)]
    pub until_s: f64,
    /// CPU seconds at speed 1.
    pub work_s: Chance,
    /// A job is so many processes that share its work equally.
    #[serde(default = "one_chance")]
    pub processes: Chance,
    /// Memory of a process.
    #[serde(default = "small")]
    pub memory_mb: Chance,
    /// Share of it that is copied while it is frozen.
    #[serde(default)]
    pub dirty: f64,
    /// Extra time per unit of work away from home.
    #[serde(default)]
    pub kappa: f64,
    /// Processes talk in pairs, the first with the second and so on; this is the extra time while they are apart.
    #[serde(default)]
    pub apart: f64,
    /// CPU features that they need.
    #[serde(default)]
    pub needs: u32,
    /// Where they are born.
    #[serde(default)]
    pub born: Born,
    /// Nodes on which they are born: the first so many after `skip_nodes`; 0 is all the rest.
    #[serde(default)]
    pub on_nodes: usize,
    /// See there.
    #[serde(default)]
    pub skip_nodes: usize,
}

fn one_chance() -> Chance {
    Chance::Constant(1.0)
}
fn small() -> Chance {
    Chance::Constant(1.0)
}

/// Processes of others, that run and sleep in turns until the end. They do not move.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackgroundSpec {
    /// How many, each on a random node.
    pub count: usize,
    /// Seconds of running.
    pub on_s: Chance,
    /// Seconds of sleep.
    pub off_s: Chance,
    /// They are moved like jobs.
    #[serde(default)]
    pub moves: bool,
}

/// Nodes that fail.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChurnSpec {
    /// Mean time between crashes of a node; 0: none. What runs there is lost.
    pub crash_every_s: f64,
    /// It is down so long.
    pub down_s: Option<Chance>,
    /// The cluster falls into two halves then; 0: never ...
    pub partition_at_s: f64,
    /// ... for so long.
    pub partition_s: f64,
}

/// An owner who comes back.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerSpec {
    /// The first so many nodes after `skip_nodes`.
    pub nodes: usize,
    /// See there.
    #[serde(default)]
    pub skip_nodes: usize,
    /// When, after the warm-up.
    pub from_s: f64,
    /// Until when.
    pub until_s: f64,
    /// The nodes are taken out of service: their own processes leave, too.
    #[serde(default)]
    pub drain: bool,
}

fn number(what: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value >= low && value <= high { Ok(()) } else { Err(bad(what, format!("must be from {low} to {high}, but is {value}"))) }
}

impl Scenario {
    /// Nodes, all together.
    pub fn node_count(&self) -> usize {
        self.nodes.iter().fold(0, |sum, n| sum.saturating_add(n.count))
    }

    /// The constants of the policy: the recommended for so many nodes, and what the scenario says.
    ///
    /// # Errors
    /// Unknown names and impossible values.
    pub fn params(&self) -> Result<Params> {
        let mut base = Params::default();
        if let Some(period) = self.policy.params.get("period_s").and_then(toml::Value::as_float) {
            base = Params::scaled(period);
        }
        let base = base.for_cluster(self.node_count());
        let mut table = toml::Table::try_from(&base).map_err(|e| bad("policy.params", e.to_string()))?;
        for (key, value) in &self.policy.params {
            // TOML tells 1 from 1.0; people do not.
            let value = match (table.get(key), value.as_integer()) {
                (Some(toml::Value::Float(_)), Some(whole)) => toml::Value::Float(whole as f64),
                _ => value.clone(),
            };
            table.insert(key.clone(), value);
        }
        let params: Params = table.try_into().map_err(|e: toml::de::Error| bad("policy.params", e.message().to_owned()))?;
        params.validate().map_err(|e| bad("policy.params", e.to_string()))?;
        Ok(params)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first that is out of bounds.
    pub fn validate(&self) -> Result<()> {
        number("nodes (all together)", self.node_count() as f64, 1.0, MAX_NODES as f64)?;
        number("runs", f64::from(self.runs), 1.0, 10_000.0)?;
        number("warmup_s", self.warmup_s, 0.0, MAX_SECONDS)?;
        number("limit_s", self.limit_s, 0.0, MAX_SECONDS)?;
        for node in &self.nodes {
            number("nodes.speed", node.speed, 1e-3, 1e3)?;
            number("nodes.cpus", f64::from(node.cpus), 1.0, 4096.0)?;
            number("nodes.memory_mb", node.memory_mb, 1.0, 1e9)?;
        }
        number("policy.smoothing_s", self.policy.smoothing_s, 0.0, 1e4)?;
        self.network.delay_ms.check("network.delay_ms", 0.0, 1e5)?;
        number("network.loss", self.network.loss, 0.0, 1.0)?;
        number("network.duplicates", self.network.duplicates, 0.0, 1.0)?;
        number("network.interface_mb_s", self.network.interface_mb_s, 1e-3, 1e6)?;
        number("migration.base_s", self.migration.base_s, 0.0, 1e4)?;
        number("migration.copy_share", self.migration.copy_share, 0.0, 10.0)?;
        number("migration.paging_slope", self.migration.paging_slope, 0.0, 1e4)?;
        number("migration.paging_factor", self.migration.paging_factor, 0.0, 1e4)?;
        let processes: f64 = self.jobs.iter().map(|j| j.count as f64).sum();
        number("jobs.count (all together)", processes, 0.0, MAX_PROCESSES as f64)?;
        self.jobs.iter().try_for_each(|j| j.validate(self.node_count()))?;
        for b in &self.background {
            number("background.count", b.count as f64, 0.0, self.node_count() as f64)?;
            b.on_s.check("background.on_s", 0.0, MAX_SECONDS)?;
            b.off_s.check("background.off_s", 0.0, MAX_SECONDS)?;
        }
        number("churn.crash_every_s", self.churn.crash_every_s, 0.0, 1e9)?;
        if let Some(down_s) = &self.churn.down_s {
            down_s.check("churn.down_s", 1e-3, MAX_SECONDS)?;
        }
        number("churn.partition_at_s", self.churn.partition_at_s, 0.0, MAX_SECONDS)?;
        number("churn.partition_s", self.churn.partition_s, 0.0, MAX_SECONDS)?;
        for o in &self.owners {
            number("owners.nodes", (o.nodes.saturating_add(o.skip_nodes)) as f64, 0.0, self.node_count() as f64)?;
            number("owners.from_s", o.from_s, 0.0, o.until_s)?;
            number("owners.until_s", o.until_s, o.from_s, MAX_SECONDS)?;
        }
        self.params().map(drop)
    }
}

impl JobSpec {
    fn validate(&self, nodes: usize) -> Result<()> {
        number("jobs.rate_per_s", self.rate_per_s, 0.0, 1e6)?;
        number("jobs.from_s", self.from_s, 0.0, MAX_SECONDS)?;
        number("jobs.until_s", self.until_s, 0.0, MAX_SECONDS)?;
        if self.count == 0 && self.rate_per_s > 0.0 {
            number("jobs.until_s", self.until_s, self.from_s, MAX_SECONDS)?;
            number("jobs.rate_per_s times seconds", self.rate_per_s * self.until_s, 0.0, MAX_PROCESSES as f64)?;
        }
        self.work_s.check("jobs.work_s", 0.0, 1e9)?;
        self.processes.check("jobs.processes", 1.0, 10_000.0)?;
        self.memory_mb.check("jobs.memory_mb", 0.0, 1e8)?;
        number("jobs.dirty", self.dirty, 0.0, 1.0)?;
        number("jobs.kappa", self.kappa, 0.0, 1e3)?;
        number("jobs.apart", self.apart, 0.0, 1e3)?;
        if self.apart > 0.0 && (self.rate_per_s > 0.0 || self.processes != Chance::Constant(1.0)) {
            return Err(bad("jobs.apart", "needs jobs of one process that all start at once"));
        }
        number("jobs.on_nodes + skip_nodes", (self.on_nodes.saturating_add(self.skip_nodes)) as f64, 0.0, nodes as f64)?;
        if self.skip_nodes >= nodes {
            return Err(bad("jobs.skip_nodes", "must leave a node"));
        }
        Ok(())
    }
}
