//! What a lab consists of, as written to its state file, so that any later program can use it or remove it.
//!
//! The file is written before the first thing it names is made and again whenever a holder was started, always as a new
//! file that replaces the old one: a crash at any time leaves a file that names everything there may be.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{CpuGroup, Hierarchy};
use crate::error::{LabError, Result, failed};
use crate::quota::Quota;

/// Name of the namespace with the bridge; takes exec requests like a node (e.g. for tcpdump).
pub const SWITCH: &str = "switch";
/// Format of the state file.
const VERSION: u32 = 1;
/// A state file is some 100 KB for the largest lab; anything longer is not ours.
const MAX_STATE_BYTES: u64 = 4 << 20;

/// A process, safe against reuse of its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid as seen outside the lab.
    pub pid: i32,
    /// Start time in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// Identifies a running process; `None` if there is none with this pid.
    pub fn of(pid: i32) -> Option<Self> {
        let (start_ticks, _) = stat_of(pid)?;
        Some(Self { pid, start_ticks })
    }

    /// Whether exactly this process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        stat_of(self.pid).is_some_and(|(start, state)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }
}

/// Start time and state letter from `/proc/PID/stat`. The name in it may hold spaces and brackets, so count from the last `)`.
fn stat_of(pid: i32) -> Option<(u64, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// One workstation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Position in [`crate::Lab::nodes`], from 0.
    pub index: usize,
    /// Host name.
    pub name: String,
    /// Address on the lab's Ethernet.
    pub ip: Ipv4Addr,
    /// The CPU that everything in this node is pinned to.
    pub cpu: usize,
    /// Speed relative to a normal node of this lab (1.0, or the slow nodes' factor).
    pub relative_speed: f64,
    /// Its speed as a quota; [`Quota::speed`] is the share of one core.
    pub quota: Quota,
    /// The group with the quota. Put what is to run at the node's speed here, also restored processes.
    pub cgroup: CpuGroup,
    /// The group without quota, for daemons that are not to be charged to the node.
    pub sys_cgroup: CpuGroup,
    /// Cgroup v2 folder of this node, for freezers and the like; all below it is removed with the lab. `None` without a v2 mount.
    pub cgroup_v2_path: Option<PathBuf>,
    /// This node's files in the lab's folder.
    pub dir: PathBuf,
    /// A path that is a different, private folder in every node (for sockets and pid files of node-wide daemons).
    pub private_dir: PathBuf,
    /// Pid 1 of the node. `None` while it is being started.
    pub holder: Option<ProcessId>,
}

impl Node {
    /// Share of one core that this node has.
    pub fn speed(&self) -> f64 {
        self.quota.speed()
    }

    /// Folder of the quota group in the cpu hierarchy.
    pub fn cgroup_cpu_path(&self) -> &Path {
        &self.cgroup.cpu
    }

    /// Folder of the group without quota in the cpu hierarchy.
    pub fn sys_cgroup_path(&self) -> &Path {
        &self.sys_cgroup.cpu
    }

    /// Where [`Self::private_dir`] of this node is seen from outside.
    pub fn private_dir_outside(&self) -> PathBuf {
        self.dir.join("private")
    }
}

/// A whole lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The lab's id.
    pub id: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Whether it outlives its owner.
    pub keep: bool,
    /// Who made it.
    pub owner: ProcessId,
    /// Where its groups are.
    pub hierarchy: Hierarchy,
    /// All nodes, in order.
    pub nodes: Vec<Node>,
    /// The namespace with the bridge.
    pub switch: Node,
}

impl State {
    /// A state that names everything to be made.
    pub(crate) fn new(id: &str, dir: &Path, owner: ProcessId, hierarchy: Hierarchy, nodes: Vec<Node>, switch: Node) -> Self {
        // `keep` is set when the lab is complete: one that was interrupted half way is to be cleaned by the next `up`.
        let keep = false;
        Self { version: VERSION, id: id.into(), dir: dir.into(), keep, owner, hierarchy, nodes, switch }
    }

    /// Where the state of the lab in `dir` is written.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    /// Reads the state of the lab in `dir`.
    ///
    /// # Errors
    /// [`LabError::NotUp`] if there is none; an I/O or format error if it cannot be read.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = Self::path(dir);
        let reading = || format!("reading {}", path.display());
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(LabError::NotUp(dir.into())),
            Err(error) => return Err(failed(reading())(error)),
            Ok(meta) if meta.len() > MAX_STATE_BYTES => {
                return Err(LabError::Protocol(format!("{} is too long", path.display())));
            }
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(failed(reading()))?;
        let state: Self = serde_json::from_slice(&text)
            .map_err(|error| LabError::Protocol(format!("{}: {error}; remove that folder by hand", path.display())))?;
        if state.version != VERSION {
            return Err(LabError::Protocol(format!(
                "{} is of another version of this program; take it down with that one",
                path.display()
            )));
        }
        Ok(state)
    }

    /// Replaces the state file.
    pub(crate) fn save(&self) -> Result<()> {
        let path = Self::path(&self.dir);
        let new = self.dir.join("state.json.new");
        let text = serde_json::to_vec_pretty(self).map_err(|error| LabError::Protocol(error.to_string()))?;
        fs::write(&new, text).map_err(failed(format!("writing {}", new.display())))?;
        fs::rename(&new, &path).map_err(failed(format!("writing {}", path.display())))
    }

    /// Nodes and switch.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().chain(std::iter::once(&self.switch))
    }

    /// The node of that name (the switch too).
    pub(crate) fn find(&self, name: &str) -> Result<&Node> {
        self.all().find(|node| node.name == name || node.ip.to_string() == name).ok_or_else(|| {
            let label = |node: Option<&Node>| node.map(|node| node.name.clone()).unwrap_or_default();
            LabError::NoSuchNode { name: name.into(), first: label(self.nodes.first()), last: label(self.nodes.last()) }
        })
    }
}
