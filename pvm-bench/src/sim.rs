//! `pvm-bench sim`: scenarios for the simulator, from files.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mosix_policy::Case;
use mosix_sim::{Plan, Report, World, run_plan};

/// Decisions that `--record` keeps.
const MAX_CASES: usize = 1000;

/// What to simulate and where to write it.
#[derive(Debug, Args)]
pub struct SimArgs {
    /// Scenario files (TOML); the shipped ones are in pvm-bench/sim/scenarios
    #[arg(required_unless_present = "replay")]
    scenarios: Vec<PathBuf>,
    /// Write the results as JSON; of several scenarios, as a list
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the results as CSV
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Write the results as Markdown tables; the text of a file that begins with `<!-- intro -->` stays up to `<!-- tables -->`
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Write the last 1000 moves that the first run decided, with all that they depended on
    #[arg(long)]
    record: Option<PathBuf>,
    /// Take recorded decisions again and compare
    #[arg(long, conflicts_with = "scenarios")]
    replay: Option<PathBuf>,
}

/// Runs the scenarios one after the other, each on all cores.
///
/// # Errors
/// A scenario or a file is not usable, or a replayed decision came out differently.
pub fn command(args: &SimArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.replay {
        return replay(path);
    }
    let mut reports = Vec::new();
    for path in &args.scenarios {
        let plan = Plan::load(path)?;
        if let Some(to) = &args.record {
            record(&plan, to)?;
        }
        let progress = bar(&plan.name);
        let report = run_plan(&plan, &progress)?;
        println!("{}", report.markdown());
        println!("{:.1} s of real time, {:.0} events per second", report.wall_s, report.events_per_s);
        reports.push(report);
    }
    write_all(args, &reports)
}

fn bar(name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} runs, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(name.to_owned())
}

fn write_all(args: &SimArgs, reports: &[Report]) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let text = match reports {
            [only] => serde_json::to_string_pretty(only)?,
            several => serde_json::to_string_pretty(several)?,
        };
        write(path, &text)?;
    }
    if let Some(path) = &args.csv {
        let text: String = reports.iter().map(Report::csv).collect();
        write(path, &text)?;
    }
    if let Some(path) = &args.markdown {
        const END: &str = "<!-- tables -->\n";
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let intro = before.split_once(END).map(|(intro, _)| format!("{intro}{END}\n")).unwrap_or_default();
        let tables: Vec<String> = reports.iter().map(Report::markdown).collect();
        write(path, &format!("{intro}{}", tables.join("\n")))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn record(plan: &Plan, to: &Path) -> anyhow::Result<()> {
    let Some(run) = plan.runs.first() else { bail!("the scenario has no runs") };
    let world = World::new(run.scenario.clone(), run.seed)?.recording(MAX_CASES);
    let (_, _, cases) = world.run().map_err(anyhow::Error::msg)?;
    let cases: Vec<&Case> = cases.iter().collect();
    write(to, &serde_json::to_string(&cases)?)
}

fn replay(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let cases: Vec<Case> = serde_json::from_str(&text).with_context(|| format!("{} is no list of recorded decisions", path.display()))?;
    let mut different = 0;
    for case in &cases {
        let again = case.replay();
        if again == case.outcome {
            println!("at {:.3} s: {}", case.now_s, again.explanation);
        } else {
            different += 1;
            println!("at {:.3} s: DIFFERENT\n  then: {}\n  now:  {}", case.now_s, case.outcome.explanation, again.explanation);
        }
    }
    if different > 0 {
        bail!("{different} of {} decisions came out differently", cases.len());
    }
    println!("{} decisions, all as recorded", cases.len());
    Ok(())
}
