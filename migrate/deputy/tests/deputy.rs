//! Real processes become deputies: what is kept, how they stop, go on and end, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::mpsc::Receiver;

use mosix_deputy::{AdoptReason, End, StubError, StubEvent, Watcher};

mod bed;
use bed::{Bed, PATIENCE};

macro_rules! bed {
    ($kind:expr, $threads:expr) => {
        match Bed::new($kind, $threads) {
            Some(bed) => bed,
            None => return,
        }
    };
}

fn watcher() -> Watcher {
    Watcher::start().unwrap()
}

fn signal(events: &Receiver<StubEvent>) -> (i32, i32, i32, u64) {
    match events.recv_timeout(PATIENCE).unwrap() {
        StubEvent::Signal { signo, code, sender_pid, value, .. } => (signo, code, sender_pid, value),
        other => panic!("{other:?}"),
    }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

/// Field of `/proc/PID/stat` by its number in proc(5).
fn stat(bed: &Bed, field: usize) -> String {
    let text = bed.read("stat");
    let rest = text.rsplit_once(')').unwrap().1;
    rest.split_ascii_whitespace().nth(field - 3).unwrap().to_string()
}

fn identity(bed: &Bed) -> Vec<String> {
    // parent, group, session, terminal, nice
    let mut all: Vec<String> = [4, 5, 6, 7, 19].map(|field| stat(bed, field)).to_vec();
    all.extend([bed.read("comm"), bed.read("cmdline"), bed.read("cgroup"), bed.status("Uid")]);
    all.push(std::fs::read_link(bed.proc("cwd")).unwrap().display().to_string());
    all
}

/// Descriptors, where they point, and their offsets.
fn descriptors(bed: &Bed) -> Vec<(String, String, String)> {
    let mut all: Vec<_> = std::fs::read_dir(bed.proc("fd"))
        .unwrap()
        .map(|entry| {
            let fd = entry.unwrap().file_name().into_string().unwrap();
            let target = std::fs::read_link(bed.proc("fd").join(&fd)).unwrap().display().to_string();
            let info = bed.read(&format!("fdinfo/{fd}"));
            let position = info.lines().find(|line| line.starts_with("pos:")).unwrap().to_string();
            (fd, target, position)
        })
        .collect();
    all.sort();
    all
}

fn adoption_keeps(kind: &str, threads: usize) {
    let bed = bed!(kind, threads);
    let watcher = watcher();
    let before = (identity(&bed), descriptors(&bed));
    let file = bed.counter_file().display().to_string();
    assert!(before.1.iter().any(|fd| fd.1 == file && fd.2.ends_with("1234")), "{before:?}");
    bed.freeze();
    let counted = bed.counters();
    let _events = bed.try_adopt(&watcher, &[]).unwrap();
    assert!(!bed.is_frozen());
    bed.wait("pause", || bed.status("State").starts_with('S'));
    assert_eq!((identity(&bed), descriptors(&bed)), before);
    assert_eq!(bed.threads(), 1);
    let rss: u64 = bed.status("VmRSS").trim_end_matches(" kB").parse().unwrap();
    assert!(rss < 100, "{rss} kB");
    assert!(bed.counters() == counted, "the program went on after the freeze");
    assert!(is_locked_by(bed.counter_file(), bed.pid), "its lock is lost");
    assert_eq!(bed.status("SigBlk"), "0".repeat(16));
    assert_eq!(watcher.stubs().unwrap(), [bed.pid]);
}

fn is_locked_by(file: &Path, pid: i32) -> bool {
    use std::os::fd::AsRawFd;
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    // SAFETY: a flock is plain numbers and lives through the call.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock), 0);
        lock.l_pid == pid
    }
}

#[test]
fn deputy_keeps_the_identity_of_a_spinning_program() {
    adoption_keeps("spin", 4);
}

#[test]
fn deputy_keeps_the_identity_of_a_sleeping_program() {
    adoption_keeps("sleep", 1);
}

#[test]
fn deputy_keeps_the_identity_of_a_program_in_a_futex() {
    adoption_keeps("futex", 3);
}

#[test]
fn deputy_exit_code_is_exact() {
    for code in [0, 42, 255] {
        let mut bed = bed!("spin", 3);
        let watcher = watcher();
        let events = bed.adopt(&watcher);
        watcher.finish(bed.pid, End::Exited(code)).unwrap();
        assert_eq!(bed.parent_sees(), format!("exited {code}"));
        assert!(events.recv_timeout(PATIENCE).is_err(), "an ordered end is no event");
        assert!(matches!(watcher.cont(bed.pid), Err(StubError::Unknown { .. })));
    }
}

