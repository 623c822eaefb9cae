//! The window: which records stay, which are passed on, and how old they get.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use mosix_policy::{Death, Features, MAX_DEATHS, MAX_RECORDS, Message, NodeId, Params, Record, Standing, Window, age, pick_peer};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn record(node: u32, seq: u32, committed: u16, age_ms: u32) -> Record {
    Record {
        node: NodeId(node),
        incarnation: 1,
        seq,
        age_ms,
        committed,
        load: 0.0,
        speed: 1.0,
        cpus: 1,
        memory_total_bytes: 1 << 30,
        memory_free_bytes: 1 << 29,
        guests: 0,
        away: 0,
        closed: false,
        features: Features(u32::MAX),
        lag_mean_s: 0.0,
        lag_min_s: 0.0,
    }
}

fn message(records: Vec<Record>) -> Message {
    Message { records, deaths: Vec::new() }
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn known(window: &Window) -> Vec<u32> {
    window.entries().map(|h| h.record.node.0).collect()
}

fn mean_age(nodes: u32, seed: u64) -> f64 {
    let params = Params { window_len: nodes as usize, message_len: nodes as usize, max_records: 2 * nodes as usize, ..Params::default() };
    mean_age_of(&params, nodes, seed, 30.0)
}

/// N nodes that gossip at jittered times; the mean age of all entries about others, sampled each second for 90 s after a warm-up.
fn mean_age_of(params: &Params, nodes: u32, seed: u64, warmup_s: f64) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let members: Vec<_> = (0..nodes).map(NodeId).collect();
    let mut windows: Vec<_> = members.iter().map(|&m| Window::new(m)).collect();
    let mut ticks: Vec<f64> = members.iter().map(|_| rng.random()).collect();
    let (mut sum, mut count, mut sample_at, mut seq) = (0.0, 0_u32, warmup_s, 0);
    while sample_at < warmup_s + 90.0 {
        let i = (0..ticks.len()).min_by(|&a, &b| ticks[a].total_cmp(&ticks[b])).unwrap();
        let now_s = ticks[i];
        if now_s >= sample_at {
            for window in &windows {
                assert_eq!(window.entries().count() as u32, nodes - 1, "somebody is not known");
                sum += window.entries().map(|h| h.age_s(sample_at)).sum::<f64>();
                count += nodes - 1;
            }
            sample_at += 1.0;
        }
        seq += 1;
        let news = windows[i].compose(params, record(i as u32, seq, 0, 0), now_s, &mut rng);
        let peer = pick_peer(&members, NodeId(i as u32), &mut rng).unwrap();
        windows[peer.0 as usize].merge(params, news, now_s);
        ticks[i] = now_s + params.next_tick_s(&mut rng);
    }
    sum / f64::from(count)
}

#[test]
fn mean_age_is_as_published() {
    for (nodes, published) in [(16, 2.81), (64, 4.00)] {
        let seeds = 0..2;
        let mean = seeds.clone().map(|s| mean_age(nodes, s)).sum::<f64>() / f64::from(seeds.end as u32);
        println!("{nodes} nodes: mean age {mean:.3} periods, published {published}");
        assert!((mean / published - 1.0).abs() < 0.10, "{nodes} nodes: {mean:.3} instead of {published}");
    }
}

/// N nodes with full vectors that send the newest W records, their own among them: the algorithm that the closed forms are for.
fn mean_age_with_window(nodes: u32, window: usize, seed: u64) -> f64 {
    let params = Params { message_len: window, least_len: 0, max_records: window, stale_periods: 1000.0, ..Params::default() };
    mean_age_of(&Params { window_len: nodes as usize, ..params }, nodes, seed, 100.0)
}

