//! How processes that are away end, stop and take signals, as their parents at home see it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::bed::{self, Bed, eventually};
use crate::processes;

/// Busy until it is told its end by a file.
const UNTIL_TOLD: &str = r#"while [ ! -e "$1" ]; do :; done; read -r how <"$1"; eval "$how""#;

fn assert_no_body(bed: &Bed, mark: &str) {
    assert_bodies(bed, mark, &[]);
}

/// One there, and at home only the stub: a moment after the answer, since the move is complete before that.
fn assert_body_at(bed: &Bed, mark: &str, node: &str) {
    assert_bodies(bed, mark, &[node]);
}

fn assert_bodies(bed: &Bed, mark: &str, nodes: &[&str]) {
    eventually("bodies where they should be", || {
        let places = bed.places(mark);
        if places == nodes { Ok(()) } else { Err(format!("{mark} is on {places:?}")) }
    });
}

#[test]
fn lab_a_parent_sees_the_true_exit_status() {
    let Some(bed) = Bed::boot("status", 2, false) else { return };
    let endings = [
        ("exit 0", Ok(0)),
        ("exit 42", Ok(42)),
        ("exit 255", Ok(255)),
        ("kill -SEGV $$", Err(Signal::SIGSEGV)),
        ("kill -TERM $$", Err(Signal::SIGTERM)),
        ("kill -KILL $$", Err(Signal::SIGKILL)),
    ];
    for (number, (how, expected)) in endings.into_iter().enumerate() {
        let mark = format!("own{number}");
        let file = bed.file(&mark);
        let mut child = bed.start(bed.script(&mark, UNTIL_TOLD, &[&file]));
        bed.must_move(child.pid(), "node2");
        assert_body_at(&bed, &mark, "node2");
        // In one step: it reads as soon as the name is there.
        fs::write(bed.file("next"), format!("{how}\n")).unwrap();
        fs::rename(bed.file("next"), &file).unwrap();
        let status = bed::status(&mut child);
        assert_eq!((status.code(), status.signal()), (expected.ok(), expected.err().map(|signal| signal as i32)), "{how}");
        assert_no_body(&bed, &mark);
    }
    bed.assert_nothing_left();
}

#[test]
fn lab_signals_sent_at_home_end_the_guest_as_they_would_at_home() {
    let Some(bed) = Bed::boot("kill", 2, false) else { return };
    for signal in [Signal::SIGTERM, Signal::SIGSEGV, Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGHUP, Signal::SIGABRT] {
        let name = signal.as_str().trim_start_matches("SIG");
        let mut child = bed.start(bed.script(name, "while :; do :; done", &[]));
        bed.must_move(child.pid(), "node2");
        assert_body_at(&bed, name, "node2");
        bed.signal(child.pid(), name);
        assert_eq!(bed::status(&mut child).signal(), Some(signal as i32), "{signal}");
        assert_no_body(&bed, name);
    }
    bed.assert_nothing_left();
}

#[test]
fn lab_handlers_run_at_the_guest_and_none_is_lost_by_moves() {
    const SCRIPT: &str = r#"trap 'n=$((n+1)); echo $n >>"$1"' USR1; n=0; echo ready >>"$1"
while [ ! -e "$1.stop" ]; do :; done; exit $n"#;
    let Some(bed) = Bed::boot("trap", 3, false) else { return };
    let file = bed.file("caught");
    let mut child = bed.start(bed.script("trap", SCRIPT, &[&file]));
    let lines = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    let wait_for = |count: usize| {
        eventually("the handler has run", || if lines() == count { Ok(()) } else { Err(format!("{} lines, not {count}", lines())) });
    };
    wait_for(1);
    let mut count = 1;
    for target in ["node2", "node3", "home", "node2"] {
        // While it moves: one signal (a second one might merge, as at home).
        std::thread::scope(|scope| {
            let moving = scope.spawn(|| bed.must_move(child.pid(), target));
            bed.signal(child.pid(), "USR1");
            moving.join().unwrap();
        });
        count += 1;
        wait_for(count);
        for _ in 0..3 {
            bed.signal(child.pid(), "USR1");
            count += 1;
            wait_for(count);
        }
    }
    fs::write(bed.file("caught.stop"), "").unwrap();
    assert_eq!(bed::status(&mut child).code(), Some(16), "each signal exactly once");
    bed.assert_nothing_left();
}

#[test]
fn lab_a_parent_sees_stop_and_continue() {
    // With job control on, bash's `wait` also returns when the job stops, with 128 + the signal.
    const PARENT: &str = r#"set -m
sh -c ': >"$0.ready"; while [ ! -e "$0" ]; do :; done; exit 9' "$1" </dev/null >/dev/null & p=$!
while [ ! -e "$1.ready" ]; do :; done
echo $p; wait $p; echo "first $?"
read -r go; wait $p; echo "then $?""#;
    if !Path::new("/bin/bash").exists() {
        println!("skipped: no bash, whose job control plays the parent");
        return;
    }
    let Some(bed) = Bed::boot("stop", 2, false) else { return };
    let file = bed.file("told");
    let (theirs_in, mut stdin) = std::io::pipe().unwrap();
    let (stdout, theirs_out) = std::io::pipe().unwrap();
    let argv = ["bash".into(), "-c".into(), PARENT.into(), "bash".into(), file.clone().into_os_string()];
    let mut parent = bed.start(bed.program("parent", argv.into()).stdin(theirs_in).stdout(theirs_out));
    let mut said = BufReader::new(stdout).lines();
    let mut next = || said.next().expect("the parent goes on").unwrap();
    let pid: i32 = next().parse().unwrap();
    bed.must_move(pid, "node2");
    bed.signal(pid, "STOP");
    assert_eq!(next(), format!("first {}", 128 + Signal::SIGSTOP as i32));
    let guest = *bed.bodies("parent").iter().find(|body| processes::lab_node(**body, bed.lab_id()) == "node2").expect("the guest");
    assert_eq!(processes::state(guest), Some('T'), "the guest is stopped");
    bed.signal(pid, "CONT");
    eventually("the guest runs again", || match processes::state(guest) {
        Some('R' | 'S') => Ok(()),
        other => Err(format!("it is {other:?}")),
    });
    eventually("its stub at home runs again", || {
        let (_, text) = bed.node(0).output(mosix_lab::Exec::new(["cat", &format!("/proc/{pid}/stat")])).unwrap();
        if text.contains(") T") || text.contains(") t") { Err(text) } else { Ok(()) }
    });
    stdin.write_all(b"go\n").unwrap();
    fs::write(&file, "").unwrap();
    assert_eq!(next(), "then 9");
    assert!(bed::status(&mut parent).success());
    bed.assert_nothing_left();
}
