//! What lab is wanted: how many nodes, how fast, where its files are. Checked before anything is made.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{LabError, Result};
use crate::quota::Quota;

/// Most nodes a lab can have: a /24 of addresses, and about 2 MB of memory each.
pub(crate) const MAX_NODES: usize = 250;
/// Most of the machine's CPU that all nodes together may claim. Above it they would disturb one another.
pub(crate) const MAX_TOTAL_SHARE: f64 = 0.8;
/// Longest id: it becomes part of cgroup and interface names.
const MAX_ID_BYTES: usize = 32;

/// Nodes that are slower than the rest, e.g. `13-16:0.333`.
#[derive(Debug, Clone, PartialEq)]
pub struct SlowNodes {
    /// First slow node, counted from 1.
    pub first: usize,
    /// Last slow node, counted from 1.
    pub last: usize,
    /// Their speed relative to the other nodes.
    pub factor: f64,
}

impl FromStr for SlowNodes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("`{text}` is not FIRST-LAST:FACTOR, e.g. 13-16:0.333 or 13-16:1/3");
        let (range, factor) = text.split_once(':').ok_or_else(wrong)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Ok(Self {
            first: first.parse().map_err(|_| wrong())?,
            last: last.parse().map_err(|_| wrong())?,
            factor: parse_fraction(factor).ok_or_else(wrong)?,
        })
    }
}

/// `0.333`, `1/3` or `5%`.
pub fn parse_fraction(text: &str) -> Option<f64> {
    if let Some((above, below)) = text.split_once('/') {
        return Some(above.parse::<f64>().ok()? / below.parse::<f64>().ok()?);
    }
    if let Some(percent) = text.strip_suffix('%') {
        return Some(percent.parse::<f64>().ok()? / 100.0);
    }
    text.parse().ok()
}

/// A lab to be made by [`crate::Lab::up`].
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Distinguishes labs that run at once; becomes part of the cgroups' names. `[a-z0-9-]`, at most 32 bytes.
    pub id: String,
    /// Where labs keep their files; this lab's are in the folder `id` below it.
    pub run_dir: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// Speed of a normal node as a share of one core.
    pub speed: f64,
    /// Slower nodes, if any.
    pub slow: Vec<SlowNodes>,
    /// What nodes are called: this and a number from 1.
    pub name_prefix: String,
    /// Leave the lab up when the owner goes.
    pub keep: bool,
    /// The `mosix-lab` program; `None` looks beside the running program and in its parent folder.
    pub lab_program: Option<PathBuf>,
}

impl Default for LabSpec {
    /// Sixteen "Pentium-90" at 5 % of a core.
    fn default() -> Self {
        Self {
            id: "lab".into(),
            run_dir: default_run_dir(),
            nodes: 16,
            speed: 0.05,
            slow: Vec::new(),
            name_prefix: "node".into(),
            keep: false,
            lab_program: None,
        }
    }
}

/// `.lab` in the workspace that contains the current folder, else in the current folder itself.
pub fn default_run_dir() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/run/mosix"));
    let is_workspace = |dir: &Path| std::fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"));
    here.ancestors().find(|dir| is_workspace(dir)).unwrap_or(&here).join(".lab")
}

impl LabSpec {
    /// The folder of this lab.
    pub fn lab_dir(&self) -> PathBuf {
        self.run_dir.join(&self.id)
    }

    /// The quota of every node, in order, with its speed relative to a normal node.
    pub(crate) fn quotas(&self) -> Result<Vec<(Quota, f64)>> {
        (1..=self.nodes)
            .map(|number| {
                let slow = self.slow.iter().find(|slow| (slow.first..=slow.last).contains(&number));
                let relative = slow.map_or(1.0, |slow| slow.factor);
                let speed = self.speed * relative;
                let quota = Quota::for_speed(speed)
                    .ok_or_else(|| LabError::Spec(format!("node {number} would have {speed} of a core; it must be within 0.001 and 1")))?;
                Ok((quota, relative))
            })
            .collect()
    }

    /// Checks everything that can be checked before anything is made. `cpus` is the number of CPUs to be used.
    pub(crate) fn validate(&self, cpus: usize) -> Result<()> {
        check_id(&self.id)?;
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(LabError::Spec(format!("{} nodes; it must be 1 to {MAX_NODES}", self.nodes)));
        }
        let prefix_ok = self.name_prefix.bytes().all(|byte| byte.is_ascii_lowercase()) && (1..=16).contains(&self.name_prefix.len());
        if !prefix_ok || self.name_prefix == crate::state::SWITCH {
            return Err(LabError::Spec(format!("node name prefix `{}`; use 1 to 16 letters a-z", self.name_prefix)));
        }
        if let Some(slow) = self.slow.iter().find(|s| s.first < 1 || s.last < s.first || s.last > self.nodes) {
            return Err(LabError::Spec(format!("slow nodes {}-{} of {}", slow.first, slow.last, self.nodes)));
        }
        let total: f64 = self.quotas()?.iter().map(|(quota, _)| quota.speed()).sum();
        let limit = MAX_TOTAL_SHARE * cpus as f64;
        if total > limit + 1e-9 {
            return Err(LabError::Spec(format!(
                "all nodes together would claim {total:.2} cores, more than {limit:.2} ({MAX_TOTAL_SHARE} of {cpus} CPUs): \
                 they would slow one another; use fewer nodes or a lower speed"
            )));
        }
        Ok(())
    }
}

/// Refuses ids that are not safe as part of a path.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let ok = id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if ok && (1..=MAX_ID_BYTES).contains(&id.len()) {
        return Ok(());
    }
    Err(LabError::Spec(format!("id `{id}`; use 1 to {MAX_ID_BYTES} of a-z, 0-9 and -")))
}

/// Address of node `number` (from 1) in 10.77.0.0/16.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(number).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(nodes: usize, speed: f64) -> LabSpec {
        LabSpec { nodes, speed, ..LabSpec::default() }
    }

    #[test]
    fn sixteen_workstations_fit_two_cores_but_not_at_triple_speed() {
        assert!(spec(16, 0.05).validate(2).is_ok());
        assert!(spec(16, 0.10).validate(2).is_ok());
        assert!(matches!(spec(16, 0.15).validate(2), Err(LabError::Spec(_))));
    }

    #[test]
    fn slow_nodes_are_slower() {
        let mut lab = spec(16, 0.05);
        lab.slow = vec!["13-16:1/3".parse().unwrap()];
        let quotas = lab.quotas().unwrap();
        assert_eq!(quotas[11].0.period_us, 20_000);
        assert_eq!(quotas[12].0.period_us, 60_000);
        lab.slow = vec!["13-17:1/3".parse().unwrap()];
        assert!(lab.validate(2).is_err());
    }

    #[test]
    fn bad_input_is_refused() {
        for text in ["", "1", "1:x", "a-b:1", "1-2:1/0x"] {
            assert!(text.parse::<SlowNodes>().is_err(), "{text}");
        }
        for id in ["", "../x", "A", "a b", &"x".repeat(33)] {
            assert!(check_id(id).is_err(), "{id}");
        }
        assert!(spec(0, 0.05).validate(2).is_err());
        assert!(spec(251, 0.001).validate(2).is_err());
    }
}
