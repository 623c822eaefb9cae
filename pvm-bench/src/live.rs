//! The live side: the same work under `mosixd`, started where PVM put it or all on one node, and moved while it runs.

use std::path::PathBuf;
use std::time::Duration;

use mosix_lab::{Lab, StopFlag, find_beside};

use crate::Result;
use crate::cluster::{Cluster, ClusterSpec, SHORTEST_PERIOD_MS};
use crate::race;
use crate::scale::TimeScale;
use crate::table1::{LiveRun, LiveSide};

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
            "mosixd on every node, outside its quota, period {} ms, TLS and sealed gossip, migration by CRIU with pre-copy",
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
        let result = race::run(lab, &self.burn, &places, cpu_s, stop, &mut |_| Ok(()));
        std::thread::sleep(SETTLE);
        let migrations = cluster.migrations().map(|after| u32::try_from(after - before).unwrap_or(u32::MAX));
        self.cluster = Some(cluster);
        let times = result?;
        Ok(LiveRun { elapsed_s: times.elapsed_s, migrations: migrations?, entitlement: times.entitlement })
    }
}
