//! The daemon's configuration: one TOML file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mosix_engine::eligible::AutoRules;
use mosix_pages::TrackKind;
use mosix_pages::precopy::Goal;
use serde::{Deserialize, Serialize};

use crate::carry::send::Pages;
use crate::protocol::Lease;

/// The whole file. Unknown keys are errors, so that a misspelt one is found by `--check-config`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// This node's member name.
    pub(crate) name: String,
    /// Folder made by `mosixctl cluster bundle`.
    pub(crate) cluster_dir: PathBuf,
    /// Images and the commit log; a tmpfs keeps moves fast.
    #[serde(default = "default_state_dir")]
    pub(crate) state_dir: PathBuf,
    /// For `mosixctl`.
    #[serde(default = "default_control_socket")]
    pub(crate) control_socket: PathBuf,
    /// tracing filter, e.g. `info` or `mosixd=debug`.
    #[serde(default = "default_log")]
    pub(crate) log: String,
    #[serde(default)]
    pub(crate) node: NodeConfig,
    #[serde(default)]
    pub(crate) timing: Timing,
    #[serde(default)]
    pub(crate) moving: Moving,
    #[serde(default)]
    pub(crate) policy: PolicyConfig,
    #[serde(default)]
    pub(crate) automatic: AutoRules,
    #[serde(default)]
    pub(crate) programs: Programs,
}

/// What this node is and what guests may use of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeConfig {
    /// Speed of one CPU while it runs; 1.0 is the cluster's unit.
    pub(crate) speed: f64,
    /// Part of each CPU that processes here may use (a cgroup quota); 1.0 without one.
    pub(crate) cpu_share: f64,
    /// CPUs; absent: those online.
    pub(crate) cpus: Option<u16>,
    /// CPUs that guests may use, by number; empty: all.
    pub(crate) guest_cpus: Vec<u32>,
    /// Control groups that guests join before they run.
    pub(crate) guest_cgroups: Vec<PathBuf>,
    /// Control groups without a quota, joined while a process is dumped.
    pub(crate) dump_cgroups: Vec<PathBuf>,
    /// Cgroup-v2 folder for freezers; absent: `mosix` in the cgroup-v2 mount.
    pub(crate) freezer_root: Option<PathBuf>,
    /// Take processes of other homes.
    pub(crate) accept_guests: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            speed: 1.0,
            cpu_share: 1.0,
            cpus: None,
            guest_cpus: Vec::new(),
            guest_cgroups: Vec::new(),
            dump_cgroups: Vec::new(),
            freezer_root: None,
            accept_guests: true,
        }
    }
}

/// Periods and deadlines.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timing {
    /// Gossip and decision period; minimum ages and residencies scale with it.
    pub(crate) period_ms: u64,
    /// To reach a node and get its first answer.
    pub(crate) connect_ms: u64,
    /// For each of: getting ready, dump with transfer and restore, the word that it may run.
    pub(crate) move_ms: u64,
    /// For copying memory while the process runs.
    pub(crate) copy_ms: u64,
    /// A guest whose home is silent for so long is ended; home waits half as long again.
    pub(crate) lease_ms: u64,
    /// For a clean stop: waiting for processes whose home this is.
    pub(crate) stop_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { period_ms: 1000, connect_ms: 5000, move_ms: 60_000, copy_ms: 600_000, lease_ms: 10_000, stop_ms: 30_000 }
    }
}

/// How memory is copied while the process still runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Moving {
    /// Copy beforehand; without it all memory is sent in the blackout.
    pub(crate) precopy: bool,
    /// Time that the last pages may take in the blackout.
    pub(crate) rest_ms: u64,
    /// Most rounds.
    pub(crate) rounds: usize,
    /// Most that is sent in all, as a multiple of the memory.
    pub(crate) factor: f64,
    /// Most MiB/s of pages that a move may send; absent: as fast as it goes.
    pub(crate) limit_mib_per_s: Option<u64>,
    /// How changed pages are found.
    pub(crate) track: Track,
}

/// Ways to find changed pages, see `mosix_pages::track`.
///
/// [`Track::WriteProtect`] is by far the fastest, and not the default: while a process is followed in this way, new mappings do not merge with old
/// ones, so that an mremap(2) over both fails, which it does not otherwise. A program that does this may end by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Track {
    WriteProtect,
    SoftDirty,
    Content,
}

impl Default for Moving {
    fn default() -> Self {
        let goal = Goal::default();
        Self {
            precopy: true,
            rest_ms: u64::try_from(goal.rest.as_millis()).unwrap_or(5),
            rounds: goal.max_rounds,
            factor: goal.max_factor,
            limit_mib_per_s: None,
            track: Track::Content,
        }
    }
}

impl Moving {
    /// For the one who sends.
    pub(crate) fn pages(&self, kerndat: PathBuf) -> Pages {
        Pages {
            goal: Goal { rest: Duration::from_millis(self.rest_ms), max_rounds: self.rounds, max_factor: self.factor, ..Goal::default() },
            track: match self.track {
                Track::WriteProtect => TrackKind::WriteProtect,
                Track::SoftDirty => TrackKind::SoftDirty,
                Track::Content => TrackKind::Content,
            },
            limit_bytes_per_s: self.limit_mib_per_s.map(|mib| mib << 20),
            kerndat,
        }
    }
}

