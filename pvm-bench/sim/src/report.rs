//! Results of a plan: means over seeds with their 95 % confidence, as JSON, CSV or a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlannedRun};
use crate::result::RunResult;

/// A mean and the half-width of its 95 % confidence interval over seeds (0 with a single one).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Mean over seeds.
    pub mean: f64,
    /// Half-width of the interval.
    pub ci95: f64,
}

/// One variant at one place of the sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Which variant.
    pub variant: String,
    /// Which values of the sweep.
    pub point: String,
    /// Runs.
    pub runs: usize,
    /// Runs that never were balanced.
    pub never_balanced: usize,
    /// Figures by name. `balanced_after_s` is over those that were.
    pub figures: BTreeMap<String, Figure>,
}

/// All results. The keys on top are means over all runs of the first variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: String,
    /// What it shows.
    pub about: String,
    /// When the last job ended.
    pub makespan_s: f64,
    /// Mean slowdown of a job.
    pub mean_slowdown: f64,
    /// Slowdown that 99 % of the jobs do not exceed.
    pub p99_slowdown: f64,
    /// Completed moves.
    pub migrations: f64,
    /// Highest load of a CPU to which processes came.
    pub peak_load: f64,
    /// When the cluster was balanced, after the last birth; `null` if some run never was.
    pub balanced_after_s: Option<f64>,
    /// Gossip and questions.
    pub bytes_per_node_per_s: f64,
    /// Events of all runs by the real time that all took together.
    pub events_per_s: f64,
    /// Real time of everything.
    pub wall_s: f64,
    /// Point by point.
    pub points: Vec<Point>,
}

/// The figures that each point has.
fn figures(r: &RunResult) -> [(&'static str, Option<f64>); 20] {
    let ratio = if r.clairvoyant_s > 0.0 { Some(r.makespan_s / r.clairvoyant_s) } else { None };
    [
        ("makespan_s", Some(r.makespan_s)),
        ("mean_slowdown", Some(r.mean_slowdown)),
        ("p99_slowdown", Some(r.p99_slowdown)),
        ("migrations", Some(r.migrations as f64)),
        ("peak_load", Some(r.peak_load)),
        ("balanced_after_s", r.balanced_after_s),
        ("bytes_per_node_per_s", Some(r.bytes_per_node_per_s)),
        ("events_per_s", Some(r.events_per_s)),
        ("mean_end_s", Some(r.mean_end_s)),
        ("makespan_to_clairvoyant", ratio),
        ("clairvoyant_s", Some(r.clairvoyant_s)),
        ("ended", Some(r.ended as f64)),
        ("unfinished", Some(r.unfinished as f64)),
        ("lost", Some(r.lost as f64)),
        ("refused", Some(r.refused as f64)),
        ("lost_leases", Some(r.lost_leases as f64)),
        ("placed", Some(r.placed as f64)),
        ("most_moves", Some(f64::from(r.most_moves))),
        ("decisions", Some(r.decisions as f64)),
        ("pairs_together", Some(r.pairs_together)),
    ]
}

impl Figure {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n.max(1.0);
        if values.len() < 2 {
            return Self { mean, ci95: 0.0 };
        }
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self { mean, ci95: student_t(values.len() - 1) * (variance / n).sqrt() }
    }
}

/// 97.5 % quantile of Student's t.
fn student_t(freedom: usize) -> f64 {
    const T: [f64; 20] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
        2.093, 2.086,
    ];
    T.get(freedom.saturating_sub(1)).copied().unwrap_or(1.96 + 2.5 / freedom as f64)
}

