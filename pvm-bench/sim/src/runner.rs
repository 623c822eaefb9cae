//! All runs of a plan, on all cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use indicatif::ProgressBar;

use crate::plan::{Plan, PlannedRun};
use crate::report::Report;
use crate::result::RunResult;
use crate::world::World;
use crate::{Result, SimError, bad};

/// Does all runs, each on one core, and sums them up. `progress` shows how many are done.
///
/// # Errors
/// A run could not start.
pub fn run_plan(plan: &Plan, progress: &ProgressBar) -> Result<Report> {
    progress.set_length(plan.runs.len() as u64);
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(plan.runs.len().max(1));
    let next = AtomicUsize::new(0);
    let (results, incoming) = mpsc::channel();
    let mut done: Vec<Option<RunResult>> = vec![None; plan.runs.len()];
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = plan.runs.get(at) else { return };
                    // The receiver goes first only on an error: then nobody wants the rest.
                    if results.send((at, one(run))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        for (at, result) in incoming {
            if let Some(slot) = done.get_mut(at) {
                *slot = Some(result?);
            }
            progress.inc(1);
        }
        Ok::<(), SimError>(())
    })?;
    progress.finish_and_clear();
    let results: Vec<(PlannedRun, RunResult)> =
        plan.runs.iter().zip(done).filter_map(|(run, result)| result.map(|result| (run.clone(), result))).collect();
    Ok(Report::new(plan, &results, started.elapsed().as_secs_f64()))
}

fn one(run: &PlannedRun) -> Result<RunResult> {
    let started = Instant::now();
    let (mut result, _, _) = World::new(run.scenario.clone(), run.seed)?.run().map_err(|why| bad("the simulator itself", why))?;
    result.events_per_s = result.events as f64 / started.elapsed().as_secs_f64().max(1e-9);
    Ok(result)
}
