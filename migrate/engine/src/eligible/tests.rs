//! One test for each rule, on facts built by hand, and the promise that no facts make the judge panic.

use proptest::prelude::*;

use super::*;
use crate::facts::{Device, Fd, Holder, Link, Mapping, Namespaces, SharedWith, Thread};

const TTY: Device = Device { major: 136, minor: 3 };

fn namespaces() -> Namespaces {
    Namespaces([("mnt", "mnt:[1]"), ("time_for_children", "time:[2]")].map(|(name, link)| (name.into(), link.into())).into())
}

fn own() -> Own {
    Own { namespaces: namespaces(), pids: vec![10, 11] }
}

fn there(path: &str) -> Link {
    Link { path: path.into(), leads_there: true }
}

/// An ordinary program with a terminal, on which nothing is open.
fn plain() -> Facts {
    Facts {
        pid: 100,
        ppid: 50,
        pgid: 100,
        sid: 50,
        state: 'R',
        tty: Some(TTY),
        tpgid: 100,
        age_ms: 60_000,
        uids: [1000; 4],
        gids: [1000; 4],
        comm: "burn".into(),
        exe: there("/usr/bin/burn"),
        cwd: there("/tmp"),
        root: "/".into(),
        threads: vec![Thread { tid: 100, ..Thread::default() }],
        namespaces: namespaces(),
        ..Facts::default()
    }
}

fn file(fd: i32, path: &str, flags: i32) -> Fd {
    let inode = u64::try_from(fd).unwrap() + 1000;
    Fd {
        fd,
        description: fd,
        link: path.into(),
        flags,
        mode: libc::S_IFREG | 0o644,
        leads_there: true,
        mnt_id: 29,
        dev: 5,
        inode,
        ..Fd::default()
    }
}

fn pipe(fd: i32, inode: u64, flags: i32) -> Fd {
    let link = format!("pipe:[{inode}]");
    Fd { link, mode: libc::S_IFIFO | 0o600, inode, leads_there: false, ..file(fd, "", flags) }
}

fn device(fd: i32, path: &str, major: u32, minor: u32) -> Fd {
    Fd { mode: libc::S_IFCHR | 0o666, rdev: Device { major, minor }.to_raw(), ..file(fd, path, libc::O_RDWR) }
}

fn anonymous(fd: i32, kind: &str) -> Fd {
    Fd { link: format!("anon_inode:{kind}"), mode: 0o600, leads_there: false, ..file(fd, "", libc::O_RDWR) }
}

/// Adds an outside holder of the same description.
fn shared(fd: Fd) -> Fd {
    held(fd, true, true, true)
}

fn held(mut fd: Fd, same_description: bool, reads: bool, writes: bool) -> Fd {
    fd.holders.push(Holder { pid: 50, fd: 1, same_description, reads, writes });
    fd
}

fn with(fds: Vec<Fd>) -> Facts {
    Facts { fds, ..plain() }
}

fn plan(facts: &Facts) -> Plan {
    match judge(facts, &own()) {
        Verdict::Movable(plan) => plan,
        Verdict::Stays(reasons) => panic!("stays: {reasons:?}"),
    }
}

fn stays(facts: &Facts) -> Vec<Refusal> {
    match judge(facts, &own()) {
        Verdict::Movable(plan) => panic!("moves: {plan:?}"),
        Verdict::Stays(reasons) => reasons,
    }
}

/// It stays for exactly this reason.
#[track_caller]
fn only(facts: &Facts, wanted: &Refusal) {
    assert_eq!(stays(facts), std::slice::from_ref(wanted));
}

fn fd_refused(fd: Fd, wanted: &Refusal) {
    only(&with(vec![fd]), wanted);
}

#[test]
fn an_ordinary_one_moves() {
    let plan = plan(&plain());
    assert_eq!((plan.pid, plan.uid, plan.tids, plan.channels, plan.tty), (100, 1000, vec![100], vec![], None));
}

