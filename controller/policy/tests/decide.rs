//! Single decisions: balance, which process, admission, placement, explanations.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use mosix_policy::{
    Candidate, Features, Figures, Ineligible, Local, Message, NodeId, Own, Params, Record, Refusal, Request, Rule, Stance, Terms, Verdict,
    Window, admit, decide, eligible, place, time_per_work,
};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const GIB: u64 = 1 << 30;

fn figures(node: u32, committed: u16) -> Figures {
    Figures { node: NodeId(node), speed: 1.0, cpus: 1, committed, memory_total_bytes: 8 * GIB, memory_used_bytes: GIB }
}

fn record(f: &Figures) -> Record {
    Record {
        node: f.node,
        incarnation: 1,
        seq: 1,
        age_ms: 0,
        committed: f.committed,
        load: 0.0,
        speed: f.speed as f32,
        cpus: f.cpus,
        memory_total_bytes: f.memory_total_bytes,
        memory_free_bytes: f.memory_total_bytes.saturating_sub(f.memory_used_bytes),
        guests: 0,
        away: 0,
        closed: false,
        features: Features(u32::MAX),
        lag_mean_s: 0.0,
        lag_min_s: 0.0,
    }
}

fn window(peers: &[Figures]) -> Window {
    let mut window = Window::new(NodeId(0));
    let params = Params { window_len: 1000, max_records: 1000, ..Params::default() };
    window.merge(&params, Message { deaths: Vec::new(), records: peers.iter().map(record).collect() }, 0.0);
    window
}

