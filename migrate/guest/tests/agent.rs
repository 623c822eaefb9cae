//! The agent with real processes and real CRIU: restore, commit, input, output, signals, exit status, abort, hop.
//!
//! Needs root, a cgroup-v2 mount and a CRIU that works (PATH or MOSIX_CRIU); says `skipped: why` otherwise.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mosix_criu::freezer::{Freezer, dump_and_hold};
use mosix_criu::{Criu, DumpOptions, DumpRequest};
use mosix_guest::{Carried, ChannelSpec, Direction, DumpStep, End, FromAgent, Setup, ToAgent, receive, send};

const DEADLINE: Duration = Duration::from_secs(60);

fn criu() -> Option<PathBuf> {
    let path = std::env::var_os("MOSIX_CRIU").map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("criu")).find(|file| file.exists())
    });
    let problem = match &path {
        _ if nix::unistd::getsid(None).is_ok_and(|leader| leader.as_raw() == 0) => {
            "this session is led from outside of the pid namespace, so CRIU cannot dump what is in it".to_owned()
        }
        None => "no criu on PATH".to_owned(),
        Some(path) => match Criu::at(path).check() {
            Ok(()) if cgroup_root().is_some() => return Some(path.clone()),
            Ok(()) => "no cgroup v2".to_owned(),
            Err(error) => error.to_string(),
        },
    };
    println!("skipped: {problem}");
    None
}

fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).and_then(|line| line.split(' ').nth(1)).map(PathBuf::from)
}

/// A process at "home" with pipes for its input and output, in a freezer.
struct Home {
    child: Child,
    freezer: Freezer,
    images: tempfile::TempDir,
    criu: PathBuf,
}

impl Home {
    fn start(criu: &Path, script: &str, tag: &str) -> Self {
        let child =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let name = format!("mosix-test-{tag}-{}", std::process::id());
        let freezer = Freezer::create(cgroup_root().unwrap().join(name)).unwrap();
        freezer.enter(child.id() as i32).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        Self { child, freezer, images: tempfile::tempdir().unwrap(), criu: criu.to_owned() }
    }

    fn key(&self, fd: i32) -> String {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", self.child.id())).unwrap().to_string_lossy().into_owned()
    }

    fn dump(&self) {
        let request = DumpRequest { pid: self.child.id() as i32, images_dir: self.images.path(), external: &[], shell_job: true };
        let criu = Criu::at(&self.criu);
        dump_and_hold(&criu, &request, &DumpOptions::default(), &self.freezer, &[], DEADLINE, &mut |_| Ok(())).unwrap();
    }

    fn carried(&self) -> Carried {
        Carried { max_tid: self.child.id() as i32, unread: vec![] }
    }

    fn setup(&self, hop: u32) -> Setup {
        let pid = self.child.id() as i32;
        let own = |f: fn(Option<nix::unistd::Pid>) -> nix::Result<nix::unistd::Pid>| f(None).unwrap().as_raw();
        Setup {
            pid,
            ppid: std::process::id() as i32,
            pgid: nix::unistd::getpgrp().as_raw(),
            sid: own(nix::unistd::getsid),
            hostname: "home".into(),
            channels: vec![
                ChannelSpec { id: 0, direction: Direction::Input, key: self.key(0), shared: false },
                ChannelSpec { id: 1, direction: Direction::Output, key: self.key(1), shared: false },
            ],
            tty: None,
            criu: self.criu.to_string_lossy().into_owned(),
            cgroups: vec![],
            freezer: format!("{}-guest{hop}", self.freezer.dir().display()),
            dump_cgroups: vec![],
            cpus: vec![],
            criu_deadline_ms: 8_000,
            images_dir: self.images.path().to_string_lossy().into_owned(),
            premem: None,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.freezer.thaw();
        let _ = self.child.wait();
        self.freezer.remove();
    }
}

/// A running agent.
struct Agent {
    child: Child,
    socket: UnixStream,
    freezer: Freezer,
    keys: Vec<(u16, String)>,
}

impl Agent {
    fn start(setup: Setup) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        let freezer = Freezer::create(&setup.freezer).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mosix-agent")).stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        let mut agent = Self { child, socket: ours, freezer, keys: vec![] };
        agent.tell(ToAgent::Setup(Box::new(setup)));
        let FromAgent::Ready { keys } = agent.hear() else { panic!("not ready") };
        agent.keys = keys;
        agent
    }

    fn tell(&mut self, message: ToAgent) {
        send(&mut self.socket, &message).unwrap();
    }

    fn hear(&mut self) -> FromAgent {
        receive(&mut self.socket).unwrap()
    }

    fn restore(&mut self, carried: Carried) {
        self.tell(ToAgent::Restore { carried });
        assert_eq!(self.hear(), FromAgent::Prepared);
    }

    fn commit(&mut self) {
        self.tell(ToAgent::Commit);
        assert_eq!(self.hear(), FromAgent::Running);
    }

    /// Gives the guest one line when it asks for it.
    fn feed(&mut self, line: &str) {
        self.tell(ToAgent::Pending { id: 0 });
        let FromAgent::Wants { id: 0, bytes } = self.hear() else { panic!("nobody reads") };
        assert!(bytes >= 1);
        // A shell reads byte by byte; home would ask again for each. Here the rest is pushed.
        self.tell(ToAgent::Data { id: 0, bytes: line.as_bytes().to_vec() });
    }

    fn hear_text(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            match self.hear() {
                FromAgent::Data { id: 1, bytes } => text.push_str(&String::from_utf8(bytes).unwrap()),
                other => panic!("unexpected {other:?} after {text:?}"),
            }
        }
        text
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
        self.freezer.remove();
    }
}

const ECHO: &str = "trap 'echo usr1' USR1; while read line; do echo \"got $line as $$ $PPID\"; done; echo end; exit 7";

