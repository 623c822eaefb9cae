//! Does the lab keep time? One process per node must take T, two per node 2T, each to its own node's speed.
//!
//! Uses the `burn` workload: it reads one byte as a barrier and then uses a given CPU time. All are started without
//! quota, then the quota is set and the barrier falls.

use std::io::{PipeWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{Child, Exec};
use crate::error::{LabError, Result, failed};
use crate::lab::Lab;
use crate::stop::StopFlag;

/// How often the ends are looked for: the resolution of the result.
const TICK: Duration = Duration::from_millis(1);
/// Give up after this many times the expected duration.
const PATIENCE_FACTOR: f64 = 10.0;

/// Result of one run.
#[derive(Debug, Clone)]
pub struct SelfTestRow {
    /// Processes on every node.
    pub per_node: usize,
    /// What each should have taken, seconds.
    pub expected_s: f64,
    /// Mean deviation of all processes, in per cent of `expected_s`.
    pub mean_percent: f64,
    /// Deviation of the first to end, per cent.
    pub first_percent: f64,
    /// Deviation of the last to end, per cent: that of the makespan.
    pub last_percent: f64,
    /// Lowest CPU received / CPU entitled of any node.
    pub entitlement: f64,
}

/// Runs 1 and 2 processes per node, each of `t_s` seconds on a node of its own.
///
/// # Errors
/// If a process cannot be run, fails, or takes more than ten times as long as it should, and if `stop` is set.
pub fn run(lab: &Lab, burn: &Path, t_s: f64, stop: &StopFlag) -> Result<Vec<SelfTestRow>> {
    [1, 2].into_iter().map(|per_node| run_one(lab, burn, t_s, per_node, stop)).collect()
}

struct Burner {
    child: Child,
    go: PipeWriter,
    took: Option<Duration>,
}

fn run_one(lab: &Lab, burn: &Path, t_s: f64, per_node: usize, stop: &StopFlag) -> Result<SelfTestRow> {
    lab.set_quota(false)?;
    let mut burners = Vec::new();
    for node in lab.nodes() {
        for _ in 0..per_node {
            burners.push(start(node, burn, t_s * node.speed())?);
        }
    }
    // Give all of them time to reach the barrier; without quota that is a matter of milliseconds.
    std::thread::sleep(Duration::from_millis(300));
    lab.set_quota(true)?;
    let expected_s = t_s * per_node as f64;
    let before = lab.snapshot()?;
    let started = Instant::now();
    for burner in &mut burners {
        burner.go.write_all(b"\n").map_err(failed("giving the start signal"))?;
    }
    let mut entitlement = None;
    while burners.iter().any(|burner| burner.took.is_none()) {
        stop.check()?;
        if started.elapsed().as_secs_f64() > expected_s * PATIENCE_FACTOR {
            return Err(tool(burn, format!("took more than {PATIENCE_FACTOR} x {expected_s} s")));
        }
        std::thread::sleep(TICK);
        for burner in burners.iter_mut().filter(|burner| burner.took.is_none()) {
            if let Some(status) = burner.child.try_wait()? {
                burner.took = Some(started.elapsed());
                if !status.success() {
                    return Err(tool(burn, status.to_string()));
                }
                if entitlement.is_none() {
                    // Until the first one ends, all nodes are busy.
                    let ratios = before.entitlement_until(&lab.snapshot()?);
                    entitlement = ratios.into_iter().reduce(f64::min);
                }
            }
        }
    }
    let percents: Vec<f64> =
        burners.iter().filter_map(|burner| burner.took).map(|took| (took.as_secs_f64() / expected_s - 1.0) * 100.0).collect();
    Ok(SelfTestRow {
        per_node,
        expected_s,
        mean_percent: percents.iter().sum::<f64>() / percents.len().max(1) as f64,
        first_percent: percents.iter().copied().fold(f64::INFINITY, f64::min),
        last_percent: percents.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        entitlement: entitlement.unwrap_or(0.0),
    })
}

fn start(node: &crate::Node, burn: &Path, cpu_s: f64) -> Result<Burner> {
    let (stdin, go) = std::io::pipe().map_err(failed("making a pipe"))?;
    let argv = [burn.as_os_str().to_owned(), "--cpu-s".into(), format!("{cpu_s}").into()];
    // If the test is stopped half way, its processes are not to go on in a kept lab.
    let exec = Exec::new(argv).stdin(stdin).signal_on_disconnect(nix::sys::signal::Signal::SIGKILL);
    Ok(Burner { child: node.spawn(exec)?, go, took: None })
}

fn tool(burn: &Path, output: String) -> LabError {
    LabError::Tool { what: format!("the self-test's {}", burn.display()), output }
}
