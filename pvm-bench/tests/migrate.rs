//! `pvm-bench migrate` in a small lab: a process that is moved by both ways keeps its memory and tells sane figures.
//!
//! Needs root, CRIU, cgroup v2, and the workspace's programs beside this test's; else skipped. How long anything takes is not checked.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use mosix_lab::{Lab, LabSpec, StopFlag, find_beside};
use pvm_bench::cluster::find_criu;
use pvm_bench::migrate::load::Program;
use pvm_bench::migrate::report::{Report, Series, table};
use pvm_bench::migrate::{Options, run};

const MIB: u64 = 1 << 20;

fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["mosix-lab", "mosixd", "mosix-agent", "churn", "shuffle", "pvm-bench"] {
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

fn options() -> Options {
    Options {
        programs: vec![Program::Churn],
        sizes_mib: vec![4],
        rates_mib_s: vec![5.0],
        threads: vec![3],
        other_sizes_mib: vec![4],
        walks_mib: vec![],
        moves: 3,
        baseline: true,
        config: vec![],
    }
}

fn assert_sane(series: &Series, moves: usize) {
    assert!(series.is_sound(), "{series:?}");
    let figures =
        [&series.blackout_ms, &series.stalled_ms, &series.total_ms, &series.freeze_ms, &series.cpu_source_ms, &series.cpu_target_ms];
    for figures in figures {
        assert_eq!(figures.len(), moves, "{series:?}");
        assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{series:?}");
    }
    for (blackout, stalled) in series.blackout_ms.iter().zip(&series.stalled_ms) {
        assert!(stalled >= blackout, "{series:?}");
    }
    // Four MiB of memory that cannot be compressed have to get across, the first time at least.
    assert!(series.bytes_sent.len() == moves && series.bytes_sent[0] >= 4 * MIB, "{series:?}");
    assert!(series.rss_bytes >= 4 * MIB && series.rss_bytes < 64 * MIB, "{series:?}");
    // Every report checks all pages, and so does the end.
    assert!(series.checked_pages as usize == (moves + 2) * 1024, "{series:?}");
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
    let report = run(&lab, &options(), &StopFlag::default()).unwrap();
    let [row] = report.rows.as_slice() else { panic!("{report:?}") };
    assert_eq!((row.kind, row.threads, row.dirty_bytes_per_s), (Program::Churn, 3, 5.0 * MIB as f64));
    for series in [&row.mosix, row.plain_criu.as_ref().unwrap()] {
        assert_sane(series, 3);
        assert!(series.written_bytes_per_s > 0.0, "{series:?}");
    }
    assert!(row.blackout_ratio_p50.is_some_and(f64::is_finite) && row.mosix.records.len() == 3, "{row:?}");
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again.rows.len(), 1);
    assert!(table(&report).to_string().contains("right"));
    assert!(!std::path::Path::new(&format!("/dev/shm/mosix-bench-{}", lab.id())).exists(), "the images are gone");
}

#[test]
fn lab_programs_of_all_kinds_keep_their_memory_or_are_skipped_with_a_reason() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = format!("mp-{}", std::process::id());
    let lab = Lab::up(&LabSpec { id, run_dir: dir.path().join("run"), nodes: 2, speed: 0.2, ..LabSpec::default() }).unwrap();
    let programs = vec![Program::Shuffle, Program::Python, Program::Node, Program::Java];
    let wanted = programs.len();
    let options = Options { programs, moves: 2, baseline: false, walks_mib: vec![16], ..options() };
    let report = run(&lab, &options, &StopFlag::default()).unwrap();
    report.skipped.iter().for_each(|skipped| println!("skipped: {skipped}"));
    assert_eq!(report.rows.len() + report.skipped.len(), wanted);
    for row in &report.rows {
        assert!(row.mosix.blackout_ms.len() == 2 && row.is_sound(), "{row:?}");
    }
    let [walk] = report.slow_down.as_slice() else { panic!("{report:?}") };
    assert!(walk.failures.is_empty(), "{walk:?}");
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
    assert!(run(&lab, &options(), &StopFlag::default()).unwrap_err().to_string().contains("two nodes"));
}