impl Report {
    pub(crate) fn new(plan: &Plan, results: &[(PlannedRun, RunResult)], wall_s: f64) -> Self {
        let first: Vec<&RunResult> = results.iter().filter(|(run, _)| run.variant == 0).map(|(_, result)| result).collect();
        let mean = |of: &dyn Fn(&RunResult) -> f64| first.iter().map(|r| of(r)).sum::<f64>() / first.len().max(1) as f64;
        let balanced: Option<Vec<f64>> = first.iter().map(|r| r.balanced_after_s).collect();
        let events: u64 = results.iter().map(|(_, r)| r.events).sum();
        Self {
            scenario: plan.name.clone(),
            about: plan.about.clone(),
            makespan_s: mean(&|r| r.makespan_s),
            mean_slowdown: mean(&|r| r.mean_slowdown),
            p99_slowdown: mean(&|r| r.p99_slowdown),
            migrations: mean(&|r| r.migrations as f64),
            peak_load: mean(&|r| r.peak_load),
            balanced_after_s: balanced.map(|b| Figure::of(&b).mean),
            bytes_per_node_per_s: mean(&|r| r.bytes_per_node_per_s),
            events_per_s: events as f64 / wall_s.max(1e-9),
            wall_s,
            points: points(results),
        }
    }

    /// The point of a variant at a place of the sweep.
    pub fn point(&self, variant: &str, point: &str) -> Option<&Point> {
        self.points.iter().find(|p| p.variant == variant && p.point == point)
    }

    /// All points as CSV: a line for each, two columns for each figure.
    pub fn csv(&self) -> String {
        let names: Vec<&String> = self.points.first().map(|p| p.figures.keys().collect()).unwrap_or_default();
        let mut text = String::from("scenario,variant,point,runs,never_balanced");
        for name in &names {
            let _ = write!(text, ",{name},{name}_ci95");
        }
        text.push('\n');
        for point in &self.points {
            let _ = write!(
                text,
                "{},{},{},{},{}",
                quoted(&self.scenario),
                quoted(&point.variant),
                quoted(&point.point),
                point.runs,
                point.never_balanced
            );
            for name in &names {
                match point.figures.get(*name) {
                    Some(figure) if figure.mean.is_finite() => drop(write!(text, ",{},{}", figure.mean, figure.ci95)),
                    _ => text.push_str(",,"),
                }
            }
            text.push('\n');
        }
        text
    }

    /// The main figures as a Markdown table.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n", self.scenario, self.about);
        text.push_str(
            "| variant | point | makespan, s | of the optimum | mean slowdown | p99 | moves | refused | peak | balanced after, s |\n",
        );
        text.push_str("|--|--|--|--|--|--|--|--|--|--|\n");
        for p in &self.points {
            let shown = |name: &str, digits: usize| match p.figures.get(name) {
                Some(f) if f.ci95 > 0.0 => format!("{:.digits$} ± {:.digits$}", f.mean, f.ci95),
                Some(f) => format!("{:.digits$}", f.mean),
                None => "-".to_owned(),
            };
            let balanced = if p.never_balanced == p.runs { "never".to_owned() } else { shown("balanced_after_s", 1) };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {balanced} |",
                p.variant,
                p.point,
                shown("makespan_s", 1),
                shown("makespan_to_clairvoyant", 3),
                shown("mean_slowdown", 2),
                shown("p99_slowdown", 2),
                shown("migrations", 0),
                shown("refused", 0),
                shown("peak_load", 1),
            );
        }
        text
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Groups the runs, which come variant by variant and point by point.
fn points(results: &[(PlannedRun, RunResult)]) -> Vec<Point> {
    let mut points = Vec::new();
    for group in results.chunk_by(|a, b| a.0.variant == b.0.variant && a.0.point == b.0.point) {
        let Some((run, _)) = group.first() else { continue };
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (_, result) in group {
            for (name, value) in figures(result) {
                values.entry(name.to_owned()).or_default().extend(value);
            }
        }
        let filled = values.into_iter().filter(|(_, v)| !v.is_empty()).map(|(name, v)| (name, Figure::of(&v)));
        points.push(Point {
            variant: run.variant_name.clone(),
            point: run.point.clone(),
            runs: group.len(),
            never_balanced: group.iter().filter(|(_, r)| r.balanced_after_s.is_none()).count(),
            figures: filled.collect(),
        });
    }
    points
}