#[test]
fn deputy_death_by_signal_is_exact() {
    for (kind, signo) in [
        ("spin", libc::SIGTERM),
        ("core", libc::SIGSEGV),
        ("sleep", libc::SIGKILL),
        ("spin", 40),
        ("ignore", libc::SIGTERM),
        ("block", libc::SIGHUP),
    ] {
        let mut bed = bed!(kind, 2 - usize::from(kind == "sleep"));
        let watcher = watcher();
        let _events = bed.adopt(&watcher);
        watcher.finish(bed.pid, End::Signaled { signal: signo, core: false }).unwrap();
        assert_eq!(bed.parent_sees(), format!("signaled {signo}"), "{kind}");
    }
}

#[test]
fn deputy_cannot_end_by_a_signal_that_does_not_kill() {
    let bed = bed!("spin", 1);
    let watcher = watcher();
    let _events = bed.adopt(&watcher);
    let result = watcher.finish(bed.pid, End::Signaled { signal: libc::SIGCHLD, core: false });
    assert!(matches!(result, Err(StubError::WrongSignal { .. })), "{result:?}");
    assert!(matches!(watcher.stop(bed.pid, libc::SIGTERM), Err(StubError::WrongSignal { .. })));
    assert_eq!(watcher.stubs().unwrap(), [bed.pid]);
}

#[test]
fn deputy_killed_is_gone() {
    let mut bed = bed!("spin", 2);
    let watcher = watcher();
    let events = bed.adopt(&watcher);
    bed.kill(libc::SIGKILL);
    let status = End::Signaled { signal: libc::SIGKILL, core: false };
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), StubEvent::Gone { status });
    assert_eq!(bed.parent_sees(), "signaled 9");
    assert!(watcher.stubs().unwrap().is_empty());
}

#[test]
fn deputy_reports_signals_and_does_not_act_on_them() {
    let bed = bed!("spin", 2);
    let watcher = watcher();
    let events = bed.adopt(&watcher);
    let all = [
        libc::SIGUSR1,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGTSTP,
        libc::SIGSTOP,
        libc::SIGTTIN,
        libc::SIGCONT,
        libc::SIGWINCH,
        libc::SIGSEGV,
        libc::SIGCHLD,
        64,
    ];
    for signo in all {
        bed.kill(signo);
        assert_eq!(signal(&events), (signo, 0, own_pid(), 0));
    }
    for value in [7u64, 8] {
        let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
        // SAFETY: no memory is involved, the pointer is only a number.
        assert_eq!(unsafe { libc::sigqueue(bed.pid, 50, value) }, 0);
    }
    assert_eq!(signal(&events), (50, libc::SI_QUEUE, own_pid(), 7));
    assert_eq!(signal(&events), (50, libc::SI_QUEUE, own_pid(), 8));
    bed.wait("pause", || bed.status("State").starts_with('S'));
    assert_eq!(bed.threads(), 1);
}

#[test]
fn deputy_stops_and_continues_as_its_parent_expects() {
    for kind in ["spin", "ignore"] {
        let mut bed = bed!(kind, 2);
        let watcher = watcher();
        let events = bed.adopt(&watcher);
        for signo in [libc::SIGTSTP, libc::SIGSTOP, libc::SIGTTOU, libc::SIGTTIN] {
            watcher.stop(bed.pid, signo).unwrap();
            watcher.stop(bed.pid, signo).unwrap();
            assert_eq!(bed.parent_sees(), format!("stopped {signo}"));
            watcher.cont(bed.pid).unwrap();
            watcher.cont(bed.pid).unwrap();
            assert_eq!(bed.parent_sees(), "continued");
        }
        watcher.stop(bed.pid, libc::SIGTSTP).unwrap();
        assert_eq!(bed.parent_sees(), "stopped 20");
        bed.kill(libc::SIGUSR1); // waits until it goes on, as for any stopped process
        bed.kill(libc::SIGCONT);
        assert_eq!(bed.parent_sees(), "continued");
        let mut both = [signal(&events).0, signal(&events).0];
        both.sort_unstable();
        assert_eq!(both, [libc::SIGUSR1, libc::SIGCONT]);
        watcher.cont(bed.pid).unwrap();
        watcher.finish(bed.pid, End::Exited(3)).unwrap();
        assert_eq!(bed.parent_sees(), "exited 3");
    }
}

