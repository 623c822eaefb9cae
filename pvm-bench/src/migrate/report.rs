//! What was measured: rows, the conditions, and the table that people read.

use comfy_table::{CellAlignment, Table, presets};
use mosix_criu::Criu;
use mosix_lab::Lab;
use serde::{Deserialize, Serialize};

use super::stats::Summary;
use super::{Options, PAUSE, bad};
use crate::Result;

/// The moves of one process. The lists have one figure for each completed move, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `mosix`, or `criu`: plain stop and copy.
    pub kind: String,
    /// Resident memory before the first move.
    pub rss_bytes: u64,
    /// Wanted rate of writing.
    pub dirty_bytes_per_s: f64,
    /// Rate of writing over the whole time, standstills included.
    pub written_bytes_per_s: f64,
    /// Writers.
    pub threads: u32,
    /// The longest gap that the process saw during the move, ms.
    pub blackout_ms: Vec<f64>,
    /// All gaps above 2 ms that it saw during the move, together, ms.
    pub stalled_ms: Vec<f64>,
    /// From the request to the answer, ms.
    pub total_ms: Vec<f64>,
    /// Time in which it ran nowhere as the mover counts it, ms.
    pub freeze_ms: Vec<f64>,
    /// Image bytes sent (`criu`: written).
    pub bytes_sent: Vec<u64>,
    /// Whether the moves used a patched CRIU.
    pub patched: bool,
    /// Pages checked, all checks together.
    pub checked_pages: u64,
    /// Pages that were not what they had to be.
    pub bad_pages: u64,
    /// Moves that failed, in words; other trouble with the process, too.
    pub failures: Vec<String>,
}

impl Row {
    /// All moves were made and the memory was right.
    pub fn is_sound(&self) -> bool {
        self.failures.is_empty() && self.bad_pages == 0 && self.checked_pages > 0
    }
}

/// Under what conditions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Kernel release.
    pub kernel: String,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Version of CRIU.
    pub criu: String,
    /// `release` or `dev`: how this program was built.
    pub profile: String,
    /// Nodes of the lab.
    pub nodes: usize,
    /// The nodes' speed limit, in words.
    pub quota: String,
    /// Moves wanted of each process.
    pub moves: u32,
    /// Pause between moves, ms.
    pub pause_ms: u64,
    /// How the blackout was measured.
    pub clock: String,
    /// The way of `kind = "criu"`.
    pub baseline: String,
    /// 1, 5 and 15 minutes, before.
    pub load_average_before: String,
    /// The same, after.
    pub load_average_after: String,
}

impl Conditions {
    pub(crate) fn now(lab: &Lab, criu: &Criu, options: &Options) -> Result<Self> {
        Ok(Self {
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            criu: criu.version().map_err(|error| bad(error.to_string()))?.to_string(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" }.into(),
            nodes: lab.nodes().len(),
            quota: "off; everything of a node is pinned to its CPU".into(),
            moves: options.moves,
            pause_ms: PAUSE.as_millis() as u64,
            clock: "longest gap between two readings of CLOCK_REALTIME by a thread of the process, one each 0.2 ms".into(),
            baseline: "criu dump to tmpfs, then restore from it, between the same nodes; workers started before, nothing sent".into(),
            load_average_before: load_average(),
            load_average_after: String::new(),
        })
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// A row by `mosix`, then one by `criu`, for each load.
    pub rows: Vec<Row>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// The machine's load averages.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Memory that can be had without swapping; `None` if the kernel does not say.
pub(crate) fn memory_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

const HEADER: [&str; 16] = [
    "by",
    "RSS MiB",
    "MiB/s",
    "threads",
    "moves",
    "blackout min",
    "p50",
    "p99",
    "max ms",
    "vs criu",
    "stalled p50",
    "freeze p50",
    "total p50",
    "p99 ms",
    "sent MiB",
    "memory",
];

/// For people.
pub fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(HEADER);
    for (index, row) in report.rows.iter().enumerate() {
        let next = report.rows.get(index + 1).filter(|next| row.kind == "mosix" && next.kind == "criu");
        table.add_row(line(row, next.and_then(|baseline| ratio(row, baseline))));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Median blackout of `row` as a share of the baseline's.
fn ratio(row: &Row, baseline: &Row) -> Option<f64> {
    Some(Summary::of(&row.blackout_ms)?.p50 / Summary::of(&baseline.blackout_ms)?.p50)
}

fn line(row: &Row, ratio: Option<f64>) -> [String; 16] {
    let blackout = Summary::of(&row.blackout_ms);
    let total = Summary::of(&row.total_ms);
    let sent: Vec<f64> = row.bytes_sent.iter().map(|bytes| *bytes as f64 / f64::from(1 << 20)).collect();
    let figure = |summary: Option<Summary>, of: fn(Summary) -> f64| summary.map_or_else(|| "-".into(), |s| format!("{:.1}", of(s)));
    let p50 = |figures: &[f64]| figure(Summary::of(figures), |summary| summary.p50);
    [
        row.kind.clone(),
        (row.rss_bytes >> 20).to_string(),
        format!("{:.0}", row.dirty_bytes_per_s / f64::from(1 << 20)),
        row.threads.to_string(),
        row.blackout_ms.len().to_string(),
        figure(blackout, |summary| summary.min),
        figure(blackout, |summary| summary.p50),
        figure(blackout, |summary| summary.p99),
        figure(blackout, |summary| summary.max),
        ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x")),
        p50(&row.stalled_ms),
        p50(&row.freeze_ms),
        figure(total, |summary| summary.p50),
        figure(total, |summary| summary.p99),
        p50(&sent),
        if row.is_sound() { "right".into() } else { format!("{} bad pages, {} failures", row.bad_pages, row.failures.len()) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, blackout_ms: &[f64]) -> Row {
        Row {
            kind: kind.into(),
            rss_bytes: 5 << 20,
            dirty_bytes_per_s: 0.0,
            written_bytes_per_s: 0.0,
            threads: 1,
            blackout_ms: blackout_ms.to_vec(),
            stalled_ms: blackout_ms.to_vec(),
            total_ms: vec![200.0; blackout_ms.len()],
            freeze_ms: vec![20.0; blackout_ms.len()],
            bytes_sent: vec![6 << 20; blackout_ms.len()],
            patched: false,
            checked_pages: 1,
            bad_pages: 0,
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_row_is_compared_with_its_baseline() {
        assert_eq!(ratio(&row("mosix", &[30.0, 10.0, 20.0]), &row("criu", &[40.0])), Some(0.5));
        assert_eq!(ratio(&row("mosix", &[]), &row("criu", &[40.0])), None);
        let cells = line(&row("mosix", &[30.0, 10.0, 20.0]), Some(0.5));
        assert_eq!(cells[5..10], ["10.0", "20.0", "30.0", "30.0", "0.50 x"].map(str::to_owned));
    }

    #[test]
    fn a_row_without_moves_or_with_trouble_says_so() {
        assert_eq!(line(&row("mosix", &[]), None)[6], "-");
        let mut broken = row("mosix", &[1.0]);
        broken.bad_pages = 2;
        assert!(!broken.is_sound() && line(&broken, None)[15].contains("2 bad pages"));
        let unchecked = Row { checked_pages: 0, ..row("criu", &[1.0]) };
        assert!(!unchecked.is_sound(), "memory that nobody looked at is not right");
    }

    #[test]
    fn the_machine_tells() {
        assert_eq!(load_average().split(' ').count(), 3);
        assert!(memory_available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