#[test]
fn who_it_is() {
    only(&Facts { pid: 1, ..plain() }, &Refusal::Init);
    only(&Facts { kernel_thread: true, ..plain() }, &Refusal::KernelThread);
    only(&Facts { state: 'Z', ..plain() }, &Refusal::Ended);
    only(&Facts { pid: 11, ..plain() }, &Refusal::OurOwn);
}

#[test]
fn what_it_does() {
    let thread = |tracer_pid, seccomp_mode, own_files| {
        let odd = Thread { tid: 101, tracer_pid, seccomp_mode, own_files };
        Facts { threads: vec![Thread { tid: 100, ..Thread::default() }, odd], ..plain() }
    };
    only(&Facts { state: 'T', ..plain() }, &Refusal::Stopped);
    only(&Facts { state: 't', ..plain() }, &Refusal::Traced { tracer: 0 });
    only(&thread(9, 0, false), &Refusal::Traced { tracer: 9 });
    only(&thread(0, 2, false), &Refusal::Seccomp);
    only(&thread(0, 0, true), &Refusal::ThreadsDiffer);
    only(&Facts { waits_for_lock: true, ..plain() }, &Refusal::WaitsForLock);
}

#[test]
fn where_it_is() {
    let mut other = plain();
    other.namespaces.0.insert("mnt".into(), "mnt:[9]".into());
    only(&other, &Refusal::OtherNamespaces { names: vec!["mnt".into()] });
    let mut other = plain();
    other.namespaces.0.remove("time_for_children");
    only(&other, &Refusal::OtherNamespaces { names: vec!["time_for_children".into()] });
    only(&Facts { sid: 0, ..plain() }, &Refusal::LedFromOutside);
    only(&Facts { pgid: 0, ..plain() }, &Refusal::LedFromOutside);
    only(&Facts { root: "/jail".into(), ..plain() }, &Refusal::Chroot { path: "/jail".into() });
    let gone = Link { path: "/x (deleted)".into(), leads_there: false };
    only(&Facts { cwd: gone.clone(), ..plain() }, &Refusal::DirectoryGone { path: gone.path.clone() });
    only(&Facts { exe: gone.clone(), ..plain() }, &Refusal::ProgramGone { path: gone.path });
}

#[test]
fn what_it_shares() {
    only(&Facts { children: vec![7, 8], ..plain() }, &Refusal::HasChildren { pids: vec![7, 8] });
    let shares = |what| Facts { shared_with: vec![SharedWith { pid: 7, what }], ..plain() };
    only(&shares(SharedWhat::Memory), &Refusal::SharesMemory { pid: 7 });
    only(&shares(SharedWhat::Files), &Refusal::SharesFiles { pid: 7 });
    only(&shares(SharedWhat::Directory), &Refusal::SharesDirectory { pid: 7 });
    only(&Facts { opaque: vec![1, 2], ..plain() }, &Refusal::Opaque { pid: 2 });
}

#[test]
fn mappings() {
    let map = |name: &str, shared, writable| Facts {
        maps: vec![Mapping { name: name.into(), shared, writable, ..Mapping::default() }],
        ..plain()
    };
    plan(&map("/usr/lib/gconv-modules.cache", true, false));
    for (name, writable) in [
        ("/tmp/data", true),
        ("", false),
        ("/dev/zero (deleted)", true),
        ("/dev/shm/x", false),
        ("/memfd:x (deleted)", false),
        ("anon_inode:[io_uring]", true),
    ] {
        only(&map(name, true, writable), &Refusal::SharedMapping { name: name.into() });
    }
    for name in ["/usr/lib/old.so (deleted)", "/dev/dri/card0"] {
        only(&map(name, false, false), &Refusal::SpecialMapping { name: name.into() });
    }
    only(&map("/anon_hugepage (deleted)", false, true), &Refusal::HugePages);
}

