//! A live cluster in a lab: one `mosixd` on every workstation, with certificates and keys of its own.
//!
//! The daemons run outside of the nodes' quota (and report what they use); guests run inside the quota of the node that
//! they come to. Periods follow the lab's time scale.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node, StopFlag, find_beside};
use mosix_wire::control::{Reply, Request, Stats, Status};
use nix::sys::signal::Signal;

use crate::{BenchError, Result, failed};

/// TCP and UDP port of every daemon; each has its own address.
const PORT: u16 = 7660;
/// Shortest gossip and decision period.
pub const SHORTEST_PERIOD_MS: u64 = 50;
/// For all daemons to come up and hear of each other.
const PATIENCE: Duration = Duration::from_secs(60);
/// For one answer; a move may take long on a busy machine.
const ANSWER: Duration = Duration::from_secs(90);

/// How the daemons are to behave.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Gossip and decision period, ms; minimum ages and residencies scale with it.
    pub period_ms: u64,
    /// Balancing on from the start.
    pub balance: bool,
    /// Log filter of the daemons; by default that of the variable `MOSIX_LOG`, else `info`.
    pub log: String,
    /// Added to the configuration of each daemon; wins over what is there.
    pub config: Vec<ConfigItem>,
}

/// One setting of a daemon, as on a command line: `table.key=value`, the value as TOML (a bare word is a string).
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigItem {
    path: Vec<String>,
    value: toml::Value,
}

impl std::str::FromStr for ConfigItem {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
        let path: Vec<String> = path.split('.').map(|part| part.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("`{text}`: a part of the key is empty"));
        }
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
        Ok(Self { path, value: parsed.unwrap_or_else(|| toml::Value::String(value.trim().to_owned())) })
    }
}

impl std::fmt::Display for ConfigItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.path.join("."), self.value)
    }
}

impl ConfigItem {
    /// Puts the setting where it belongs; tables that are missing are made.
    fn apply(&self, table: &mut toml::Table) -> std::result::Result<(), String> {
        let Some((last, tables)) = self.path.split_last() else { return Ok(()) };
        let mut table = table;
        for name in tables {
            let entry = table.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            table = entry.as_table_mut().ok_or_else(|| format!("{self}: {name} is no table"))?;
        }
        table.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self { period_ms: 1000, balance: true, log: std::env::var("MOSIX_LOG").unwrap_or_else(|_| "info".into()), config: Vec::new() }
    }
}

/// Running daemons; stopped when dropped.
#[derive(Debug)]
pub struct Cluster {
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    name: String,
    child: Child,
    socket: PathBuf,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Cluster {
    /// Makes the cluster's keys, starts the daemons, and waits until every node knows all others.
    ///
    /// # Errors
    /// A daemon that does not come up, with the last lines of its log.
    pub fn boot(lab: &Lab, spec: &ClusterSpec, stop: &StopFlag) -> Result<Self> {
        let dir = lab.dir().join("cluster");
        make_keys(lab, &dir)?;
        let program = find_beside("mosixd")?;
        let criu = find_criu()?;
        let daemons = lab.nodes().iter().map(|node| start(lab, node, &dir, spec, &program, &criu)).collect::<Result<Vec<_>>>()?;
        let mut cluster = Self { daemons };
        cluster.wait_until_all_know_all(stop)?;
        Ok(cluster)
    }

    /// Starts the daemon of a node again with the same configuration, after killing (SIGKILL) what is left of the old one, and waits
    /// until all nodes know all others. The log goes on in the same file.
    ///
    /// # Errors
    /// No such node, or a daemon that does not come up, with the last lines of its log.
    pub fn restart(&mut self, lab: &Lab, node: usize, stop: &StopFlag) -> Result<()> {
        let daemon = self.daemons.get_mut(node).ok_or_else(|| bad(format!("there is no node {node}")))?;
        // One that has ended cannot be told any more.
        let _ = daemon.child.kill(Signal::SIGKILL);
        if daemon.child.wait_for(Some(Duration::from_secs(10)))?.is_none() {
            return Err(bad(format!("the old mosixd on {} does not end", daemon.name)));
        }
        daemon.child = launch(lab.node(&daemon.name)?, &daemon.program, &daemon.config, &daemon.log)?;
        self.wait_until_all_know_all(stop)
    }

    /// Log file of a node's daemon.
    pub fn log(&self, node: usize) -> Option<&Path> {
        self.daemons.get(node).map(|daemon| daemon.log.as_path())
    }

    /// Asks the daemon of a node (by index); gives its last reply.
    ///
    /// # Errors
    /// No such node, no answer, or an answer that is an error, in the daemon's words.
    pub fn ask(&self, node: usize, request: &Request) -> Result<Reply> {
        let daemon = self.daemons.get(node).ok_or_else(|| bad(format!("there is no node {node}")))?;
        ask(&daemon.socket, request).map_err(|why| bad(format!("{}: {why}", daemon.name)))
    }

    /// Control socket of a node.
    pub fn socket(&self, node: usize) -> Option<&Path> {
        self.daemons.get(node).map(|daemon| daemon.socket.as_path())
    }

    /// Pid of a node's daemon, as seen from outside the lab.
    pub fn daemon_pid(&self, node: usize) -> Option<i32> {
        self.daemons.get(node)?.child.pid_outside()
    }

    /// The cluster as one node sees it.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    pub fn status(&self, node: usize) -> Result<Status> {
        match self.ask(node, &Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(bad(format!("not a status: {other:?}"))),
        }
    }

