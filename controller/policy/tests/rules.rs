//! The rules beside balance: owners, memory, shares, partners, opportunity cost, cool-down.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use mosix_policy::{
    Candidate, Conclusion, Dice, Explorer, Features, Figures, Ineligible, Local, Message, Move, Newborn, NodeId, Objective, Own, Params,
    Partner, Record, Refusal, Request, Ring, Rule, Stance, Terms, Verdict, Window, admit, decide, eligible, lag, place_process, swap_back,
};
use proptest::prelude::*;
use rand::SeedableRng;

const GIB: u64 = 1 << 30;
const ALL: Features = Features(u32::MAX);

fn record(node: u32, committed: u16) -> Record {
    Record {
        node: NodeId(node),
        incarnation: 1,
        seq: 1,
        age_ms: 0,
        committed,
        load: 0.0,
        speed: 1.0,
        cpus: 1,
        memory_total_bytes: 8 * GIB,
        memory_free_bytes: 7 * GIB,
        guests: 0,
        away: 0,
        closed: false,
        features: ALL,
        lag_mean_s: 0.0,
        lag_min_s: 0.0,
    }
}

fn window(records: Vec<Record>) -> Window {
    let mut window = Window::new(NodeId(0));
    window.merge(&Params::default(), Message { records, deaths: vec![] }, 0.0);
    window
}

fn process(key: u64) -> Candidate {
    Candidate {
        key,
        cpu_age_s: 20.0,
        wall_age_s: 100.0,
        resident_s: 100.0,
        memory_bytes: GIB / 4,
        home: NodeId(0),
        kappa: 0.0,
        cost_s: 0.1,
        in_flight: false,
        pinned: false,
        needs: Features(0),
        lag_s: 0.0,
        restless: 0.0,
        partners: Vec::new(),
    }
}

fn local(committed: u16, candidates: Vec<Candidate>) -> Local {
    let figures = Figures { node: NodeId(0), speed: 1.0, cpus: 1, committed, memory_total_bytes: 8 * GIB, memory_used_bytes: GIB };
    Local { figures, incoming: 0, outgoing: 0, stance: Stance::Open, candidates }
}

fn moved(params: &Params, local: &Local, records: Vec<Record>) -> Option<Move> {
    decide(params, local, &window(records), 0.0, &mut Dice::seed_from_u64(1), &[]).action
}

fn own(record: &Record) -> Own {
    Own {
        figures: record.figures(),
        incoming: 0,
        accepts_guests: !record.closed,
        features: record.features,
        lag_mean_s: f64::from(record.lag_mean_s),
        lag_min_s: f64::from(record.lag_min_s),
    }
}

fn rotating() -> Params {
    Params { rotation: true, ..Params::default() }
}

#[test]
fn an_owners_guests_leave_and_nothing_else() {
    let guest = Candidate { home: NodeId(2), ..process(7) };
    let mut state = local(2, vec![process(1), guest]);
    assert_eq!(moved(&Params::default(), &state, vec![record(1, 5)]), None);
    state.stance = Stance::Evict;
    let action = moved(&Params::default(), &state, vec![record(1, 5)]).unwrap();
    assert_eq!((action.key, action.target, action.rule, action.terms), (7, NodeId(1), Rule::Evict, Terms::Room));
    assert!(action.predicted_gain_s < 0.0, "not for its own good");
    // Home, though it takes no guests at present.
    let home = Record { closed: true, ..record(2, 5) };
    assert_eq!(moved(&Params::default(), &state, vec![home]).unwrap().target, NodeId(2));
    // Even one that came just now; but not one that must not move.
    state.candidates[1].resident_s = 0.0;
    assert!(moved(&Params::default(), &state, vec![record(1, 5)]).is_some());
    state.candidates[1].pinned = true;
    assert_eq!(moved(&Params::default(), &state, vec![record(1, 5)]), None);
    state.stance = Stance::Drain;
    assert_eq!(moved(&Params::default(), &state, vec![record(1, 5)]).unwrap().key, 1);
    let outcome =
        decide(&Params::default(), &state, &window(vec![Record { closed: true, ..record(1, 0) }]), 0.0, &mut Dice::seed_from_u64(1), &[]);
    assert_eq!((outcome.action, outcome.explanation.conclusion), (None, Conclusion::NoRoom));
}

