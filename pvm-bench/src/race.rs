//! K processes that start together and are timed until the last one ends: what all sides but PVM's own have in common.

use std::io::{PipeWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node, StopFlag, UsageSnapshot};
use nix::sys::signal::Signal;

use crate::{BenchError, Result, failed};

/// How often ends are looked for.
const TICK: Duration = Duration::from_millis(2);
/// Time for all processes to reach the start barrier, without quota.
const START: Duration = Duration::from_millis(500);
/// A run may take this many times what all the work would on one of the slowest nodes.
const PATIENCE_FACTOR: f64 = 3.0;

/// One process of the race.
pub(crate) struct Runner {
    child: Child,
    /// Its pid as seen from outside the lab.
    pub(crate) pid: i32,
    /// Index of the node where it is; whoever moves it keeps this true.
    pub(crate) node: usize,
    pub(crate) ended: bool,
    go: PipeWriter,
}

/// Times of a race.
pub(crate) struct Times {
    pub(crate) elapsed_s: f64,
    /// Lowest CPU received / CPU entitled of the nodes that had a process from the start, until the first one ended.
    pub(crate) entitlement: f64,
}

/// Starts one process on each of `places` (node indices), gives the start signal to all, and waits; `each_tick` may move them.
///
/// # Errors
/// A process that fails, or none that ends in time. Processes that are left are killed when their handles are dropped.
pub(crate) fn run(
    lab: &Lab,
    burn: &Path,
    places: &[usize],
    cpu_s: f64,
    stop: &StopFlag,
    each_tick: &mut dyn FnMut(&mut [Runner]) -> Result<()>,
) -> Result<Times> {
    let nodes = lab.nodes();
    lab.set_quota(false)?;
    let mut runners =
        places.iter().filter_map(|index| nodes.get(*index)).map(|node| start(burn, node, cpu_s)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(START);
    lab.set_quota(true)?;
    let before = lab.snapshot()?;
    let started = Instant::now();
    for runner in &mut runners {
        runner.go.write_all(b"\n").map_err(failed("giving the start signal"))?;
    }
    let slowest = nodes.iter().map(Node::speed).fold(1.0, f64::min);
    let limit_s = cpu_s / slowest * runners.len() as f64 * PATIENCE_FACTOR;
    let mut entitlement = None;
    while runners.iter().any(|runner| !runner.ended) {
        stop.check()?;
        if started.elapsed().as_secs_f64() > limit_s {
            return Err(bad("took far too long"));
        }
        std::thread::sleep(TICK);
        collect(&mut runners)?;
        if entitlement.is_none() && runners.iter().any(|runner| runner.ended) {
            entitlement = Some(entitlement_so_far(lab, &before, places)?);
        }
        each_tick(&mut runners)?;
    }
    Ok(Times { elapsed_s: started.elapsed().as_secs_f64(), entitlement: entitlement.unwrap_or(0.0) })
}

fn start(burn: &Path, node: &Node, cpu_s: f64) -> Result<Runner> {
    let (stdin, go) = std::io::pipe().map_err(failed("making a pipe"))?;
    let argv = [burn.as_os_str().to_owned(), "--cpu-s".into(), format!("{cpu_s}").into()];
    let child = node.spawn(Exec::new(argv).stdin(stdin).signal_on_disconnect(Signal::SIGKILL))?;
    let pid = child.pid_outside().ok_or_else(|| bad("a process has no pid that we can see"))?;
    Ok(Runner { child, pid, node: node.index, ended: false, go })
}

/// Notices processes that ended.
fn collect(runners: &mut [Runner]) -> Result<()> {
    for runner in runners.iter_mut().filter(|runner| !runner.ended) {
        if let Some(status) = runner.child.try_wait()? {
            if !status.success() {
                return Err(bad(&format!("a process ended with {status}")));
            }
            runner.ended = true;
        }
    }
    Ok(())
}

/// A node that had a process from the start always has one until the first ends: balancing never empties a node.
fn entitlement_so_far(lab: &Lab, before: &UsageSnapshot, places: &[usize]) -> Result<f64> {
    let ratios = before.entitlement_until(&lab.snapshot()?);
    Ok(crate::check::lowest(&ratios, |index| places.contains(&index)))
}

fn bad(why: &str) -> BenchError {
    BenchError::Run { what: "the run".into(), why: why.into() }
}
