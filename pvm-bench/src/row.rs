//! Results: rows and the conditions under which they hold, as JSON and as a table.

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::paper;

/// One row of Table 1. All times in seconds of the paper (one process = 300 s).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number of processes.
    pub processes: u32,
    /// Greedy balancing without cost: the paper's column "optimal".
    pub greedy_s: f64,
    /// What no schedule can beat.
    pub bound_s: f64,
    /// Where the live side's processes started: `none` without a live side, else as it calls it.
    pub start: String,
    /// Static placement by PVM.
    pub pvm_s: Option<f64>,
    /// Live balancing.
    pub live_s: Option<f64>,
    /// Moves during the live run.
    pub migrations: Option<u32>,
    /// Lowest CPU received / CPU entitled of the row's runs.
    pub entitlement: f64,
}

/// Under what conditions the rows were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Nodes in the lab.
    pub nodes: usize,
    /// Speed of a normal node as a share of one core.
    pub speed: f64,
    /// Its quota, microseconds per period.
    pub quota_us: u64,
    /// The period, microseconds.
    pub period_us: u64,
    /// Real seconds that stand for 300.
    pub time_scale_s: f64,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Its kernel.
    pub kernel: String,
    /// The static side, in words.
    pub static_side: String,
    /// The live side, in words.
    pub live_side: String,
    /// How time was taken.
    pub timing: String,
    /// Rows with a run that was repeated because the nodes were starved.
    pub repeated: Vec<u32>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// The rows, in the order asked for.
    pub rows: Vec<Row>,
}

impl Report {
    /// Takes in the rows of runs that start at home. PVM's time for the same number is the one measured already.
    pub fn add_home_rows(&mut self, home: Report) {
        for mut row in home.rows {
            row.pvm_s = self.rows.iter().find(|known| known.processes == row.processes).and_then(|known| known.pvm_s);
            self.rows.push(row);
        }
        self.conditions.repeated.extend(home.conditions.repeated);
    }
}

/// For people: one line for each number of processes and start, over all runs.
pub fn report_table(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "processes",
        "start",
        "bound",
        "greedy",
        "PVM",
        "vs paper",
        "live",
        "vs greedy",
        "moves",
        "PVM slower by",
        "paper says",
        "entitled",
    ]);
    let Some(first) = reports.first() else { return table };
    for (index, row) in first.rows.iter().enumerate() {
        let all: Vec<&Row> = reports.iter().filter_map(|report| report.rows.get(index)).collect();
        table.add_row(line(row, &all));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn line(row: &Row, all: &[&Row]) -> [String; 12] {
    let paper = paper::table1_row(row.processes);
    let pvm = Spread::of(all.iter().filter_map(|row| row.pvm_s));
    let live = Spread::of(all.iter().filter_map(|row| row.live_s));
    let moves = Spread::of(all.iter().filter_map(|row| row.migrations).map(f64::from));
    let median = |spread: &Option<Spread>| spread.as_ref().map(|spread| spread.median);
    [
        row.processes.to_string(),
        row.start.clone(),
        seconds(Some(row.bound_s)),
        seconds(Some(row.greedy_s)),
        pvm.as_ref().map_or_else(dash, |spread| spread.text(1)),
        percent(median(&pvm), paper.map(|p| p.pvm_s)),
        live.as_ref().map_or_else(dash, |spread| spread.text(1)),
        percent(median(&live), Some(row.greedy_s)),
        moves.as_ref().map_or_else(dash, |spread| spread.text(0)),
        percent(median(&pvm), median(&live)),
        percent(paper.map(|p| p.pvm_s), paper.map(|p| p.pvm_on_mosix_s)),
        format!("{:.3}", all.iter().map(|row| row.entitlement).fold(f64::MAX, f64::min)),
    ]
}

/// Median and range of several runs.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self { least, median: f64::midpoint(*low, *high), most })
    }

    fn text(&self, digits: usize) -> String {
        if self.least < self.most {
            format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.least, self.most)
        } else {
            format!("{:.digits$}", self.median)
        }
    }
}

fn dash() -> String {
    "-".into()
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(dash, |value| format!("{value:.1}"))
}

/// By how much `value` is above `base`.
fn percent(value: Option<f64>, base: Option<f64>) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => format!("{:+.1} %", (value / base - 1.0) * 100.0),
        _ => dash(),
    }
}