#[test]
fn the_smallest_process_that_cures_the_shortage_is_ushered_out() {
    let sizes = [3 * GIB, GIB / 2, GIB, 2 * GIB];
    let candidates = sizes.iter().zip(1..).map(|(&memory_bytes, key)| Candidate { memory_bytes, ..process(key) });
    let mut state = local(4, candidates.collect());
    // 8 GiB, limit 7.6: 0.9 GiB too much.
    state.figures.memory_used_bytes = 8 * GIB + GIB / 2;
    let action = moved(&Params::default(), &state, vec![record(1, 9), record(2, 12)]).unwrap();
    assert_eq!((action.key, action.target, action.rule), (3, NodeId(1), Rule::Usher), "1 GiB to the less loaded, though that is busier");
    // Nobody has room for that: the largest that fits.
    let tight = Record { memory_free_bytes: GIB, ..record(1, 0) };
    assert_eq!(moved(&Params::default(), &state, vec![tight]).unwrap().key, 2);
    assert!(!matches!(moved(&Params { usher: false, ..Params::default() }, &state, vec![record(1, 9)]), Some(m) if m.rule == Rule::Usher));
}

#[test]
fn who_is_ahead_goes_to_those_who_are_further_ahead() {
    let lags = [(1, -6.0), (2, 4.0), (3, 2.0)];
    let state = local(3, lags.map(|(key, lag_s)| Candidate { lag_s, ..process(key) }).to_vec());
    let ahead = Record { lag_mean_s: -5.0, ..record(1, 2) };
    let behind = Record { lag_mean_s: 2.0, ..record(2, 2) };
    assert_eq!(moved(&Params::default(), &state, vec![ahead.clone()]), None, "rotation is a switch");
    let action = moved(&rotating(), &state, vec![ahead.clone(), behind.clone()]).unwrap();
    assert_eq!((action.key, action.target, action.rule), (1, NodeId(1), Rule::Rotate));
    assert!(matches!(action.terms, Terms::Ahead { stayers_lag_s, .. } if (stayers_lag_s - 3.0).abs() < 1e-9));
    // Not to one as loaded, not while something arrives, not for a small difference.
    assert_eq!(moved(&rotating(), &state, vec![Record { committed: 3, ..ahead.clone() }]), None);
    assert_eq!(moved(&rotating(), &Local { incoming: 1, ..state.clone() }, vec![ahead.clone()]), None);
    assert_eq!(moved(&rotating(), &state, vec![behind]), None);
    // The target decides on what is true there.
    let request = Request::automatic(1, &state, &state.candidates[0], &action);
    assert_eq!(admit(&rotating(), &own(&ahead), &request), Verdict::Accept);
    for wrong in
        [Record { lag_mean_s: 2.9, ..ahead.clone() }, Record { committed: 3, ..ahead.clone() }, Record { committed: 0, ..ahead.clone() }]
    {
        assert_eq!(admit(&rotating(), &own(&wrong), &request), Verdict::Refuse(Refusal::NotAhead));
    }
    let busy = Own { incoming: 1, ..own(&ahead) };
    assert_eq!(admit(&rotating(), &busy, &request), Verdict::Refuse(Refusal::NotAhead));
}

#[test]
fn on_unequal_speeds_places_are_changed() {
    let mut state = local(1, vec![Candidate { lag_s: 30.0, ..process(1) }]);
    state.figures.speed = 1.0 / 3.0;
    let fast = Record { lag_mean_s: -20.0, lag_min_s: -20.0, ..record(1, 1) };
    let action = moved(&rotating(), &state, vec![fast.clone()]).unwrap();
    assert_eq!((action.key, action.rule), (1, Rule::Swap));
    let request = Request::automatic(1, &state, &state.candidates[0], &action);
    assert_eq!(admit(&rotating(), &own(&fast), &request), Verdict::Accept);
    let there = Local { figures: fast.figures(), ..local(1, vec![Candidate { lag_s: -20.0, ..process(5) }]) };
    let back = swap_back(&rotating(), &there, NodeId(0)).unwrap();
    assert_eq!((back.key, back.target, back.rule, back.terms), (5, NodeId(0), Rule::SwapBack, Terms::Room));
    // A slow node is not left idle for a fast one that is busy ("keep") - unless rotation is off.
    let young = local(1, vec![process(1)]);
    let young = Local { figures: Figures { speed: 0.2, ..young.figures }, ..young };
    assert_eq!(moved(&rotating(), &young, vec![record(1, 1)]), None);
    assert_eq!(moved(&Params::default(), &young, vec![record(1, 1)]).unwrap().rule, Rule::Balance);
}

