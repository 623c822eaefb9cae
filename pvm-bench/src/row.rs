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
    /// For people: our columns beside the paper's.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "processes",
            "bound",
            "greedy",
            "PVM",
            "paper",
            "diff",
            "live",
            "paper",
            "diff",
            "moves",
            "PVM/live",
            "entitled",
        ]);
        for row in &self.rows {
            let paper = paper::table1_row(row.processes);
            let (paper_pvm, paper_live) = (paper.map(|p| p.pvm_s), paper.map(|p| p.pvm_on_mosix_s));
            table.add_row([
                row.processes.to_string(),
                seconds(Some(row.bound_s)),
                seconds(Some(row.greedy_s)),
                seconds(row.pvm_s),
                seconds(paper_pvm),
                percent(row.pvm_s, paper_pvm),
                seconds(row.live_s),
                seconds(paper_live),
                percent(row.live_s, paper_live),
                row.migrations.map_or_else(dash, |moves| moves.to_string()),
                percent(row.pvm_s, row.live_s),
                format!("{:.3}", row.entitlement),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
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
