//! CPU speeds: cgroups of version 1 and 2 with a CFS quota.
//!
//! Layout, the same in both: `mosix-lab-ID` (highest weight), below it `NAME` (quota) and `NAME.sys` (none) per node.
//! In version 1 the accounting controller may be a hierarchy of its own, then the same tree exists there a second time.
//! On a machine that has version 2 beside version 1, the lab also owns `mosix-lab-ID` in the version 2 tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup_remove;
use crate::error::{LabError, Result, failed};
use crate::quota::Quota;

/// Highest `cpu.shares` of version 1.
const V1_MAX_SHARES: &str = "262144";
/// Highest `cpu.weight` of version 2.
const V2_MAX_WEIGHT: &str = "10000";

/// Where this machine's cpu controller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Mount of the hierarchy that has the cpu controller.
    cpu: PathBuf,
    /// Mount of the hierarchy that counts CPU time (the same as `cpu` but for a split version 1).
    account: PathBuf,
    /// Mount of version 2, if any.
    unified: Option<PathBuf>,
    /// Whether `cpu` is of version 2.
    is_v2: bool,
}

/// One group: where to put processes and what to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuGroup {
    /// Folder in the cpu hierarchy.
    pub cpu: PathBuf,
    /// Folder in the accounting hierarchy; may be the same.
    pub account: PathBuf,
    /// Whether it is of version 2.
    pub is_v2: bool,
}

impl Hierarchy {
    /// Finds the cpu controller of this machine.
    ///
    /// # Errors
    /// [`LabError::NoCpuController`] if it is in none of the mounted hierarchies.
    pub fn detect() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).map_err(failed(format!("reading {path}")))?;
        Self::from_mountinfo(&text)
    }

    /// As [`Self::detect`], from the text of a mountinfo file.
    pub fn from_mountinfo(text: &str) -> Result<Self> {
        let (mut v1_cpu, mut v1_account, mut unified) = (None, None, None);
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or_default();
            let options: Vec<&str> = right.nth(1).unwrap_or_default().split(',').collect();
            match kind {
                "cgroup2" => _ = unified.get_or_insert(mount),
                "cgroup" => {
                    if options.contains(&"cpu") {
                        v1_cpu.get_or_insert(mount.clone());
                    }
                    if options.contains(&"cpuacct") {
                        v1_account.get_or_insert(mount);
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = unified.as_ref().filter(|root| has_cpu(root)) {
            return Ok(Self { cpu: root.clone(), account: root.clone(), unified, is_v2: true });
        }
        match (v1_cpu, v1_account) {
            (Some(cpu), Some(account)) => Ok(Self { cpu, account, unified, is_v2: false }),
            (Some(_), None) => Err(LabError::NoCpuController("version 1 has `cpu` but not `cpuacct` mounted".into())),
            (None, _) => Err(LabError::NoCpuController(
                "neither version 2 nor a mounted version 1 hierarchy has it; inside a container, delegate it (systemd: Delegate=cpu)"
                    .into(),
            )),
        }
    }

    /// The group of the lab's parent.
    fn parent(&self, id: &str) -> CpuGroup {
        let name = format!("mosix-lab-{id}");
        CpuGroup { cpu: self.cpu.join(&name), account: self.account.join(&name), is_v2: self.is_v2 }
    }

    /// The group `name` of lab `id`; nothing is made.
    pub fn group(&self, id: &str, name: &str) -> CpuGroup {
        let parent = self.parent(id);
        CpuGroup { cpu: parent.cpu.join(name), account: parent.account.join(name), is_v2: self.is_v2 }
    }

    /// The folder of node `name` in the version 2 tree; nothing is made.
    pub fn unified_path(&self, id: &str, name: &str) -> Option<PathBuf> {
        self.unified.as_ref().map(|root| root.join(format!("mosix-lab-{id}")).join(name))
    }

    /// Makes the parent, with the highest weight, and in version 2 passes the cpu controller down.
    pub(crate) fn create_parent(&self, id: &str) -> Result<()> {
        let parent = self.parent(id);
        parent.make_folders()?;
        if self.is_v2 {
            write(&self.cpu.join("cgroup.subtree_control"), "+cpu")?;
            write(&parent.cpu.join("cpu.weight"), V2_MAX_WEIGHT)?;
            write(&parent.cpu.join("cgroup.subtree_control"), "+cpu")
        } else {
            write(&parent.cpu.join("cpu.shares"), V1_MAX_SHARES)
        }
    }

    /// Removes everything of lab `id` in all hierarchies; kills what is still inside. Fine if there is nothing.
    pub(crate) fn remove_all(&self, id: &str) -> Result<()> {
        let parent = self.parent(id);
        let unified = self.unified.as_ref().map(|root| root.join(format!("mosix-lab-{id}")));
        for tree in [unified.as_deref(), Some(&parent.cpu), Some(&parent.account)].into_iter().flatten() {
            cgroup_remove::remove_tree(tree)?;
        }
        Ok(())
    }

    /// Whether any process is in a group of lab `id`.
    pub(crate) fn is_populated(&self, id: &str) -> bool {
        cgroup_remove::is_populated(&self.parent(id).cpu)
    }
}

/// Whether the version 2 root at `root` has the cpu controller.
fn has_cpu(root: &Path) -> bool {
    fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|text| text.split_whitespace().any(|c| c == "cpu"))
}

impl CpuGroup {
    /// Makes the group; fine if it exists.
    pub(crate) fn make_folders(&self) -> Result<()> {
        for path in [&self.cpu, &self.account] {
            fs::create_dir_all(path).map_err(failed(format!("making the cgroup {}", path.display())))?;
        }
        Ok(())
    }

    /// The files that take a pid (`0` = the writer) to move a process here.
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.cpu.join("cgroup.procs")];
        if self.account != self.cpu {
            files.push(self.account.join("cgroup.procs"));
        }
        files
    }

    /// Moves a process (all its threads) here.
    ///
    /// # Errors
    /// If the process is gone or the group cannot be written.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.procs_files().iter().try_for_each(|file| write(file, &pid.to_string()))
    }

    /// Limits the group, or with `None` lifts the limit.
    ///
    /// # Errors
    /// If the group cannot be written.
    pub fn set_quota(&self, quota: Option<Quota>) -> Result<()> {
        if self.is_v2 {
            let text = match quota {
                Some(quota) => format!("{} {}", quota.quota_us, quota.period_us),
                None => "max".into(),
            };
            return write(&self.cpu.join("cpu.max"), &text);
        }
        let quota_file = self.cpu.join("cpu.cfs_quota_us");
        // First without limit: a new period with the old quota may exceed the parent's or the kernel's bounds.
        write(&quota_file, "-1")?;
        if let Some(quota) = quota {
            write(&self.cpu.join("cpu.cfs_period_us"), &quota.period_us.to_string())?;
            write(&quota_file, &quota.quota_us.to_string())?;
        }
        Ok(())
    }

    /// CPU time used in this group since it was made.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn usage(&self) -> Result<Duration> {
        let (file, key, unit_ns) = if self.is_v2 { ("cpu.stat", Some("usage_usec"), 1_000) } else { ("cpuacct.usage", None, 1) };
        let path = self.account.join(file);
        let text = fs::read_to_string(&path).map_err(failed(format!("reading {}", path.display())))?;
        let number = match key {
            None => text.trim().parse::<u64>().ok(),
            Some(key) => text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()),
        };
        let number = number.ok_or_else(|| LabError::Protocol(format!("no CPU time in {}", path.display())))?;
        Ok(Duration::from_nanos(number.saturating_mul(unit_ns)))
    }
}