    /// Counters of all daemons.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    pub fn stats(&self) -> Result<Vec<Stats>> {
        (0..self.daemons.len())
            .map(|node| match self.ask(node, &Request::Stats)? {
                Reply::Stats(stats) => Ok(stats),
                other => Err(bad(format!("not counters: {other:?}"))),
            })
            .collect()
    }

    /// Completed moves of the whole cluster since its start.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    pub fn migrations(&self) -> Result<u64> {
        Ok(self.stats()?.iter().map(|stats| stats.migrations).sum())
    }

    /// Switches automatic balancing on all nodes.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    pub fn set_balance(&self, on: bool) -> Result<()> {
        (0..self.daemons.len()).try_for_each(|node| self.ask(node, &Request::Balance { on }).map(drop))
    }

    /// Lets the daemons live on with a lab that is kept.
    pub fn leave_running(mut self) {
        self.daemons.clear();
    }

    fn wait_until_all_know_all(&mut self, stop: &StopFlag) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for index in 0..self.daemons.len() {
            loop {
                stop.check()?;
                if self.status(index).is_ok_and(|status| status.nodes.iter().all(|node| node.state == "up")) {
                    break;
                }
                let Some(daemon) = self.daemons.get_mut(index) else { break };
                let ended = daemon.child.try_wait()?;
                if ended.is_some() || Instant::now() > deadline {
                    let log = std::fs::read_to_string(&daemon.log).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(5).collect();
                    let what = ended.map_or("does not hear of all nodes".to_owned(), |status| format!("ended with {status}"));
                    return Err(bad(format!(
                        "mosixd on {} {what}; its log says:\n{}",
                        daemon.name,
                        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // One that has ended needs no signal; the lab kills what is left.
            let _ = daemon.child.kill(Signal::SIGTERM);
        }
        for daemon in &mut self.daemons {
            let _ = daemon.child.wait_for(Some(Duration::from_secs(5)));
        }
    }
}

/// Asks a daemon by its socket; progress lines are skipped.
///
/// # Errors
/// In words.
pub fn ask(socket: &Path, request: &Request) -> std::result::Result<Reply, String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER)).map_err(|error| error.to_string())?;
    let mut line = serde_json::to_string(request).map_err(|error| error.to_string())?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|error| error.to_string())?;
    let mut last = None;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|error| format!("no answer: {error}"))?;
        last = Some(serde_json::from_str::<Reply>(&line).map_err(|error| format!("{error}: {line}"))?);
    }
    match last {
        Some(Reply::Error { message }) => Err(message),
        Some(reply) => Ok(reply),
        None => Err("no answer".into()),
    }
}

fn bad(why: String) -> BenchError {
    BenchError::Run { what: "the live cluster".into(), why }
}

fn make_keys(lab: &Lab, dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(failed("clearing the cluster's folder"))?;
    }
    let keys = |error: mosix_wire::cluster::ClusterError| bad(error.to_string());
    let authority = dir.join("authority");
    std::fs::create_dir_all(&authority).map_err(failed("making the cluster's folder"))?;
    mosix_wire::cluster::init(&authority).map_err(keys)?;
    for node in lab.nodes() {
        mosix_wire::cluster::add(&authority, &node.name, &format!("{}:{PORT}", node.ip)).map_err(keys)?;
    }
    lab.nodes().iter().try_for_each(|node| mosix_wire::cluster::bundle(&authority, &node.name, &dir.join(&node.name)).map_err(keys))
}

