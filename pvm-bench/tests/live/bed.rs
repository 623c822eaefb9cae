//! A lab with a cluster for one test, and the questions that tests ask it.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, LabSpec, Node, StopFlag, find_beside};
use mosix_wire::control::{Moved, Reply, Request};
use nix::sys::signal::Signal;
use pvm_bench::cluster::{Cluster, ClusterSpec, find_criu};
use tempfile::TempDir;

use crate::processes;

/// After this, what should have happened is taken as never happening. Far more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Lines of each daemon's log that a failed test shows.
const LOG_LINES: usize = 60;
/// Environment variable by which a test's processes are found on all nodes.
const MARK: &str = "MOSIX_TEST_MARK";

/// Why no cluster can be made here, if so.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["mosix-lab", "mosixd", "mosix-agent", "burn"] {
        if find_beside(program).is_err() {
            return Some(format!("the program `{program}` is not built: run the tests by `cargo xtask test`"));
        }
    }
    if let Err(error) = find_criu() {
        return Some(error.to_string());
    }
    match mosix_lab::cgroup::Hierarchy::detect() {
        Err(error) => Some(error.to_string()),
        Ok(hierarchy) if hierarchy.unified_path("x", "x").is_none() => Some("no cgroup v2 is mounted".into()),
        Ok(_) => None,
    }
}

/// A lab, its daemons and a folder; all gone when dropped.
pub(crate) struct Bed {
    // In the order in which they must go.
    cluster: Cluster,
    lab: Lab,
    dir: TempDir,
    id: String,
}