#[test]
fn deputy_in_an_orphaned_group_takes_no_terminal_stop() {
    let mut bed = bed!("orphan", 1);
    let watcher = watcher();
    let _events = bed.adopt(&watcher);
    let result = watcher.stop(bed.pid, libc::SIGTSTP);
    assert!(matches!(result, Err(StubError::Orphaned { .. })), "{result:?}");
    watcher.stop(bed.pid, libc::SIGSTOP).unwrap();
    assert_eq!(bed.parent_sees(), "stopped 19");
}

#[test]
fn deputy_can_end_while_stopped() {
    for (end, seen) in [(End::Exited(9), "exited 9"), (End::Signaled { signal: libc::SIGTERM, core: false }, "signaled 15")] {
        let mut bed = bed!("spin", 1);
        let watcher = watcher();
        let _events = bed.adopt(&watcher);
        watcher.stop(bed.pid, libc::SIGTSTP).unwrap();
        assert_eq!(bed.parent_sees(), "stopped 20");
        watcher.finish(bed.pid, end).unwrap();
        assert_eq!(bed.parent_sees(), seen);
    }
}

#[test]
fn deputy_of_a_stopped_program_stays_stopped() {
    let mut bed = bed!("spin", 3);
    let watcher = watcher();
    bed.kill(libc::SIGTSTP);
    assert_eq!(bed.parent_sees(), "stopped 20");
    let _events = bed.adopt(&watcher);
    bed.wait("stop", || matches!(bed.status("State").as_bytes()[0], b't' | b'T'));
    watcher.cont(bed.pid).unwrap();
    assert_eq!(bed.parent_sees(), "continued", "and not stopped a second time");
    bed.wait("pause", || bed.status("State").starts_with('S'));
}

#[test]
fn deputy_reports_pending_signals_but_those_in_the_image() {
    let bed = bed!("block", 2);
    let watcher = watcher();
    bed.kill(libc::SIGUSR1);
    bed.kill(libc::SIGHUP);
    bed.kill(45);
    bed.kill(45);
    bed.freeze();
    // USR2 is not pending: it must not be swallowed later
    let events = bed.try_adopt(&watcher, &[libc::SIGHUP, libc::SIGUSR2, 45]).unwrap();
    assert_eq!(signal(&events).0, libc::SIGUSR1);
    assert_eq!(signal(&events).0, 45);
    for signo in [libc::SIGUSR2, libc::SIGHUP, 45] {
        bed.kill(signo);
        assert_eq!(signal(&events).0, signo);
    }
}

#[test]
fn deputy_has_no_timers() {
    let bed = bed!("alarm", 1);
    let watcher = watcher();
    let events = bed.adopt(&watcher);
    let quiet = events.recv_timeout(std::time::Duration::from_millis(1300));
    assert!(quiet.is_err(), "the alarm is the guest's: {quiet:?}");
}

#[test]
fn deputy_twenty_at_once() {
    let mut beds = Vec::new();
    for number in 0..20 {
        beds.push(bed!(["spin", "sleep", "futex", "futex", "sleep"][number % 5], 1));
    }
    let watcher = watcher();
    let adopt = |bed: &Bed| bed.adopt(&watcher);
    let events: Vec<_> = beds.iter().map(adopt).collect();
    assert_eq!(watcher.stubs().unwrap().len(), 20);
    beds.iter().for_each(|bed| bed.kill(libc::SIGUSR2));
    events.iter().for_each(|events| assert_eq!(signal(events).0, libc::SIGUSR2));
    std::thread::scope(|scope| {
        for (code, bed) in beds.iter().enumerate() {
            let watcher = &watcher;
            scope.spawn(move || {
                watcher.stop(bed.pid, libc::SIGSTOP).unwrap();
                watcher.cont(bed.pid).unwrap();
                watcher.finish(bed.pid, End::Exited(code as u8)).unwrap();
            });
        }
    });
    for (code, bed) in beds.iter_mut().enumerate() {
        let mut last = bed.parent_sees();
        while last.starts_with("stopped") || last.starts_with("continued") {
            last = bed.parent_sees();
        }
        assert_eq!(last, format!("exited {code}"));
    }
    assert!(watcher.stubs().unwrap().is_empty());
}