#[test]
fn files() {
    let path = || "/tmp/f".to_owned();
    let all = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR].map(|flags| file(flags, "/tmp/f", flags));
    assert_eq!(plan(&with(all.to_vec())).channels, []);
    assert_eq!(plan(&with(vec![shared(file(1, "/tmp/f", libc::O_WRONLY | libc::O_APPEND))])).channels, []);
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_RDWR | libc::O_APPEND] {
        fd_refused(shared(file(3, "/tmp/f", flags)), &Refusal::SharedOffset { fd: 3, path: path(), pid: 50 });
    }
    fd_refused(Fd { leads_there: false, ..file(3, "/tmp/f", 0) }, &Refusal::FileGone { fd: 3, path: path() });
    fd_refused(Fd { foreign_mount: true, ..file(3, "/tmp/f", 0) }, &Refusal::ForeignMount { fd: 3, path: path() });
    fd_refused(Fd { locks: vec!["1: FLOCK".into()], ..file(3, "/tmp/f", 0) }, &Refusal::Locked { fd: 3, path: path() });
    fd_refused(file(3, "/proc/stat", 0), &Refusal::MachineFile { fd: 3, path: "/proc/stat".into() });
    fd_refused(file(3, "/memfd:x (deleted)", 2), &Refusal::KernelObject { fd: 3, kind: "memfd".into() });
    fd_refused(
        Fd { socket: Some("TCP".into()), mode: libc::S_IFSOCK, ..file(3, "socket:[9]", 2) },
        &Refusal::Socket { fd: 3, protocol: "TCP".into() },
    );
    let directory = || Fd { mode: libc::S_IFDIR, ..file(3, "/tmp/f", 0) };
    assert_eq!(plan(&with(vec![directory()])).channels, []);
    fd_refused(shared(directory()), &Refusal::SharedOffset { fd: 3, path: path(), pid: 50 });
}

#[test]
fn a_shared_output_is_pumped() {
    let out = |fd| Fd { inode: 0x2a, description: 1, ..shared(file(fd, "/tmp/out", libc::O_WRONLY)) };
    let found = plan(&with(vec![out(1), out(2)])).channels;
    let wanted = Channel {
        id: 0,
        kind: ChannelKind::FileOut,
        key: "ile[1d:2a]".into(),
        external: Some("file[1d:2a]".into()),
        fds: vec![1, 2],
        shared: true,
    };
    assert_eq!(found, [wanted]);
    // The same file through a second description, or mapped: CRIU could not tell them apart.
    let mixed = Refusal::MixedFile { fd: 1, path: "/tmp/out".into(), pid: 50 };
    let second = Fd { description: 2, holders: vec![], ..out(2) };
    only(&with(vec![out(1), second]), &mixed);
    let map = Mapping { name: "/tmp/out".into(), shared: true, ..Mapping::default() };
    only(&Facts { maps: vec![map], ..with(vec![out(1)]) }, &mixed);
}

#[test]
fn pipes() {
    let (read, write) = (libc::O_RDONLY, libc::O_WRONLY);
    let facts = with(vec![
        held(pipe(0, 70, read), false, false, true),
        held(pipe(1, 71, write), false, true, false),
        shared(pipe(2, 72, write)),
        pipe(5, 73, read),
        pipe(6, 73, write),
    ]);
    let channels = plan(&facts).channels;
    let short: Vec<_> =
        channels.iter().map(|channel| (channel.id, channel.kind, channel.key.as_str(), channel.fds[0], channel.shared)).collect();
    let wanted = [
        (0, ChannelKind::PipeIn, "pipe:[70]", 0, false),
        (1, ChannelKind::PipeOut, "pipe:[71]", 1, false),
        (2, ChannelKind::PipeOut, "pipe:[72]", 2, true),
    ];
    assert_eq!(short, wanted);
    let link = || "pipe:[70]".to_owned();
    only(
        &with(vec![held(pipe(3, 70, read), false, true, false), pipe(4, 70, write)]),
        &Refusal::PipeBothWays { fd: 3, link: link(), pid: 50 },
    );
    fd_refused(shared(pipe(3, 70, libc::O_RDWR)), &Refusal::PipeBothWays { fd: 3, link: link(), pid: 50 });
    let others_read = plan(&with(vec![held(pipe(3, 70, read), false, true, false)]));
    assert!(others_read.channels[0].kind == ChannelKind::PipeIn && others_read.channels[0].shared);
    fd_refused(pipe(3, 70, write | libc::O_DIRECT), &Refusal::PacketPipe { fd: 3 });
    let named = Fd { link: "/tmp/fifo".into(), leads_there: true, ..pipe(3, 70, read) };
    fd_refused(named, &Refusal::NamedPipe { fd: 3, path: "/tmp/fifo".into() });
}

