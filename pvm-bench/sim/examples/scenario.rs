//! Runs scenario files and prints their tables: `pvm-bench sim` without its other ends.
fn main() {
    for path in std::env::args().skip(1) {
        let plan = mosix_sim::Plan::load(std::path::Path::new(&path)).expect("scenario");
        if std::env::var("MOVES").is_ok() {
            for run in plan.runs.iter().step_by(plan.runs.first().map_or(1, |r| r.scenario.runs as usize)) {
                let (r, ..) = mosix_sim::World::new(run.scenario.clone(), run.seed).expect("world").run().expect("run");
                println!("{} {} {:.1} {:?} most {}", run.variant_name, run.point, r.makespan_s, r.moves, r.most_moves);
            }
            continue;
        }
        let report = mosix_sim::run_plan(&plan, &indicatif::ProgressBar::hidden()).expect("runs");
        println!(
            "{}\n{:.1} s, {:.0} events/s, {:.0} B/node/s\n",
            report.markdown(),
            report.wall_s,
            report.events_per_s,
            report.bytes_per_node_per_s
        );
    }
}
