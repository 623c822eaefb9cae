//! The simulator itself: it is deterministic, loses nothing, and refuses nonsense.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosix_sim::{Plan, World};
use proptest::prelude::*;

fn plan(text: &str) -> Plan {
    Plan::parse("test", text).unwrap()
}

fn world(text: &str, seed: u64) -> World {
    World::new(Arc::new((*plan(text).runs[0].scenario).clone()), seed).unwrap()
}

const SMALL: &str = "
name = 'small'
warmup_s = 5
[[nodes]]
count = 8
[[jobs]]
count = 20
work_s = { uniform = [5.0, 50.0] }
born = 'first'
";

#[test]
fn the_same_seed_gives_the_same_run() {
    let (a, b, c) = (world(SMALL, 1), world(SMALL, 1), world(SMALL, 2));
    let (a, b, c) = (a.traced().run().unwrap(), b.traced().run().unwrap(), c.traced().run().unwrap());
    assert!(!a.1.is_empty());
    assert_eq!((&a.0, &a.1), (&b.0, &b.1));
    assert_ne!(a.1, c.1);
}

#[test]
fn one_process_alone_takes_its_work_and_two_on_one_cpu_twice() {
    let text = |nodes, cpus, count| {
        format!(
            "name = 'n'\n[policy]\nfixed = true\n[[nodes]]\ncount = {nodes}\ncpus = {cpus}\nspeed = 2.0\n[[jobs]]\ncount = {count}\nwork_s = 100.0\nborn = 'first'\n"
        )
    };
    for (cpus, count, expected_s) in [(1, 1, 50.0), (1, 2, 100.0), (2, 2, 50.0), (2, 3, 75.0)] {
        let (result, _, _) = world(&text(1, cpus, count), 1).run().unwrap();
        assert!((result.makespan_s - expected_s).abs() < 1e-6, "{cpus} {count}: {}", result.makespan_s);
    }
}

#[test]
fn work_is_conserved() {
    // All ends at the same moment as one big processor sharing would have it, never before.
    let (result, _, _) = world(SMALL, 3).checked().run().unwrap();
    assert_eq!(result.ended, 20);
    assert!(result.makespan_s >= result.clairvoyant_s);
}

#[test]
fn decisions_replay() {
    let (_, _, cases) = world(SMALL, 4).recording(100).run().unwrap();
    assert!(cases.len() > 5);
    for case in cases.iter() {
        assert_eq!(case.replay(), case.outcome);
        let json = serde_json::to_string(case).unwrap();
        let back: mosix_policy::Case = serde_json::from_str(&json).unwrap();
        assert_eq!(back.replay(), case.outcome);
    }
}