/// The set-up's own CRIU, else the one on PATH.
///
/// # Errors
/// If there is none.
pub fn find_criu() -> Result<PathBuf> {
    let tools = std::env::var_os("MOSIX_TOOLS").map(|dir| PathBuf::from(dir).join("bin"));
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.ancestors().find(|dir| dir.join(".tools").is_dir())?.join(".tools/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = tools.into_iter().chain(beside).chain(std::env::split_paths(&path));
    places
        .find_map(|dir| Some(dir.join("criu")).filter(|file| file.is_file()))
        .ok_or_else(|| bad("no criu found: run `cargo xtask setup`".into()))
}

fn start(lab: &Lab, node: &Node, dir: &Path, spec: &ClusterSpec, program: &Path, criu: &Path) -> Result<Daemon> {
    let socket = lab.dir().join(format!("{}.sock", node.name));
    let config = dir.join(format!("{}.toml", node.name));
    let text = with_items(&configuration(node, dir, &socket, spec, criu), &spec.config).map_err(bad)?;
    std::fs::write(&config, text).map_err(failed("writing a configuration"))?;
    let log = dir.join(format!("{}.log", node.name));
    // On the node itself `mosixctl` finds the socket at its usual place; from outside it is a file of the lab.
    let usual = format!("mkdir -p /run/mosix && ln -sfn '{}' /run/mosix/control.sock", socket.display());
    node.output(Exec::new(["sh", "-c", &usual]).throttled(false))?;
    let child = launch(node, program, &config, &log)?;
    Ok(Daemon { name: node.name.clone(), child, socket, program: program.to_owned(), config, log })
}

fn launch(node: &Node, program: &Path, config: &Path, log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log).map_err(failed("opening a log"))?;
    let argv = [program.as_os_str().to_owned(), "--config".into(), config.as_os_str().to_owned()];
    Ok(node.spawn(Exec::new(argv).throttled(false).stderr(file))?)
}

fn with_items(text: &str, items: &[ConfigItem]) -> std::result::Result<String, String> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    items.iter().try_for_each(|item| item.apply(&mut table))?;
    toml::to_string(&table).map_err(|error| error.to_string())
}

fn configuration(node: &Node, dir: &Path, socket: &Path, spec: &ClusterSpec, criu: &Path) -> String {
    let folders = |files: Vec<PathBuf>| {
        let dirs: Vec<String> = files.iter().filter_map(|file| Some(format!("{:?}", file.parent()?))).collect();
        format!("[{}]", dirs.join(", "))
    };
    let freezer = node.cgroup_v2_path.as_ref().map(|path| format!("freezer_root = {:?}\n", path.join("mosix"))).unwrap_or_default();
    format!(
        "name = {name:?}\ncluster_dir = {cluster:?}\nstate_dir = \"/run/mosix\"\ncontrol_socket = {socket:?}\nlog = {log:?}\n\n\
         [node]\ncpu_share = {share}\ncpus = 1\nguest_cpus = [{cpu}]\nguest_cgroups = {inside}\ndump_cgroups = {outside}\n{freezer}\n\
         [timing]\nperiod_ms = {period_ms}\nstop_ms = 1000\n\n[policy]\nbalance = {balance}\n\n\
         [automatic]\nmin_uid = 0\nmin_age_ms = {period_ms}\n\n[programs]\ncriu = {criu:?}\n",
        name = node.name,
        cluster = dir.join(&node.name),
        log = spec.log,
        share = node.speed(),
        cpu = node.cpu,
        inside = folders(node.cgroup.procs_files()),
        outside = folders(node.sys_cgroup.procs_files()),
        period_ms = spec.period_ms,
        balance = spec.balance,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str) -> ConfigItem {
        text.parse().unwrap()
    }

    #[test]
    fn settings_win_and_bring_their_tables() {
        let items = [item("a.b=2"), item("new.x.y=\"z\""), item("list=[1, 2]"), item("word=soft-dirty"), item("on=true")];
        let text = with_items("[a]\nb = 1\nc = 3\n", &items).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["a"]["b"].as_integer(), Some(2));
        assert_eq!(table["a"]["c"].as_integer(), Some(3));
        assert_eq!(table["new"]["x"]["y"].as_str(), Some("z"));
        assert_eq!(table["word"].as_str(), Some("soft-dirty"));
        assert_eq!((table["on"].as_bool(), table["list"].as_array().map(Vec::len)), (Some(true), Some(2)));
        assert_eq!(items[0].to_string(), "a.b=2");
    }

    #[test]
    fn bad_settings_are_refused() {
        assert!("novalue".parse::<ConfigItem>().is_err() && "a..b=1".parse::<ConfigItem>().is_err());
        assert!(with_items("a = 1\n", &[item("a.b=2")]).unwrap_err().contains("no table"));
    }
}