/// Switches of the policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PolicyConfig {
    /// Move processes automatically.
    pub(crate) balance: bool,
    /// Transfers received at a time.
    pub(crate) max_in: u16,
    /// Transfers sent at a time.
    pub(crate) max_out: u16,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { balance: true, max_in: 2, max_out: 2 }
    }
}

/// Helper programs; absent: looked for beside `mosixd`, then on PATH.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Programs {
    pub(crate) criu: Option<PathBuf>,
    pub(crate) agent: Option<PathBuf>,
}

fn default_state_dir() -> PathBuf {
    "/run/mosix".into()
}

fn default_control_socket() -> PathBuf {
    "/run/mosix/control.sock".into()
}

fn default_log() -> String {
    "info".into()
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))?;
        config.check().with_context(|| format!("in the configuration {}", path.display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let node = &self.node;
        if !(node.speed.is_finite() && node.speed > 0.001 && node.speed < 1000.0) {
            bail!("node.speed = {} is not between 0.001 and 1000", node.speed);
        }
        if !(node.cpu_share > 0.0 && node.cpu_share <= 1.0) {
            bail!("node.cpu_share = {} is not above 0 and at most 1", node.cpu_share);
        }
        if node.cpus == Some(0) {
            bail!("node.cpus = 0: a node has at least one");
        }
        if !(10..=3_600_000).contains(&self.timing.period_ms) {
            bail!("timing.period_ms = {} is not between 10 and 3600000", self.timing.period_ms);
        }
        if !Lease::BOUNDS_MS.contains(&self.timing.lease_ms) {
            bail!("timing.lease_ms = {} is not between {} and {}", self.timing.lease_ms, Lease::BOUNDS_MS.start(), Lease::BOUNDS_MS.end());
        }
        if self.moving.rounds == 0 || !(self.moving.factor >= 1.0) || self.moving.limit_mib_per_s == Some(0) {
            bail!(
                "moving.rounds and moving.factor must be at least 1, moving.limit_mib_per_s above 0; to copy nothing beforehand set moving.precopy = false"
            );
        }
        if self.policy.max_in == 0 || self.policy.max_out == 0 {
            bail!("policy.max_in and policy.max_out must be at least 1; to keep processes here set policy.balance = false");
        }
        for dir in node.guest_cgroups.iter().chain(&node.dump_cgroups) {
            if !dir.join("cgroup.procs").exists() {
                bail!("{} is no control group", dir.display());
            }
        }
        Ok(())
    }

    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(self.timing.period_ms)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.timing.connect_ms)
    }

    pub(crate) fn move_timeout(&self) -> Duration {
        Duration::from_millis(self.timing.move_ms)
    }

    pub(crate) fn lease(&self) -> Lease {
        Lease::new(self.timing.lease_ms)
    }

    pub(crate) fn copy_timeout(&self) -> Duration {
        Duration::from_millis(self.timing.copy_ms)
    }

    /// Cgroup-v2 folder for freezers.
    pub(crate) fn freezer_root(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.node.freezer_root {
            return Ok(dir.clone());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
        let mount = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (dir, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(dir))
        });
        let Some(root) = { mount }.next() else {
            bail!("no cgroup v2 is mounted, which is needed to hold processes still: mount one, or set node.freezer_root");
        };
        Ok(root.join("mosix"))
    }

    pub(crate) fn criu(&self) -> Result<PathBuf> {
        find_program(self.programs.criu.as_deref(), "criu")
    }

    pub(crate) fn agent(&self) -> Result<PathBuf> {
        find_program(self.programs.agent.as_deref(), "mosix-agent")
    }
}

fn find_program(configured: Option<&Path>, name: &str) -> Result<PathBuf> {
    if let Some(path) = configured {
        return if path.is_file() { Ok(path.to_owned()) } else { bail!("programs.{name} = {}: no such file", path.display()) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let search = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&search).map(|dir| dir.join(name));
    match beside.into_iter().chain(on_path).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is neither beside mosixd nor on PATH: install it, or name it in [programs]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    const LEAST: &str = "name = \"a\"\ncluster_dir = \"/etc/mosix\"\n";

    #[test]
    fn two_lines_are_enough() {
        let config = parse(LEAST).unwrap();
        assert_eq!(config.timing.period_ms, 1000);
        assert!(config.policy.balance && config.automatic.min_uid == 1000);
    }

    #[test]
    fn misspelt_keys_and_impossible_values_are_refused() {
        for bad in [
            "peroid = 1",
            "[node]\nspeed = 0.0",
            "[node]\ncpu_share = 2.0",
            "[timing]\nperiod_ms = 1",
            "[policy]\nmax_in = 0",
            "[moving]\nrounds = 0",
            "[timing]\nlease_ms = 5",
            "[moving]\nfactor = 0.5",
            "[moving]\ntrack = \"guess\"",
            "[node]\nguest_cgroups = [\"/nonexistent\"]",
        ] {
            assert!(parse(&format!("{LEAST}{bad}\n")).is_err(), "{bad}");
        }
    }
}