/// Periods are not in step, so news may travel several hops in one; the forms are for one hop a period. Where a message
/// tells of half of the cluster, (16, 8), that makes 13 %; from a quarter down it is within the 10 %.
#[test]
fn mean_age_follows_the_closed_form() {
    for (nodes, window) in [(16, 4), (32, 8), (64, 8), (64, 16), (128, 16)] {
        let seeds = 0..2;
        let mean = seeds.clone().map(|s| mean_age_with_window(nodes, window, s)).sum::<f64>() / f64::from(seeds.end as u32);
        let formula = age::mean_age(nodes as usize, window);
        println!("{nodes} nodes, window {window}: mean age {mean:.3} periods, formula {formula:.3}");
        assert!((mean / formula - 1.0).abs() < 0.10, "{nodes}, {window}: {mean:.3} instead of {formula:.3}");
    }
}

#[test]
fn news_of_a_death_reaches_all_and_is_refuted_by_life() {
    const NODES: u32 = 64;
    let params = Params::default();
    let mut rng = rng();
    let members: Vec<_> = (0..NODES).map(NodeId).collect();
    let mut windows: Vec<_> = members.iter().map(|&m| Window::new(m)).collect();
    let mut step = 0;
    let mut gossip = |windows: &mut Vec<Window>, silent: Option<u32>| {
        step += 1;
        for i in (0..NODES).filter(|i| Some(*i) != silent) {
            let peer = windows[i as usize].pick_living(&members, &mut rng).unwrap();
            let news = windows[i as usize].compose(&params, record(i, step, 0, 0), f64::from(step), &mut rng);
            if Some(peer.0) != silent {
                windows[peer.0 as usize].merge(&params, news, f64::from(step));
            }
        }
        f64::from(step)
    };
    let mut now_s = 0.0;
    for _ in 0..10 {
        now_s = gossip(&mut windows, None);
    }
    let finder = (0..NODES as usize).find(|w| windows[*w].get(NodeId(7)).is_some()).unwrap();
    windows[finder].died(&params, NodeId(7), NODES as usize, now_s);
    assert_eq!(windows[finder].standing(&params, NodeId(7), NODES as usize, now_s), Standing::Dead);
    // Twice the logarithm of 64 steps, and all know: nobody would send anything there.
    for _ in 0..12 {
        now_s = gossip(&mut windows, Some(7));
    }
    let believers = (0..NODES as usize).filter(|w| *w != 7 && windows[*w].get(NodeId(7)).is_some()).count();
    assert_eq!(believers, 0, "still believe that it lives");
    let told = (0..NODES as usize).filter(|w| windows[*w].standing(&params, NodeId(7), NODES as usize, now_s) == Standing::Dead).count();
    assert!(told >= 57, "only {told} were told");
    // It was only slow: its next records are newer, and it is back.
    for _ in 0..40 {
        now_s = gossip(&mut windows, None);
    }
    let dead = (0..NODES as usize).filter(|w| windows[*w].standing(&params, NodeId(7), NODES as usize, now_s) == Standing::Dead).count();
    assert!(dead < 20, "{dead} still think it dead");
    assert!((0..NODES as usize).any(|w| windows[w].get(NodeId(7)).is_some()));
}

#[test]
fn the_silent_are_suspected_and_floods_are_cut() {
    let params = Params::default();
    let mut window = Window::new(NodeId(0));
    window.merge(&params, message(vec![record(1, 1, 0, 0)]), 0.0);
    let standing = |window: &Window, now_s| window.standing(&params, NodeId(1), 4, now_s);
    assert_eq!(standing(&window, 5.0), Standing::Alive);
    assert_eq!(standing(&window, 30.0), Standing::Suspect);
    assert_eq!(window.standing(&params, NodeId(9), 4, 0.0), Standing::Unknown);
    // A thousand messages in a period: no more than the quota are read, an answer is.
    let read = (0..1000).filter(|i| window.merge(&params, message(vec![record(1, 2 + i, 0, 0)]), 100.0) > 0).count();
    assert_eq!(read, params.max_messages as usize);
    assert!(window.learn(&params, record(1, 5000, 0, 0), 100.0));
    assert_eq!(window.merge(&params, message(vec![record(1, 5001, 0, 0)]), 101.0), 1);
    // Deaths are bounded, too, and the own is not believed.
    let deaths: Vec<Death> = (0..1000).map(|n| Death { node: NodeId(n), incarnation: 9, seq: 9, priority: 255 }).collect();
    window.merge(&params, Message { records: vec![], deaths }, 102.0);
    let told = window.compose(&params, record(0, 1, 0, 0), 102.0, &mut rng());
    assert!(told.deaths.len() <= MAX_DEATHS && told.deaths.iter().all(|d| d.node != NodeId(0)), "{told:?}");
}

