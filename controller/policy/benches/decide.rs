//! How long decisions take, for a window of 64 and 100 local processes. Target: `decide` below 5 us.

#![allow(missing_docs)] // The macros make the functions.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mosix_policy::{
    Candidate, Dice, Features, Figures, Local, Message, NodeId, Params, Partner, Record, Stance, Window, decide, pick_peer,
};
use rand::SeedableRng;

const GIB: u64 = 1 << 30;

fn record(node: u32, committed: u16) -> Record {
    Record {
        node: NodeId(node),
        incarnation: 1,
        seq: 1,
        age_ms: node * 7 % 5000,
        committed,
        load: f32::from(committed),
        speed: 1.0,
        cpus: 4,
        memory_total_bytes: 64 * GIB,
        memory_free_bytes: 32 * GIB,
        guests: 0,
        away: 0,
        closed: false,
        features: Features(u32::MAX),
        lag_mean_s: 0.5,
        lag_min_s: -3.0,
    }
}

fn window(params: &Params, committed: impl Fn(u32) -> u16) -> Window {
    let mut window = Window::new(NodeId(0));
    let params = Params { max_records: 1000, ..params.clone() };
    window.merge(&params, Message { records: (1..=64).map(|n| record(n, committed(n))).collect(), deaths: vec![] }, 0.0);
    window
}

fn local(committed: u16, guests: bool) -> Local {
    let candidates = (0..100).map(|key| Candidate {
        key,
        cpu_age_s: 10.0 + key as f64,
        wall_age_s: 100.0,
        resident_s: 50.0,
        memory_bytes: GIB / 16,
        home: NodeId(if guests { 1 + (key % 64) as u32 } else { 0 }),
        kappa: 0.02,
        cost_s: 0.2,
        in_flight: false,
        pinned: false,
        needs: Features(3),
        lag_s: key as f64 * 0.01,
        restless: 0.3,
        partners: if guests { vec![Partner { node: NodeId(1 + (key % 60) as u32), apart: 0.1 }] } else { Vec::new() },
    });
    let figures = Figures { node: NodeId(0), speed: 1.0, cpus: 4, committed, memory_total_bytes: 64 * GIB, memory_used_bytes: 32 * GIB };
    Local { figures, incoming: 0, outgoing: 0, stance: Stance::Open, candidates: candidates.collect() }
}

fn decisions(c: &mut Criterion) {
    let params = Params::default().for_cluster(1000);
    let rotation = Params { rotation: true, ..params.clone() };
    let even = window(&params, |_| 100);
    let uneven = window(&params, |n| 80 + (n % 40) as u16);
    let mut rng = Dice::seed_from_u64(1);
    for (name, params, local, view) in [
        ("nothing to do", &params, local(100, false), &even),
        ("a move", &params, local(100, false), &uneven),
        ("a move among 100 guests with partners", &params, local(100, true), &uneven),
        ("rotation", &rotation, local(100, false), &even),
    ] {
        c.bench_function(&format!("decide, window 64, 100 processes: {name}"), |b| {
            b.iter(|| decide(black_box(params), black_box(&local), black_box(view), 1.0, &mut rng, &[]));
        });
    }
}

fn dissemination(c: &mut Criterion) {
    let params = Params::default().for_cluster(1000);
    let mut rng = Dice::seed_from_u64(1);
    let mut from = window(&params, |n| (n % 5) as u16);
    c.bench_function("compose, window 64", |b| b.iter(|| from.compose(&params, record(0, 1), black_box(1.0), &mut rng)));
    let mut to = window(&params, |n| (n % 7) as u16);
    let (mut seq, mut now_s) = (1, 1.0);
    c.bench_function("merge, window 64, 17 records", |b| {
        b.iter(|| {
            seq += 1;
            now_s += 0.02;
            let records = (0..17).map(|i| Record { seq, age_ms: i, ..record(1 + (seq * 17 + i) % 400, (i % 6) as u16) });
            to.merge(&params, Message { records: records.collect(), deaths: vec![] }, now_s)
        });
    });
    let members: Vec<NodeId> = (0..100_000).map(NodeId).collect();
    c.bench_function("pick_peer of 100,000", |b| b.iter(|| pick_peer(black_box(&members), NodeId(7), &mut rng)));
}

criterion_group!(benches, decisions, dissemination);
criterion_main!(benches);
