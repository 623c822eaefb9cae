//! Moving by `mosixd`: from home to the next node, and on from there; also to home's own node, as a guest.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab};
use mosix_wire::control::{Reply, Request};
use nix::sys::signal::Signal;

use super::bad;
use super::subject::{Load, Moved, Mover, Subject};
use crate::Result;
use crate::cluster::Cluster;

/// For the end of the move before.
const STILL_MOVING: Duration = Duration::from_secs(5);

/// A process of the first node.
#[derive(Debug)]
pub struct ByMosix<'a> {
    cluster: &'a Cluster,
    nodes: Vec<String>,
    /// Index of the node that has it.
    at: usize,
    child: Child,
}

impl<'a> ByMosix<'a> {
    /// Starts the process on the first node.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(lab: &Lab, cluster: &'a Cluster, churn: &Path, load: Load) -> Result<(Self, Subject)> {
        let (subject, stdin, stdout) = Subject::open()?;
        let exec = Exec::new(load.argv(churn)).cwd("/").stdin(stdin).stdout(stdout).signal_on_disconnect(Signal::SIGKILL);
        let home = lab.nodes().first().ok_or_else(|| bad("the lab has no nodes"))?;
        let child = home.spawn(exec)?;
        Ok((Self { cluster, nodes: lab.nodes().iter().map(|node| node.name.clone()).collect(), at: 0, child }, subject))
    }

    /// Asks again while the move before is being tidied up.
    fn ask(&self, target: &str) -> Result<Reply> {
        let request = Request::Migrate { pid: self.child.pid(), target: target.into() };
        let deadline = Instant::now() + STILL_MOVING;
        loop {
            match self.cluster.ask(0, &request) {
                Err(error) if error.to_string().contains("being moved already") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }
}

impl Mover for ByMosix<'_> {
    fn shift(&mut self) -> Result<std::result::Result<Moved, String>> {
        let next = (self.at + 1) % self.nodes.len();
        let target = self.nodes.get(next).cloned().unwrap_or_default();
        match self.ask(&target) {
            Ok(Reply::Moved(moved)) => {
                self.at = next;
                Ok(Ok(Moved { total_ms: moved.total_ms, freeze_ms: moved.freeze_ms, bytes: moved.image_bytes }))
            }
            Ok(other) => Err(bad(format!("not the answer to a move: {other:?}"))),
            Err(error) => match self.child.try_wait()? {
                Some(status) => Err(bad(format!("{error}; the process is gone: {status}"))),
                None => Ok(Err(error.to_string())),
            },
        }
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