#[test]
fn the_newest_version_wins() {
    let params = Params::default();
    let mut window = Window::new(NodeId(0));
    assert_eq!(window.merge(&params, message(vec![record(1, 5, 3, 0)]), 10.0), 1);
    assert_eq!(window.merge(&params, message(vec![record(1, 5, 9, 0), record(1, 4, 9, 0)]), 11.0), 0);
    assert_eq!(window.get(NodeId(1)).unwrap().record.committed, 3);
    let restarted = Record { incarnation: 2, ..record(1, 0, 7, 500) };
    assert_eq!(window.merge(&params, message(vec![restarted]), 12.0), 1);
    let heard = window.get(NodeId(1)).unwrap();
    assert_eq!(heard.record.committed, 7);
    assert!((heard.age_s(12.0) - 0.5).abs() < 1e-9);
}

#[test]
fn the_own_node_the_stale_and_the_impossible_are_ignored() {
    let params = Params::default();
    let mut window = Window::new(NodeId(0));
    let bad = vec![
        record(0, 1, 0, 0),
        record(1, 1, 0, 60_001),
        Record { speed: f32::NAN, ..record(2, 1, 0, 0) },
        Record { speed: 0.0, ..record(3, 1, 0, 0) },
        Record { cpus: 0, ..record(4, 1, 0, 0) },
        Record { memory_free_bytes: u64::MAX, ..record(5, 1, 0, 0) },
        Record { load: f32::INFINITY, ..record(6, 1, 0, 0) },
    ];
    assert_eq!(window.merge(&params, message(bad), 0.0), 0);
    assert!(known(&window).is_empty());
    // What was heard goes stale.
    window.merge(&params, message(vec![record(1, 1, 0, 0)]), 0.0);
    assert_eq!(window.known(&params, 60.0).count(), 1);
    assert_eq!(window.known(&params, 60.1).count(), 0);
    window.merge(&params, message(vec![]), 61.0);
    assert!(known(&window).is_empty());
}

#[test]
fn an_overflowing_window_keeps_the_least_loaded() {
    let params = Params::default();
    let mut window = Window::new(NodeId(0));
    // Eight idle nodes, heard of first (so the oldest); then thirty loaded ones.
    for i in 1..=8 {
        window.merge(&params, message(vec![record(i, 1, 0, 0)]), 0.0);
    }
    for i in 9..=38 {
        window.merge(&params, message(vec![record(i, 1, 5, 0)]), 0.1 * f64::from(i));
    }
    let mut expected: Vec<u32> = (1..=8).collect();
    expected.extend(31..=38);
    assert_eq!(known(&window), expected);
    // No longer fresh, they are the oldest like any other.
    for i in 39..=46 {
        window.merge(&params, message(vec![record(i, 1, 5, 0)]), 10.5);
    }
    assert!(known(&window).iter().all(|&n| n > 8), "{:?}", known(&window));
}

