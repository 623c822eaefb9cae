//! mosixctl against a daemon that is a thread of the test: what is asked, what is printed, how it exits.

// Helpers outside of test functions, too, end the test by panicking.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use mosix_wire::control::{DecisionRow, Downtime, Explained, Moved, NodeRow, ProcessRow, Reply, Request, Stats, Status};

/// A daemon that answers each connection's request with what `answer` makes of it, written as it is.
struct FakeDaemon {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    requests: Receiver<Request>,
}

impl FakeDaemon {
    fn raw(answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                let bytes = answer(&request);
                if sender.send(request).is_err() || stream.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        Self { _dir: dir, socket, requests }
    }

    fn new(answer: impl Fn(&Request) -> Vec<Reply> + Send + 'static) -> Self {
        Self::raw(move |request| {
            let lines = answer(request).into_iter().map(|reply| serde_json::to_string(&reply).unwrap() + "\n");
            lines.collect::<String>().into_bytes()
        })
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        mosixctl(arguments).env("MOSIX_SOCKET", &self.socket).output().unwrap()
    }
}

fn mosixctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosixctl"));
    command.args(arguments).env_remove("MOSIX_SOCKET").stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn status() -> Status {
    let row = |name: &str, load| NodeRow {
        name: name.into(),
        state: "up".into(),
        speed: 0.5,
        cpus: 1,
        load,
        memory_total_bytes: 1 << 30,
        memory_free_bytes: 1 << 29,
        guests: 0,
        away: 1,
        age_s: Some(0.5),
    };
    Status { health: "2 nodes, all up".into(), this_node: "ws1".into(), nodes: vec![row("ws1", 2.0), row("ws2", 0.25)] }
}

fn moved() -> Moved {
    Moved {
        pid: 77,
        from: "ws1".into(),
        to: "ws2".into(),
        total_ms: 90.0,
        freeze_ms: 20.5,
        sent_bytes: 4096,
        patched: false,
        record: Downtime::default(),
    }
}

#[test]
fn status_in_both_forms() {
    let daemon = FakeDaemon::new(|_| vec![Reply::Status(status())]);
    let json = daemon.ctl(&["status", "--json"]);
    assert_eq!(serde_json::from_slice::<Status>(&json.stdout).unwrap(), status());
    let text = daemon.ctl(&["status"]);
    assert_eq!(text.status.code(), Some(0));
    let lines: Vec<&str> = stdout(&text).lines().collect();
    assert_eq!(lines[0], "2 nodes, all up");
    assert!(lines[1].starts_with("NODE") && lines[2].starts_with("ws1*") && lines[3].contains("0.25"), "{lines:?}");
    assert_eq!(daemon.requests.recv().unwrap(), Request::Status);
}

#[test]
fn ps_asks_for_all_only_if_told() {
    let process = ProcessRow {
        pid: 12,
        command: "burn".into(),
        uid: 0,
        node: "ws2".into(),
        since_s: 3.0,
        cpu_s: 9.0,
        rss_bytes: 1 << 20,
        moves: 1,
        state: "running".into(),
    };
    let answer = process.clone();
    let daemon = FakeDaemon::new(move |_| vec![Reply::Ps { processes: vec![answer.clone()] }]);
    assert!(stdout(&daemon.ctl(&["ps"])).contains("burn"));
    let json = daemon.ctl(&["--json", "ps", "--all"]);
    assert_eq!(serde_json::from_slice::<Vec<ProcessRow>>(&json.stdout).unwrap(), [process]);
    assert_eq!(daemon.requests.recv().unwrap(), Request::Ps { all: false });
    assert_eq!(daemon.requests.recv().unwrap(), Request::Ps { all: true });
}

