//! The command line of `pvm-bench migrate`.

use std::path::PathBuf;

use clap::Args;
use mosix_lab::{Lab, LabSpec, StopFlag, default_run_dir};

use super::load::Program;
use super::report::{Report, table};
use super::{Options, bad, run};
use crate::cluster::ConfigItem;
use crate::{Result, failed};

/// Part of the machine that the nodes may claim; only the lab's own check reads it, as the speed limit is off.
const CLAIM: f64 = 0.8;
/// No node is set up faster than this.
const FASTEST: f64 = 0.4;

/// How long a process stands still when it is moved, as it sees it itself
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Small: 4 and 64 MiB, 0 and 10 MiB/s, 1 thread, 5 moves each
    #[arg(long)]
    quick: bool,
    /// Programs [default: churn,python,node,java]
    #[arg(long, value_delimiter = ',', value_enum)]
    programs: Vec<Program>,
    /// Memory of the process, MiB [default: 4,64,1024,4096; quick: 4,64; other programs than churn: 64, quick: 16]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    sizes: Vec<u64>,
    /// Written by it to random pages, MiB/s [default: 0,10,50,200; quick: 0,10]
    #[arg(long, value_delimiter = ',', value_parser = rate)]
    rates: Vec<f64>,
    /// Threads that write [default: 1,32; quick: 1]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Vec<u32>,
    /// Memory of the memory-bound program whose slow-down is measured, MiB; 0: leave it out [default: 256; quick: 64]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(0..=1 << 16))]
    walks: Vec<u64>,
    /// Moves of each process [default: 50; quick: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    moves: Option<u32>,
    /// Leave plain CRIU out
    #[arg(long)]
    no_baseline: bool,
    /// A setting for all daemons, as in their configuration file: TABLE.KEY=VALUE; may be given again
    #[arg(long)]
    config: Vec<ConfigItem>,
    /// Workstations; the process goes round them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: u16,
    /// Also write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Which lab; two at once need two ids
    #[arg(long, default_value = "migrate")]
    id: String,
    /// Folder for its files [default: .lab in the workspace]
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    let rate = text.parse().map_err(|_| format!("`{text}` is not a number of MiB/s"))?;
    if (0.0..=1e5).contains(&rate) { Ok(rate) } else { Err(format!("{text} MiB/s is not within 0 and 100000")) }
}

/// What was given, else one of two defaults.
fn or<T: Clone>(given: &[T], is_quick: bool, quick: &[T], full: &[T]) -> Vec<T> {
    match (given, is_quick) {
        ([], true) => quick.to_vec(),
        ([], false) => full.to_vec(),
        (given, _) => given.to_vec(),
    }
}

impl MigrateArgs {
    fn options(&self) -> Options {
        const PROGRAMS: [Program; 4] = [Program::Churn, Program::Python, Program::Node, Program::Java];
        let mut walks_mib = or(&self.walks, self.quick, &[64], &[256]);
        walks_mib.retain(|mib| *mib > 0);
        Options {
            programs: or(&self.programs, self.quick, &PROGRAMS, &PROGRAMS),
            sizes_mib: or(&self.sizes, self.quick, &[4, 64], &[4, 64, 1024, 4096]),
            rates_mib_s: or(&self.rates, self.quick, &[0.0, 10.0], &[0.0, 10.0, 50.0, 200.0]),
            threads: or(&self.threads, self.quick, &[1], &[1, 32]),
            other_sizes_mib: or(&self.sizes, self.quick, &[16], &[64]),
            walks_mib,
            moves: self.moves.unwrap_or(if self.quick { 5 } else { 50 }),
            baseline: !self.no_baseline,
            config: self.config.clone(),
        }
    }
}

