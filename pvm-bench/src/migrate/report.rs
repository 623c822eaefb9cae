//! What was measured: rows, the conditions, and the table that people read.

use comfy_table::{CellAlignment, Table, presets};
use mosix_criu::Criu;
use mosix_lab::Lab;
use serde::{Deserialize, Serialize};

use super::load::Program;
use super::machine;
use super::slowdown::SlowDown;
use super::stats::Summary;
use super::subject::Moved;
use super::{Options, PAUSE, bad};
use crate::Result;

/// Sent at most: the resident memory, and this many times what was written meanwhile.
const RESENT: f64 = 2.5;

/// The moves of one process in one way. The lists have one figure for each completed move, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Resident memory before the first move.
    pub rss_bytes: u64,
    /// Rate of writing over the whole time, standstills and checks included.
    pub written_bytes_per_s: f64,
    /// The longest gap that the process saw during the move, ms.
    pub blackout_ms: Vec<f64>,
    /// All gaps above 2 ms that it saw during the move, together, ms.
    pub stalled_ms: Vec<f64>,
    /// From the request to the answer, ms.
    pub total_ms: Vec<f64>,
    /// Time in which it ran nowhere as the mover counts it, ms.
    pub freeze_ms: Vec<f64>,
    /// Bytes sent (plain CRIU: written as images).
    pub bytes_sent: Vec<u64>,
    /// Bytes that the process wrote between request and answer: its rate since the last report times the time.
    pub written_meanwhile_bytes: Vec<u64>,
    /// CPU time of the move where the process was, ms: mosixd, agent and CRIU by the node's cgroup without quota, or CRIU's rusage.
    pub cpu_source_ms: Vec<f64>,
    /// The same where it came to.
    pub cpu_target_ms: Vec<f64>,
    /// Whether the moves used a patched CRIU.
    pub patched: bool,
    /// Pages checked, all checks together.
    pub checked_pages: u64,
    /// Pages that were not what they had to be.
    pub bad_pages: u64,
    /// Moves that failed, in words; other trouble with the process, too.
    pub failures: Vec<String>,
    /// What the mover itself says of each move.
    pub records: Vec<serde_json::Value>,
}

impl Series {
    /// All moves were made and the memory was right.
    pub fn is_sound(&self) -> bool {
        self.failures.is_empty() && self.bad_pages == 0 && self.checked_pages > 0
    }

    pub(super) fn note_move(&mut self, moved: Moved) {
        self.patched = moved.patched;
        self.total_ms.push(moved.total_ms);
        self.freeze_ms.push(moved.freeze_ms);
        self.bytes_sent.push(moved.bytes);
        self.records.extend(moved.record);
    }

    /// The largest share that a move sent of what it may send: resident memory and 2.5 times what was written meanwhile.
    pub fn sent_of_allowed(&self) -> Option<f64> {
        let shares = self.bytes_sent.iter().zip(&self.written_meanwhile_bytes).map(|(sent, written)| {
            let allowed = self.rss_bytes as f64 + RESENT * *written as f64;
            *sent as f64 / allowed.max(1.0)
        });
        shares.reduce(f64::max)
    }
}

/// One process, moved by MOSIX; and beside it another of the same kind, in the same lab and run, by plain CRIU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The program.
    pub kind: Program,
    /// Version of its interpreter, if it has one.
    pub version: String,
    /// Wanted rate of writing.
    pub dirty_bytes_per_s: f64,
    /// Writers.
    pub threads: u32,
    /// Median of the blackouts, ms.
    pub blackout_p50_ms: Option<f64>,
    /// Of 100 blackouts 99 are at most this, ms.
    pub blackout_p99_ms: Option<f64>,
    /// Median as a share of that of plain CRIU.
    pub blackout_ratio_p50: Option<f64>,
    /// The largest share that a move sent of resident memory + 2.5 times what was written meanwhile.
    pub sent_of_allowed: Option<f64>,
    /// By MOSIX.
    #[serde(flatten)]
    pub mosix: Series,
    /// By plain CRIU: stop, copy, restore. `None` if it was not wanted.
    pub plain_criu: Option<Series>,
}