#[test]
fn deputy_group_in_one_cgroup() {
    let (first, second) = (bed!("spin", 2), bed!("sleep", 1));
    let watcher = watcher();
    std::fs::write(first.cgroup.join("cgroup.procs"), second.pid.to_string()).unwrap();
    first.freeze();
    let error = first.try_adopt(&watcher, &[]).unwrap_err();
    assert!(matches!(error.reason, AdoptReason::NotAlone { other } if other == second.pid), "{error}");
    let counted = first.counters();
    let members = [first.pid, second.pid].map(|pid| mosix_deputy::Member { pid, swallow: vec![], on_event: Box::new(|_| ()) });
    watcher.adopt_group(members.into(), &first.cgroup).unwrap();
    assert_eq!((first.threads(), second.threads()), (1, 1));
    assert!(first.counters() == counted);
}

/// The process must be frozen, untraced, and able to go on as if nothing had happened.
fn untouched(bed: &Bed, before: &str, counted: &[u8]) {
    assert!(bed.is_frozen());
    assert_eq!(bed.status("TracerPid"), "0");
    assert!(bed.counters() == counted, "the program went on");
    assert_eq!(bed.read("maps"), before, "the injector left something behind");
    bed.thaw();
    let last = bed.counter(0);
    bed.wait("counting on", || bed.counter(0) > last);
}

#[test]
fn deputy_refused_when_it_cannot_open_a_file() {
    let mut bed = bed!("no-fd", 3);
    let watcher = watcher();
    bed.freeze();
    let (maps, counted) = (bed.read("maps"), bed.counters());
    let blocked = bed.status("SigBlk");
    let error = bed.try_adopt(&watcher, &[]).unwrap_err();
    assert!(matches!(error.reason, AdoptReason::Injected { call: "memfd_create", .. }), "{error}");
    assert_eq!(bed.status("SigBlk"), blocked);
    untouched(&bed, &maps, &counted);
    bed.kill(libc::SIGTERM);
    assert_eq!(bed.parent_sees(), "signaled 15");
}

#[test]
fn deputy_under_a_seccomp_filter() {
    let bed = bed!("seccomp", 2);
    let watcher = watcher();
    bed.freeze();
    let (maps, counted) = (bed.read("maps"), bed.counters());
    match bed.try_adopt(&watcher, &[]) {
        Ok(_) => assert_eq!(bed.threads(), 1),
        Err(error) => {
            assert!(matches!(error.reason, AdoptReason::Seccomp { .. }), "{error}");
            untouched(&bed, &maps, &counted);
        }
    }
}

#[test]
fn deputy_refused_when_not_frozen_or_elsewhere() {
    let (bed, other) = (bed!("spin", 1), bed!("spin", 1));
    let watcher = watcher();
    let error = bed.try_adopt(&watcher, &[]).unwrap_err();
    assert!(matches!(error.reason, AdoptReason::NotFrozen), "{error}");
    other.freeze();
    let result = watcher.adopt(bed.pid, &other.cgroup, &[], Box::new(|_| ()));
    assert!(matches!(result.unwrap_err().reason, AdoptReason::NotInCgroup { .. }));
    let last = bed.counter(0);
    bed.wait("counting on", || bed.counter(0) > last);
}

#[test]
fn deputy_refused_without_a_leader() {
    let bed = bed!("leader-exit", 2);
    bed.set_counter(510, 1);
    bed.wait("leader's exit", || bed.status("State").starts_with('Z'));
    let watcher = watcher();
    bed.freeze();
    let counted = bed.counters();
    let error = bed.try_adopt(&watcher, &[]).unwrap_err();
    assert!(matches!(error.reason, AdoptReason::LeaderGone { state: 'Z' }), "{error}");
    assert!(bed.is_frozen() && bed.counters() == counted);
}

#[test]
fn deputy_refused_for_own_children_and_the_traced() {
    let Some(root) = bed::cgroup_root() else {
        return println!("skipped: no writable cgroup v2 hierarchy");
    };
    let mut child = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
    let watcher = watcher();
    let result = watcher.adopt(child.id() as i32, &root, &[], Box::new(|_| ()));
    assert!(matches!(result.unwrap_err().reason, AdoptReason::OwnChild));
    child.kill().unwrap();
    child.wait().unwrap();

    let bed = bed!("spin", 1);
    let _events = bed.adopt(&watcher);
    let error = bed.try_adopt(&watcher, &[]).unwrap_err();
    assert!(matches!(error.reason, AdoptReason::Traced { tracer } if tracer != 0), "{error}");
}

