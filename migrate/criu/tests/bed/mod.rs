//! What the tests with real CRIU share: the program that is moved, its memory read from outside, and a way to ask it whether all is well.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "each test binary uses a part; a test may panic")]

pub mod memory;
pub mod specimen;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mosix_criu::Criu;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub const DEADLINE: Duration = Duration::from_secs(60);

/// The CRIU named by a variable, or found beside it; `None` after saying why.
pub fn criu(name: &str) -> Option<Criu> {
    let variable = if name == "criu" { "MOSIX_CRIU" } else { "MOSIX_CRIU_PLAIN" };
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH")?;
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin");
        std::iter::once(tools).chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(|file| file.exists())
    });
    let problem = match found.map(Criu::at) {
        None => format!("no {name}"),
        Some(_) if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        Some(criu) => match criu.check() {
            Ok(()) => return Some(criu),
            Err(error) => error.to_string(),
        },
    };
    println!("skipped: {problem}");
    None
}

/// A CRIU with all our patches.
pub fn patched() -> Option<Criu> {
    let criu = criu("criu")?;
    if criu.features().unwrap().complete() {
        return Some(criu);
    }
    println!("skipped: {} is not patched", criu.path().display());
    None
}

/// A CRIU without any.
pub fn plain() -> Option<Criu> {
    criu("criu-plain")
}

/// The running program.
pub struct Subject {
    pub pid: i32,
    pub child: Option<i32>,
    process: Option<Child>,
    answers: PathBuf,
    asked: u32,
    pub dir: tempfile::TempDir,
}

impl Subject {
    /// Starts it with a large area of so many MiB, and with a forked child if `tree`.
    pub fn start(mib: usize, tree: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("criu").tempdir_in(tmpfs()).unwrap();
        let answers = dir.path().join("answers");
        let process = Command::new("setsid")
            .arg(std::env::current_exe().unwrap())
            .args(["specimen_program", "--exact", "--nocapture", "--test-threads=1"])
            .env(specimen::VARIABLE, &answers)
            .env("MOSIX_SPECIMEN_MIB", mib.to_string())
            .env("MOSIX_SPECIMEN_TREE", u8::from(tree).to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = process.id() as i32;
        let mut subject = Self { pid, child: None, process: Some(process), answers, asked: 0, dir };
        subject.verify();
        if tree {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let of_threads = || {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
                tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()).collect::<String>()
            };
            let text = if children.trim().is_empty() { of_threads() } else { children };
            subject.child = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
            assert!(subject.child.is_some(), "the program has a child");
        }
        subject
    }

    pub fn pids(&self) -> Vec<i32> {
        std::iter::once(self.pid).chain(self.child).collect()
    }

    /// Has every page checked; returns the longest gap that the program saw since the last time.
    pub fn verify(&mut self) -> Duration {
        let number = self.asked;
        self.asked += 1;
        let mut longest = Duration::ZERO;
        let forked = self.child.is_some();
        for (answers, mark) in [(self.answers.clone(), ""), (self.answers.with_extension("child"), "child")] {
            std::fs::write(self.answers.with_extension(format!("{mark}{number}")), "").unwrap();
            if !mark.is_empty() && !forked {
                continue;
            }
            longest = longest.max(Duration::from_micros(self.answer(&answers, number)));
        }
        longest
    }

    /// Asks the program to check its memory; whether it says nothing, good or bad, for so long.
    pub fn stays_silent(&self, time: Duration) -> bool {
        std::fs::write(self.answers.with_extension(self.asked.to_string()), "").unwrap();
        std::thread::sleep(time);
        let text = std::fs::read_to_string(&self.answers).unwrap_or_default();
        !text.lines().any(|line| line.starts_with(&format!("{} ", self.asked)))
    }

    /// Makes the program change its mappings and fork as soon as it runs (again).
    pub fn ask_for_unrest(&self) {
        std::fs::write(self.answers.with_extension("unrest"), "").unwrap();
    }

    /// Waits until the child that was forked then has checked its memory.
    pub fn verify_forked(&self) {
        self.answer(&self.answers.with_extension("forked"), 0);
    }

    fn answer(&self, answers: &Path, number: u32) -> u64 {
        let end = Instant::now() + DEADLINE;
        loop {
            let text = std::fs::read_to_string(answers).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| line.starts_with(&format!("{number} "))) {
                assert!(line.ends_with(" ok"), "{line}");
                return line.split(' ').nth(1).and_then(|gap| gap.parse().ok()).unwrap();
            }
            assert!(Instant::now() < end, "the program does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the original.
    pub fn kill(&mut self) {
        for pid in self.pids().into_iter().rev() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match self.process.take() {
            Some(mut process) => drop(process.wait()),
            None => drop(waitpid(Pid::from_raw(self.pid), None)),
        }
        // The kernel (release_task) frees the numbers of threads a little after the end of their group can be seen. Nothing tells when.
        std::thread::sleep(Duration::from_millis(20));
        // A child of it becomes ours if we are the subreaper, else init's.
        let end = Instant::now() + DEADLINE;
        while self.child.is_some_and(|child| Path::new(&format!("/proc/{child}")).exists()) && Instant::now() < end {
            if let Some(child) = self.child {
                let _ = waitpid(Pid::from_raw(child), Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process with this number exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The process has been killed: it ends soon.
pub fn ends(pid: i32) {
    let end = Instant::now() + DEADLINE;
    while alive(pid) {
        assert!(Instant::now() < end, "process {pid} is left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All children of ours end by a signal, and soon.
pub fn no_child_left() {
    let end = Instant::now() + DEADLINE;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::ECHILD) => return,
            Ok(WaitStatus::Signaled(..)) => {}
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            other => panic!("a child is left: {other:?}"),
        }
        assert!(Instant::now() < end, "a child is left");
    }
}

/// A folder in memory.
pub fn tmpfs() -> &'static Path {
    Path::new("/dev/shm")
}
