//! The guest leaves for another node: dump and hold, and the way back if the hop is given up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use mosix_criu::freezer::{Freezer, Held, Moment, dump_and_hold, enter_cgroup};
use mosix_criu::{Criu, DumpOptions, DumpRequest, Skeleton};
use mosix_guest::{Setup, SkeletonSpec};

/// Dumps the guest into `images_dir`; it stays frozen. `beside` may veto.
pub(crate) fn dump(
    setup: &Setup,
    freezer: &Freezer,
    images_dir: &str,
    skeleton: Option<&SkeletonSpec>,
    beside: &mut dyn FnMut(Moment) -> Result<(), String>,
) -> Result<Held> {
    let options = skeleton.map_or_else(DumpOptions::default, |spec| DumpOptions {
        skeleton: Some(Skeleton::Patched { shared: false }),
        trust: Some(Path::new(&spec.trust)),
        smaps: Some(Path::new(&spec.smaps)),
        kerndat: Some(Path::new(&spec.kerndat)),
        no_breakpoints: true,
        ..DumpOptions::default()
    });
    let request = DumpRequest { pid: setup.pid, images_dir: Path::new(images_dir), external: &[], shell_job: setup.sid != setup.pid };
    let aside: Vec<PathBuf> = setup.dump_cgroups.iter().map(PathBuf::from).collect();
    let deadline = Duration::from_millis(setup.criu_deadline_ms);
    let result = dump_and_hold(&Criu::at(&setup.criu), &request, &options, freezer, &aside, deadline, beside);
    if result.is_err() {
        join_cgroups(setup)?;
    }
    Ok(result?)
}

/// The hop was given up: the guest goes on here.
pub(crate) fn resume(setup: &Setup, freezer: &Freezer) -> Result<()> {
    join_cgroups(setup)?;
    freezer.thaw().context("the guest stays frozen")
}

/// Puts the guest into the groups that bound what a guest may use on this node.
pub(crate) fn join_cgroups(setup: &Setup) -> Result<()> {
    for dir in &setup.cgroups {
        enter_cgroup(Path::new(dir), setup.pid)?;
    }
    Ok(())
}

/// Pins all threads of the guest to the CPUs that guests may use.
pub(crate) fn pin(setup: &Setup) -> Result<()> {
    if setup.cpus.is_empty() {
        return Ok(());
    }
    let mut set = nix::sched::CpuSet::new();
    for cpu in &setup.cpus {
        set.set(*cpu as usize).with_context(|| format!("no CPU {cpu}"))?;
    }
    for thread in threads(setup.pid) {
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(thread), &set)?;
    }
    Ok(())
}

/// Largest thread number in use by the processes.
pub(crate) fn highest_number(pids: &[i32]) -> i32 {
    pids.iter().flat_map(|pid| threads(*pid)).max().unwrap_or(1)
}

fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.map(|entries| entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()).unwrap_or_default()
}