#[test]
fn devices_and_terminals() {
    let harmless = [3, 5, 7, 8, 9].map(|minor| device(i32::try_from(minor).unwrap(), "/dev/x", 1, minor));
    let mut fds = harmless.to_vec();
    fds.extend([0, 1].map(|fd| Fd { dev: 0x1a, ..device(fd, "/dev/pts/3", TTY.major, TTY.minor) }));
    let tty = plan(&with(fds.clone())).tty.expect("a terminal");
    assert_eq!((tty.fds.as_slice(), tty.foreground, tty.key().as_str()), ([0, 1].as_slice(), true, "tty[8803:1a]"));
    assert!(!plan(&Facts { tpgid: 99, ..with(fds) }).tty.expect("a terminal").foreground);
    let path = |path: &str| path.to_owned();
    fd_refused(device(3, "/dev/kmsg", 1, 11), &Refusal::DeviceFile { fd: 3, path: path("/dev/kmsg") });
    fd_refused(device(3, "/dev/fuse", 10, 229), &Refusal::DeviceFile { fd: 3, path: path("/dev/fuse") });
    fd_refused(device(3, "/dev/pts/4", 136, 4), &Refusal::OtherTerminal { fd: 3, path: path("/dev/pts/4") });
    fd_refused(device(3, "/dev/ptmx", 5, 2), &Refusal::OtherTerminal { fd: 3, path: path("/dev/ptmx") });
    fd_refused(device(3, "/dev/tty", 5, 0), &Refusal::GeneralTerminal { fd: 3 });
    fd_refused(Fd { mode: libc::S_IFBLK, ..file(3, "/dev/vda", 0) }, &Refusal::DeviceFile { fd: 3, path: path("/dev/vda") });
}

#[test]
fn kernel_objects() {
    let carried = ["[eventfd]", "[timerfd]", "[signalfd]", "[eventpoll]"];
    let fds = carried.iter().zip(3..).map(|(kind, fd)| anonymous(fd, kind)).collect();
    assert_eq!(plan(&with(fds)).channels, []);
    fd_refused(shared(anonymous(3, "[eventpoll]")), &Refusal::SharedObject { fd: 3, kind: "eventpoll".into(), pid: 50 });
    for kind in ["inotify", "[fanotify]", "[pidfd]", "[io_uring]", "[perf_event]", "bpf-map", "[userfaultfd]"] {
        let bare = kind.trim_matches(['[', ']']).to_owned();
        fd_refused(anonymous(3, kind), &Refusal::KernelObject { fd: 3, kind: bare });
    }
}

#[test]
fn all_reasons_are_given_in_words() {
    let mut facts = with(vec![anonymous(3, "inotify"), device(4, "/dev/tty", 5, 0)]);
    facts.children = vec![1, 2, 3, 4, 5, 6];
    let words: Vec<String> = stays(&facts).iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), 3);
    assert!(words[0].starts_with("it has 6 children (pid 1, 2, 3, 4, 5, ...)"), "{words:?}");
    assert!(words[1].contains("a watch on files (inotify)"), "{words:?}");
    let many = (0..500).map(|fd| anonymous(fd, "inotify")).collect();
    assert_eq!(stays(&with(many)).len(), MAX_REFUSALS);
}

