//! A small real lab: what it shows to programs, how it runs them, and that nothing remains of it, however its owner dies.
//!
//! Needs root; without it every test prints why it was skipped. Each test has a lab id of its own, so that they may run
//! at the same time.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mosix_lab::{Exec, Lab, LabError, LabSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mosix-lab");
const NODES: usize = 4;

/// Why no lab can be made here, if so.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("no `ip` (package iproute2)".into());
    }
    mosix_lab::cgroup::Hierarchy::detect().err().map(|error| error.to_string())
}

macro_rules! need_lab {
    () => {
        if let Some(why) = obstacle() {
            println!("skipped: {why}");
            return;
        }
    };
}

/// A folder and an id that no other test has.
struct Place {
    dir: tempfile::TempDir,
    id: String,
}

impl Place {
    fn new(name: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), id: format!("t-{name}-{}", std::process::id()) }
    }

    fn spec(&self) -> LabSpec {
        LabSpec {
            id: self.id.clone(),
            run_dir: self.dir.path().into(),
            nodes: NODES,
            lab_program: Some(PROGRAM.into()),
            ..LabSpec::default()
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--run-dir").arg(self.dir.path()).args(["--id", &self.id]).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Everything outside the namespaces that may be left of the lab.
    fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        let name = format!("mosix-lab-{}", self.id);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            if hierarchy.path().join(&name).exists() {
                found.push(hierarchy.path().join(&name).display().to_string());
            }
        }
        if Path::new("/sys/fs/cgroup").join(&name).exists() {
            found.push(name);
        }
        let lock = PathBuf::from(format!("/run/mosix-lab/{}.lock", self.id));
        let dir = self.dir.path().join(&self.id);
        found.extend(lock.exists().then(|| lock.display().to_string()));
        if dir.exists() {
            found.push(dir.display().to_string());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let marker = self.dir.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&marker)).map(str::to_owned));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&marker) && line.contains(" init ") {
                found.push(line);
            }
        }
        let links = Command::new("ip").args(["-br", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        found.extend(links.lines().filter(|line| line.starts_with("br0") || line.starts_with("p1@")).map(str::to_owned));
        found
    }

    fn assert_nothing_remains(&self) {
        assert_eq!(self.remains(), Vec::<String>::new());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failed test must not leave a lab either.
        if obstacle().is_none() {
            let _ = Lab::take_down(&self.id, &self.dir.path().join(&self.id));
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn sh(command: &str) -> Exec {
    Exec::new(["/bin/sh", "-c", command])
}

/// Waits for something that happens soon; fails the test if it never does.
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    need_lab!();
    let place = Place::new("view");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node3").unwrap();
    let (status, output) = node.output(sh("echo $$; hostname; cat /etc/hosts; ls -d /proc/[0-9]* | wc -l; ip -4 -o addr")).unwrap();
    assert!(status.success(), "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() < 100, "own pids: {output}");
    assert_eq!(lines[1], "node3");
    assert!(output.contains("10.77.0.4 node4"), "{output}");
    assert!(output.contains("inet 10.77.0.3/16"), "{output}");
    let (_, links) = lab.node("switch").unwrap().output(Exec::new(["ip", "-br", "link", "show", "master", "br0"])).unwrap();
    assert_eq!(links.lines().count(), NODES, "{links}");
    lab.down().unwrap();
    lab.down().unwrap();
    place.assert_nothing_remains();
}

#[test]
fn nodes_reach_each_other_over_the_wire() {
    need_lab!();
    let place = Place::new("wire");
    let lab = Lab::up(&place.spec()).unwrap();
    // The test program is not in the node's network, so the two ends are shells; bash speaks TCP.
    let has_bash = Path::new("/bin/bash").exists();
    if !has_bash || Command::new("python3").arg("-V").output().is_err() {
        println!("skipped: needs bash and python3");
        return;
    }
    let server =
        "import socket;s=socket.create_server(('0.0.0.0',7000));print('on',flush=True);c,a=s.accept();c.sendall(a[0].encode());c.close()";
    let (from, to) = std::io::pipe().unwrap();
    let mut listening = lab.node("node1").unwrap().spawn(Exec::new(["python3", "-c", server]).throttled(false).stdout(to)).unwrap();
    BufReader::new(from).read_line(&mut String::new()).unwrap();
    let call = Exec::new(["/bin/bash", "-c", "cat < /dev/tcp/node1/7000"]).throttled(false);
    let (_, said) = lab.node("node2").unwrap().output(call).unwrap();
    assert_eq!(said, "10.77.0.2");
    assert!(listening.wait().unwrap().success());
}

#[test]
fn programs_are_charged_and_pinned() {
    need_lab!();
    let place = Place::new("group");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node2").unwrap();
    let group_of = |throttled: bool| {
        let (_, output) = node.output(sh("cat /proc/self/cgroup; grep Cpus_allowed_list /proc/self/status").throttled(throttled)).unwrap();
        output
    };
    let inside = group_of(true);
    assert!(inside.contains(&format!("/mosix-lab-{}/node2\n", place.id)), "{inside}");
    assert!(inside.contains(&format!("Cpus_allowed_list:\t{}\n", node.cpu)), "{inside}");
    let outside = group_of(false);
    assert!(outside.contains(&format!("/mosix-lab-{}/node2.sys\n", place.id)), "{outside}");
    let before = lab.usage(node).unwrap();
    node.output(sh("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done")).unwrap();
    assert!(lab.usage(node).unwrap() > before, "CPU time is counted");
    lab.set_quota(false).unwrap();
    let quota = || ["cpu.cfs_quota_us", "cpu.max"].iter().find_map(|file| fs::read_to_string(node.cgroup_cpu_path().join(file)).ok());
    let off = quota().unwrap();
    lab.set_quota(true).unwrap();
    assert_ne!(off, quota().unwrap());
}

#[test]
fn exit_status_signals_and_pids() {
    need_lab!();
    let place = Place::new("exit");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node1").unwrap();
    assert_eq!(node.spawn(sh("exit 42")).unwrap().wait().unwrap().code(), Some(42));
    assert_eq!(node.spawn(Exec::new(["no-such-program"])).unwrap().wait().unwrap().code(), Some(127));
    assert!(matches!(node.spawn(Exec::new(Vec::<String>::new())), Err(LabError::Refused { .. })));
    let mut sleeper = node.spawn(Exec::new(["sleep", "1000"])).unwrap();
    assert!(sleeper.try_wait().unwrap().is_none());
    let outside = sleeper.pid_outside().unwrap();
    let status = fs::read_to_string(format!("/proc/{outside}/status")).unwrap();
    let inner = format!("\t{outside}\t{}\n", sleeper.pid());
    assert!(status.contains(&inner), "NSpid of {outside} is not {inner:?}: {status}");
    sleeper.kill(Signal::SIGTERM).unwrap();
    assert_eq!(sleeper.wait().unwrap().signal(), Some(15));
    assert!(matches!(lab.node("node9"), Err(LabError::NoSuchNode { .. })));
}

#[test]
fn a_client_that_goes_away_takes_only_what_it_asked_for() {
    need_lab!();
    let place = Place::new("gone");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node1").unwrap();
    let stays = node.spawn(Exec::new(["sleep", "1000"])).unwrap();
    let goes = node.spawn(Exec::new(["sleep", "1000"]).signal_on_disconnect(Signal::SIGKILL)).unwrap();
    let alive = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    let (stays_pid, goes_pid) = (stays.pid_outside().unwrap(), goes.pid_outside().unwrap());
    drop((stays, goes));
    eventually("the end of the one that was to go", || !alive(goes_pid));
    assert!(alive(stays_pid));
}

#[test]
fn orphans_are_reaped() {
    need_lab!();
    let place = Place::new("orphan");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node1").unwrap();
    node.output(sh("(sleep 0.05 &) ; exit 0")).unwrap();
    eventually("the reaping", || {
        let (_, list) = node.output(sh("cat /proc/[0-9]*/stat")).unwrap();
        !list.contains("(sleep)")
    });
}

#[test]
fn every_node_has_its_own_private_folder() {
    need_lab!();
    let place = Place::new("private");
    let lab = Lab::up(&place.spec()).unwrap();
    for node in lab.nodes() {
        let command = format!("hostname > {}/who", node.private_dir.display());
        assert!(node.output(sh(&command)).unwrap().0.success());
    }
    for node in lab.nodes() {
        assert_eq!(fs::read_to_string(node.private_dir_outside().join("who")).unwrap().trim(), node.name);
    }
}

#[test]
fn ordinary_users_run_as_themselves_only() {
    need_lab!();
    let place = Place::new("user");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node1").unwrap();
    let (_, output) = node.output(sh("id -u; id -g").run_as(12345, 12345).cwd("/")).unwrap();
    assert_eq!(output, "12345\n12345\n");
    // The same user, already in the node, asks for more than it may. The program and the lab must be readable to it.
    let readable = PathBuf::from(format!("/tmp/{}-mosix-lab", place.id));
    fs::copy(PROGRAM, &readable).unwrap();
    fs::set_permissions(place.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ask = |rest: &str| {
        let command = format!("{} exec {rest} node2 id -u 2>&1", readable.display());
        node.output(sh(&command).run_as(12345, 12345).cwd("/")).unwrap()
    };
    let (own, sys, root) = (ask(""), ask("--sys"), ask("--user root"));
    fs::remove_file(readable).unwrap();
    assert_eq!(own.1, "12345\n");
    assert!(!sys.0.success() && sys.1.contains("only root"), "{sys:?}");
    assert!(!root.0.success() && root.1.contains("only root"), "{root:?}");
}

#[test]
fn kept_lab_by_command_line() {
    need_lab!();
    let place = Place::new("cli");
    let up = place.run(&["up", "--nodes", "4", "--speed", "5%", "--slow", "4:1/2", "--keep"]);
    assert!(up.status.success(), "{up:?}");
    assert!(text(&place.run(&["list"])).contains("2.50 %"));
    let exec = place.run(&["exec", "node2", "sh", "-c", "hostname; exit 3"]);
    assert_eq!((text(&exec).as_str(), exec.status.code()), ("node2\n", Some(3)));
    assert_eq!(place.run(&["exec", "node2", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(place.run(&["exec", "node7", "true"]).status.code(), Some(255));
    let rsh = place.run(&["rsh", "-l", "root", "-n", "node4", "hostname;", "exit", "5"]);
    assert_eq!((text(&rsh).as_str(), rsh.status.code()), ("node4\n", Some(5)));
    // From inside one node to another, with the script that PVM gets.
    let script = place.dir.path().join(&place.id).join("bin/rsh");
    let nested = place.run(&["exec", "node1", script.to_str().unwrap(), "node2", "-n", "hostname"]);
    assert_eq!(text(&nested), "node2\n", "{nested:?}");
    let again = place.run(&["up", "--nodes", "4", "--keep"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already up"), "{again:?}");
    assert!(place.run(&["down"]).status.success());
    assert!(place.run(&["down"]).status.success());
    place.assert_nothing_remains();
}

/// Starts an owner in the foreground and waits until its lab is up.
fn foreground_owner(place: &Place) -> Child {
    let mut owner = place.command(&["up", "--nodes", "4"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(owner.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(line.contains("is up"), "{line}");
    // The rest is not needed, but must not block the owner.
    std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    owner
}

#[test]
fn ctrl_c_takes_everything_down() {
    need_lab!();
    let place = Place::new("int");
    let mut owner = foreground_owner(&place);
    assert!(!place.remains().is_empty());
    assert!(place.run(&["exec", "--sys", "--detach", "node1", "sleep", "1000"]).status.success());
    kill(Pid::from_raw(i32::try_from(owner.id()).unwrap()), Signal::SIGINT).unwrap();
    assert!(owner.wait().unwrap().success());
    place.assert_nothing_remains();
}

#[test]
fn killed_owner_takes_its_nodes_along_and_the_next_up_cleans() {
    need_lab!();
    let place = Place::new("kill");
    let mut owner = foreground_owner(&place);
    let lab = Lab::attach(&place.dir.path().join(&place.id)).unwrap();
    let child = lab.node("node2").unwrap().spawn(Exec::new(["sleep", "1000"])).unwrap();
    let pid = child.pid_outside().unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the end of the nodes", || !Path::new(&format!("/proc/{pid}")).exists() && !lab.is_healthy());
    assert!(!place.remains().is_empty(), "cgroups and files remain until somebody cleans");
    let next = Lab::up(&place.spec()).unwrap();
    assert!(next.node("node1").unwrap().output(sh("true")).unwrap().0.success());
    drop(next);
    place.assert_nothing_remains();
}

#[test]
fn down_after_a_crash_and_with_a_living_owner() {
    need_lab!();
    let place = Place::new("down");
    let mut owner = foreground_owner(&place);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(place.run(&["down"]).status.success());
    place.assert_nothing_remains();
    let mut owner = foreground_owner(&place);
    assert!(place.run(&["down"]).status.success());
    assert!(owner.wait().unwrap().success(), "the owner went as if by Ctrl-C");
    place.assert_nothing_remains();
}

#[test]
fn frozen_groups_of_the_lab_are_removed() {
    need_lab!();
    let place = Place::new("freeze");
    let lab = Lab::up(&place.spec()).unwrap();
    let node = lab.node("node1").unwrap();
    let Some(v2) = node.cgroup_v2_path.clone() else {
        println!("skipped: no cgroup v2 mount");
        return;
    };
    let group = v2.join("freezer");
    fs::create_dir(&group).unwrap();
    let child = node.spawn(Exec::new(["sleep", "1000"])).unwrap();
    fs::write(group.join("cgroup.procs"), child.pid_outside().unwrap().to_string()).unwrap();
    fs::write(group.join("cgroup.freeze"), "1").unwrap();
    lab.down().unwrap();
    place.assert_nothing_remains();
}

#[test]
fn a_lab_that_fails_half_way_leaves_nothing() {
    need_lab!();
    let place = Place::new("half");
    let result = Lab::up(&LabSpec { lab_program: Some("/bin/false".into()), ..place.spec() });
    assert!(matches!(result, Err(LabError::Tool { .. })), "{result:?}");
    place.assert_nothing_remains();
}

#[test]
fn two_labs_at_once() {
    need_lab!();
    let (one, two) = (Place::new("one"), Place::new("two"));
    let (first, second) = (Lab::up(&one.spec()).unwrap(), Lab::up(&two.spec()).unwrap());
    for lab in [&first, &second] {
        assert_eq!(lab.node("node2").unwrap().output(sh("hostname")).unwrap().1, "node2\n");
    }
    assert!(matches!(Lab::up(&one.spec()), Err(LabError::Busy { .. })));
    drop(first);
    one.assert_nothing_remains();
    assert!(second.is_healthy());
}