#[test]
fn lab_a_guest_reads_writes_takes_signals_and_ends_exactly() {
    let Some(criu) = criu() else { return };
    let home = Home::start(&criu, ECHO, "exact");
    home.dump();
    let mut agent = Agent::start(home.setup(1));
    agent.restore(home.carried());
    agent.commit();
    agent.feed("one\n");
    let expected = format!("got one as {} {}\n", home.child.id(), std::process::id());
    assert_eq!(agent.hear_text(expected.len()), expected);
    agent.tell(ToAgent::Signal { signo: libc::SIGSTOP, value: None });
    assert_eq!(agent.hear(), FromAgent::Stopped { signal: libc::SIGSTOP });
    agent.tell(ToAgent::Signal { signo: libc::SIGCONT, value: None });
    assert_eq!(agent.hear(), FromAgent::Continued);
    // dash gives up its read when a trap runs, and with it the loop.
    agent.tell(ToAgent::Signal { signo: libc::SIGUSR1, value: None });
    assert_eq!(agent.hear_text(9), "usr1\nend\n");
    loop {
        match agent.hear() {
            FromAgent::Eof { id: 1 } => {}
            FromAgent::Exited { end, .. } => {
                assert_eq!(end, End::Exited(7));
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn lab_a_signal_death_is_reported_as_one() {
    let Some(criu) = criu() else { return };
    let home = Home::start(&criu, ECHO, "death");
    home.dump();
    let mut agent = Agent::start(home.setup(1));
    agent.restore(home.carried());
    agent.commit();
    agent.tell(ToAgent::Signal { signo: libc::SIGTERM, value: None });
    loop {
        match agent.hear() {
            FromAgent::Eof { .. } => {}
            FromAgent::Exited { end, .. } => {
                assert_eq!(end, End::Signaled { signal: libc::SIGTERM, core: false });
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn lab_an_abort_leaves_no_copy_and_the_original_goes_on() {
    let Some(criu) = criu() else { return };
    let mut home = Home::start(&criu, ECHO, "abort");
    home.dump();
    {
        let mut agent = Agent::start(home.setup(1));
        agent.restore(home.carried());
        agent.tell(ToAgent::Abort);
        assert!(matches!(agent.hear(), FromAgent::Failed { .. }));
        assert!(agent.freezer.members().is_empty(), "a copy is left");
    }
    home.freezer.thaw().unwrap();
    home.child.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    drop(home.child.stdin.take());
    let mut text = String::new();
    home.child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.starts_with("got two"), "{text}");
    assert_eq!(home.child.wait().unwrap().code(), Some(7));
}

#[test]
fn lab_an_agent_without_mosixd_takes_its_copy_with_it() {
    let Some(criu) = criu() else { return };
    let home = Home::start(&criu, ECHO, "orphan");
    home.dump();
    let mut agent = Agent::start(home.setup(1));
    agent.restore(home.carried());
    assert_eq!(agent.freezer.members().len(), 1);
    let freezer = agent.freezer.clone();
    drop(agent);
    assert!(freezer.members().is_empty(), "the copy outlived its agent");
}

#[test]
fn lab_a_guest_hops_on_with_its_unread_input() {
    let Some(criu) = criu() else { return };
    let home = Home::start(&criu, "sleep 1; while read line; do echo \"got $line\"; done; exit 3", "hop");
    // `sleep` is a child: wait until the shell reads by itself.
    std::thread::sleep(Duration::from_millis(1200));
    home.dump();
    let mut first = Agent::start(home.setup(1));
    first.restore(home.carried());
    first.commit();
    first.tell(ToAgent::Signal { signo: libc::SIGSTOP, value: None });
    assert_eq!(first.hear(), FromAgent::Stopped { signal: libc::SIGSTOP });
    first.tell(ToAgent::Data { id: 0, bytes: b"unread\n".to_vec() });
    first.tell(ToAgent::Signal { signo: libc::SIGCONT, value: None });
    let (mut text, mut continued) = (String::new(), false);
    while text.len() < 11 || !continued {
        match first.hear() {
            FromAgent::Data { id: 1, bytes } => text.push_str(&String::from_utf8(bytes).unwrap()),
            FromAgent::Continued => continued = true,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(text, "got unread\n");
    let images = tempfile::tempdir().unwrap();
    let images_dir = images.path().to_string_lossy().into_owned();
    first.tell(ToAgent::Dump { images_dir: images_dir.clone(), skeleton: None });
    assert_eq!(first.hear(), FromAgent::Step(DumpStep::Before));
    first.tell(ToAgent::GoOn { veto: None });
    assert_eq!(first.hear(), FromAgent::Step(DumpStep::Stopped));
    let FromAgent::Step(DumpStep::Held { mut carried, .. }) = first.hear() else { panic!("no dump") };
    assert!(carried.unread.is_empty() && carried.max_tid >= home.child.id() as i32);
    first.tell(ToAgent::GoOn { veto: None });
    assert_eq!(first.hear(), FromAgent::Dumped);
    let mut setup = Setup { images_dir, ..home.setup(2) };
    for channel in &mut setup.channels {
        channel.key = first.keys.iter().find(|(id, _)| *id == channel.id).unwrap().1.clone();
    }
    carried.unread = vec![(0, b"carried\n".to_vec())];
    let mut second = Agent::start(setup);
    second.restore(carried);
    second.commit();
    first.tell(ToAgent::Release);
    assert_eq!(second.hear_text(12), "got carried\n");
    second.tell(ToAgent::EndOfInput { id: 0 });
    loop {
        match second.hear() {
            FromAgent::Eof { .. } => {}
            FromAgent::Exited { end, .. } => {
                assert_eq!(end, End::Exited(3));
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}
