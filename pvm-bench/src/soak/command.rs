//! The command line of `pvm-bench soak`.

use std::path::PathBuf;

use clap::Args;
use mosix_lab::{Lab, LabSpec, StopFlag, default_run_dir};

use super::{Options, Report, run};
use crate::cluster::ConfigItem;
use crate::migrate::bad;
use crate::{Result, failed};

/// Part of the machine that the nodes may claim; only the lab's own check reads it, as the speed limit is off.
const CLAIM: f64 = 0.8;

/// Many moves under load: is anything lost, doubled, damaged or left behind?
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// Completed moves, all processes together
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    moves: u32,
    /// Workstations
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: u16,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A setting for all daemons, as in their configuration file: TABLE.KEY=VALUE; may be given again
    #[arg(long)]
    config: Vec<ConfigItem>,
    /// Also write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Which lab; two at once need two ids
    #[arg(long, default_value = "soak")]
    id: String,
    /// Folder for its files [default: .lab in the workspace]
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

/// Starts a lab, soaks, prints, and takes it down.
///
/// # Errors
/// What [`run`] says; a result that cannot be written; and, after everything has been printed, that it was not sound.
pub fn command(args: &SoakArgs) -> Result<()> {
    let stop = StopFlag::install()?;
    let run_dir = args.run_dir.clone().unwrap_or_else(default_run_dir);
    let nodes = usize::from(args.nodes);
    let lab = Lab::up(&LabSpec { id: args.id.clone(), run_dir, nodes, speed: CLAIM / nodes as f64, ..LabSpec::default() })?;
    let options = Options { moves: args.moves, seed: args.seed, config: args.config.clone() };
    let report = run(&lab, &options, &stop)?;
    lab.down()?;
    show(&report);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| bad(error.to_string()))?;
        std::fs::write(path, text).map_err(failed(format!("writing {}", path.display())))?;
    }
    if report.is_sound(args.moves) { Ok(()) } else { Err(bad("not everything was as it must be, see above")) }
}

fn show(report: &Report) {
    println!(
        "{} moves in {:.0} s; {} pages checked, {} wrong; {} processes lost, {} doubled",
        report.moves, report.seconds, report.checked_pages, report.bad_pages, report.lost, report.doubled
    );
    for (reason, count) in &report.stayed {
        println!("{count} times a process stayed: {reason}");
    }
    report.failures.iter().for_each(|failure| println!("failure: {failure}"));
    report.left_behind.iter().for_each(|left| println!("left behind: {left}"));
    if report.left_behind.is_empty() {
        println!("nothing left behind: processes, namespaces, mounts, control groups, descriptors, tmpfs");
    }
    let mib = |now: u64, then: u64| (now as f64 - then as f64) / f64::from(1 << 20);
    println!(
        "machine, everybody's: Shmem {:+.1} MiB, unreclaimable slab {:+.1} MiB; daemons' resident memory {:+.1} MiB",
        mib(report.after.machine_shmem_bytes, report.before.machine_shmem_bytes),
        mib(report.after.machine_slab_bytes, report.before.machine_slab_bytes),
        mib(report.after.daemons_rss_bytes, report.before.daemons_rss_bytes)
    );
    println!("kernel {}, load average {}", report.kernel, report.load_average);
}