#[test]
fn migrate_shows_stages_and_result() {
    let daemon = FakeDaemon::new(|_| vec![Reply::Progress { stage: "frozen".into() }, Reply::Moved(moved())]);
    let text = daemon.ctl(&["migrate", "77", "ws2"]);
    assert_eq!(stderr(&text), "frozen ...\n");
    assert!(stdout(&text).starts_with("process 77 moved from ws1 to ws2"));
    let json = daemon.ctl(&["migrate", "77", "home", "--json"]);
    assert_eq!(stderr(&json), "");
    assert_eq!(serde_json::from_slice::<Moved>(&json.stdout).unwrap(), moved());
    assert_eq!(daemon.requests.recv().unwrap(), Request::Migrate { pid: 77, target: "ws2".into() });
    assert_eq!(daemon.requests.recv().unwrap(), Request::Migrate { pid: 77, target: "home".into() });
}

#[test]
fn a_refusal_is_one_line_and_exit_code_1() {
    let daemon = FakeDaemon::new(|_| vec![Reply::Progress { stage: "asking".into() }, Reply::Error { message: "ws9 is no member".into() }]);
    let output = daemon.ctl(&["migrate", "77", "ws9", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((stdout(&output), stderr(&output)), ("", "mosixctl: ws9 is no member\n"));
}

#[test]
fn explain_and_stats_and_balance() {
    let explained = Explained {
        pid: 5,
        command: "vi".into(),
        node: "ws1".into(),
        movable: true,
        refusals: vec![],
        not_automatic: vec!["it is interactive".into()],
        decisions: vec![DecisionRow { ago_s: 1.0, rule: "balance".into(), text: "stay".into() }],
    };
    let stats = Stats { migrations: 3, freeze_ms: vec![1.0, 2.0, 3.0], probe: "/proc: no BTF".into(), ..Stats::default() };
    let (explanation, counters) = (explained.clone(), stats.clone());
    let daemon = FakeDaemon::new(move |request| match request {
        Request::Explain { .. } => vec![Reply::Explained(explanation.clone())],
        Request::Stats => vec![Reply::Stats(counters.clone())],
        _ => vec![Reply::Done],
    });
    let json = daemon.ctl(&["explain", "5", "--json"]);
    assert_eq!(serde_json::from_slice::<Explained>(&json.stdout).unwrap(), explained);
    assert!(stdout(&daemon.ctl(&["explain", "5"])).contains("it is interactive"));
    let json = daemon.ctl(&["stats", "--json"]);
    assert_eq!(serde_json::from_slice::<Stats>(&json.stdout).unwrap(), stats);
    assert_eq!(stdout(&daemon.ctl(&["balance", "off"])), "automatic balancing is off at this node\n");
    assert_eq!(daemon.requests.iter().nth(3).unwrap(), Request::Balance { on: false });
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    let output = mosixctl(&["status", "--socket", "/nonexistent/mosix.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert_eq!(error.lines().count(), 1);
    assert!(error.contains("/nonexistent/mosix.sock") && error.contains("is it running"), "{error}");
}

#[test]
fn a_daemon_that_breaks_the_protocol_is_an_error() {
    for answer in ["", "garbage\n", "{\"reply\":\"done\"}", "{\"reply\":\"done\"}\n"] {
        let daemon = FakeDaemon::raw(move |_| answer.as_bytes().to_vec());
        let output = daemon.ctl(&["status"]);
        assert_eq!(output.status.code(), Some(1), "{answer}");
        assert!(stderr(&output).starts_with("mosixctl: ") && stdout(&output).is_empty(), "{answer}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for line in [&["migrate", "0", "ws1"][..], &["frobnicate"], &[], &["balance", "maybe"]] {
        assert_eq!(mosixctl(line).output().unwrap().status.code(), Some(2), "{line:?}");
    }
}

#[test]
fn run_gives_the_programs_own_exit_status() {
    let daemon = FakeDaemon::new(|request| match request {
        Request::Place => vec![Reply::Placed { node: "ws1".into() }],
        _ => vec![Reply::Status(status())],
    });
    let run = |script: &str| daemon.ctl(&["run", "sh", "-c", script]);
    let output = run("echo out; echo err >&2; exit 42");
    assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(42), "out\n", "err\n"));
    assert_eq!(run("kill -TERM $$").status.code(), Some(128 + 15));
    assert_eq!(daemon.ctl(&["run", "/nonexistent/program"]).status.code(), Some(127));
    assert_eq!(daemon.ctl(&["run", "/"]).status.code(), Some(126));
    // It was placed here: nothing is to be moved.
    assert!(!daemon.requests.try_iter().any(|request| matches!(request, Request::Migrate { .. })));
}

#[test]
fn run_moves_the_program_that_it_started() {
    let daemon = FakeDaemon::new(migrate_gives(Reply::Moved(moved())));
    let (output, notes) = run_until_noted(&daemon, &["--json"]);
    assert_eq!(output.status.code(), Some(7));
    let pid: i32 = stdout(&output).trim().parse().unwrap();
    assert_eq!(daemon.requests.iter().nth(1).unwrap(), Request::Migrate { pid, target: "ws2".into() });
    let note: serde_json::Value = serde_json::from_str(&notes).unwrap();
    assert_eq!(note["moved"], serde_json::to_value(moved()).unwrap());
}

#[test]
fn run_goes_on_here_if_the_move_is_refused() {
    let daemon = FakeDaemon::new(migrate_gives(Reply::Error { message: "ws2 is full".into() }));
    let (output, notes) = run_until_noted(&daemon, &[]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(notes, format!("mosixctl: process {} runs here: ws2 is full\n", stdout(&output).trim()));
}

#[test]
fn run_needs_no_daemon() {
    let mut command = mosixctl(&["run", "--socket", "/nonexistent/s", "sh", "-c", "exit 3"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).starts_with("mosixctl: it runs here: no mosixd answers"), "{}", stderr(&output));
}

#[test]
fn run_passes_a_termination_on() {
    let mut command = mosixctl(&["run", "--on", "home", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn run_keeps_what_nohup_did() {
    let script = "trap '' HUP; exec \"$0\" run --on home sh -c 'grep SigIgn /proc/self/status'";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_mosixctl")]).output().unwrap();
    let mask = stdout(&output).trim().rsplit('\t').next().unwrap().to_owned();
    assert_eq!(u64::from_str_radix(&mask, 16).unwrap() & 1, 1, "{mask}");
}

/// What a daemon answers whose moves end so.
fn migrate_gives(outcome: Reply) -> impl Fn(&Request) -> Vec<Reply> {
    move |request| match request {
        Request::Migrate { .. } => vec![outcome.clone()],
        _ => vec![Reply::Status(status())],
    }
}

/// Runs a program on ws2 that prints its pid and exits with 7 when there is a note about the move. Returns the notes, too.
fn run_until_noted(daemon: &FakeDaemon, options: &[&str]) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    let script = format!("echo $$; while [ ! -s {} ]; do sleep 0.05; done; exit 7", notes.display());
    let output = mosixctl(options)
        .args(["run", "--on", "ws2", "sh", "-c", &script])
        .env("MOSIX_SOCKET", &daemon.socket)
        .stderr(std::fs::File::create(&notes).unwrap())
        .output()
        .unwrap();
    (output, std::fs::read_to_string(notes).unwrap())
}

#[test]
fn a_cluster_is_made_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let ok = |arguments: &[&str]| {
        let output = mosixctl(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        stdout(&output).to_owned()
    };
    ok(&["cluster", "init", &path("c")]);
    let added = ok(&["cluster", "add", &path("c"), "ws1", "127.0.0.1:4000", "--json"]);
    let added: serde_json::Value = serde_json::from_str(&added).unwrap();
    assert_eq!((&added["name"], &added["address"]), (&"ws1".into(), &"127.0.0.1:4000".into()));
    ok(&["cluster", "bundle", &path("c"), "ws1", &path("out")]);
    assert_eq!(mosix_wire::cluster::load(&dir.path().join("out"), "ws1").unwrap().name(), "ws1");

    let again = mosixctl(&["cluster", "init", &path("c")]).output().unwrap();
    assert_eq!((again.status.code(), stderr(&again).lines().count()), (Some(1), 1));
}
