//! An adversary against the commit protocol: see the promise in `mosix_engine::commit`.

mod world;

use proptest::prelude::*;
use world::{Body, Tally, World};

/// One step: what, and which of the messages.
type Step = (u8, u8);

fn step(world: &mut World, (what, which): Step) {
    let even = which.is_multiple_of(2);
    let chosen = (!world.net.is_empty()).then(|| usize::from(which) % world.net.len().max(1));
    match (what % 32, chosen) {
        // Delivering is the most common, so that runs get somewhere.
        (0..=11, Some(at)) => {
            let message = world.net.remove(at);
            world.deliver(message);
        }
        (12 | 13, _) if !world.sent.is_empty() => {
            let message = world.sent[usize::from(which) % world.sent.len()].clone();
            world.deliver(message);
        }
        (14, Some(at)) => {
            world.net.remove(at);
        }
        (15, _) => world.begin(),
        (16 | 17, _) => world.write_log(),
        (18, _) => world.finish_dump(which % 8 != 0),
        (19..=22, _) => world.destination_works(which % 8 != 0),
        (23, _) => world.timeouts(),
        (24, _) if which % 4 == 0 => world.cut(),
        (25, _) => world.notice(even),
        (26, _) => world.join(),
        (27, _) => world.lease(even),
        (28, _) => world.home_gives_up(),
        (29, _) if which % 4 == 0 => world.crash_destination(),
        (30, _) if which % 16 == 0 => world.kill_source(),
        (31, _) if which % 4 < 2 => world.restart_home(even),
        _ => {}
    }
}

/// The adversary comes after so many undisturbed steps, so that late states get their share of trouble.
fn run(quiet: u8, steps: &[Step], silence_is_proof: bool) -> (World, Tally) {
    let mut world = World::new(silence_is_proof);
    world.begin();
    for _ in 0..quiet {
        world.quietly();
    }
    for &next in steps {
        step(&mut world, next);
        world.check();
    }
    world.settle();
    let tally = world.tally.clone();
    (world, tally)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_and_never_none(quiet in 0..24u8, steps in proptest::collection::vec(any::<Step>(), 0..160), silence in any::<bool>()) {
        run(quiet, &steps, silence);
    }
}

/// The adversary is no straw man: in its hands every outcome happens.
#[test]
fn every_outcome_is_reached() {
    let mut sum = Tally::default();
    let mut seed = 1u64;
    for _ in 0..4000 {
        let steps: Vec<Step> = (0..120)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((seed >> 33) as u8, (seed >> 48) as u8)
            })
            .collect();
        let (_, tally) = run(seed as u8 % 24, &steps, false);
        sum.moved += tally.moved;
        sum.stayed += tally.stayed;
        sum.in_doubt += tally.in_doubt;
        sum.lost += tally.lost;
        sum.ended += tally.ended;
    }
    println!("{sum:?}");
    assert!(sum.moved > 0 && sum.stayed > 0 && sum.in_doubt > 0 && sum.lost > 0 && sum.ended > 0, "{sum:?}");
}

#[test]
fn undisturbed_it_moves() {
    let (world, tally) = run(0, &[], false);
    assert_eq!(tally, Tally { moved: 1, ..Tally::default() });
    assert_eq!((world.source_body, world.copy), (Body::None, Body::Running));
}
