//! Moving by `mosixd`: from home to the next node, and on from there; also to home's own node, as a guest.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab};
use mosix_wire::control::{Reply, Request};
use nix::sys::signal::Signal;

use super::bad;
use super::subject::{MoveCpu, Moved, Mover, Subject};
use crate::Result;
use crate::cluster::Cluster;

/// For the end of the move before.
const STILL_MOVING: Duration = Duration::from_secs(5);

/// A process of the first node.
#[derive(Debug)]
pub struct ByMosix<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster,
    nodes: Vec<String>,
    /// Index of the node that has it.
    at: usize,
    child: Child,
    before: Option<Spent>,
}

/// CPU time used outside of the nodes' own groups when a move began.
#[derive(Debug, Clone, Copy)]
struct Spent {
    source: usize,
    target: usize,
    source_time: Duration,
    target_time: Duration,
}

impl<'a> ByMosix<'a> {
    /// Starts the process on the first node.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(lab: &'a Lab, cluster: &'a Cluster, argv: Vec<OsString>, report: Signal) -> Result<(Self, Subject)> {
        let (subject, stdin, stdout) = Subject::open(report)?;
        let exec = Exec::new(argv).cwd("/").stdin(stdin).stdout(stdout).signal_on_disconnect(Signal::SIGKILL);
        let home = lab.nodes().first().ok_or_else(|| bad("the lab has no nodes"))?;
        let child = home.spawn(exec)?;
        let nodes = lab.nodes().iter().map(|node| node.name.clone()).collect();
        Ok((Self { lab, cluster, nodes, at: 0, child, before: None }, subject))
    }

    /// The daemon, its agents and CRIU are all in the node's group without quota; the process itself is not.
    fn spent(&self, node: usize) -> Result<Duration> {
        let node = self.lab.nodes().get(node).ok_or_else(|| bad("the lab has lost a node"))?;
        Ok(self.lab.sys_usage(node)?)
    }

    /// Asks again while the move before is being tidied up.
    fn ask(&self, target: &str) -> Result<Reply> {
        let request = Request::Migrate { pid: self.child.pid(), target: target.into() };
        let deadline = Instant::now() + STILL_MOVING;
        loop {
            match self.cluster.ask(0, &request) {
                Err(error) if is_passing(&error.to_string()) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }
}

/// The move before is being tidied up, or the process has a child or an open file just now that it will not have in a moment.
fn is_passing(why: &str) -> bool {
    why.contains("being moved already") || why.contains("try again")
}

impl Mover for ByMosix<'_> {
    fn shift(&mut self) -> Result<std::result::Result<Moved, String>> {
        let next = (self.at + 1) % self.nodes.len();
        let target = self.nodes.get(next).cloned().unwrap_or_default();
        let before = Spent { source: self.at, target: next, source_time: self.spent(self.at)?, target_time: self.spent(next)? };
        match self.ask(&target) {
            Ok(Reply::Moved(moved)) => {
                self.at = next;
                self.before = Some(before);
                // All that the daemon tells, also what this version does not know.
                let record = serde_json::to_value(&moved).unwrap_or_default();
                let patched = record.get("patched").and_then(serde_json::Value::as_bool).unwrap_or(false);
                let (total_ms, freeze_ms, bytes) = (moved.total_ms, moved.freeze_ms, moved.sent_bytes);
                Ok(Ok(Moved { total_ms, freeze_ms, bytes, patched, record: Some(record) }))
            }
            Ok(other) => Err(bad(format!("not the answer to a move: {other:?}"))),
            Err(error) => match self.child.try_wait()? {
                Some(status) => Err(bad(format!("{error}; the process is gone: {status}"))),
                None => Ok(Err(error.to_string())),
            },
        }
    }

    fn cpu(&mut self) -> Result<Option<MoveCpu>> {
        let Some(before) = self.before.take() else { return Ok(None) };
        let ms = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() * 1000.0;
        Ok(Some(MoveCpu {
            source_ms: ms(self.spent(before.source)?, before.source_time),
            target_ms: ms(self.spent(before.target)?, before.target_time),
        }))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        Ok(self.child.kill(signal)?)
    }

    fn ended(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        Ok(self.child.wait_for(Some(patience))?)
    }

    fn pid_outside(&self) -> Option<i32> {
        self.child.pid_outside()
    }
}