#[test]
fn a_slow_cpu_does_not_idle_while_others_are_shared() {
    let slow = |committed| Record { speed: 0.3, ..record(1, committed) };
    let lags = [(1, -3.0), (2, 1.0)];
    let state = local(2, lags.map(|(key, lag_s)| Candidate { lag_s, ..process(key) }).to_vec());
    assert_eq!(moved(&Params::default(), &state, vec![slow(0)]), None, "nobody would run faster there");
    let action = moved(&rotating(), &state, vec![slow(0)]).unwrap();
    assert_eq!((action.key, action.rule, action.terms), (1, Rule::Rotate, Terms::Idle), "who is ahead can afford it");
    let request = Request::automatic(1, &state, &state.candidates[0], &action);
    assert_eq!(admit(&rotating(), &own(&slow(0)), &request), Verdict::Accept);
    assert_eq!(admit(&rotating(), &own(&slow(1)), &request), Verdict::Refuse(Refusal::NotAhead));
    let alone = local(1, vec![process(1)]);
    assert_eq!(moved(&rotating(), &alone, vec![slow(0)]), None);
}

#[test]
fn partners_meet_and_do_not_change_places() {
    let partner = |node| vec![Partner { node: NodeId(node), apart: 0.5 }];
    let wide = |node, committed| Record { cpus: 2, ..record(node, committed) };
    let mut state = local(1, vec![Candidate { partners: partner(1), ..process(1) }]);
    state.figures.cpus = 2;
    state.figures.node = NodeId(5);
    let view = |records: Vec<Record>| {
        let mut window = Window::new(NodeId(5));
        window.merge(&Params::default(), Message { records, deaths: vec![] }, 0.0);
        window
    };
    let go = |state: &Local, records| decide(&Params::default(), state, &view(records), 0.0, &mut Dice::seed_from_u64(1), &[]).action;
    let action = go(&state, vec![wide(1, 1), wide(2, 0)]).unwrap();
    assert_eq!((action.target, action.rule), (NodeId(1), Rule::Together), "a free CPU beside its partner");
    let request = Request::automatic(1, &state, &state.candidates[0], &action);
    assert!((request.apart_here - 0.5).abs() < 1e-9 && request.apart_there.abs() < 1e-9);
    assert_eq!(admit(&Params::default(), &own(&wide(1, 1)), &request), Verdict::Accept);
    // The other one, seen from its own node, waits: its number is smaller.
    let mut other = state.clone();
    other.figures.node = NodeId(1);
    other.candidates[0].partners = partner(5);
    other.candidates[0].home = NodeId(1);
    let mut from_there = Window::new(NodeId(1));
    from_there.merge(&Params::default(), Message { records: vec![wide(5, 1)], deaths: vec![] }, 0.0);
    assert_eq!(decide(&Params::default(), &other, &from_there, 0.0, &mut Dice::seed_from_u64(1), &[]).action, None);
    // The load that it adds weighs more than the talk: both CPUs are taken there.
    assert_eq!(go(&state, vec![wide(1, 4)]), None);
    // Together already: a small gain does not part them.
    let mut together = state.clone();
    together.candidates[0].partners = partner(5);
    together.figures.committed = 2;
    assert_eq!(go(&together, vec![wide(1, 0)]), None);
}

