//! What cannot move stays, and the reason is told in words.

use std::path::Path;

use mosix_wire::control::{Reply, Request};

use crate::bed::{Bed, eventually};

/// It is refused by `migrate` and by `explain` with a reason that has these words, and it runs on.
fn assert_stays(bed: &Bed, mark: &str, pid: i32, words: &str) {
    let why = eventually("the process is what it is to be", || match bed.migrate(pid, "node2") {
        Err(why) if why.contains(words) => Ok(why),
        other => Err(format!("{other:?} does not say {words:?}")),
    });
    assert!(why.contains("stays here"), "{why}");
    let Ok(Reply::Explained(explained)) = bed.ask(0, &Request::Explain { pid }) else { panic!("no explanation") };
    assert!(!explained.movable);
    assert!(explained.refusals.iter().any(|refusal| refusal.contains(words)), "{:?}", explained.refusals);
    assert!(bed.places(mark).iter().all(|place| place == "node1"));
    println!("{why}");
}

#[test]
fn lab_a_process_that_cannot_move_stays_with_a_reason() {
    let Some(bed) = Bed::boot("refuse", 2, false) else { return };
    if Path::new("/bin/bash").exists() {
        // The peer is the other daemon, which waits in vain for a greeting and hangs up; the socket stays open here.
        let script = "exec 3<>/dev/tcp/node2/7660; while :; do :; done";
        let argv = ["bash".into(), "-c".into(), script.into()];
        let child = bed.start(bed.program("socket", argv.into()));
        assert_stays(&bed, "socket", child.pid(), "socket");
    } else {
        println!("skipped: no bash, which can open a TCP socket");
    }
    let parent = bed.start(bed.script("parent", "sleep 1000 & while :; do :; done", &[]));
    assert_stays(&bed, "parent", parent.pid(), "child");
    assert!(bed.migrate(1, "node2").is_err(), "the node's first process");
    let none = bed.migrate(999_999, "node2").unwrap_err();
    assert!(none.contains("no process"), "{none}");
    let nowhere = bed.migrate(parent.pid(), "node9").unwrap_err();
    assert!(nowhere.contains("no node"), "{nowhere}");
    bed.assert_nothing_left();
}
