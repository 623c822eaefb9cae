//! What there is on the machine because of a lab and its daemons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mosix_lab::{Lab, Node};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::cluster::Cluster;
use crate::migrate::machine::meminfo_bytes;

/// More tmpfs than before that is no leak: the log of commits.
const LOG_BYTES: u64 = 1 << 20;
/// Deepest folder of control groups that is counted.
const MAX_DEPTH: u32 = 8;

/// The counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Processes in the lab's control groups, by name.
    pub processes: BTreeMap<String, u64>,
    /// Different namespaces of these processes, by kind.
    pub namespaces: BTreeMap<String, u64>,
    /// Mounts in the daemons' mount namespaces.
    pub mounts: u64,
    /// Control groups of the nodes, all hierarchies.
    pub cgroups: u64,
    /// Open descriptors of each daemon, by node.
    pub descriptors: BTreeMap<String, u64>,
    /// Threads of each daemon, by node.
    pub threads: BTreeMap<String, u64>,
    /// Bytes in use in the daemons' folders, a tmpfs.
    pub tmpfs_bytes: u64,
    /// Folders of images.
    pub images: u64,
    /// Processes that are away or guests, as the daemons say.
    pub guests: u64,
    /// Resident memory of the daemons. For information.
    pub daemons_rss_bytes: u64,
    /// `Shmem` of the machine, everybody's. For information.
    pub machine_shmem_bytes: u64,
    /// `SUnreclaim` of the machine, everybody's. For information.
    pub machine_slab_bytes: u64,
}

impl Census {
    /// Counts.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn take(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let mut census = Self::default();
        census.count_processes(lab.id());
        for (index, node) in lab.nodes().iter().enumerate() {
            let status = cluster.status(index)?;
            census.guests +=
                status.nodes.iter().filter(|row| row.name == node.name).map(|row| u64::from(row.guests + row.away)).sum::<u64>();
            if let Some(daemon) = cluster.daemon_pid(index) {
                census.count_daemon(&node.name, daemon);
            }
            census.count_node(node);
        }
        census.machine_shmem_bytes = meminfo_bytes("Shmem").unwrap_or_default();
        census.machine_slab_bytes = meminfo_bytes("SUnreclaim").unwrap_or_default();
        Ok(census)
    }

    /// Counts until it is as wanted, or the time is over; the last count.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn settled(lab: &Lab, cluster: &Cluster, patience: Duration, is_settled: impl Fn(&Self) -> bool) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let census = Self::take(lab, cluster)?;
            if is_settled(&census) || Instant::now() > deadline {
                return Ok(census);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn count_processes(&mut self, lab_id: &str) {
        let group = format!("/mosix-lab-{lab_id}/");
        let mut namespaces = BTreeSet::new();
        for pid in pids() {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            if !fs::read_to_string(proc.join("cgroup")).unwrap_or_default().contains(&group) {
                continue;
            }
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default().trim().to_owned();
            *self.processes.entry(name).or_default() += 1;
            let links = fs::read_dir(proc.join("ns")).into_iter().flatten().flatten();
            namespaces.extend(links.filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_string_lossy().into_owned())));
        }
        for namespace in namespaces {
            let kind = namespace.split(':').next().unwrap_or_default().to_owned();
            *self.namespaces.entry(kind).or_default() += 1;
        }
    }

    fn count_daemon(&mut self, node: &str, daemon: i32) {
        let entries = |name: &str| fs::read_dir(format!("/proc/{daemon}/{name}")).map_or(0, |entries| entries.count() as u64);
        self.descriptors.insert(node.to_owned(), entries("fd"));
        self.threads.insert(node.to_owned(), entries("task"));
        self.mounts += fs::read_to_string(format!("/proc/{daemon}/mountinfo")).unwrap_or_default().lines().count() as u64;
        let pages = fs::read_to_string(format!("/proc/{daemon}/statm")).unwrap_or_default();
        self.daemons_rss_bytes += pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096;
    }

    fn count_node(&mut self, node: &Node) {
        let groups = [Some(node.cgroup_cpu_path()), Some(node.sys_cgroup_path()), node.cgroup_v2_path.as_deref()];
        self.cgroups += groups.into_iter().flatten().map(|path| folders(path, MAX_DEPTH)).sum::<u64>();
        let Some(holder) = node.holder else { return };
        let state = PathBuf::from(format!("/proc/{}/root/run/mosix", holder.pid));
        self.images += folders(&state.join("images"), 1);
        self.tmpfs_bytes += bytes_below(&state, MAX_DEPTH);
    }

    /// What there is more of than there was, in words.
    pub fn more_than(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        let mut compare = |what: String, now: u64, then: u64| {
            if now > then {
                more.push(format!("{what}: {now}, before {then}"));
            }
        };
        let maps = [
            ("processes", &self.processes, &before.processes),
            ("namespaces", &self.namespaces, &before.namespaces),
            ("descriptors of mosixd", &self.descriptors, &before.descriptors),
        ];
        for (what, now, then) in maps {
            for (name, count) in now {
                compare(format!("{what} ({name})"), *count, then.get(name).copied().unwrap_or_default());
            }
        }
        compare("mounts".into(), self.mounts, before.mounts);
        compare("control groups".into(), self.cgroups, before.cgroups);
        compare("folders of images".into(), self.images, before.images);
        compare("guests".into(), self.guests, before.guests);
        compare("bytes in tmpfs".into(), self.tmpfs_bytes, before.tmpfs_bytes + LOG_BYTES);
        more
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Living processes whose environment has a variable that begins so. (A stub has none.)
pub(super) fn with_environment(beginning: &str) -> usize {
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(beginning.as_bytes()))
    };
    let state = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.trim_start().chars().next()
    };
    // A child that is just being forked has its parent's environment; so has what is about to become another program.
    let is_child = |pid: &i32| {
        let parent = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|text| text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok());
        parent.is_some_and(|parent| has(&parent))
    };
    pids().filter(has).filter(|pid| state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X')) && !is_child(pid)).count()
}

/// Folders below this one.
fn folders(dir: &Path, depth: u32) -> u64 {
    if depth == 0 {
        return 0;
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| 1 + folders(&entry.path(), depth - 1)).sum()
}

fn bytes_below(dir: &Path, depth: u32) -> u64 {
    if depth == 0 {
        return 0;
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_is_left_behind() {
        let counted = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
        let before = Census { processes: counted("mosixd", 3), mounts: 10, tmpfs_bytes: 5, ..Census::default() };
        let fewer = Census { processes: counted("mosixd", 2), mounts: 9, machine_shmem_bytes: 1 << 30, ..Census::default() };
        assert!(fewer.more_than(&before).is_empty());
        let more = Census { processes: counted("criu", 1), mounts: 11, tmpfs_bytes: 6 + LOG_BYTES, ..Census::default() };
        assert_eq!(
            more.more_than(&before),
            ["processes (criu): 1, before 0", "mounts: 11, before 10", "bytes in tmpfs: 1048582, before 1048581"]
        );
    }

    #[test]
    fn folders_and_bytes_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "12345").unwrap();
        assert_eq!((folders(dir.path(), 8), folders(dir.path(), 1), bytes_below(dir.path(), 8)), (2, 1, 5));
    }
}