#[test]
fn opportunity_cost_weighs_memory_against_load() {
    let params = Params { objective: Objective::OpportunityCost, ..Params::default() };
    let state = local(4, vec![process(1)]);
    let empty_but_full = Record { memory_free_bytes: GIB / 2 + GIB / 5, ..record(1, 1) };
    let action = moved(&params, &state, vec![empty_but_full.clone(), record(2, 2)]).unwrap();
    assert_eq!(action.target, NodeId(2));
    assert_eq!(moved(&Params::default(), &state, vec![empty_but_full, record(2, 2)]).unwrap().target, NodeId(1), "time alone");
    let request = Request::automatic(1, &state, &state.candidates[0], &action);
    assert_eq!(admit(&params, &own(&record(2, 2)), &request), Verdict::Accept);
    assert!(matches!(admit(&params, &own(&record(2, 9)), &request), Verdict::Refuse(Refusal::NotCheaper { .. })));
    let newborn = Newborn { memory_bytes: GIB, needs: Features(0) };
    let mut view = window(vec![record(1, 0), Record { memory_free_bytes: 2 * GIB, ..record(2, 0) }]);
    assert_eq!(place_process(&params, &state.figures, newborn, &mut view, 0.0, &mut Dice::seed_from_u64(1)), NodeId(1));
}

#[test]
fn cpu_features_are_a_condition() {
    let picky = Candidate { needs: Features(4), ..process(1) };
    let state = local(3, vec![picky.clone()]);
    let plain = Record { features: Features(3), ..record(1, 0) };
    assert_eq!(moved(&Params::default(), &state, vec![plain.clone()]), None);
    let action = moved(&Params::default(), &state, vec![plain.clone(), record(2, 1)]).unwrap();
    assert_eq!(action.target, NodeId(2));
    let request = Request::automatic(1, &state, &picky, &action);
    assert_eq!(admit(&Params::default(), &own(&plain), &request), Verdict::Refuse(Refusal::Features));
}

#[test]
fn what_was_moved_often_cools_down() {
    let params = Params::default();
    let after = |restless, resident_s| eligible(&params, &Candidate { restless, resident_s, ..process(1) });
    assert_eq!(after(1.0, 0.5), Ok(()), "its first move counts for nothing");
    assert_eq!(after(3.0, 1.9), Err(Ineligible::CoolingDown));
    assert_eq!(after(3.0, 2.1), Ok(()));
    assert_eq!(after(1e9, 64.0), Ok(()), "bounded");
    assert!((params.restless(4.0, 15.0) - 2.0).abs() < 1e-9);
    assert_eq!(Params { cooldown_factor: 1.0, ..params.clone() }.cooldown_s(9.0), params.min_residency_s);
}

#[test]
fn the_rotation_threshold_is_scale_free() {
    let params = Params::default();
    assert_eq!(lag::threshold_s(&params, 0.0, 0.0), 0.5);
    assert!((lag::threshold_s(&params, 1.0, 100.0) - 3.0).abs() < 1e-9);
    assert!((lag::threshold_s(&params, 0.01, 1000.0) - 15.0).abs() < 1e-9);
    let own = local(3, vec![]).figures;
    let fair = lag::fair_rate(&params, &own, &window(vec![record(1, 1), record(2, 0)]), 0.0);
    assert!((fair - 0.75).abs() < 1e-9, "3 CPUs for 4 processes: {fair}");
    let spare = lag::fair_rate(&params, &own, &window((1..9).map(|n| record(n, 0)).collect()), 0.0);
    assert!((spare - 1.0).abs() < 1e-9, "no more than one CPU: {spare}");
    assert_eq!(lag::accrue(1.0, f64::NAN, 0.0, 1.0), 1.0);
    assert_eq!(lag::summary([1.0, f64::NAN, 3.0]), (2.0, 1.0));
}

#[test]
fn unknown_members_are_asked_when_no_free_cpu_is_known() {
    let params = Params::default();
    let members: Vec<NodeId> = (0..6).map(NodeId).collect();
    let (mut explorer, mut rng) = (Explorer::default(), Dice::seed_from_u64(1));
    let busy = local(1, vec![]).figures;
    let mut next = |own: &Figures, known: Vec<Record>, now_s| explorer.next(&params, own, &window(known), &members, now_s, &mut rng);
    assert_eq!(next(&local(0, vec![]).figures, vec![], 0.0), None, "here is one");
    assert_eq!(next(&busy, vec![record(1, 0)], 0.0), None, "there is one");
    let mut asked: Vec<u32> = (0..4).map(|_| next(&busy, vec![record(3, 1)], 0.0).unwrap().0).collect();
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 4, 5], "each once, in the window none");
    assert_eq!(next(&busy, vec![record(3, 1)], 0.5), None, "not again at once");
    assert!(next(&busy, vec![record(3, 1)], 1.5).is_some());
}