/// Writes a control file.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(failed(format!("writing `{text}` to {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
41 31 0:38 / /nowhere/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn finds_version_1_beside_version_2() {
        let found = Hierarchy::from_mountinfo(HYBRID).unwrap();
        assert!(!found.is_v2);
        assert_eq!(found.cpu, Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(found.account, Path::new("/sys/fs/cgroup/cpuacct"));
        assert_eq!(found.unified_path("a", "n"), Some(PathBuf::from("/nowhere/unified/mosix-lab-a/n")));
    }

    #[test]
    fn cpu_and_cpuacct_mounted_together_are_one() {
        let text = "32 31 0:29 / /c rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = Hierarchy::from_mountinfo(text).unwrap();
        assert_eq!(found.group("a", "n").procs_files(), vec![PathBuf::from("/c/mosix-lab-a/n/cgroup.procs")]);
    }

    #[test]
    fn says_so_without_a_controller() {
        assert!(matches!(Hierarchy::from_mountinfo("garbage\n\n- -"), Err(LabError::NoCpuController(_))));
    }

    /// Version 2 cannot be run on every build machine, so the paths and values are checked on a made-up tree.
    #[test]
    fn version_2_gets_the_right_values_in_the_right_files() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io\n").unwrap();
        let line = format!("30 1 0:2 / {} rw shared:1 - cgroup2 cgroup2 rw\n", root.path().display());
        let found = Hierarchy::from_mountinfo(&line).unwrap();
        assert!(found.is_v2);
        found.create_parent("t").unwrap();
        let group = found.group("t", "node1");
        group.make_folders().unwrap();
        group.set_quota(Quota::for_speed(0.05)).unwrap();
        group.add(42).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+cpu");
        assert_eq!(read("mosix-lab-t/cgroup.subtree_control"), "+cpu");
        assert_eq!(read("mosix-lab-t/cpu.weight"), "10000");
        assert_eq!(read("mosix-lab-t/node1/cpu.max"), "1000 20000");
        assert_eq!(read("mosix-lab-t/node1/cgroup.procs"), "42");
        group.set_quota(None).unwrap();
        assert_eq!(read("mosix-lab-t/node1/cpu.max"), "max");
        fs::write(group.cpu.join("cpu.stat"), "usage_usec 1500000\nuser_usec 7\n").unwrap();
        assert_eq!(group.usage().unwrap(), Duration::from_millis(1500));
        fs::write(group.cpu.join("cpu.stat"), "nonsense\n").unwrap();
        assert!(group.usage().is_err());
    }

    #[test]
    fn version_1_gets_the_right_values_in_the_right_files() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        let text = format!("1 0 0:1 / {} rw - cgroup cgroup rw,cpu\n2 0 0:2 / {} rw - cgroup cgroup rw,cpuacct\n", at("cpu"), at("acct"));
        let found = Hierarchy::from_mountinfo(&text).unwrap();
        found.create_parent("t").unwrap();
        let group = found.group("t", "node1");
        group.make_folders().unwrap();
        group.set_quota(Quota::for_speed(0.05 / 3.0)).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("cpu/mosix-lab-t/cpu.shares"), "262144");
        assert_eq!(read("cpu/mosix-lab-t/node1/cpu.cfs_period_us"), "60000");
        assert_eq!(read("cpu/mosix-lab-t/node1/cpu.cfs_quota_us"), "1000");
        fs::write(group.account.join("cpuacct.usage"), "2500000000\n").unwrap();
        assert_eq!(group.usage().unwrap(), Duration::from_millis(2500));
    }
}