#[test]
fn nonsense_is_refused_in_words() {
    let cases = [
        ("name = 'x'", "missing field `nodes`"),
        ("name = 'x'\n[[nodes]]\ncount = 0\n", "must be from 1"),
        ("name = 'x'\n[[nodes]]\ncount = 1\nspeed = -1.0\n", "nodes.speed"),
        ("name = 'x'\n[[nodes]]\ncount = 1\nspede = 1.0\n", "unknown field `spede`"),
        ("name = 'x'\n[[nodes]]\ncount = 1000000\n", "100000"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[policy.params]\nmargin = -1.0\n", "margin"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[policy.params]\nwindow = 3\n", "window"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[[jobs]]\ncount = 1\nwork_s = { uniform = [3.0, 1.0] }\n", "jobs.work_s"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[[jobs]]\ncount = 1\nwork_s = nan\n", "jobs.work_s"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[[variants]]\nname = 'v'\nset = { 'jobs.3.count' = 1 }\n", "expected a sequence"),
        ("name = 'x'\n[[nodes]]\ncount = 1\n[[sweep]]\npath = 'nodes.7.count'\nvalues = [1]\n", "no place"),
        ("what is this", "test"),
    ];
    for (text, expected) in cases {
        let error = Plan::parse("test", text).unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}

#[test]
fn results_have_the_promised_keys() {
    let text = format!(
        "{SMALL}\n[[sweep]]\npath = 'jobs.0.count'\nvalues = [4, 9]\n[[variants]]\nname = 'a'\n[[variants]]\nname = 'b, c'\nset = {{ 'policy.fixed' = true }}\n"
    );
    let report = mosix_sim::run_plan(&plan(&text), &indicatif::ProgressBar::hidden()).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    let keys = [
        "makespan_s",
        "mean_slowdown",
        "p99_slowdown",
        "migrations",
        "peak_load",
        "balanced_after_s",
        "bytes_per_node_per_s",
        "events_per_s",
    ];
    for key in keys {
        assert!(json[key].is_number(), "{key}: {}", json[key]);
        assert!(report.points.iter().all(|p| p.figures.contains_key(key) || key == "balanced_after_s"), "{key}");
    }
    assert_eq!(report.points.len(), 4);
    let csv = report.csv();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(lines[0].contains("makespan_s,makespan_s_ci95") && lines[4].contains("\"b, c\""), "{csv}");
    assert!(report.markdown().lines().count() >= 8);
}

#[test]
fn owners_get_their_nodes_back() {
    let text = "name = 'o'\nwarmup_s = 5\nlimit_s = 40\nto_the_limit = true\n[[nodes]]\ncount = 8\n[[jobs]]\ncount = 16\nwork_s = 1000.0\nborn = 'first'\n\
                [[owners]]\nnodes = 2\nskip_nodes = 3\nfrom_s = 20.0\nuntil_s = 40.0\n";
    let (result, trace, _) = world(text, 1).checked().traced().run().unwrap();
    assert!(result.moves.get("evict").copied().unwrap_or(0) >= 2, "{:?}", result.moves);
    let mut at: BTreeMap<usize, usize> = BTreeMap::new();
    for step in &trace {
        at.insert(step.process, step.to);
        assert!(step.at_s < 27.0 || !(3..5).contains(&step.to), "a guest came to an owner's node: {step:?}");
    }
    assert!(at.values().all(|n| !(3..5).contains(n)), "guests stayed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is lost, doubled, late, or crashes: every process is at exactly one place after every single event, counts agree,
    /// and none is moved more often than its cool-down allows.
    #[test]
    fn every_process_is_at_exactly_one_node(
        seed in any::<u64>(),
        loss in 0.0..0.4,
        duplicates in 0.0..0.4,
        delay_ms in 0.0..900.0,
        crash_every_s in prop_oneof![Just(0.0), 20.0..200.0],
        partition_at_s in prop_oneof![Just(0.0), 1.0..40.0],
        rotation in any::<bool>(),
        placed in any::<bool>(),
        counts in prop::collection::vec(0_usize..14, 1..4),
    ) {
        let mut text = format!(
            "name = 'chaos'\nwarmup_s = 3\nlimit_s = 200\n[[nodes]]\ncount = 5\nmemory_mb = 900.0\n[[nodes]]\ncount = 2\nspeed = 0.4\ncpus = 2\nmemory_mb = 700.0\n\
             [network]\nloss = {loss}\nduplicates = {duplicates}\ndelay_ms = {{ uniform = [0.0, {delay_ms}] }}\n\
             [policy]\nplace_at_birth = {placed}\n[policy.params]\nrotation = {rotation}\n\
             [churn]\ncrash_every_s = {crash_every_s}\npartition_at_s = {partition_at_s}\npartition_s = 20.0\n\
             [[owners]]\nnodes = 1\nfrom_s = 10.0\nuntil_s = 30.0\ndrain = true\n\
             [[background]]\ncount = 3\non_s = {{ uniform = [0.0, 9.0] }}\noff_s = {{ exponential = 5.0 }}\n"
        );
        for (i, count) in counts.iter().enumerate() {
            text += &format!(
                "[[jobs]]\ncount = {}\nwork_s = {{ pareto = [1.0, 1.0, 60.0] }}\nmemory_mb = {{ uniform = [1.0, 300.0] }}\ndirty = 0.3\nkappa = 0.{i}\napart = 0.5\nborn = 'first'\n",
                2 * count
            );
        }
        let (result, trace, _) = world(&text, seed).checked().traced().run().map_err(TestCaseError::fail)?;
        let jobs: usize = counts.iter().map(|c| 2 * c).sum();
        prop_assert_eq!(result.ended + result.lost + result.unfinished, jobs);
        // At most what the cool-down allows: in any 15 periods, residencies of 0.5, 1, 2, 4 and 8 s, and the moves by memory's or owners' need.
        let mut by_process: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for step in trace.iter().filter(|s| s.rule != mosix_policy::Rule::Evict) {
            by_process.entry(step.process).or_default().push(step.at_s);
        }
        for times in by_process.values() {
            for (i, from) in times.iter().enumerate() {
                let within = times.iter().skip(i).take_while(|t| *t - from <= 15.0).count();
                prop_assert!(within <= 7, "{within} moves in 15 s: {times:?}");
            }
        }
    }

    /// With constant load and rotation off moving comes to an end.
    #[test]
    fn constant_load_comes_to_rest(seed in any::<u64>(), speeds in prop::collection::vec(0.2..3.0, 2..9), count in 1_usize..60) {
        let mut text = String::from("name = 'rest'\nwarmup_s = 5\nlimit_s = 200\nto_the_limit = true\n");
        for speed in &speeds {
            text += &format!("[[nodes]]\ncount = 1\nspeed = {speed}\n");
        }
        text += &format!("[[jobs]]\ncount = {count}\nwork_s = 1e6\nborn = 'first'\n");
        let (result, trace, _) = world(&text, seed).checked().traced().run().map_err(TestCaseError::fail)?;
        prop_assert!(trace.iter().all(|s| s.at_s < 130.0), "still moving: {:?}", trace.last());
        prop_assert!(result.migrations as usize <= 3 * count, "{} moves of {count}", result.migrations);
    }
}