#[test]
fn messages_carry_the_newest_and_the_least_loaded() {
    let params = Params::default();
    let mut window = Window::new(NodeId(0));
    for i in 1..=16 {
        let committed = if i <= 4 { 0 } else { 3 };
        window.merge(&params, message(vec![record(i, 1, committed, 0)]), f64::from(i) / 10.0);
    }
    let news = window.compose(&params, record(0, 1, 9, 0), 2.0, &mut rng());
    let nodes: Vec<u32> = news.records.iter().map(|r| r.node.0).collect();
    assert_eq!(nodes, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(news.records[1].age_ms, 1900);
    assert_eq!(window.hint_targets(&params, 2.0, 2).len(), 2);
    assert!(window.hint_targets(&params, 2.0, 2).iter().all(|n| n.0 > 4));
    window.forget(NodeId(16));
    window.retain_members(&[NodeId(1), NodeId(2)]);
    assert_eq!(known(&window), [1, 2]);
}

#[test]
fn peers_are_uniform_and_never_oneself() {
    let members: Vec<_> = (1..=5).map(NodeId).collect();
    let mut hits = [0_u32; 6];
    let mut rng = rng();
    for _ in 0..8000 {
        hits[pick_peer(&members, NodeId(3), &mut rng).unwrap().0 as usize] += 1;
    }
    assert_eq!(hits[3], 0);
    for i in [1, 2, 4, 5] {
        assert!((1800..2200).contains(&hits[i]), "{hits:?}");
    }
    assert_eq!(pick_peer(&[NodeId(3)], NodeId(3), &mut rng), None);
    assert_eq!(pick_peer(&[], NodeId(3), &mut rng), None);
}

#[test]
fn the_largest_message_fits_a_datagram() {
    let worst = Record {
        node: NodeId(u32::MAX),
        incarnation: u32::MAX,
        seq: u32::MAX,
        age_ms: u32::MAX,
        committed: u16::MAX,
        load: f32::MAX,
        speed: f32::MAX,
        cpus: u16::MAX,
        memory_total_bytes: u64::MAX,
        memory_free_bytes: u64::MAX,
        guests: u16::MAX,
        away: u16::MAX,
        closed: false,
        features: Features(u32::MAX),
        lag_mean_s: 0.0,
        lag_min_s: 0.0,
    };
    let worst_death = Death { node: NodeId(u32::MAX), incarnation: u32::MAX, seq: u32::MAX, priority: u8::MAX };
    let all = Message { records: vec![worst; MAX_RECORDS], deaths: vec![worst_death; MAX_DEATHS] };
    let bytes = postcard::to_stdvec(&all).unwrap();
    assert!(bytes.len() <= 1400 - 28, "{}", bytes.len());
}

fn any_record() -> impl Strategy<Value = Record> {
    (0_u32..40, 0_u32..3, any::<u32>(), 0_u32..70_000, any::<u16>(), any::<f32>(), any::<u16>(), any::<u64>()).prop_map(
        |(node, incarnation, seq, age_ms, committed, speed, cpus, memory)| Record {
            incarnation,
            speed,
            cpus,
            memory_free_bytes: memory,
            ..record(node, seq, committed, age_ms)
        },
    )
}

proptest! {
    #[test]
    fn windows_and_messages_stay_bounded(
        messages in prop::collection::vec(prop::collection::vec(any_record(), 0..40), 0..20),
        sane in any::<bool>(),
    ) {
        let params = Params::default();
        let mut window = Window::new(NodeId(0));
        let mut rng = rng();
        for (i, mut records) in messages.into_iter().enumerate() {
            if sane {
                for r in &mut records {
                    *r = record(r.node.0, r.seq, r.committed, r.age_ms);
                }
            }
            window.merge(&params, message(records), i as f64);
            prop_assert!(window.entries().count() <= params.window_len);
            prop_assert!(window.get(NodeId(0)).is_none());
            let news = window.compose(&params, record(0, 1, 0, 0), i as f64 + 0.5, &mut rng);
            prop_assert!(news.records.len() <= 12);
            let mut nodes: Vec<_> = news.records.iter().map(|r| r.node).collect();
            nodes.sort();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), news.records.len());
        }
    }
}
