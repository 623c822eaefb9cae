//! The `burn` program as its callers see it.

use std::io::Write;
use std::process::{Command, Stdio};

fn burn(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burn"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn works_reports_and_exits_as_told() {
    let file = std::env::temp_dir().join(format!("burn-test-{}.json", std::process::id()));
    let output = burn(&["--cpu-s", "0.01", "--no-barrier", "--exit", "7", "--report", file.to_str().unwrap()]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"done\n");
    let report = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(report.starts_with("{\"cpu_s\":0.01"), "{report}");
}

#[test]
fn waits_for_the_barrier() {
    let mut child = burn(&["--cpu-s", "0.001"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    stdin.write_all(b"g").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"done\n");
}

#[test]
fn a_barrier_that_never_falls_is_an_error() {
    let output = burn(&["--cpu-s", "0.001"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_arguments_are_refused() {
    for args in [&["--cpu-s"][..], &["--cpu-s", "x"], &["--no-barrier"], &["--cpu-s", "1", "--what"], &["--cpu-s", "1", "--exit", "300"]] {
        assert_eq!(burn(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}