#[test]
fn left_alone() {
    let rules = AutoRules::default();
    assert_eq!(automatic(&plain(), &rules), Vec::<String>::new());
    let reasons = |facts: &Facts| automatic(facts, &rules).len();
    assert_eq!(reasons(&Facts { uids: [999; 4], ..plain() }), 1);
    for comm in ["bash", "vim.basic", "systemd-journal", "mosix-agent", "pvmd3"] {
        assert_eq!(reasons(&Facts { comm: comm.into(), ..plain() }), 1, "{comm}");
    }
    assert_eq!(reasons(&Facts { age_ms: 10, ..plain() }), 1);
    assert_eq!(reasons(&Facts { nice: -1, ..plain() }), 1);
    assert_eq!(reasons(&Facts { realtime: true, ..plain() }), 1);
    assert_eq!(reasons(&Facts { sid: 100, ..plain() }), 1);
    let foreground = with(vec![device(0, "/dev/pts/3", TTY.major, TTY.minor)]);
    assert_eq!(reasons(&foreground), 0);
    assert_eq!(automatic(&foreground, &AutoRules { keep_foreground: true, ..AutoRules::default() }).len(), 1);
    let partial: AutoRules = serde_json::from_str(r#"{"min_uid": 0, "exclude_more": ["burn"]}"#).expect("parses");
    assert_eq!(automatic(&plain(), &partial).len(), 1);
    assert_eq!(partial.exclude, rules.exclude);
}

fn any_fd() -> impl Strategy<Value = Fd> {
    let link = prop_oneof![
        Just("pipe:[7]".to_owned()),
        Just("anon_inode:".to_owned()),
        Just("anon_inode:[".to_owned()),
        Just("/tmp/f".to_owned()),
        "\\PC{0,8}"
    ];
    let mode = prop_oneof![Just(0u32), Just(libc::S_IFREG), Just(libc::S_IFIFO), Just(libc::S_IFCHR), Just(libc::S_IFDIR), any::<u32>()];
    let holder = (any::<i32>(), any::<bool>(), any::<bool>(), any::<bool>());
    (any::<i32>(), link, mode, 0..4i32, any::<u64>(), any::<bool>(), proptest::option::of(holder)).prop_map(
        |(fd, link, mode, flags, rdev, leads_there, holder)| {
            let holders = holder.map(|(pid, same_description, reads, writes)| Holder { pid, fd, same_description, reads, writes });
            Fd {
                fd,
                description: fd,
                link,
                mode,
                flags,
                rdev,
                leads_there,
                inode: rdev % 3,
                mnt_id: fd,
                holders: holders.into_iter().collect(),
                ..Fd::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn no_facts_make_it_panic(fds in proptest::collection::vec(any_fd(), 0..20), pid in any::<i32>(), state in any::<char>(), names in proptest::collection::vec("\\PC{0,12}", 0..4)) {
        let maps = names.iter().map(|name| Mapping { name: name.clone(), shared: pid % 2 == 0, ..Mapping::default() }).collect();
        let facts = Facts { pid, state, fds, maps, comm: names.concat(), ..plain() };
        match judge(&facts, &own()) {
            Verdict::Movable(plan) => {
                let mut ids: Vec<u16> = plan.channels.iter().map(|channel| channel.id).collect();
                ids.dedup();
                prop_assert_eq!(ids.len(), plan.channels.len());
                prop_assert!(plan.channels.iter().all(|channel| !channel.fds.is_empty()));
            }
            Verdict::Stays(reasons) => prop_assert!(!reasons.is_empty() && reasons.iter().all(|reason| !reason.to_string().is_empty())),
        }
        let _ = automatic(&facts, &AutoRules::default());
    }
}
