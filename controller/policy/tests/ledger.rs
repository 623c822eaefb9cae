//! Committed counts: each event counts once, whatever is lost or repeated.

use mosix_policy::{Ledger, MAX_ENTRIES, Reserved};
use proptest::prelude::*;

const ME: u32 = 1;
const PEER: u32 = 2;

#[test]
fn an_arrival_counts_from_acceptance_and_only_once() {
    let mut ledger = Ledger::new();
    ledger.sample(3, 1000, 0.0);
    assert_eq!(ledger.reserve(PEER, 7, 50, 10.0), Reserved::New);
    assert_eq!(ledger.reserve(PEER, 7, 50, 12.0), Reserved::Again);
    assert_eq!((ledger.committed(), ledger.memory_used_bytes(), ledger.incoming()), (4, 1050, 1));
    assert!(ledger.expire(11.0).is_empty(), "the lease was renewed");
    assert!(ledger.arrive(PEER, 7, 11.0) && ledger.arrive(PEER, 7, 11.5));
    assert_eq!((ledger.committed(), ledger.incoming()), (4, 0));
    assert!(ledger.expire(99.0).is_empty(), "it has arrived");
    assert!(!ledger.abort(PEER, 7));
    // A sample from before it arrived does not show it; the next one does.
    ledger.sample(3, 1000, 10.5);
    assert_eq!(ledger.committed(), 4);
    ledger.sample(4, 1050, 12.0);
    assert_eq!((ledger.committed(), ledger.memory_used_bytes()), (4, 1050));
}

#[test]
fn a_departure_is_subtracted_until_a_sample_shows_it() {
    let mut ledger = Ledger::new();
    ledger.sample(3, 1000, 0.0);
    assert_eq!(ledger.leave(ME, 1, 100), Reserved::New);
    assert_eq!(ledger.leave(ME, 1, 100), Reserved::Again);
    assert_eq!((ledger.committed(), ledger.memory_used_bytes(), ledger.outgoing()), (2, 900, 1));
    assert!(ledger.gone(ME, 1, 5.0));
    assert_eq!(ledger.leave(ME, 1, 100), Reserved::Done);
    ledger.sample(3, 1000, 4.0);
    assert_eq!((ledger.committed(), ledger.outgoing()), (2, 0));
    ledger.sample(2, 900, 6.0);
    assert_eq!((ledger.committed(), ledger.memory_used_bytes()), (2, 900));
}

#[test]
fn aborts_and_lost_leases_undo_and_births_count() {
    let mut ledger = Ledger::new();
    ledger.reserve(PEER, 1, 10, 5.0);
    ledger.reserve(3, 1, 10, 6.0);
    ledger.leave(ME, 1, 10);
    assert!(ledger.abort(ME, 1) && !ledger.abort(ME, 1));
    assert_eq!(ledger.expire(5.0), [(PEER, 1)]);
    assert!(!ledger.arrive(PEER, 1, 5.1), "its lease has ended: it must not be let in");
    assert_eq!(ledger.committed(), 1);
    ledger.born(5.0);
    ledger.born(5.0);
    assert_eq!(ledger.committed(), 3);
    ledger.sample(2, 0, 6.0);
    assert_eq!(ledger.committed(), 3, "two seen, one reserved");
    assert!(!ledger.gone(ME, 9, 6.0) && !ledger.arrive(PEER, 9, 6.0) && !ledger.abort(PEER, 9));
}

#[test]
fn it_is_bounded() {
    let mut ledger = Ledger::new();
    for id in 0..MAX_ENTRIES as u64 {
        assert_eq!(ledger.reserve(PEER, id, 1, 1.0), Reserved::New);
    }
    assert_eq!(ledger.reserve(PEER, u64::MAX, 1, 1.0), Reserved::Full);
    assert_eq!(ledger.reserve(PEER, 5, 1, 1.0), Reserved::Again);
    assert_eq!(usize::from(ledger.incoming()), MAX_ENTRIES);
    assert_eq!(ledger.expire(2.0).len(), MAX_ENTRIES);
    assert_eq!(ledger.committed(), 0);
}

#[derive(Debug, Clone)]
enum Event {
    Reserve(u64, f64),
    Arrive(u64),
    AbortIn(u64),
    Leave(u64),
    Gone(u64),
    AbortOut(u64),
    Expire,
}

fn event() -> impl Strategy<Value = Event> {
    let id = 0_u64..4;
    prop_oneof![
        (id.clone(), 0.0..50.0).prop_map(|(i, t)| Event::Reserve(i, t)),
        id.clone().prop_map(Event::Arrive),
        id.clone().prop_map(Event::AbortIn),
        id.clone().prop_map(Event::Leave),
        id.clone().prop_map(Event::Gone),
        id.prop_map(Event::AbortOut),
        Just(Event::Expire),
    ]
}

fn apply(ledger: &mut Ledger, event: &Event, now_s: f64) {
    match event {
        Event::Reserve(id, until_s) => drop(ledger.reserve(PEER, *id, 100, *until_s)),
        Event::Arrive(id) => drop(ledger.arrive(PEER, *id, now_s)),
        Event::AbortIn(id) => drop(ledger.abort(PEER, *id)),
        Event::Leave(id) => drop(ledger.leave(ME, *id, 100)),
        Event::Gone(id) => drop(ledger.gone(ME, *id, now_s)),
        Event::AbortOut(id) => drop(ledger.abort(ME, *id)),
        Event::Expire => drop(ledger.expire(now_s)),
    }
}

fn view(ledger: &Ledger) -> (u16, u64, u16, u16) {
    (ledger.committed(), ledger.memory_used_bytes(), ledger.incoming(), ledger.outgoing())
}

proptest! {
    /// A repeated event changes nothing, counts stay within what four ids each way can make, and a later sample is the
    /// whole truth once nothing is under way.
    #[test]
    fn repeats_are_harmless_and_counts_stay_true(events in prop::collection::vec(event(), 0..60), running in 0_u16..6) {
        let mut ledger = Ledger::new();
        ledger.sample(running, u64::from(running) * 100, 0.0);
        for (i, event) in events.iter().enumerate() {
            let now_s = 1.0 + i as f64;
            apply(&mut ledger, event, now_s);
            let once = view(&ledger);
            apply(&mut ledger, event, now_s);
            prop_assert_eq!(view(&ledger), once, "{:?} twice", event);
            prop_assert!(once.0 >= running.saturating_sub(4) && once.0 <= running + 4);
            prop_assert!(once.1 <= u64::from(running + 4) * 100);
            prop_assert!(once.2 <= 4 && once.3 <= 4);
        }
        for id in 0..4 {
            ledger.abort(PEER, id);
            ledger.abort(ME, id);
        }
        ledger.sample(2, 200, 1000.0);
        prop_assert_eq!(view(&ledger), (2, 200, 0, 0));
    }
}
