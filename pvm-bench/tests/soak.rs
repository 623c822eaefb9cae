//! `pvm-bench soak`, small: a few moves of all its processes at once, after which everything is right and nothing is left.
//!
//! Needs root, CRIU, cgroup v2, and the workspace's programs beside this test's; else skipped.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use mosix_lab::{Lab, LabSpec, StopFlag, find_beside};
use pvm_bench::cluster::find_criu;
use pvm_bench::soak::{Options, run};

fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["mosix-lab", "mosixd", "mosix-agent", "churn", "shuffle"] {
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

#[test]
fn lab_forty_moves_leave_nothing_behind() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = format!("s-{}", std::process::id());
    let lab = Lab::up(&LabSpec { id, run_dir: dir.path().join("run"), nodes: 3, speed: 0.2, ..LabSpec::default() }).unwrap();
    let report = run(&lab, &Options { moves: 40, seed: 7, config: vec![] }, &StopFlag::default()).unwrap();
    assert!(report.is_sound(40), "{report:#?}");
    assert!(report.before.processes.contains_key("mosixd") && report.before.descriptors.len() == 3, "{:?}", report.before);
}
