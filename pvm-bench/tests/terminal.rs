//! Job control from an unmodified interactive bash whose job is on another node: the transcript must be that of an unmoved job.
//!
//! `script` makes the terminal, on the node itself. Everything typed goes through its standard input, everything seen comes out of its standard output.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, LabSpec, StopFlag, find_beside};
use mosix_wire::control::{Reply, Request};
use pvm_bench::cluster::{Cluster, ClusterSpec};

/// The shell's prompt.
const PROMPT: &str = "READY> ";
const PATIENCE: Duration = Duration::from_secs(30);

/// What the terminal shows, collected by a thread.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<String>>);

struct Terminal {
    keys: PipeWriter,
    screen: Screen,
    /// Where the next expectation starts.
    seen: usize,
    _script: Child,
}

impl Terminal {
    fn start(lab: &Lab) -> Self {
        let (stdin, keys) = std::io::pipe().unwrap();
        let (output, stdout) = std::io::pipe().unwrap();
        let argv = ["script", "-qfec", "bash --norc --noprofile -i", "/dev/null"];
        let exec = Exec::new(argv).env("TERM", "dumb").env("HISTFILE", "").throttled(false).stdin(stdin).stdout(stdout);
        let script = lab.nodes()[0].spawn(exec.signal_on_disconnect(nix::sys::signal::Signal::SIGKILL)).unwrap();
        let screen = Screen::default();
        collect(output, screen.clone());
        let mut terminal = Self { keys, screen, seen: 0, _script: script };
        terminal.expect("# ");
        // Typed in two parts, so that the echo of this line is no prompt.
        terminal.line("bind 'set enable-bracketed-paste off'; PS1='READY''> '");
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Types a command and waits for its echo and the next prompt.
    fn line(&mut self, command: &str) -> String {
        self.press(&format!("{command}\n"));
        self.expect("\n");
        self.expect(PROMPT)
    }

    /// Types a command that keeps the terminal.
    fn foreground(&mut self, command: &str) {
        self.press(&format!("{command}\n"));
        self.expect("\n");
    }

    /// Waits until the text appears; returns what came before it, and it.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let screen = self.screen.0.lock().unwrap();
                if let Some(at) = screen[self.seen..].find(text) {
                    let end = self.seen + at + text.len();
                    let part = screen[self.seen..end].to_owned();
                    self.seen = end;
                    return part;
                }
            }
            assert!(Instant::now() < deadline, "no {text:?} after {:?}; all:\n{}", &self.whole()[self.seen..], self.whole());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn whole(&self) -> String {
        self.screen.0.lock().unwrap().clone()
    }
}

fn collect(mut output: PipeReader, screen: Screen) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            screen.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
}

struct World {
    cluster: Cluster,
    lab: Lab,
    burn: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    fn boot(id: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        if std::process::Command::new("script").arg("--version").output().is_err() {
            println!("skipped: no script(1)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let id = format!("{id}-{}", std::process::id());
        let lab = Lab::up(&LabSpec { id, run_dir: dir.path().to_owned(), nodes: 3, speed: 0.2, ..LabSpec::default() }).unwrap();
        let spec = ClusterSpec { period_ms: 100, balance: false, ..ClusterSpec::default() };
        let cluster = Cluster::boot(&lab, &spec, &StopFlag::install().unwrap()).unwrap();
        Some(Self { cluster, lab, burn: find_beside("burn").unwrap(), _dir: dir })
    }

    /// Pid on node 1 of the newest process with this name.
    fn pid_of(&self, command: &str) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The daemon's list is a period old.
            std::thread::sleep(Duration::from_millis(300));
            let Reply::Ps { processes } = self.cluster.ask(0, &Request::Ps { all: true }).unwrap() else { panic!("not a list") };
            if let Some(row) = processes.iter().rfind(|row| row.command == command) {
                return row.pid;
            }
            assert!(Instant::now() < deadline, "no {command} among {processes:?}");
        }
    }

