//! A daemon that is told to stop sends its guests home first.

use std::thread;

use nix::sys::signal::Signal;

use crate::bed::{Bed, eventually};
use crate::counter::Counter;
use crate::processes;

#[test]
fn lab_guests_go_home_when_their_node_stops() {
    let Some(mut bed) = Bed::boot("stop", 3, false) else { return };
    let counters: Vec<Counter> = (0..3).map(|number| Counter::start(&bed, &format!("guest{number}"))).collect();
    for counter in &counters {
        bed.must_move(counter.pid(), "node2");
    }
    let daemon = bed.daemon(1);
    processes::kill(daemon, Signal::SIGTERM);
    eventually("the daemon ends", || match processes::state(daemon) {
        None | Some('Z') => Ok(()),
        Some(state) => Err(format!("it is {state}")),
    });
    for counter in &counters {
        counter.assert_one_at(&bed, "node1");
    }
    bed.restart(1);
    thread::scope(|scope| {
        // And they are as movable as before.
        for counter in &counters {
            let bed = &bed;
            scope.spawn(move || eventually("it moves again", || bed.migrate(counter.pid(), "node2").map(drop)));
        }
    });
    for counter in counters {
        counter.assert_one_at(&bed, "node2");
        counter.finish(&bed);
    }
    bed.assert_nothing_left();
}
