//! The `churn` program as its callers see it.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn churn(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_churn"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts it; gives its lines, the first of which has been read.
fn started(args: &[&str]) -> (Child, impl FnMut() -> String) {
    let mut child = churn(args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = move || lines.next().unwrap().unwrap();
    let ready = next();
    assert!(ready.starts_with("{\"event\":\"ready\""), "{ready}");
    (child, next)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn reports_when_asked_and_ends_with_its_input() {
    let (mut child, mut next) = started(&["--mib", "3", "--rate-mib-s", "20", "--threads", "2", "--verify"]);
    for _ in 0..3 {
        signal(&child, Signal::SIGUSR1);
        let report = next();
        assert!(report.starts_with("{\"event\":\"report\",\"largest_ms\":"), "{report}");
        assert!(report.contains("\"checked_pages\":768,\"bad_pages\":0,\"first_bad\":null}"), "{report}");
    }
    drop(child.stdin.take());
    let end = next();
    assert!(end.starts_with("{\"event\":\"end\"") && end.contains("\"bad_pages\":0"), "{end}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_time_in_which_it_was_stopped_is_a_gap() {
    let (mut child, mut next) = started(&["--mib", "1"]);
    signal(&child, Signal::SIGUSR1);
    next();
    signal(&child, Signal::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_millis(30));
    signal(&child, Signal::SIGCONT);
    std::thread::sleep(std::time::Duration::from_millis(30));
    signal(&child, Signal::SIGTERM);
    let end = next();
    assert!(end.contains("\"until_ms\":"), "{end}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn writers_write_and_slices_go_round() {
    let (mut child, mut next) = started(&["--mib", "65", "--rate-mib-s", "50"]);
    let mut written = String::new();
    for slice in ["16384", "256", "16384"] {
        std::thread::sleep(std::time::Duration::from_millis(20));
        signal(&child, Signal::SIGUSR1);
        written = next();
        assert!(written.contains(&format!("\"checked_pages\":{slice},\"bad_pages\":0")), "{written}");
    }
    assert!(!written.contains("\"written_bytes\":0,"), "{written}");
    drop(child.stdin.take());
    assert!(next().contains("\"checked_pages\":16640,"), "at the end all pages are checked");
    assert!(child.wait().unwrap().success());
}

/// The largest private writable mapping of a process: start and end.
fn largest_mapping(pid: u32) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let ranges = maps.lines().filter(|line| line.contains(" rw-p ")).map(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
    });
    ranges.max_by_key(|(start, end)| end - start).unwrap()
}

#[test]
fn one_wrong_word_is_told_and_is_the_exit_status() {
    use std::os::unix::fs::FileExt;
    let (mut child, mut next) = started(&["--mib", "16", "--verify"]);
    let (start, end) = largest_mapping(child.id());
    assert!(end - start >= 16 << 20, "the memory is the largest mapping");
    let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", child.id()));
    match memory.and_then(|memory| memory.write_all_at(b"wrong!", start + (5 << 20))) {
        Ok(()) => {}
        Err(error) => {
            println!("skipped: this process may not write to its child's memory: {error}");
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
    }
    signal(&child, Signal::SIGUSR1);
    let report = next();
    assert!(report.contains("\"bad_pages\":1,") && !report.contains("\"first_bad\":null"), "{report}");
    signal(&child, Signal::SIGTERM);
    next();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn bad_arguments_are_refused() {
    for args in [&["--mib"][..], &["--mib", "0"], &["--rate-mib-s", "1"], &["--mib", "1", "--what"]] {
        assert_eq!(churn(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}
