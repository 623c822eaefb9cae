//! `pvm-bench`: the paper's experiments on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use mosix_lab::{Lab, LabSpec, SlowNodes, StopFlag, default_run_dir, parse_fraction};
use pvm_bench::check::MIN_ENTITLEMENT;
use pvm_bench::free::FreeMigration;
use pvm_bench::row::Report;
use pvm_bench::scale::TimeScale;
use pvm_bench::table1::{self, LiveSide, Options};

/// Static placement by PVM against live balancing, on a lab of workstations.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The paper's Table 1: K identical processes of 300 s on 16 workstations
    Table1(Table1Args),
}

#[derive(Debug, Args)]
struct Table1Args {
    /// Numbers of processes [default: the paper's, and 30]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<u32>,
    /// Real seconds that stand for the paper's 300
    #[arg(long, default_value = "10", value_parser = time_scale)]
    time_scale: TimeScale,
    /// PVM's column only
    #[arg(long, conflicts_with = "control")]
    static_only: bool,
    /// As the live column, run the control: greedy balancing with migration that costs nothing
    #[arg(long)]
    control: bool,
    /// With --control: leave PVM's column out
    #[arg(long, requires = "control", conflicts_with = "static_only")]
    no_static: bool,
    /// Also write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    lab: LabArgs,
}

/// The lab to run in; it is taken down at the end.
#[derive(Debug, Args)]
struct LabArgs {
    /// Workstations
    #[arg(long, default_value_t = 16)]
    nodes: usize,
    /// Speed of a workstation as a share of one core
    #[arg(long, default_value = "0.05", value_parser = fraction)]
    speed: f64,
    /// Slower workstations, e.g. 13-16:1/3
    #[arg(long)]
    slow: Vec<SlowNodes>,
    /// Which lab; two at once need two ids
    #[arg(long, default_value = "bench")]
    id: String,
    /// Folder for its files [default: .lab in the workspace]
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

fn time_scale(text: &str) -> Result<TimeScale, String> {
    TimeScale::new(text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?)
}

fn fraction(text: &str) -> Result<f64, String> {
    parse_fraction(text).ok_or_else(|| format!("`{text}` is not a number, n/m or n%"))
}

impl LabArgs {
    fn up(self) -> mosix_lab::Result<Lab> {
        let run_dir = self.run_dir.unwrap_or_else(default_run_dir);
        let Self { nodes, speed, slow, id, .. } = self;
        Lab::up(&LabSpec { id, run_dir, nodes, speed, slow, ..LabSpec::default() })
    }
}

fn main() -> ExitCode {
    let Cli { command: Command::Table1(args) } = Cli::parse();
    match run_table1(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pvm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_table1(args: Table1Args) -> anyhow::Result<()> {
    if !args.static_only && !args.control {
        bail!("choose a side: --static-only (PVM's column) or --control (greedy balancing without cost beside it)");
    }
    let stop = StopFlag::install()?;
    let rows = if args.rows.is_empty() { table1::all_rows() } else { args.rows };
    let lab = args.lab.up()?;
    let options = Options { rows, scale: args.time_scale, with_static: !args.no_static };
    let mut control = if args.control { Some(FreeMigration::new()?) } else { None };
    let live = control.as_mut().map(|control| control as &mut dyn LiveSide);
    let report = table1::run(&lab, &options, live, &stop)?;
    lab.down()?;
    show(&report, args.json)
}

fn show(report: &Report, json: Option<PathBuf>) -> anyhow::Result<()> {
    println!("{}", report.table());
    println!("live side: {}", report.conditions.live_side);
    println!("times in seconds of the paper; {} real seconds stand for 300", report.conditions.time_scale_s);
    for row in report.rows.iter().filter(|row| row.entitlement < MIN_ENTITLEMENT) {
        println!("row {}: not to be trusted, the nodes got only {:.3} of their CPU", row.processes, row.entitlement);
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
