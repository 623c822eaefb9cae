//! Runs scenario files and prints their tables: `pvm-bench sim` without its other ends.
fn main() {
    for path in std::env::args().skip(1) {
        let plan = mosix_sim::Plan::load(std::path::Path::new(&path)).expect("scenario");
        let report = mosix_sim::run_plan(&plan, &indicatif::ProgressBar::hidden()).expect("runs");
        println!("{}\n{:.1} s, {:.0} events/s, {:.0} B/node/s\n", report.markdown(), report.wall_s, report.events_per_s, report.bytes_per_node_per_s);
    }
}