/// Starts a lab, measures in it, prints, and takes it down.
///
/// # Errors
/// What [`run`] says; a result that cannot be written; and, after everything has been printed, that a move failed or memory was wrong.
pub fn command(args: &MigrateArgs) -> Result<()> {
    let stop = StopFlag::install()?;
    let run_dir = args.run_dir.clone().unwrap_or_else(default_run_dir);
    let nodes = usize::from(args.nodes);
    let speed = FASTEST.min(CLAIM / nodes as f64);
    let lab = Lab::up(&LabSpec { id: args.id.clone(), run_dir, nodes, speed, ..LabSpec::default() })?;
    let report = run(&lab, &args.options(), &stop)?;
    lab.down()?;
    show(&report);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| bad(error.to_string()))?;
        std::fs::write(path, text).map_err(failed(format!("writing {}", path.display())))?;
    }
    let unsound = report.rows.iter().filter(|row| !row.is_sound()).count();
    if unsound == 0 { Ok(()) } else { Err(bad(format!("{unsound} of {} processes had trouble, see above", report.rows.len()))) }
}

fn show(report: &Report) {
    let conditions = &report.conditions;
    println!("{}", table(report));
    for one in &report.slow_down {
        let percent = one.slow_down_p50_percent.map_or_else(|| "not known".into(), |percent| format!("{percent:.1} %"));
        println!(
            "slow-down of a program that walks through {} MiB, between request and blackout: median {percent} of {} moves",
            one.walk_bytes >> 20,
            one.slow_down_percent.len()
        );
        one.failures.iter().for_each(|failure| println!("  {failure}"));
    }
    println!("blackout: {}", conditions.clock);
    println!("plain criu: {}", conditions.baseline);
    println!("of allowed: the most that a move sent, as a share of resident memory + 2.5 times what was written meanwhile");
    println!("CPU ms: source + target; {}", conditions.cpu);
    println!(
        "kernel {}, {} cpus, criu {}, {} build, {} nodes, speed limit {}, {} ms between moves",
        conditions.kernel, conditions.cpus, conditions.criu, conditions.profile, conditions.nodes, conditions.quota, conditions.pause_ms
    );
    println!("link: {}", conditions.link);
    println!(
        "machine {}: others used {:.0} % before and {:.0} % after; load average {} before, {} after",
        if conditions.quiet { "quiet" } else { "NOT quiet" },
        conditions.busy_before * 100.0,
        conditions.busy_after * 100.0,
        conditions.load_average_before,
        conditions.load_average_after
    );
    for item in &conditions.config {
        println!("configuration: {item}");
    }
    report.skipped.iter().for_each(|skipped| println!("skipped: {skipped}"));
    if !report.skipped.is_empty() {
        println!("{} loads were skipped", report.skipped.len());
    }
    for row in &report.rows {
        for failure in row.failures() {
            println!("{}, {} MiB {failure}", row.kind, row.mosix.rss_bytes >> 20);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: MigrateArgs,
    }

    fn options(line: &str) -> Option<Options> {
        Cli::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).ok().map(|cli| cli.args.options())
    }

    #[test]
    fn quick_is_small_and_what_is_given_counts() {
        let quick = options("--quick").unwrap();
        assert_eq!((quick.sizes_mib.as_slice(), quick.rates_mib_s.as_slice()), (&[4, 64][..], &[0.0, 10.0][..]));
        assert_eq!((quick.moves, quick.baseline, quick.programs.len()), (5, true, 4));
        // 2 sizes x 2 rates of churn, 1 x 2 of each other program.
        assert_eq!(quick.loads().len(), 4 + 3 * 2);
        let full = options("").unwrap();
        assert_eq!((full.sizes_mib.as_slice(), full.threads.as_slice(), full.moves), (&[4, 64, 1024, 4096][..], &[1, 32][..], 50));
        let line = "--quick --programs shuffle --sizes 8 --rates 2.5 --threads 1,32 --moves 7 --walks 0 --no-baseline --config a.b=1";
        let given = options(line).unwrap();
        let wanted = Options {
            programs: vec![Program::Shuffle],
            sizes_mib: vec![8],
            rates_mib_s: vec![2.5],
            threads: vec![1, 32],
            other_sizes_mib: vec![8],
            walks_mib: vec![],
            moves: 7,
            baseline: false,
            config: vec!["a.b=1".parse().unwrap()],
        };
        assert_eq!(given, wanted);
        assert_eq!(given.loads().len(), 1, "its threads are its own matter");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "--sizes 0",
            "--rates -1",
            "--rates NaN",
            "--threads 0",
            "--moves 0",
            "--nodes 1",
            "--moves x",
            "--programs perl",
            "--config x",
        ] {
            assert!(options(line).is_none(), "{line}");
        }
    }
}
