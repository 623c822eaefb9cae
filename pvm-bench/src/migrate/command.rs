//! The command line of `pvm-bench migrate`.

use std::path::PathBuf;

use clap::Args;
use mosix_lab::{Lab, LabSpec, StopFlag, default_run_dir};

use super::report::{Report, table};
use super::{Options, bad, run};
use crate::{Result, failed};

/// Part of the machine that the nodes may claim; only the lab's own check reads it, as the speed limit is off.
const CLAIM: f64 = 0.8;
/// No node is set up faster than this.
const FASTEST: f64 = 0.4;

/// How long a process stands still when it is moved, as it sees it itself
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// 4 and 64 MiB, 0 and 10 MiB/s, 5 moves each
    #[arg(long)]
    quick: bool,
    /// Memory of the process, MiB [default: 4,64,1024; quick: 4,64]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    sizes: Vec<u64>,
    /// Written by it to random pages, MiB/s [default: 0,10,50; quick: 0,10]
    #[arg(long, value_delimiter = ',', value_parser = rate)]
    rates: Vec<f64>,
    /// Threads that write
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Vec<u32>,
    /// Moves of each process [default: 50; quick: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    moves: Option<u32>,
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

impl MigrateArgs {
    fn options(&self) -> Options {
        let list = |given: &[f64], quick: &[f64], full: &[f64]| match (given, self.quick) {
            ([], true) => quick.to_vec(),
            ([], false) => full.to_vec(),
            (given, _) => given.to_vec(),
        };
        let sizes = match (self.sizes.as_slice(), self.quick) {
            ([], true) => vec![4, 64],
            ([], false) => vec![4, 64, 1024],
            (given, _) => given.to_vec(),
        };
        Options {
            sizes_mib: sizes,
            rates_mib_s: list(&self.rates, &[0.0, 10.0], &[0.0, 10.0, 50.0]),
            threads: self.threads.clone(),
            moves: self.moves.unwrap_or(if self.quick { 5 } else { 50 }),
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
    println!("blackout: {}", conditions.clock);
    println!("vs criu: median blackout as a share of that of {}", conditions.baseline);
    println!(
        "kernel {}, {} cpus, criu {}, {} build, {} nodes, speed limit {}, {} ms between moves",
        conditions.kernel, conditions.cpus, conditions.criu, conditions.profile, conditions.nodes, conditions.quota, conditions.pause_ms
    );
    println!("load average {} before, {} after", conditions.load_average_before, conditions.load_average_after);
    for skipped in &report.skipped {
        println!("not measured: {skipped}");
    }
    for row in &report.rows {
        for failure in &row.failures {
            println!("{}, {} MiB: {failure}", row.kind, row.rss_bytes >> 20);
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
        let wanted = Options { sizes_mib: vec![4, 64], rates_mib_s: vec![0.0, 10.0], threads: vec![1], moves: 5 };
        assert_eq!(quick, wanted);
        let full = options("").unwrap();
        assert_eq!((full.sizes_mib.as_slice(), full.moves), (&[4, 64, 1024][..], 50));
        let given = options("--quick --sizes 8 --rates 2.5,0 --threads 1,32 --moves 7").unwrap();
        assert_eq!(given, Options { sizes_mib: vec![8], rates_mib_s: vec![2.5, 0.0], threads: vec![1, 32], moves: 7 });
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--sizes 0", "--rates -1", "--rates NaN", "--threads 0", "--moves 0", "--nodes 1", "--moves x"] {
            assert!(options(line).is_none(), "{line}");
        }
    }
}
