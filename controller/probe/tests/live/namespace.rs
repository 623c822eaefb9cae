//! What is seen across the border of a pid namespace.

use crate::help::{Guard, probes, try_find, wait_for};
use std::{
    env, fs, process,
    process::{Command, Stdio},
};

const HELPER: &str = "MOSIX_TEST_HELPER";

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command
}

/// Why no pid namespace can be made here, if so.
fn obstacle() -> Option<String> {
    match unshare().arg("true").stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(why) => Some(why.to_string()),
    }
}

fn children(pid: u32) -> Vec<u32> {
    let content = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    content.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn from_outside_nested_processes_have_two_pids() {
    if let Some(why) = obstacle() {
        return println!("skipped: {why}");
    }
    let outer = Guard::spawn(unshare().args(["sh", "-c", "sleep 1000 & wait"]));
    wait_for("the nested processes", || children(outer.pid()).first().is_some_and(|init| !children(*init).is_empty()));
    let init = children(outer.pid())[0];
    let sleeper = children(init)[0];
    for mut probe in probes() {
        let sample = probe.sample().unwrap();
        let told = |pid| try_find(&sample, pid).map(|p| (p.ppid, p.inner_pid, p.nested));
        assert_eq!(told(outer.pid()), Some((process::id(), outer.pid(), false)), "{}", probe.backend());
        assert_eq!(told(init), Some((outer.pid(), 1, true)), "{}", probe.backend());
        let (ppid, inner, nested) = told(sleeper).unwrap();
        assert!(ppid == init && inner > 1 && nested, "{}", probe.backend());
    }
}

#[test]
fn from_inside_only_the_namespace_is_seen() {
    if let Some(why) = obstacle() {
        return println!("skipped: {why}");
    }
    let mut command = unshare();
    command.arg(env::current_exe().unwrap()).args(["--exact", "namespace::helper_look_from_inside", "--nocapture"]);
    let output = command.env(HELPER, "1").stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("looked from inside"), "{text}");
}

/// Not a test of its own: runs as pid 1 of a new namespace, started by [`from_inside_only_the_namespace_is_seen`].
#[test]
fn helper_look_from_inside() {
    if env::var_os(HELPER).is_none() {
        return;
    }
    assert_eq!(process::id(), 1);
    let sleeper = Guard::spawn(Command::new("sleep").arg("1000"));
    let deeper = Guard::spawn(unshare().args(["sleep", "1000"]));
    wait_for("the deeper process", || !children(deeper.pid()).is_empty());
    let deepest = children(deeper.pid())[0];
    for mut probe in probes() {
        let sample = probe.sample().unwrap();
        let mut seen: Vec<_> = sample.processes.iter().map(|p| (p.pid, p.ppid, p.inner_pid, p.nested)).collect();
        seen.sort_unstable();
        let plain = |pid, ppid| (pid, ppid, pid, false);
        let mut expected = vec![plain(1, 0), plain(sleeper.pid(), 1), plain(deeper.pid(), 1), (deepest, deeper.pid(), 1, true)];
        expected.sort_unstable();
        assert_eq!(seen, expected, "{}", probe.backend());
    }
    println!("looked from inside");
}

/// In a new namespace with the old `/proc`, pids of the two would be mixed up.
#[test]
fn a_foreign_proc_is_refused() {
    if let Some(why) = obstacle() {
        return println!("skipped: {why}");
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(env::current_exe().unwrap());
    command.args(["--exact", "namespace::helper_use_foreign_proc", "--nocapture"]);
    let output = command.env(HELPER, "1").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("proc=the /proc mounted here belongs to another pid namespace"), "{text}");
    // BPF does not need /proc to know where it is.
    assert!(text.contains("bpf=[1]") || text.contains("skipped: "), "{text}");
}

/// Not a test of its own: started by [`a_foreign_proc_is_refused`].
#[test]
fn helper_use_foreign_proc() {
    if env::var_os(HELPER).is_none() {
        return;
    }
    for mut probe in probes() {
        match probe.sample() {
            Ok(sample) => println!("bpf={:?}", sample.processes.iter().map(|p| p.pid).collect::<Vec<_>>()),
            Err(why) => println!("proc={why}"),
        }
    }
}
