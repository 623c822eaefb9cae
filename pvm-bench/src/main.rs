//! `pvm-bench`: the paper's experiments on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use mosix_lab::{Lab, LabSpec, SlowNodes, StopFlag, default_run_dir, parse_fraction};
use pvm_bench::check::MIN_ENTITLEMENT;
use pvm_bench::cluster::Cluster;
use pvm_bench::free::FreeMigration;
use pvm_bench::idle;
use pvm_bench::live::{Live, Start};
use pvm_bench::migrate::command::{MigrateArgs, command};
use pvm_bench::migrate::copy_end::CopyEndArgs;
use pvm_bench::row::{Report, report_table};
use pvm_bench::scale::TimeScale;
use pvm_bench::soak::command::{SoakArgs, command as soak};
use pvm_bench::table1::{self, Options};

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
    /// What the daemons of an idle cluster cost
    Idle(IdleArgs),
    /// How long a process stands still when it is moved, as it sees it itself; beside it plain CRIU
    Migrate(MigrateArgs),
    /// Many moves under load: is anything lost, doubled, damaged or left behind?
    Soak(SoakArgs),
    /// Simulates a cluster of any size, with the daemon's own policy
    Sim(pvm_bench::sim::SimArgs),
    /// What `migrate` runs inside its nodes
    #[command(hide = true)]
    CopyEnd(CopyEndArgs),
}

