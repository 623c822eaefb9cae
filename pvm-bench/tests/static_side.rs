//! The real PVM on a small real lab: one row of Table 1, and that nothing of PVM remains.
//!
//! Needs root, PVM, and the programs of mosix-lab and mosix-workloads beside this crate's; else skipped. Times are not
//! checked here: that is what the benchmark itself does.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use mosix_lab::{Exec, Lab, LabSpec, StopFlag, find_beside};
use pvm_bench::pvm::{VirtualMachine, installed};
use pvm_bench::row::Report;
use pvm_bench::scale::TimeScale;
use pvm_bench::table1::{self, Options};

fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["mosix-lab", "pvm-master", "pvm-worker"] {
        if find_beside(program).is_err() {
            return Some(format!("`{program}` has not been built"));
        }
    }
    installed().err().map(|error| error.to_string())
}

fn lab(name: &str, dir: &std::path::Path) -> Lab {
    let id = format!("t-{name}-{}", std::process::id());
    Lab::up(&LabSpec { id, run_dir: dir.into(), nodes: 4, speed: 0.1, ..LabSpec::default() }).unwrap()
}

#[test]
fn pvm_places_and_halts() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lab = lab("place", dir.path());
    let mut machine = VirtualMachine::boot(&lab, &StopFlag::default()).unwrap();
    let run = machine.run_static(6, 0.02).unwrap();
    assert_eq!(run.placement.len(), 6);
    let mut counts = [0; 4];
    run.placement.iter().for_each(|index| counts[*index] += 1);
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 2, 2], "PVM's default placement is even");
    assert!(run.elapsed_s > 0.0 && run.entitlement > 0.0);
    assert!(machine.run_static(5000, 0.01).is_err(), "more tasks than PVM takes");
    machine.halt().unwrap();
    for node in lab.nodes() {
        let (_, list) = node.output(Exec::new(["/bin/sh", "-c", "cat /proc/[0-9]*/stat"])).unwrap();
        assert!(!list.contains("(pvm"), "{list}");
    }
}

#[test]
fn table_1_gives_rows_and_json() {
    if let Some(why) = obstacle() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lab = lab("table", dir.path());
    let options = Options { rows: vec![4, 5], scale: TimeScale::new(1.0).unwrap(), with_static: true };
    let report = table1::run(&lab, &options, None, &StopFlag::default()).unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap().rows.len(), 2);
    assert!(report.rows.iter().all(|row| row.pvm_s.is_some() && row.live_s.is_none() && row.entitlement < 2.0));
    assert!(report.rows[1].pvm_s > report.rows[0].pvm_s, "one node more than full takes longer: {report:?}");
    assert!(pvm_bench::row::report_table(std::slice::from_ref(&report)).to_string().contains("450.0"), "the greedy column");
    let wrong = Options { rows: vec![0], ..options };
    assert!(table1::run(&lab, &wrong, None, &StopFlag::default()).is_err());
    let stop = StopFlag::default();
    stop.set();
    assert!(VirtualMachine::boot(&lab, &stop).is_err(), "Ctrl-C is heard");
}