#[test]
fn deputy_forgotten_acts_by_itself() {
    let mut bed = bed!("spin", 2);
    let watcher = watcher();
    let events = bed.adopt(&watcher);
    watcher.forget(bed.pid).unwrap();
    assert_eq!(bed.status("TracerPid"), "0");
    bed.kill(libc::SIGTERM);
    assert_eq!(bed.parent_sees(), "signaled 15");
    assert!(events.try_recv().is_err());
}

#[test]
fn deputy_dies_with_its_watcher() {
    let mut bed = bed!("spin", 2);
    let watcher = watcher();
    let _events = bed.adopt(&watcher);
    drop(watcher);
    assert_eq!(bed.parent_sees(), "signaled 9");
}

#[test]
fn deputy_survives_a_handler_that_panics() {
    let mut bed = bed!("spin", 1);
    let watcher = watcher();
    bed.freeze();
    watcher.adopt(bed.pid, &bed.cgroup, &[], Box::new(|_| panic!("on purpose"))).unwrap();
    bed.kill(libc::SIGUSR1);
    watcher.finish(bed.pid, End::Exited(1)).unwrap();
    assert_eq!(bed.parent_sees(), "exited 1");
}

#[test]
fn deputy_image_pauses_and_dies_by_signal() {
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::process::ExitStatusExt;
    // SAFETY: the name is a C string; the descriptor is new and owned by nobody else.
    let mut file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"stub".as_ptr(), libc::MFD_CLOEXEC)) };
    std::io::Write::write_all(&mut file, &mosix_deputy::stub_image::stub_image()).unwrap();
    let mut child = std::process::Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())).spawn().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        if status.contains("State:\tS") {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "{status}");
        std::thread::yield_now();
    };
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    assert!(rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() < 100, "{rss}");
    let pid = child.id() as i32;
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

/// Calls `send` once, and then over and over until `work` is done.
fn meanwhile<T>(send: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    let done = std::sync::atomic::AtomicBool::new(false);
    send();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                send();
            }
        });
        // the sender must end in any case, or a failing test would hang
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn deputy_orders_work_in_a_storm_of_signals() {
    let mut bed = bed!("block", 2);
    let watcher = watcher();
    bed.freeze();
    let pid = bed.pid;
    let storm = move || {
        for signo in [libc::SIGUSR1, libc::SIGSTOP, libc::SIGTERM, libc::SIGCONT, libc::SIGTSTP, libc::SIGCHLD] {
            // SAFETY: no memory is involved. The pid is ours until its parent is told to end it, after the storm.
            unsafe { libc::kill(pid, signo) };
        }
    };
    let counted = bed.counters();
    let events = meanwhile(storm, || {
        let events = bed.try_adopt(&watcher, &[]).unwrap();
        for _ in 0..50 {
            watcher.stop(pid, libc::SIGTSTP).unwrap();
            watcher.cont(pid).unwrap();
        }
        events
    });
    assert!(bed.counters() == counted);
    assert!(events.try_iter().count() > 0);
    watcher.finish(pid, End::Exited(77)).unwrap();
    let mut last = bed.parent_sees();
    while !last.starts_with("exited") && !last.starts_with("signaled") {
        last = bed.parent_sees();
    }
    assert_eq!(last, "exited 77");
}

#[test]
fn deputy_killed_at_any_moment_of_its_adoption() {
    let watcher = watcher();
    for attempt in 0..40u64 {
        let mut bed = bed!("futex", 2);
        bed.freeze();
        let counted = bed.counters();
        let pid = bed.pid;
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(attempt * 50));
                // SAFETY: no memory is involved.
                unsafe { libc::kill(pid, libc::SIGKILL) }
            });
            bed.try_adopt(&watcher, &[])
        });
        match result {
            Ok(events) => assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), StubEvent::Gone { .. })),
            // died before, or the files in /proc were gone
            Err(error) => assert!(!matches!(error.reason, AdoptReason::Timeout { .. } | AdoptReason::NotStopping { .. }), "{error}"),
        }
        assert_eq!(bed.parent_sees(), "signaled 9");
        assert!(bed.counters() == counted);
    }
    assert!(watcher.stubs().unwrap().is_empty());
}
