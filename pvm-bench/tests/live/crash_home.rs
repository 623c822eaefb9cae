//! Home's daemon is killed while its process moves: after its restart the process runs, or has ended because it had left. Never both.

use std::thread;
use std::time::Duration;

use crate::bed::{Bed, eventually, migrate};
use crate::counter::Counter;

/// Kills home's daemon so many ms after the request to move to `target`; true if the process is alive afterwards.
fn one_crash(bed: &mut Bed, mark: &str, first: Option<&str>, target: &str, delay_ms: u64) -> bool {
    let mut counter = Counter::start(bed, mark);
    if let Some(node) = first {
        bed.must_move(counter.pid(), node);
    }
    let known = bed.commit_records().len();
    let socket = bed.socket(0).unwrap().to_owned();
    thread::scope(|scope| {
        let moving = scope.spawn(|| migrate(&socket, counter.pid(), target));
        thread::sleep(Duration::from_millis(delay_ms));
        bed.kill_daemon(0);
        let result = moving.join().unwrap();
        println!("{mark}: {}", result.map_or_else(|why| why, |moved| format!("moved in {:.0} ms", moved.total_ms)));
    });
    let committed = bed.was_committed(known);
    bed.restart(0);
    // Whatever is to end with the old daemon needs a moment; whatever survives stays.
    eventually("one body or none", || {
        let places = bed.places(mark);
        if places.len() <= 1 { Ok(()) } else { Err(format!("bodies on {places:?}")) }
    });
    if first.is_some() || committed {
        // Its stub died with the daemon, or its frozen body was ended: it cannot have stayed.
        counter.assert_gone(bed);
        return false;
    }
    counter.assert_one_at(bed, "node1");
    // And it can move again.
    eventually("a move works again", || bed.migrate(counter.pid(), "node2").map(drop));
    counter.assert_one_at(bed, "node2");
    counter.finish(bed);
    true
}

#[test]
fn lab_a_killed_daemon_of_home_loses_and_doubles_nothing() {
    let Some(mut bed) = Bed::boot("home", 2, false) else { return };
    let alive = (0..=200).step_by(10).filter(|delay_ms| one_crash(&mut bed, &format!("home{delay_ms}"), None, "node2", *delay_ms)).count();
    println!("{alive} lived");
    assert!(alive > 0, "nothing was ever hit before the commit");
    bed.assert_nothing_left();
}

#[test]
fn lab_a_process_that_is_away_ends_with_its_homes_daemon() {
    let Some(mut bed) = Bed::boot("away", 3, false) else { return };
    for delay_ms in [0, 40, 80, 120, 300] {
        one_crash(&mut bed, &format!("hop{delay_ms}"), Some("node2"), "node3", delay_ms);
        one_crash(&mut bed, &format!("back{delay_ms}"), Some("node2"), "home", delay_ms);
    }
    bed.assert_nothing_left();
}