#[derive(Debug, Args)]
struct Table1Args {
    /// Numbers of processes [default: the paper's, and 30]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<u32>,
    /// Real seconds that stand for the paper's 300
    #[arg(long, default_value = "10", value_parser = time_scale)]
    time_scale: TimeScale,
    /// Numbers of processes that are started on one node, their user's home, and spread from there
    #[arg(long, value_delimiter = ',', default_value = "17")]
    home_rows: Vec<u32>,
    /// Leave these rows out
    #[arg(long)]
    no_home: bool,
    /// Repetitions of everything; the table then shows the median and the spread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Leave the lab and its daemons up, and tell how to look around
    #[arg(long)]
    keep: bool,
    /// PVM's column only
    #[arg(long, conflicts_with_all = ["control", "keep"])]
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

#[derive(Debug, Args)]
struct IdleArgs {
    /// Seconds to look
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Gossip and decision period, ms
    #[arg(long, default_value_t = 1000)]
    period_ms: u64,
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

/// The processes that start at home need longer runs: the paper's 300 s are three times as many of ours.
const HOME_SCALE: f64 = 3.0;

impl LabArgs {
    fn up(self, keep: bool) -> mosix_lab::Result<Lab> {
        let run_dir = self.run_dir.unwrap_or_else(default_run_dir);
        let Self { nodes, speed, slow, id, .. } = self;
        Lab::up(&LabSpec { id, run_dir, nodes, speed, slow, keep, ..LabSpec::default() })
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Table1(args) => run_table1(args),
        Command::Idle(args) => run_idle(args),
        Command::Migrate(args) => command(&args).map_err(anyhow::Error::from),
        Command::Soak(args) => soak(&args).map_err(anyhow::Error::from),
        Command::Sim(args) => pvm_bench::sim::command(&args),
        Command::CopyEnd(args) => return pvm_bench::migrate::copy_end::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pvm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_table1(args: Table1Args) -> anyhow::Result<()> {
    let stop = StopFlag::install()?;
    let Table1Args { rows, time_scale, home_rows, no_home, runs, keep, static_only, control, no_static, json, lab } = args;
    let options = Options { rows: if rows.is_empty() { table1::all_rows() } else { rows }, scale: time_scale, with_static: !no_static };
    let started = Instant::now();
    let lab = lab.up(keep)?;
    eprintln!("lab: {} workstations up in {:.1} s", lab.nodes().len(), started.elapsed().as_secs_f64());
    let what = if static_only {
        Side::Static
    } else if control {
        Side::Control
    } else {
        Side::Live { home_rows: if no_home { Vec::new() } else { home_rows } }
    };
    let result = measure(&lab, &options, &what, runs, &stop).and_then(|(reports, cluster)| {
        show(&reports, json)?;
        Ok(cluster)
    });
    match result {
        Ok(Some(cluster)) if keep => {
            lab.set_quota(true)?;
            tell_how_to_look_around(&lab, &cluster);
            cluster.leave_running();
            Ok(())
        }
        other => {
            drop(other?);
            Ok(lab.down()?)
        }
    }
    .inspect_err(|_: &anyhow::Error| drop(lab.down()))
}

fn run_idle(args: IdleArgs) -> anyhow::Result<()> {
    let stop = StopFlag::install()?;
    let lab = args.lab.up(false)?;
    let uses = idle::measure(&lab, args.period_ms, Duration::from_secs(args.seconds), &stop)?;
    println!("{} idle daemons, period {} ms, over {} s; median (least-most) of all daemons:", uses.len(), args.period_ms, args.seconds);
    println!("  CPU          {} % of one CPU", idle::spread(&uses, |one| one.cpu * 100.0, 3));
    println!("  resident     {} MiB", idle::spread(&uses, |one| one.rss_bytes as f64 / 1048576.0, 1));
    println!("  of it alone  {} MiB", idle::spread(&uses, |one| one.private_bytes as f64 / 1048576.0, 1));
    println!("  datagrams    {} per s", idle::spread(&uses, |one| one.datagrams_per_s, 2));
    if let Some(path) = args.json {
        std::fs::write(&path, serde_json::to_string_pretty(&uses)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(lab.down()?)
}

enum Side {
    Static,
    Control,
    Live { home_rows: Vec<u32> },
}

fn measure(lab: &Lab, options: &Options, side: &Side, runs: u32, stop: &StopFlag) -> anyhow::Result<(Vec<Report>, Option<Cluster>)> {
    let mut reports = Vec::new();
    let mut cluster = None;
    for run in 1..=runs {
        if runs > 1 {
            eprintln!("run {run} of {runs}");
        }
        match side {
            Side::Static => reports.push(table1::run(lab, options, None, stop)?),
            Side::Control => reports.push(table1::run(lab, options, Some(&mut FreeMigration::new()?), stop)?),
            Side::Live { home_rows } => {
                let (report, left) = live_run(lab, options, home_rows, cluster.take(), stop)?;
                reports.push(report);
                cluster = Some(left);
            }
        }
    }
    if let Some(cluster) = &cluster {
        println!("{}", status_table(&cluster.status(0)?));
    }
    Ok((reports, cluster))
}

/// PVM's side, the live side from PVM's placement, and the live side from one node.
fn live_run(
    lab: &Lab,
    options: &Options,
    home_rows: &[u32],
    cluster: Option<Cluster>,
    stop: &StopFlag,
) -> anyhow::Result<(Report, Cluster)> {
    let mut live = Live::new(Start::Placed, options.scale)?;
    if let Some(cluster) = cluster {
        live = live.with_cluster(cluster);
    }
    let mut report = table1::run(lab, options, Some(&mut live), stop)?;
    let mut cluster = live.take_cluster();
    if !home_rows.is_empty() {
        let scale = TimeScale::new((options.scale.t_s() * HOME_SCALE).min(300.0)).map_err(anyhow::Error::msg)?;
        let mut from_home = Live::new(Start::Home, scale)?;
        if let Some(cluster) = cluster.take() {
            from_home = from_home.with_cluster(cluster);
        }
        let home_options = Options { rows: home_rows.to_vec(), scale, with_static: false };
        let home = table1::run(lab, &home_options, Some(&mut from_home), stop)?;
        cluster = from_home.take_cluster();
        report.add_home_rows(home);
    }
    Ok((report, cluster.context("no live run was asked for: give --rows or --home-rows")?))
}

fn show(reports: &[Report], json: Option<PathBuf>) -> anyhow::Result<()> {
    let Some(first) = reports.first() else { bail!("nothing was measured") };
    println!("{}", report_table(reports));
    println!("live side: {}", first.conditions.live_side);
    println!(
        "times in seconds of the paper; {} real seconds stand for 300 ({HOME_SCALE} times as many in rows that start at home)",
        first.conditions.time_scale_s
    );
    for row in reports.iter().flat_map(|report| &report.rows).filter(|row| row.entitlement < MIN_ENTITLEMENT) {
        println!("row {}: not to be trusted, the nodes got only {:.3} of their CPU", row.processes, row.entitlement);
    }
    if let Some(path) = json {
        let all = Report { conditions: first.conditions.clone(), rows: reports.iter().flat_map(|report| report.rows.clone()).collect() };
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn tell_how_to_look_around(lab: &Lab, cluster: &Cluster) {
    let socket = cluster.socket(0).map(|socket| socket.display().to_string()).unwrap_or_default();
    println!("\nThe lab is still up, a mosixd on each of its {} nodes. From the top of the workspace:", lab.nodes().len());
    println!("  target/release/mosixctl --socket {socket} status");
    println!("  cargo xtask lab --id {} shell node1          a shell on a node (mosixctl works there without --socket)", lab.id());
    println!("  cargo xtask lab --id {} exec node1 mosixctl run burn --cpu-s 5 --no-barrier", lab.id());
    println!("  cargo xtask lab --id {} down                 removes everything", lab.id());
}

fn status_table(status: &mosix_wire::control::Status) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["node", "state", "speed", "cpus", "load", "free MiB", "guests", "away"]);
    for node in &status.nodes {
        table.add_row([
            node.name.clone(),
            node.state.clone(),
            format!("{:.3}", node.speed),
            node.cpus.to_string(),
            format!("{:.2}", node.load),
            (node.memory_free_bytes >> 20).to_string(),
            node.guests.to_string(),
            node.away.to_string(),
        ]);
    }
    format!("{}\n{table}\n", status.health)
}