impl Bed {
    /// Boots; `None` if that is impossible here, which has been said then.
    pub(crate) fn boot(name: &str, nodes: usize, balance: bool) -> Option<Self> {
        if let Some(why) = obstacle() {
            println!("skipped: {why}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let id = format!("l-{name}-{}", std::process::id());
        let spec = LabSpec { id: id.clone(), run_dir: dir.path().join("run"), nodes, speed: 0.2, ..LabSpec::default() };
        let lab = Lab::up(&spec).unwrap();
        // Tests that cut links wait for leases.
        let config = vec!["timing.lease_ms=4000".parse().unwrap()];
        let spec = ClusterSpec { period_ms: 100, balance, config, ..ClusterSpec::default() };
        let cluster = Cluster::boot(&lab, &spec, &StopFlag::default()).unwrap();
        Some(Self { cluster, lab, dir, id })
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        &self.lab.nodes()[index]
    }

    /// A file of this test, the same on all nodes.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the node's daemon again, after killing what is left of it.
    pub(crate) fn restart(&mut self, node: usize) {
        self.cluster.restart(&self.lab, node, &StopFlag::default()).unwrap();
    }

    /// SIGKILL to a node's daemon.
    pub(crate) fn kill_daemon(&self, node: usize) {
        processes::kill(self.daemon(node), Signal::SIGKILL);
    }

    pub(crate) fn daemon(&self, node: usize) -> i32 {
        self.cluster.daemon_pid(node).expect("a daemon that runs has a pid")
    }

    /// A shell script on `node1` with the arguments `args`, found again by `mark`.
    pub(crate) fn script(&self, mark: &str, script: &str, args: &[&Path]) -> Exec {
        let words = ["sh".into(), "-c".into(), script.into(), "sh".into()].into_iter();
        self.program(mark, words.chain(args.iter().map(|path| path.as_os_str().to_owned())).collect())
    }

    /// A program, found again by `mark`; killed when the test ends.
    pub(crate) fn program(&self, mark: &str, argv: Vec<std::ffi::OsString>) -> Exec {
        Exec::new(argv).env(MARK, self.mark(mark)).signal_on_disconnect(Signal::SIGKILL)
    }

    /// Starts it on `node1`; it has become the program (and is no copy of the lab's first process any more) when this returns.
    pub(crate) fn start(&self, exec: Exec) -> Child {
        let mut child = self.node(0).spawn(exec).unwrap();
        eventually("the program has been started", || {
            let is_other = child.pid_outside().and_then(processes::name).is_none_or(|name| name != "mosix-lab");
            if is_other || child.try_wait().unwrap().is_some() { Ok(()) } else { Err("it has not".into()) }
        });
        child
    }

    /// The variable by which a test's processes are found, for programs that are started by others.
    pub(crate) fn mark_variable(&self, mark: &str) -> String {
        format!("{MARK}={}", self.mark(mark))
    }

    /// Cuts a node's link, or restores it.
    pub(crate) fn set_link(&self, node: usize, up: bool) {
        self.lab.set_link(self.node(node), up).unwrap();
    }

    fn mark(&self, mark: &str) -> String {
        format!("{}-{mark}-", self.id)
    }

    /// The processes with this mark on all nodes, stubs not counted: their pids as this test sees them.
    pub(crate) fn bodies(&self, mark: &str) -> Vec<i32> {
        processes::with_environment(&self.mark_variable(mark))
    }

    /// The nodes of the processes with this mark.
    pub(crate) fn places(&self, mark: &str) -> Vec<String> {
        self.bodies(mark).into_iter().map(|pid| processes::lab_node(pid, &self.id)).collect()
    }

    /// Moves a process of `node1`, by the number that it has there.
    pub(crate) fn migrate(&self, pid: i32, target: &str) -> Result<Moved, String> {
        migrate(self.cluster.socket(0).unwrap(), pid, target)
    }

    /// As [`Self::migrate`]; a process that stays fails the test.
    pub(crate) fn must_move(&self, pid: i32, target: &str) -> Moved {
        self.migrate(pid, target).unwrap_or_else(|why| panic!("process {pid} did not move to {target}: {why}"))
    }

    /// Has a process of `node1` send a signal there.
    pub(crate) fn signal(&self, pid: i32, signal: &str) {
        let (status, said) = self.node(0).output(Exec::new(["sh", "-c", &format!("kill -{signal} {pid}")])).unwrap();
        assert!(status.success(), "kill -{signal} {pid}: {said}");
    }

    /// The daemon's private folder, as seen from here.
    pub(crate) fn state_dir(&self, node: usize) -> PathBuf {
        let holder = self.node(node).holder.expect("the node is up");
        format!("/proc/{}/root/run/mosix", holder.pid).into()
    }

    /// The lab's id.
    pub(crate) fn lab_id(&self) -> &str {
        &self.id
    }

    /// Lines in the commit log of `node1`.
    pub(crate) fn commit_records(&self) -> Vec<String> {
        let log = fs::read_to_string(self.state_dir(0).join("commit.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The last of the records since there were `known` says that a copy is, or may be, the body.
    pub(crate) fn was_committed(&self, known: usize) -> bool {
        self.commit_records().get(known..).and_then(<[String]>::last).is_some_and(|line| !line.contains("Aborted"))
    }

    /// Nothing that belongs to a move is left on any node. Waits for what is still on its way out.
    pub(crate) fn assert_nothing_left(&self) {
        eventually("everything of the moves is gone", || {
            let left = self.remains();
            if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) }
        });
    }

    fn remains(&self) -> Vec<String> {
        let mut left = Vec::new();
        for node in 0..self.lab.nodes().len() {
            let name = &self.node(node).name;
            let status = self.status(node).unwrap();
            let row = status.nodes.into_iter().find(|row| row.name == *name).expect("a node knows itself");
            if row.guests + row.away > 0 {
                left.push(format!("{name}: {} guests, {} away", row.guests, row.away));
            }
            let helpers = processes::descendants(self.daemon(node));
            left.extend(helpers.into_iter().map(|(pid, comm)| format!("{name}: process {pid} ({comm})")));
            let freezers = self.node(node).cgroup_v2_path.as_ref().expect("cgroup v2 was found").join("mosix");
            left.extend(folders(&freezers));
            left.extend(folders(&self.state_dir(node).join("images")));
        }
        left
    }

    fn show_logs(&self) {
        for node in 0..self.lab.nodes().len() {
            let Some(path) = self.cluster.log(node) else { continue };
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the end of the log of {}", self.node(node).name);
            lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| println!("{line}"));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

impl Deref for Bed {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// Reasons to ask again: the last move is answered a moment before all of it is done, and a shell opens files while it starts.
pub(crate) const PASSING: [&str; 3] = ["being moved already", "open files changed meanwhile", "while it was being frozen"];

/// Asks the daemon at `socket` for a move; an error is its reason in words.
pub(crate) fn migrate(socket: &Path, pid: i32, target: &str) -> Result<Moved, String> {
    loop {
        match pvm_bench::cluster::ask(socket, &Request::Migrate { pid, target: target.into() }) {
            Ok(Reply::Moved(moved)) => return Ok(moved),
            Ok(other) => return Err(format!("the daemon's last word was {other:?}")),
            Err(why) if PASSING.iter().any(|passing| why.contains(passing)) => std::thread::sleep(Duration::from_millis(2)),
            Err(why) => return Err(why),
        }
    }
}

fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path().display().to_string()).collect()
}

/// Waits until it is so; a panic, with the last reason why not, if it does not come.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if Instant::now() > deadline => panic!("waited for: {what}; but {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The status of a program, which must end.
pub(crate) fn status(child: &mut Child) -> std::process::ExitStatus {
    child.wait_for(Some(PATIENCE)).unwrap().expect("the program did not end")
}
