//! Judges processes as a mover would, and says how long looking took: `judge [-n RUNS] PID...`.

use std::time::Instant;

use mosix_engine::eligible::{AutoRules, Verdict, automatic, judge};
use mosix_engine::facts::{Own, collect};

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let runs = if arguments.next_if_eq("-n").is_some() { arguments.next().and_then(|runs| runs.parse().ok()).unwrap_or(1u32) } else { 1 };
    let own = match Own::collect(&[]) {
        Ok(own) => own,
        Err(error) => return println!("{error}"),
    };
    for pid in arguments.filter_map(|pid| pid.parse().ok()) {
        let mut best_us = u128::MAX;
        let mut found = collect(pid);
        for _ in 0..runs {
            let start = Instant::now();
            found = collect(pid);
            best_us = best_us.min(start.elapsed().as_micros());
        }
        match found {
            Err(error) => println!("{pid}: {error}"),
            Ok(facts) => {
                println!("{pid} ({}), looked at in {best_us} us:", facts.comm);
                match judge(&facts, &own) {
                    Verdict::Movable(plan) => println!("  can move: {plan:?}"),
                    Verdict::Stays(reasons) => reasons.iter().for_each(|reason| println!("  stays: {reason}")),
                }
                automatic(&facts, &AutoRules::default()).iter().for_each(|reason| println!("  not by itself: {reason}"));
            }
        }
    }
}