fn process(key: u64, cpu_age_s: f64) -> Candidate {
    Candidate {
        key,
        cpu_age_s,
        wall_age_s: 100.0,
        resident_s: 100.0,
        memory_bytes: GIB / 64,
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
    Local { figures: figures(0, committed), incoming: 0, outgoing: 0, stance: Stance::Open, candidates }
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn chosen(local: &Local, peers: &[Figures]) -> Option<(u64, u32)> {
    let outcome = decide(&Params::default(), local, &window(peers), 0.0, &mut rng(1), &[]);
    outcome.action.map(|m| (m.key, m.target.0))
}

#[test]
fn equal_nodes_move_at_a_difference_above_one() {
    for (here, there, moves) in [(1, 0, false), (2, 1, false), (2, 0, true), (3, 1, true), (3, 2, false), (9, 7, true)] {
        let action = chosen(&local(here, vec![process(1, 10.0)]), &[figures(1, there)]);
        assert_eq!(action.is_some(), moves, "{here} against {there}");
    }
}

/// A third has no exact `f32`: the record of an equally slow node says that it is a ten-millionth faster.
#[test]
fn rounding_between_equal_nodes_is_no_gain() {
    let third = 1.0 / 3.0;
    let mut state = local(2, vec![Candidate { cpu_age_s: 1e6, ..process(1, 0.0) }]);
    state.figures.speed = third;
    let peer = Figures { speed: third, ..figures(1, 1) };
    assert!(f64::from(third as f32) > third, "the rounding goes the other way");
    assert_eq!(chosen(&state, &[peer]), None);
    let source = state.figures;
    let rounded = Figures { speed: f64::from(third as f32), ..peer };
    assert!(matches!(admit(&Params::default(), &own(rounded), &request(source)), Verdict::Refuse(Refusal::NoGain { .. })));
}

#[test]
fn an_empty_view_decides_nothing() {
    assert_eq!(chosen(&local(50, vec![process(1, 10.0)]), &[]), None);
    assert_eq!(chosen(&local(50, vec![]), &[figures(1, 0)]), None);
}

#[test]
fn the_fastest_target_and_the_oldest_process_are_taken() {
    let fast = Figures { speed: 2.0, ..figures(3, 0) };
    let candidates = vec![process(1, 5.0), process(2, 50.0), process(3, 20.0)];
    assert_eq!(chosen(&local(3, candidates.clone()), &[figures(1, 1), figures(2, 0), fast]), Some((2, 3)));
    // More CPUs: one more process there costs nobody anything.
    let wide = Figures { cpus: 4, ..figures(4, 3) };
    assert_eq!(chosen(&local(3, candidates), &[figures(1, 1), wide]), Some((2, 4)));
}

#[test]
fn expensive_moves_must_pay_twice() {
    // From 2 to an idle node: 1 s of work gets 1 s faster, so the gain is the age.
    for (age_s, cost_s, moves) in [(10.0, 4.9, true), (10.0, 5.1, false), (0.1, 0.5, true), (0.1, 0.6, false)] {
        let candidate = Candidate { cost_s, ..process(1, age_s) };
        let action = chosen(&local(2, vec![candidate]), &[figures(1, 0)]);
        assert_eq!(action.is_some(), moves, "age {age_s} cost {cost_s}");
    }
    // The most valuable does not pay, a cheaper one does.
    let dear = Candidate { cost_s: 60.0, ..process(1, 100.0) };
    assert_eq!(chosen(&local(2, vec![dear, process(2, 30.0)]), &[figures(1, 0)]), Some((2, 1)));
}

#[test]
fn memory_is_a_veto_and_home_a_factor() {
    let full = Figures { memory_used_bytes: 8 * GIB * 94 / 100, ..figures(1, 0) };
    let large = Candidate { memory_bytes: GIB, ..process(1, 10.0) };
    assert_eq!(chosen(&local(4, vec![large]), &[full]), None);
    // Twice as slow away: halving the load gains nothing.
    let bound = Candidate { kappa: 1.0, ..process(1, 10.0) };
    assert_eq!(chosen(&local(2, vec![bound.clone()]), &[figures(1, 0)]), None);
    // The same process, away from its home: returns even to an equally loaded node.
    let away = Candidate { home: NodeId(1), ..bound };
    assert_eq!(chosen(&local(1, vec![away]), &[figures(1, 0)]), Some((1, 1)));
}

#[test]
fn who_may_not_move_is_left_out_and_counted() {
    let params = Params::default();
    let base = process(1, 10.0);
    let cases = [
        (Candidate { in_flight: true, ..base.clone() }, Ineligible::InFlight),
        (Candidate { pinned: true, ..base.clone() }, Ineligible::Pinned),
        (Candidate { wall_age_s: 0.9, ..base.clone() }, Ineligible::TooYoung),
        (Candidate { resident_s: 0.4, ..base.clone() }, Ineligible::JustArrived),
        (Candidate { cost_s: f64::NAN, ..base.clone() }, Ineligible::NotMeasured),
        (Candidate { wall_age_s: f64::NAN, ..base }, Ineligible::TooYoung),
    ];
    for (candidate, why) in cases {
        assert_eq!(eligible(&params, &candidate), Err(why));
        let outcome = decide(&params, &local(5, vec![candidate]), &window(&[figures(1, 0)]), 0.0, &mut rng(1), &[]);
        assert_eq!(outcome.action, None);
        assert_eq!(outcome.explanation.left_out, [(why, 1)]);
    }
}

#[test]
fn limits_and_refusals_are_kept() {
    let params = Params::default();
    let peers = window(&[figures(1, 0), figures(2, 0)]);
    let mut state = local(9, vec![process(1, 10.0)]);
    let go = |state: &Local, tried: &[NodeId], now_s| decide(&params, state, &peers, now_s, &mut rng(1), tried).action;
    assert_eq!(go(&state, &[NodeId(1)], 0.0).unwrap().target, NodeId(2));
    assert_eq!(go(&state, &[NodeId(1), NodeId(2)], 0.0), None);
    assert_eq!(go(&state, &[7, 8, 9, 10].map(NodeId), 0.0), None, "four refusals are enough");
    assert_eq!(go(&state, &[], 61.0), None, "stale news");
    state.outgoing = params.max_out;
    assert_eq!(go(&state, &[], 0.0), None);
}

#[test]
fn ties_are_spread() {
    let peers: Vec<_> = (1..=4).map(|n| figures(n, 0)).collect();
    let mut hits = [0_u32; 5];
    for seed in 0..400 {
        let outcome = decide(&Params::default(), &local(3, vec![process(1, 9.0)]), &window(&peers), 0.0, &mut rng(seed), &[]);
        hits[outcome.action.unwrap().target.0 as usize] += 1;
    }
    assert!(hits[1..].iter().all(|&h| h > 50), "{hits:?}");
}

#[test]
fn a_decision_explains_itself() {
    let params = Params::default();
    let young = Candidate { wall_age_s: 0.1, ..process(2, 0.1) };
    let outcome = decide(&params, &local(3, vec![process(1, 10.0), young]), &window(&[figures(1, 0)]), 5.0, &mut rng(1), &[]);
    assert_eq!(
        outcome.explanation.to_string(),
        "balance: node 0 has 3 committed (0 arriving, 0 leaving) on 1 CPUs of speed 1.000, 1 peers known; of 2 processes \
         1 left out (it was started just now), 1 would run faster elsewhere (best: 1 at node 1: 3.000 -> 1.000 s per s \
         of work, gain 20.00 s, cost 0.10 s); process 1 goes to node 1, to gain 20.00 s"
    );
    let json = serde_json::to_string(&outcome.explanation).unwrap();
    assert_eq!(serde_json::from_str::<mosix_policy::Explanation>(&json).unwrap(), outcome.explanation);
    assert!(outcome.explanation.row(1).is_some() && outcome.explanation.row(2).is_none());
}

fn request(source: Figures) -> Request {
    Request {
        id: 1,
        source,
        home: source.node,
        memory_bytes: GIB,
        kappa: 0.0,
        manual: false,
        needs: Features(0),
        apart_here: 0.0,
        apart_there: 0.0,
        terms: Terms::Faster,
    }
}

fn own(figures: Figures) -> Own {
    Own { figures, incoming: 0, accepts_guests: true, features: Features(u32::MAX), lag_mean_s: 0.0, lag_min_s: 0.0 }
}

#[test]
fn admission_checks_the_own_state() {
    let params = Params::default();
    let ask = |own: Own, request: &Request| admit(&params, &own, request);
    let from = request(figures(0, 3));
    assert_eq!(ask(own(figures(1, 1)), &from), Verdict::Accept);
    assert!(matches!(ask(own(figures(1, 2)), &from), Verdict::Refuse(Refusal::NoGain { .. })));
    assert!(matches!(ask(Own { incoming: 2, ..own(figures(1, 0)) }, &from), Verdict::Refuse(Refusal::Busy { .. })));
    let full = Figures { memory_used_bytes: 7 * GIB, ..figures(1, 0) };
    assert!(matches!(ask(own(full), &from), Verdict::Refuse(Refusal::Memory { .. })));
    let closed = Own { accepts_guests: false, ..own(figures(1, 0)) };
    assert_eq!(ask(closed, &from), Verdict::Refuse(Refusal::Closed));
    assert_eq!(ask(closed, &Request { home: NodeId(1), ..from.clone() }), Verdict::Accept, "it lives here");
    assert_eq!(ask(own(figures(0, 0)), &from), Verdict::Refuse(Refusal::Nonsense), "from itself");
    let nan = Figures { speed: f64::NAN, ..figures(0, 3) };
    assert_eq!(ask(own(figures(1, 0)), &request(nan)), Verdict::Refuse(Refusal::Nonsense));
    // By hand it need not pay off, but there must be room.
    let manual = Request { manual: true, ..from };
    assert_eq!(ask(own(figures(1, 9)), &manual), Verdict::Accept);
    let Verdict::Refuse(why) = ask(own(full), &manual) else { panic!("accepted beyond its memory") };
    assert_eq!(why.to_string(), "its memory would become scarce: 8192 of 8192 MiB would be used");
}

#[test]
fn placement_fills_the_cluster_evenly_from_one_view() {
    let params = Params::default();
    let peers: Vec<_> = (1..=7).map(|n| figures(n, 0)).collect();
    let mut window = window(&peers);
    let mut own = figures(0, 0);
    let mut counts = [0_u32; 8];
    let mut rng = rng(1);
    for _ in 0..16 {
        let node = place(&params, &own, &mut window, 0.0, &mut rng);
        counts[node.0 as usize] += 1;
        own.committed += u16::from(node == own.node);
    }
    assert_eq!(counts, [2; 8]);
}

#[test]
fn placement_prefers_home_then_speed_and_needs_memory() {
    let params = Params::default();
    let mut rng = rng(1);
    let mut at = |own: Figures, peers: &[Figures]| place(&params, &own, &mut window(peers), 0.0, &mut rng).0;
    assert_eq!(at(figures(0, 0), &[figures(1, 0)]), 0);
    assert_eq!(at(figures(0, 0), &[Figures { speed: 2.0, ..figures(1, 0) }]), 1);
    assert_eq!(at(Figures { cpus: 8, ..figures(0, 5) }, &[Figures { cpus: 64, ..figures(1, 0) }]), 0);
    assert_eq!(at(figures(0, 3), &[figures(1, 1), figures(2, 0)]), 2);
    assert_eq!(at(figures(0, 3), &[Figures { memory_used_bytes: 8 * GIB, ..figures(1, 0) }]), 0);
}

fn any_figures(node: u32) -> impl Strategy<Value = Figures> {
    (0.05..8.0, 1_u16..64, 0_u16..300, 1_u64..64, 0.0..1.2).prop_map(move |(speed, cpus, committed, gib, fill)| Figures {
        node: NodeId(node),
        speed: f64::from(speed as f32),
        cpus,
        committed,
        memory_total_bytes: gib * GIB,
        memory_used_bytes: ((gib * GIB) as f64 * fill) as u64,
    })
}

fn any_process() -> impl Strategy<Value = Candidate> {
    (any::<u64>(), 0.0..1e4, 0.0..10.0, 0_u64..GIB, 0_u32..4, 0.0..3.0, 0.0..20.0).prop_map(
        |(key, cpu_age_s, wall_age_s, memory_bytes, home, kappa, cost_s)| Candidate {
            wall_age_s,
            resident_s: wall_age_s,
            memory_bytes,
            home: NodeId(home),
            kappa,
            cost_s,
            ..process(key, cpu_age_s)
        },
    )
}

proptest! {
    #[test]
    fn no_move_lowers_the_predicted_rate(
        here in any_figures(0),
        peers in (any_figures(1), any_figures(2), any_figures(3)),
        candidates in prop::collection::vec(any_process(), 0..12),
        seed in any::<u64>(),
    ) {
        let params = Params::default();
        let peers = [peers.0, peers.1, peers.2];
        let state = Local { figures: here, incoming: 0, outgoing: 0, stance: Stance::Open, candidates };
        let view = window(&peers);
        let outcome = decide(&params, &state, &view, 0.0, &mut rng(seed), &[]);
        prop_assert_eq!(&outcome, &decide(&params, &state, &view, 0.0, &mut rng(seed), &[]));
        if let Some(action) = outcome.action {
            let moved = state.candidates.iter().find(|c| c.key == action.key).unwrap();
            let target = view.get(action.target).unwrap().record.figures();
            let kappa = |n: NodeId| if moved.home == n { 0.0 } else { moved.kappa };
            let after = target.with_one_more(moved.memory_bytes);
            if action.rule == Rule::Usher {
                // For the sake of memory, which must have been short.
                prop_assert!(!here.memory_within(params.usher_limit));
            } else {
                prop_assert!(time_per_work(&after, kappa(target.node)) < time_per_work(&here, kappa(here.node)));
                prop_assert!(moved.cost_s <= params.cost_free_s || action.predicted_gain_s > 2.0 * moved.cost_s);
            }
            prop_assert!(after.memory_within(params.memory_limit));
            prop_assert!(eligible(&params, moved).is_ok());
            // The target, whose view is the sender's here, agrees.
            let request = Request::automatic(1, &state, moved, &action);
            prop_assert_eq!(admit(&params, &own(target), &request), Verdict::Accept);
        }
    }
}
