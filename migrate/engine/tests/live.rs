//! Looks at real processes: `sh` and `sleep` in the situations that the rules are about.

// Helpers of tests are tests, but clippy does not know that.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mosix_engine::eligible::{ChannelKind, Plan, Refusal, Verdict, judge};
use mosix_engine::facts::{Facts, FactsError, Own, collect};

/// A child that does not outlive its test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }
}

/// `sleep` without anything open but what `prepare` gives it. Whatever the test runner left open in us is closed.
fn sleeper(prepare: impl FnOnce(&mut Command)) -> Started {
    start("sleep", &["60"], prepare)
}

fn start(program: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Started {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    prepare(&mut command);
    // SAFETY: close_range is a plain system call, and the child has not used descriptors above 2 yet but those marked for exec.
    unsafe {
        command.pre_exec(|| match libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    Started(command.spawn().expect("it starts"))
}

/// The facts, once the process is what it shall become.
fn facts_of(pid: i32, comm: &str) -> Facts {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // While it starts it opens and closes files of its own.
        let before = collect(pid).expect("facts");
        std::thread::sleep(Duration::from_millis(20));
        let facts = collect(pid).expect("facts");
        if facts.comm == comm && facts.state == 'S' && facts.fds == before.fds && facts.fds.iter().all(|fd| fd.fd < 3) {
            return facts;
        }
        assert!(Instant::now() < deadline, "{comm} never came up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn verdict(facts: &Facts) -> Verdict {
    judge(facts, &Own::collect(&[]).expect("own facts"))
}

#[track_caller]
fn plan(facts: &Facts) -> Plan {
    match verdict(facts) {
        Verdict::Movable(plan) => plan,
        Verdict::Stays(reasons) => panic!("stays: {reasons:?}"),
    }
}

#[track_caller]
fn only_reason(facts: &Facts) -> Refusal {
    match verdict(facts) {
        Verdict::Stays(mut reasons) if reasons.len() == 1 => reasons.remove(0),
        other => panic!("{other:?}"),
    }
}

/// One test at a time: a child of another test holds all our files between its fork and exec.
static ALONE: Mutex<()> = Mutex::new(());

/// Only root may compare other processes' files.
fn alone() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to look into other processes");
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

#[test]
fn a_plain_sleeper_moves() {
    let Some(_alone) = alone() else { return };
    let child = sleeper(|_| {});
    let facts = facts_of(child.pid(), "sleep");
    assert_eq!(
        (facts.ppid, facts.cmdline.as_slice()),
        (std::process::id().cast_signed(), ["sleep".to_owned(), "60".to_owned()].as_slice())
    );
    assert!(facts.memory_bytes > 100_000 && facts.exe.leads_there && facts.fds.len() == 3, "{facts:?}");
    let plan = plan(&facts);
    assert_eq!((plan.channels, plan.tty, plan.tids), (vec![], None, vec![child.pid()]));
}

#[test]
fn pipes_become_channels() {
    let Some(_alone) = alone() else { return };
    let child = sleeper(|command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    });
    let facts = facts_of(child.pid(), "sleep");
    let kinds: Vec<_> = plan(&facts).channels.iter().map(|channel| (channel.id, channel.kind, channel.fds.clone())).collect();
    assert_eq!(kinds, [(0, ChannelKind::PipeIn, vec![0]), (1, ChannelKind::PipeOut, vec![1])]);
    assert_eq!(plan(&facts).channels[0].key, facts.fds[0].link);
}

#[test]
fn an_input_that_the_shell_reads_too_stays() {
    let Some(_alone) = alone() else { return };
    // The shell waits with the same standard input as its child.
    let shell = start("sh", &["-c", "sleep 60; :"], |command| {
        command.stdin(Stdio::piped());
    });
    let child = loop {
        if let Some(&child) = collect(shell.pid()).expect("facts").children.first() {
            break child;
        }
    };
    let Verdict::Stays(reasons) = verdict(&facts_of(shell.pid(), "sh")) else { panic!("the shell moves") };
    assert_eq!(reasons[0], Refusal::HasChildren { pids: vec![child] });
    let facts = facts_of(child, "sleep");
    let Verdict::Movable(plan) = verdict(&facts) else { panic!("stays: {facts:?}") };
    assert!(plan.channels[0].kind == ChannelKind::PipeIn && plan.channels[0].shared, "{plan:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).expect("killed");
}

#[test]
fn outputs_shared_with_the_parent() {
    let Some(_alone) = alone() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let ours = File::create(dir.path().join("out")).expect("a file");
    let log = OpenOptions::new().append(true).create(true).open(dir.path().join("log")).expect("a file");
    let child = sleeper(|command| {
        command.stdout(ours.try_clone().expect("a dup")).stderr(log.try_clone().expect("a dup"));
    });
    let facts = facts_of(child.pid(), "sleep");
    let us = std::process::id().cast_signed();
    assert!(facts.fds[1].holders.iter().any(|holder| holder.pid == us && holder.same_description), "{facts:?}");
    // Appending is left to the kernel; the other is pumped.
    let channels = plan(&facts).channels;
    assert_eq!(channels.len(), 1);
    assert_eq!((channels[0].kind, channels[0].fds.as_slice()), (ChannelKind::FileOut, [1].as_slice()));
    let name = format!("file[{:x}:{:x}]", facts.fds[1].mnt_id, facts.fds[1].inode);
    assert_eq!(channels[0].external.as_deref(), Some(name.as_str()));
    // With nobody else at it, it is opened by path.
    drop(ours);
    assert_eq!(plan(&facts_of(child.pid(), "sleep")).channels, []);
    // And not at all once it is deleted.
    std::fs::remove_file(dir.path().join("out")).expect("removed");
    assert!(matches!(only_reason(&facts_of(child.pid(), "sleep")), Refusal::FileGone { fd: 1, .. }));
}

#[test]
fn an_input_file_shared_with_the_parent_stays() {
    let Some(_alone) = alone() else { return };
    let file = File::open("/etc/passwd").expect("a file");
    let child = sleeper(|command| {
        command.stdin(file.try_clone().expect("a dup"));
    });
    assert!(matches!(only_reason(&facts_of(child.pid(), "sleep")), Refusal::SharedOffset { fd: 0, .. }));
    drop(file);
    plan(&facts_of(child.pid(), "sleep"));
}

#[test]
fn a_terminal_of_its_own() {
    let Some(_alone) = alone() else { return };
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let slave: OwnedFd = pty.slave;
    let on_terminal = |leads: bool| {
        sleeper(|command| {
            command.stdin(slave.try_clone().expect("a dup")).stdout(slave.try_clone().expect("a dup"));
            // SAFETY: two system calls on descriptor 0 and the child itself, nothing else.
            unsafe {
                command.pre_exec(move || {
                    if leads {
                        nix::unistd::setsid()?;
                        nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                    }
                    Ok(())
                });
            }
        })
    };
    let child = on_terminal(true);
    let facts = facts_of(child.pid(), "sleep");
    let tty = plan(&facts).tty.expect("a terminal");
    assert_eq!((tty.fds.as_slice(), tty.rdev, tty.foreground), ([0, 1].as_slice(), facts.fds[0].rdev, true));
    let stranger = on_terminal(false);
    let Verdict::Stays(reasons) = verdict(&facts_of(stranger.pid(), "sleep")) else { panic!("moves") };
    assert!(matches!(reasons[0], Refusal::OtherTerminal { fd: 0, .. }), "{reasons:?}");
}

#[test]
fn sockets_locks_and_stops() {
    let Some(_alone) = alone() else { return };
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let child = sleeper(|command| {
        command.stdin(OwnedFd::from(one));
    });
    assert!(
        matches!(only_reason(&facts_of(child.pid(), "sleep")), Refusal::Socket { fd: 0, ref protocol } if protocol.starts_with("UNIX"))
    );

    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().lock().expect("a lock");
    let child = sleeper(|command| {
        command.stdout(file.as_file().try_clone().expect("a dup"));
    });
    assert!(matches!(only_reason(&facts_of(child.pid(), "sleep")), Refusal::Locked { fd: 1, .. }));

    let child = sleeper(|_| {});
    facts_of(child.pid(), "sleep");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid()), nix::sys::signal::Signal::SIGSTOP).expect("stopped");
    let deadline = Instant::now() + Duration::from_secs(20);
    while collect(child.pid()).expect("facts").state != 'T' && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(only_reason(&collect(child.pid()).expect("facts")), Refusal::Stopped);
}

#[test]
fn who_is_gone_is_an_error_in_words() {
    let Some(_alone) = alone() else { return };
    let mut child = sleeper(|_| {});
    let pid = child.pid();
    child.0.kill().expect("killed");
    if let Ok(facts) = collect(pid) {
        // Not yet waited for.
        let _ = verdict(&facts);
    }
    child.0.wait().expect("waited");
    let error = collect(pid).expect_err("it is gone");
    assert!(matches!(error, FactsError::Gone { .. }), "{error}");
    assert_eq!(error.to_string(), format!("process {pid} has ended: there is nothing to move"));
}

#[test]
fn racing_with_short_lives_never_panics() {
    let Some(_alone) = alone() else { return };
    for _ in 0..30 {
        let child = Started(Command::new("true").stdin(Stdio::null()).spawn().expect("starts"));
        for _ in 0..5 {
            if let Ok(facts) = collect(child.pid()) {
                let _ = verdict(&facts);
            }
        }
    }
}

#[test]
fn everybody_can_be_judged() {
    let Some(_alone) = alone() else { return };
    let own = Own::collect(&[]).expect("own facts");
    let us = std::process::id().cast_signed();
    assert!(own.pids.contains(&us) && own.pids.len() >= 2);
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match collect(pid) {
            Ok(facts) => {
                let verdict = judge(&facts, &own);
                assert!(pid != us || matches!(verdict, Verdict::Stays(_)), "we would move ourselves");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
