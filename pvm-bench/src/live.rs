//! The live side: the same work under `mosixd`, started where PVM put it or all on one node, and moved while it runs.

use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node, StopFlag, UsageSnapshot, find_beside};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, ClusterSpec, SHORTEST_PERIOD_MS};
use crate::scale::TimeScale;
use crate::table1::{LiveRun, LiveSide};
use crate::{BenchError, Result, failed};

/// How often ends are looked for.
const TICK: Duration = Duration::from_millis(2);
/// Time for all processes to reach the start barrier, without quota.
const START: Duration = Duration::from_millis(500);
/// A run may take this many times what one process alone would need with all others on its node.
const PATIENCE_FACTOR: f64 = 3.0;
/// After a run, until guests and deputies are gone.
const SETTLE: Duration = Duration::from_millis(300);

/// Where the processes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Where PVM placed the same number of tasks.
    Placed,
    /// All on the first node, their user's home.
    Home,
}

/// The live side.
#[derive(Debug)]
pub struct Live {
    burn: PathBuf,
    from: Start,
    spec: ClusterSpec,
    cluster: Option<Cluster>,
}

struct Task {
    child: Child,
    go: PipeWriter,
    ended: bool,
}

impl Live {
    /// # Errors
    /// If the `burn` program has not been built.
    pub fn new(from: Start, scale: TimeScale) -> Result<Self> {
        let period_ms = (scale.to_real_s(1.0) * 1000.0).round() as u64;
        let spec = ClusterSpec { period_ms: period_ms.max(SHORTEST_PERIOD_MS), ..ClusterSpec::default() };
        Ok(Self { burn: find_beside("burn")?, from, spec, cluster: None })
    }

    /// Continues with a cluster that runs already.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Cluster) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// The cluster, if it has been started; leaves none.
    pub fn take_cluster(&mut self) -> Option<Cluster> {
        self.cluster.take()
    }

    fn start_task(&self, node: &Node, cpu_s: f64) -> Result<Task> {
        let (stdin, go) = std::io::pipe().map_err(failed("making a pipe"))?;
        let argv = [self.burn.clone().into_os_string(), "--cpu-s".into(), format!("{cpu_s}").into()];
        let child = node.spawn(Exec::new(argv).stdin(stdin).signal_on_disconnect(Signal::SIGKILL))?;
        Ok(Task { child, go, ended: false })
    }

    fn run_tasks(&self, lab: &Lab, places: &[usize], cpu_s: f64, stop: &StopFlag) -> Result<(f64, f64)> {
        let nodes = lab.nodes();
        lab.set_quota(false)?;
        let homes = places.iter().filter_map(|index| nodes.get(*index));
        let mut tasks = homes.map(|node| self.start_task(node, cpu_s)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(START);
        lab.set_quota(true)?;
        let before = lab.snapshot()?;
        let started = Instant::now();
        for task in &mut tasks {
            task.go.write_all(b"\n").map_err(failed("giving the start signal"))?;
        }
        let slowest = nodes.iter().map(Node::speed).fold(1.0, f64::min);
        let limit_s = cpu_s / slowest * tasks.len() as f64 * PATIENCE_FACTOR;
        let mut entitlement = None;
        while tasks.iter().any(|task| !task.ended) {
            stop.check()?;
            if started.elapsed().as_secs_f64() > limit_s {
                return Err(bad("took far too long"));
            }
            std::thread::sleep(TICK);
            collect(&mut tasks)?;
            if entitlement.is_none() && tasks.iter().any(|task| task.ended) {
                entitlement = Some(entitlement_so_far(lab, &before, places)?);
            }
        }
        Ok((started.elapsed().as_secs_f64(), entitlement.unwrap_or(0.0)))
    }
}

fn bad(why: &str) -> BenchError {
    BenchError::Run { what: "the live run".into(), why: why.into() }
}

/// Until the first process ends, the nodes that started with most of them were busy all the time: they have the most to give away, but never all.
fn entitlement_so_far(lab: &Lab, before: &UsageSnapshot, places: &[usize]) -> Result<f64> {
    let ratios = before.entitlement_until(&lab.snapshot()?);
    let started_on = |index: usize| places.iter().filter(|place| **place == index).count();
    let most = (0..lab.nodes().len()).map(started_on).max().unwrap_or(0);
    Ok(crate::check::lowest(&ratios, |index| started_on(index) == most))
}

/// Notices processes that ended.
fn collect(tasks: &mut [Task]) -> Result<()> {
    for task in tasks.iter_mut().filter(|task| !task.ended) {
        if let Some(status) = task.child.try_wait()? {
            if !status.success() {
                return Err(bad(&format!("a process ended with {status}")));
            }
            task.ended = true;
        }
    }
    Ok(())
}

impl LiveSide for Live {
    fn start(&self) -> &str {
        match self.from {
            Start::Placed => "placed",
            Start::Home => "home",
        }
    }

    fn describe(&self) -> String {
        format!(
            "mosixd on every node, outside its quota, period {} ms, TLS and sealed gossip, migration by CRIU (stop and copy)",
            self.spec.period_ms
        )
    }

    fn run(&mut self, lab: &Lab, placement: &[usize], cpu_s: f64, stop: &StopFlag) -> Result<LiveRun> {
        let places: Vec<usize> = match self.from {
            Start::Placed => placement.to_vec(),
            Start::Home => vec![0; placement.len()],
        };
        let cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => {
                lab.set_quota(false)?;
                let cluster = Cluster::boot(lab, &self.spec, stop)?;
                lab.set_quota(true)?;
                cluster
            }
        };
        let before = cluster.migrations()?;
        let result = self.run_tasks(lab, &places, cpu_s, stop);
        std::thread::sleep(SETTLE);
        let migrations = cluster.migrations().map(|after| u32::try_from(after - before).unwrap_or(u32::MAX));
        self.cluster = Some(cluster);
        let (elapsed_s, entitlement) = result?;
        Ok(LiveRun { elapsed_s, migrations: migrations?, entitlement })
    }
}