impl Row {
    pub(super) fn new(kind: Program, version: String, rate_mib_s: f64, threads: u32, mosix: Series, plain_criu: Option<Series>) -> Self {
        let p50 = |series: &Series| Some(Summary::of(&series.blackout_ms)?.p50);
        let (own, plain) = (p50(&mosix), plain_criu.as_ref().and_then(p50));
        Self {
            kind,
            version,
            dirty_bytes_per_s: rate_mib_s * f64::from(1 << 20),
            threads,
            blackout_p50_ms: own,
            blackout_p99_ms: Summary::of(&mosix.blackout_ms).map(|summary| summary.p99),
            blackout_ratio_p50: own.zip(plain).map(|(own, plain)| own / plain),
            sent_of_allowed: mosix.sent_of_allowed(),
            mosix,
            plain_criu,
        }
    }

    /// All moves were made and the memory was right, in both ways.
    pub fn is_sound(&self) -> bool {
        self.mosix.is_sound() && self.plain_criu.as_ref().is_none_or(Series::is_sound)
    }

    /// In words, which way.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let tell = |way: &'static str, series: &Series| {
            let failures = series.failures.iter().map(|failure| format!("by {way}: {failure}"));
            failures.collect::<Vec<_>>()
        };
        let plain = self.plain_criu.as_ref().map(|series| tell("plain criu", series));
        tell("mosix", &self.mosix).into_iter().chain(plain.into_iter().flatten())
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
    /// The link between the nodes, in words.
    pub link: String,
    /// What was added to the daemons' configuration.
    pub config: Vec<String>,
    /// Moves wanted of each process.
    pub moves: u32,
    /// Pause between moves, ms.
    pub pause_ms: u64,
    /// How the blackout was measured.
    pub clock: String,
    /// The way of `plain_criu`.
    pub baseline: String,
    /// How CPU times were measured.
    pub cpu: String,
    /// 1, 5 and 15 minutes, before.
    pub load_average_before: String,
    /// The same, after; the benchmark's own load is in it.
    pub load_average_after: String,
    /// Share of all CPUs that others used in the second before the lab was started.
    pub busy_before: f64,
    /// The same in the second after it was taken down.
    pub busy_after: f64,
    /// Both are below a tenth.
    pub quiet: bool,
}

