//! `pvm-bench migrate` in a small lab: a process that is moved by both ways keeps its memory and tells sane figures.
//!
//! Needs root, CRIU, cgroup v2, and the workspace's programs beside this test's; else skipped. How long anything takes is not checked.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use mosix_lab::{Lab, LabSpec, StopFlag, find_beside};
use pvm_bench::cluster::find_criu;
use pvm_bench::migrate::report::{Report, Row, table};
use pvm_bench::migrate::{Options, run};

const MIB: u64 = 1 << 20;

fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["mosix-lab", "mosixd", "mosix-agent", "churn", "pvm-bench"] {
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

fn assert_sane(row: &Row, moves: usize) {
    assert!(row.is_sound(), "{row:?}");
    for figures in [&row.blackout_ms, &row.stalled_ms, &row.total_ms, &row.freeze_ms] {
        assert_eq!(figures.len(), moves, "{row:?}");
        assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{row:?}");
    }
    for (blackout, stalled) in row.blackout_ms.iter().zip(&row.stalled_ms) {
        assert!(stalled >= blackout, "{row:?}");
    }
    // Four MiB of memory that cannot be compressed have to get across, the first time at least.
    assert!(row.bytes_sent.len() == moves && row.bytes_sent[0] >= 4 * MIB, "{row:?}");
    assert!(row.rss_bytes >= 4 * MIB && row.rss_bytes < 64 * MIB, "{row:?}");
    // Every report checks all pages, and so does the end.
    assert!(row.checked_pages as usize == (moves + 1) * 1024, "{row:?}");
}

#[test]
fn lab_a_moved_process_keeps_its_memory_and_tells_its_gaps() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = format!("m-{}", std::process::id());
    let lab = Lab::up(&LabSpec { id, run_dir: dir.path().join("run"), nodes: 2, speed: 0.2, ..LabSpec::default() }).unwrap();
    let options = Options { sizes_mib: vec![4], rates_mib_s: vec![5.0], threads: vec![3], moves: 3 };
    let report = run(&lab, &options, &StopFlag::default()).unwrap();
    let kinds: Vec<&str> = report.rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds, ["mosix", "criu"]);
    for row in &report.rows {
        assert_sane(row, 3);
        assert!(row.written_bytes_per_s > 0.0 && row.dirty_bytes_per_s == 5.0 * MIB as f64, "{row:?}");
    }
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again.rows.len(), 2);
    assert!(table(&report).to_string().contains("right"));
    assert!(!std::path::Path::new(&format!("/dev/shm/mosix-bench-{}", lab.id())).exists(), "the images are gone");
}

#[test]
fn lab_one_node_is_not_enough() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = format!("m1-{}", std::process::id());
    let lab = Lab::up(&LabSpec { id, run_dir: dir.path().join("run"), nodes: 1, speed: 0.2, ..LabSpec::default() }).unwrap();
    let options = Options { sizes_mib: vec![4], rates_mib_s: vec![0.0], threads: vec![1], moves: 1 };
    assert!(run(&lab, &options, &StopFlag::default()).unwrap_err().to_string().contains("two nodes"));
}