    fn migrate(&self, pid: i32, target: &str) {
        let reply = self.cluster.ask(0, &Request::Migrate { pid, target: target.into() });
        assert!(matches!(reply, Ok(Reply::Moved(_))), "{reply:?}\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let dir = self.lab.dir().join("cluster");
        self.lab.nodes().iter().map(|node| std::fs::read_to_string(dir.join(format!("{}.log", node.name))).unwrap_or_default()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let _ = self.lab.down();
    }
}

/// Plays the same scene with or without moves; returns what was on the screen, with the job's pid blotted out.
fn job_control(world: &World, moved: bool) -> String {
    let mut terminal = Terminal::start(&world.lab);
    let start = terminal.seen;
    let burn = world.burn.display();
    let announced = terminal.line(&format!("{burn} --cpu-s 1000 --no-barrier &"));
    let job: i32 = announced.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    if moved {
        world.migrate(job, "node2");
    }
    terminal.line("jobs");
    terminal.foreground("fg");
    terminal.press("\u{1a}");
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    terminal.line("jobs");
    terminal.line("bg");
    if moved {
        world.migrate(job, "node3");
    }
    terminal.line("jobs");
    terminal.line("kill -STOP %1; sleep 0.5");
    terminal.line("jobs");
    terminal.foreground("fg");
    std::thread::sleep(Duration::from_millis(300));
    terminal.press("\u{3}");
    terminal.expect(PROMPT);
    terminal.line("echo status $?");
    let announced = terminal.line(&format!("{burn} --cpu-s 1000 --no-barrier &"));
    let second: i32 = announced.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    if moved {
        world.migrate(second, "node2");
    }
    terminal.line("kill -USR1 %1; wait %1; echo status $?");
    let announced = terminal.line("sh -c 'trap \"echo caught; exit 9\" USR2; while :; do :; done' &");
    let third: i32 = announced.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    if moved {
        world.migrate(third, "node3");
    }
    terminal.line("kill -USR2 %1; wait %1; echo status $?");
    terminal.press("exit\n");
    terminal.expect("exit");
    let text = terminal.whole()[start..].to_owned();
    [(job, "PID1"), (second, "PID2"), (third, "PID3")]
        .into_iter()
        .fold(text, |text, (pid, name)| text.replace(&format!(" {pid}"), &format!(" {name}")))
}

#[test]
fn lab_bash_job_control_looks_the_same_with_the_job_on_another_node() {
    let Some(world) = World::boot("tty") else { return };
    let unmoved = job_control(&world, false);
    let moved = job_control(&world, true);
    println!("{moved}");
    assert_eq!(moved, unmoved, "with moves (left) and without (right)");
    for word in ["Stopped", "status 130", "User defined signal 1", "status 138", "caught", "status 9"] {
        assert!(moved.contains(word), "no {word:?} in:\n{moved}");
    }
}

#[test]
fn lab_a_moved_job_reads_the_terminal_and_leaves_the_rest_to_the_shell() {
    let Some(world) = World::boot("read") else { return };
    let mut terminal = Terminal::start(&world.lab);
    // The prompt of the job tells that it reads; what is typed afterwards is for it, and the line after that for the shell.
    terminal.foreground("sh -c 'echo ready; read x; echo \"got $x\"; read y; echo \"and $y\"; exit 4'");
    terminal.expect("ready");
    let pid = world.pid_of("sh");
    world.migrate(pid, "node2");
    terminal.press("first line\n");
    terminal.expect("got first line");
    world.migrate(pid, "node3");
    terminal.press("second line\necho for $((40 + 2)) the shell\n");
    terminal.expect("and second line");
    terminal.expect("for 42 the shell");
    terminal.expect(PROMPT);
    terminal.foreground("sh -c 'echo ready; cat; echo end of file; exit 5'");
    terminal.expect("ready");
    terminal.press("\u{4}");
    terminal.expect("end of file");
    terminal.expect(PROMPT);
    terminal.foreground("sh -c 'echo ready; read z || echo nothing to read; exit 6'");
    terminal.expect("ready");
    let pid = world.pid_of("sh");
    world.migrate(pid, "node2");
    terminal.press("\u{4}");
    terminal.expect("nothing to read");
    terminal.expect(PROMPT);
    terminal.line("echo status $?");
    assert!(terminal.whole().contains("status 6"), "{}", terminal.whole());
}