impl Conditions {
    pub(super) fn now(lab: &Lab, criu: &Criu, options: &Options, busy_before: f64) -> Result<Self> {
        Ok(Self {
            kernel: machine::kernel(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            criu: criu.version().map_err(|error| bad(error.to_string()))?.to_string(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" }.into(),
            nodes: lab.nodes().len(),
            quota: "off; everything of a node is pinned to its CPU".into(),
            link: "veth pairs on one bridge of the same machine, no limit, no delay".into(),
            config: options.config.iter().map(ToString::to_string).collect(),
            moves: options.moves,
            pause_ms: PAUSE.as_millis() as u64,
            clock: "longest gap between two readings of CLOCK_REALTIME by a thread of the process, one each 0.2 ms (node: whole ms)".into(),
            baseline: "criu dump to tmpfs, then restore from it, between the same nodes; workers started before, nothing sent".into(),
            cpu: "from the request to the next move, idle daemons included: cgroup of the node without quota (mosixd, agent, criu); \
                  plain criu: its rusage"
                .into(),
            load_average_before: machine::load_average(),
            load_average_after: String::new(),
            busy_before,
            busy_after: 0.0,
            quiet: false,
        })
    }

    pub(super) fn finish(&mut self, busy_after: f64) {
        const QUIET: f64 = 0.1;
        self.load_average_after = machine::load_average();
        self.busy_after = busy_after;
        self.quiet = self.busy_before < QUIET && self.busy_after < QUIET;
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// A row for each load.
    pub rows: Vec<Row>,
    /// How much slower a memory-bound program became.
    pub slow_down: Vec<SlowDown>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
    /// The conditions.
    pub conditions: Conditions,
}

const HEADER: [&str; 17] = [
    "program",
    "RSS MiB",
    "MiB/s",
    "threads",
    "moves",
    "blackout p50",
    "p99",
    "max ms",
    "plain criu p50",
    "ratio",
    "stalled p50",
    "total p50",
    "p99 ms",
    "sent MiB",
    "of allowed",
    "CPU ms",
    "memory",
];

/// For people.
pub fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(HEADER);
    for row in &report.rows {
        table.add_row(line(row));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn line(row: &Row) -> [String; 17] {
    let mosix = &row.mosix;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let figure = |figure: Option<f64>| figure.map_or_else(|| "-".into(), |figure| format!("{figure:.1}"));
    let (blackout, total) = (Summary::of(&mosix.blackout_ms), Summary::of(&mosix.total_ms));
    let p50 = |figures: &[f64]| Summary::of(figures).map(|summary| summary.p50);
    let sent: Vec<f64> = mosix.bytes_sent.iter().map(|bytes| mib(*bytes as f64)).collect();
    let plain = row.plain_criu.as_ref().and_then(|series| p50(&series.blackout_ms));
    let bad_pages = mosix.bad_pages + row.plain_criu.as_ref().map_or(0, |series| series.bad_pages);
    [
        row.kind.to_string(),
        (mosix.rss_bytes >> 20).to_string(),
        format!("{:.0}", mib(row.dirty_bytes_per_s)),
        row.threads.to_string(),
        mosix.blackout_ms.len().to_string(),
        figure(blackout.map(|summary| summary.p50)),
        figure(blackout.map(|summary| summary.p99)),
        figure(blackout.map(|summary| summary.max)),
        figure(plain),
        row.blackout_ratio_p50.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
        figure(p50(&mosix.stalled_ms)),
        figure(total.map(|summary| summary.p50)),
        figure(total.map(|summary| summary.p99)),
        figure(p50(&sent)),
        row.sent_of_allowed.map_or_else(|| "-".into(), |share| format!("{share:.2}")),
        format!("{} + {}", figure(p50(&mosix.cpu_source_ms)), figure(p50(&mosix.cpu_target_ms))),
        if row.is_sound() { "right".into() } else { format!("{bad_pages} bad pages, {} failures", row.failures().count()) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(blackout_ms: &[f64]) -> Series {
        Series {
            rss_bytes: 100,
            blackout_ms: blackout_ms.to_vec(),
            total_ms: vec![200.0; blackout_ms.len()],
            bytes_sent: vec![110; blackout_ms.len()],
            written_meanwhile_bytes: vec![4; blackout_ms.len()],
            checked_pages: 1,
            ..Series::default()
        }
    }

    fn row(mosix: Series, plain: Option<Series>) -> Row {
        Row::new(Program::Churn, String::new(), 10.0, 1, mosix, plain)
    }

    #[test]
    fn a_row_is_compared_with_its_baseline_and_with_what_it_may_send() {
        let row = row(series(&[30.0, 10.0, 20.0]), Some(series(&[40.0])));
        assert_eq!((row.blackout_p50_ms, row.blackout_p99_ms, row.blackout_ratio_p50), (Some(20.0), Some(30.0), Some(0.5)));
        assert_eq!(row.sent_of_allowed, Some(1.0));
        let cells = line(&row);
        assert_eq!(cells[5..10], ["20.0", "30.0", "30.0", "40.0", "0.50"].map(str::to_owned));
        assert_eq!((cells[14].as_str(), cells[16].as_str()), ("1.00", "right"));
    }

    #[test]
    fn a_row_without_moves_or_with_trouble_says_so() {
        let empty = row(series(&[]), None);
        assert_eq!((empty.blackout_p50_ms, empty.sent_of_allowed, line(&empty)[5].as_str()), (None, None, "-"));
        let broken = row(series(&[1.0]), Some(Series { bad_pages: 2, failures: vec!["oh".into()], ..series(&[2.0]) }));
        assert!(!broken.is_sound() && line(&broken)[16].contains("2 bad pages"));
        assert_eq!(broken.failures().collect::<Vec<_>>(), ["by plain criu: oh"]);
        let unchecked = row(Series { checked_pages: 0, ..series(&[1.0]) }, None);
        assert!(!unchecked.is_sound(), "memory that nobody looked at is not right");
    }

    #[test]
    fn the_promised_names_are_in_the_json() {
        let json = serde_json::to_value(row(series(&[1.0]), Some(series(&[2.0])))).unwrap();
        for name in ["kind", "rss_bytes", "dirty_bytes_per_s", "blackout_ms", "total_ms", "bytes_sent", "patched"] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!(json["kind"], "churn");
        assert_eq!(serde_json::from_value::<Row>(json).unwrap().plain_criu.unwrap().blackout_ms, [2.0]);
    }
}
