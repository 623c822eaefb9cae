//! Visits to real processes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mosix_ptrace::{Threads, VisitError, visit};

const LIMIT: Duration = Duration::from_secs(5);

fn sleeper(seconds: &str) -> Child {
    let child = Command::new("sleep").arg(seconds).spawn().expect("sleep(1)");
    wait_asleep(child.id() as i32);
    child
}

/// Until it has executed `sleep` and waits there.
fn wait_asleep(pid: i32) {
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !stat().contains("(sleep) S") {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn calls_are_made_and_the_program_goes_on() {
    let mut child = sleeper("0.5");
    for threads in [Threads::One, Threads::All] {
        let (parent, unknown) = visit(child.id() as i32, threads, LIMIT, |stopped| {
            let parent = stopped.call(libc::SYS_getppid, &[])?;
            let unknown = stopped.call(4000, &[1, 2, 3, 4, 5, 6])?;
            Ok((parent, unknown))
        })
        .unwrap();
        assert_eq!(parent.unwrap(), u64::from(std::process::id()));
        assert_eq!(unknown.unwrap_err().raw_os_error(), Some(libc::ENOSYS));
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
    assert!(child.wait().unwrap().success(), "its sleep was restarted");
}

#[test]
fn an_error_of_the_work_is_passed_on_and_the_program_goes_on() {
    let mut child = sleeper("0.3");
    let pid = child.id() as i32;
    let result: Result<(), _> = visit(pid, Threads::All, LIMIT, |_| Err(VisitError::Unsuitable { pid, why: "has the wrong colour" }));
    assert!(matches!(result, Err(VisitError::Unsuitable { why: "has the wrong colour", .. })));
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_has_ended_cannot_be_visited() {
    let mut child = Command::new("true").spawn().expect("true(1)");
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    while !stat().contains(") Z") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id() as i32;
    assert!(visit(pid, Threads::All, LIMIT, |_| Ok(())).is_err(), "a zombie");
    child.wait().unwrap();
    assert!(matches!(visit(pid, Threads::All, LIMIT, |_| Ok(())), Err(VisitError::Os { .. })), "nobody");
}

#[test]
fn a_death_during_the_visit_is_told() {
    // not our own child: of such a one the visitor would also take the exit status
    let shell = Command::new("sh").args(["-c", "sleep 5 & echo $!; wait $!; echo $?"]).stdout(Stdio::piped()).spawn();
    let mut lines = BufReader::new(shell.expect("sh(1)").stdout.unwrap()).lines().map(Result::unwrap);
    let pid: i32 = lines.next().unwrap().parse().unwrap();
    wait_asleep(pid);
    let result = visit(pid, Threads::One, LIMIT, |stopped| stopped.call(libc::SYS_exit_group, &[3]).map(drop));
    assert!(matches!(result, Err(VisitError::Died { .. })), "{result:?}");
    assert_eq!(lines.next().unwrap(), "3");
}
