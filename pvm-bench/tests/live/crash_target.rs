//! What is killed at the destination, at every moment of a move: the process goes on at home, or it had left.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::bed::{Bed, eventually};
use crate::counter::Counter;
use crate::processes;

/// Moments after the request, ms.
fn moments() -> impl Iterator<Item = u64> {
    (0..=200).step_by(10)
}

/// Which move is hit, and where.
#[derive(Clone, Copy)]
struct Move {
    from: &'static str,
    to: &'static str,
    /// The node whose daemon or helpers are killed.
    hit: usize,
}

/// From home to another node, which is hit.
const AWAY: Move = Move { from: "node1", to: "node2", hit: 1 };
/// From there to a third node, which is hit.
const HOP: Move = Move { from: "node2", to: "node3", hit: 2 };

/// Moves a new counter, has `kill` do its worst meanwhile, and checks what the answer says about it. True if it stayed where it was.
fn one_move(bed: &Bed, mark: &str, way: Move, kill: impl FnOnce()) -> bool {
    let mut counter = Counter::start(bed, mark);
    if way.from != "node1" {
        bed.must_move(counter.pid(), way.from);
        counter.assert_one_at(bed, way.from);
    }
    let known = bed.commit_records().len();
    let result = thread::scope(|scope| {
        let moving = scope.spawn(|| bed.migrate(counter.pid(), way.to));
        kill();
        moving.join().unwrap()
    });
    println!("{mark}: {}", result.as_ref().map_or_else(|why| why.clone(), |moved| format!("moved in {:.0} ms", moved.total_ms)));
    let stayed = match &result {
        Err(why) if why.contains("runs on") => true,
        // What killed the guest's node or agent after the move killed the guest, and home must say so.
        _ => {
            assert!(bed.was_committed(known), "{mark}: {result:?}, but no commit was logged");
            false
        }
    };
    if stayed {
        counter.assert_one_at(bed, way.from);
        counter.finish(bed);
        return true;
    }
    eventually("it runs on, or its parent knows its end", || {
        if counter.child.try_wait().unwrap().is_some() || bed.places(mark) == [way.to] {
            Ok(())
        } else {
            Err(format!("{:?}", bed.places(mark)))
        }
    });
    // A guest that was hit a moment after it was seen is no failure either: look for its end for a while.
    thread::sleep(Duration::from_millis(200));
    if counter.child.try_wait().unwrap().is_some() {
        counter.assert_gone(bed);
    } else {
        counter.assert_one_at(bed, way.to);
        counter.finish(bed);
    }
    false
}

fn kill_named(bed: &Bed, node: usize, comm: &str) {
    // The first: the restored process itself is called like CRIU until it has its own name back.
    let helpers = processes::descendants(bed.daemon(node));
    if let Some((pid, _)) = helpers.iter().find(|(_, name)| name.starts_with(comm)) {
        processes::kill(*pid, Signal::SIGKILL);
    }
}

/// A healthy move after all that was done.
fn assert_moves_work(bed: &Bed, mark: &str) {
    let counter = Counter::start(bed, mark);
    eventually("a move works again", || bed.migrate(counter.pid(), "node2").map(drop));
    counter.assert_one_at(bed, "node2");
    counter.finish(bed);
    bed.assert_nothing_left();
}

fn kill_helpers(name: &str, comm: &str, way: Move) {
    let Some(bed) = Bed::boot(name, 3, false) else { return };
    let mut stayed = 0;
    for delay_ms in moments() {
        stayed += u32::from(one_move(&bed, &format!("{name}-after{delay_ms}"), way, || {
            thread::sleep(Duration::from_millis(delay_ms));
            kill_named(&bed, way.hit, comm);
        }));
    }
    // As soon as it appears, and a little later.
    for delay_ms in 0..20 {
        stayed += u32::from(one_move(&bed, &format!("{name}-seen{delay_ms}"), way, || {
            let deadline = Instant::now() + Duration::from_secs(2);
            while !processes::descendants(bed.daemon(way.hit)).iter().any(|(_, name)| name.starts_with(comm)) && Instant::now() < deadline {
                thread::sleep(Duration::from_micros(300));
            }
            thread::sleep(Duration::from_millis(delay_ms));
            kill_named(&bed, way.hit, comm);
        }));
    }
    println!("{stayed} stayed");
    assert!(stayed > 0, "nothing was ever hit before the commit");
    assert_moves_work(&bed, "healthy");
}

fn kill_daemons(name: &str, way: Move) {
    let Some(mut bed) = Bed::boot(name, 3, false) else { return };
    let mut stayed = 0;
    for delay_ms in moments() {
        stayed += u32::from(one_move(&bed, &format!("{name}-after{delay_ms}"), way, || {
            thread::sleep(Duration::from_millis(delay_ms));
            bed.kill_daemon(way.hit);
        }));
        bed.restart(way.hit);
    }
    println!("{stayed} stayed");
    assert!(stayed > 0, "nothing was ever hit before the commit");
    assert_moves_work(&bed, "healthy");
}

#[test]
fn lab_a_killed_agent_costs_no_process() {
    kill_helpers("agent", "mosix-agent", AWAY);
}

#[test]
fn lab_a_killed_agent_costs_no_process_that_hops() {
    kill_helpers("hop-agent", "mosix-agent", HOP);
}

#[test]
fn lab_a_killed_criu_costs_no_process() {
    kill_helpers("criu", "criu", AWAY);
}

#[test]
fn lab_a_killed_criu_costs_no_process_that_hops() {
    kill_helpers("hop-criu", "criu", HOP);
}

#[test]
fn lab_a_criu_killed_at_home_costs_no_process() {
    kill_helpers("own-criu", "criu", Move { hit: 0, ..AWAY });
}

#[test]
fn lab_a_killed_daemon_of_the_destination_costs_no_process() {
    kill_daemons("target", AWAY);
}

#[test]
fn lab_a_killed_daemon_of_the_destination_costs_no_process_that_hops() {
    kill_daemons("hop-target", HOP);
}