#[test]
fn a_ring_keeps_the_newest() {
    let mut ring = Ring::new(3);
    (0..10).for_each(|i| ring.push(i));
    assert_eq!(ring.iter().copied().collect::<Vec<_>>(), [7, 8, 9]);
    let mut none = Ring::new(0);
    none.push(1);
    assert!(none.is_empty());
}

proptest! {
    /// Ushering never overfills a target, whatever it is told; and a node that is short of memory is not made shorter.
    #[test]
    fn ushering_never_overfills(
        used in 0_u64..12 * GIB,
        sizes in prop::collection::vec(0_u64..4 * GIB, 0..12),
        free in prop::collection::vec(0_u64..8 * GIB, 1..8),
        seed in any::<u64>(),
    ) {
        let params = Params::default();
        let mut state = local(sizes.len() as u16, sizes.iter().zip(0..).map(|(&memory_bytes, key)| Candidate { memory_bytes, ..process(key) }).collect());
        state.figures.memory_used_bytes = used;
        let records: Vec<Record> = free.iter().zip(1..).map(|(&memory_free_bytes, n)| Record { memory_free_bytes, ..record(n, n as u16) }).collect();
        let outcome = decide(&params, &state, &window(records.clone()), 0.0, &mut Dice::seed_from_u64(seed), &[]);
        if let Some(action) = outcome.action {
            let size = sizes[action.key as usize];
            let target = records.iter().find(|r| r.node == action.target).unwrap();
            prop_assert!(target.figures().with_one_more(size).memory_within(params.memory_limit), "{size} to {target:?}");
            let request = Request::automatic(1, &state, &state.candidates[action.key as usize], &action);
            let full = Record { memory_free_bytes: size / 2, ..target.clone() };
            if size > 0 {
                prop_assert!(matches!(admit(&params, &own(&full), &request), Verdict::Refuse(_)));
            }
        }
    }

    /// Whatever numbers come, no decision and no admission panics, and nonsense is refused.
    #[test]
    fn nonsense_does_no_harm(
        numbers in prop::collection::vec(prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), any::<f64>()], 8),
        committed in any::<u16>(), bytes in any::<u64>(), rotation in any::<bool>(), drain in any::<bool>(), opportunity in any::<bool>(),
    ) {
        let objective = if opportunity { Objective::OpportunityCost } else { Objective::Time };
        let params = Params { rotation, objective, ..Params::default() };
        let wild = Candidate {
            cpu_age_s: numbers[0], wall_age_s: numbers[1], resident_s: numbers[2], kappa: numbers[3], cost_s: numbers[4], lag_s: numbers[5],
            restless: numbers[6], memory_bytes: bytes, partners: vec![Partner { node: NodeId(1), apart: numbers[7] }], ..process(1)
        };
        let mut state = local(committed, vec![wild, process(2)]);
        state.stance = if drain { Stance::Drain } else { Stance::Open };
        state.figures.memory_used_bytes = bytes;
        let records = vec![record(1, committed / 2), Record { lag_mean_s: numbers[5] as f32, speed: numbers[6] as f32, ..record(2, 0) }];
        let outcome = decide(&params, &state, &window(records), 0.0, &mut Dice::seed_from_u64(1), &[]);
        let _ = outcome.explanation.to_string();
        if let Some(action) = outcome.action {
            let candidate = state.candidates.iter().find(|c| c.key == action.key).unwrap();
            let mut request = Request::automatic(1, &state, candidate, &action);
            let _ = admit(&params, &own(&record(1, 0)), &request);
            request.terms = Terms::Exchange { lag_s: f64::NAN, threshold_s: 1.0 };
            prop_assert_eq!(admit(&params, &own(&record(1, 0)), &request), Verdict::Refuse(Refusal::Nonsense));
        }
    }
}
