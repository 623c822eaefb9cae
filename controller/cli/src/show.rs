//! The daemon's answers as text for people.

use comfy_table::{CellAlignment, Table, presets};
use mosix_wire::control::{Check, Downtime, Explained, Health, Moved, NodeRow, ProcessRow, Stats, Status};

use crate::format::{bytes, clean, milliseconds, seconds};

/// A health line, then a table of the nodes; a star marks the one that answers.
pub(crate) fn status(status: &Status) -> String {
    let mut table = table(&["NODE", "STATE", ">SPEED", ">CPUS", ">LOAD", ">MEMORY", ">FREE", ">GUESTS", ">AWAY", ">AGE"]);
    for node in &status.nodes {
        table.add_row(node_row(node, node.name == status.this_node));
    }
    format!("{}\n{}", clean(&status.health), text_of(&table))
}

fn node_row(node: &NodeRow, this: bool) -> Vec<String> {
    let name = format!("{}{}", clean(&node.name), if this { "*" } else { "" });
    let mut row = vec![name, clean(&node.state)];
    match node.age_s {
        Some(age_s) => row.extend([
            format!("{:.2}", node.speed),
            node.cpus.to_string(),
            format!("{:.2}", node.load),
            bytes(node.memory_total_bytes),
            bytes(node.memory_free_bytes),
            node.guests.to_string(),
            node.away.to_string(),
            seconds(age_s),
        ]),
        // Never heard of: its figures are no figures.
        None => row.extend(vec!["-".to_owned(); 8]),
    }
    row
}

/// A table of processes.
pub(crate) fn processes(processes: &[ProcessRow]) -> String {
    if processes.is_empty() {
        return "no process of this node is away or wants a CPU (--all lists the others)\n".into();
    }
    let mut table = table(&[">PID", ">UID", "COMMAND", "NODE", "STATE", ">SINCE", ">CPU", ">RSS", ">MOVES"]);
    for process in processes {
        table.add_row([
            process.pid.to_string(),
            process.uid.to_string(),
            clean(&process.command),
            clean(&process.node),
            clean(&process.state),
            seconds(process.since_s),
            seconds(process.cpu_s),
            bytes(process.rss_bytes),
            process.moves.to_string(),
        ]);
    }
    text_of(&table)
}

/// One line about a move, and where its time went.
pub(crate) fn moved(moved: &Moved) -> String {
    format!(
        "process {} moved from {} to {}: {} in all, of which it stood still for {}; {} sent\n{}",
        moved.pid,
        clean(&moved.from),
        clean(&moved.to),
        milliseconds(moved.total_ms),
        milliseconds(moved.freeze_ms),
        bytes(moved.sent_bytes),
        downtime(&moved.record)
    )
}

fn downtime(record: &Downtime) -> String {
    let mut text = format!("  target ready after {}", milliseconds(record.prepare_ms));
    if !record.frozen_because.is_empty() {
        let rounds: Vec<String> = record.rounds.iter().map(|round| bytes(round.bytes)).collect();
        text += &format!(
            "; memory copied in {} while it ran ({}): {}",
            milliseconds(record.precopy_ms),
            rounds.join(", "),
            clean(&record.frozen_because)
        );
    }
    text += &format!("\n  after the stop: images complete at {}", milliseconds(record.dump_ms));
    if record.delta_ms > 0.0 {
        text += &format!(", last pages sent at {}", milliseconds(record.delta_ms));
    }
    text += &format!(
        ", all sent at {}, copy complete at {}, running at {}\n",
        milliseconds(record.sent_ms),
        milliseconds(record.prepared_ms),
        milliseconds(record.freeze_ms)
    );
    text
}

/// What keeps a process where it is, and what was decided about it.
pub(crate) fn explained(explained: &Explained) -> String {
    let mut text = format!(
        "process {} ({}) runs on {} and {} be moved\n",
        explained.pid,
        clean(&explained.command),
        clean(&explained.node),
        if explained.movable { "can" } else { "cannot" }
    );
    text += &list("cannot be moved because", &explained.refusals);
    text += &list("is not moved by itself because", &explained.not_automatic);
    if explained.decisions.is_empty() {
        text += "no decision about it yet\n";
    } else {
        let mut table = table(&["AGO", "RULE", "DECISION"]);
        for decision in &explained.decisions {
            table.add_row([seconds(decision.ago_s), clean(&decision.rule), clean(&decision.text)]);
        }
        text += &text_of(&table);
    }
    text
}

fn list(title: &str, reasons: &[String]) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let lines: String = reasons.iter().map(|reason| format!("  - {}\n", clean(reason))).collect();
    format!("{title}:\n{lines}")
}

/// One line for each thing that was looked at.
pub(crate) fn diagnosis(checks: &[Check]) -> String {
    let mut table = table(&["WHAT", "STATE", "DETAIL"]);
    for check in checks {
        let state = match check.state {
            Health::Good => "good",
            Health::Slow => "slow",
            Health::Missing => "missing",
        };
        table.add_row([clean(&check.what), state.to_owned(), clean(&check.detail)]);
    }
    text_of(&table)
}

/// One counter a line.
pub(crate) fn stats(stats: &Stats) -> String {
    let rows = [
        ("moves committed", stats.migrations.to_string()),
        ("moves given up", stats.aborted.to_string()),
        ("guests refused", stats.refused.to_string()),
        ("freeze time", freeze(&stats.freeze_ms)),
        ("daemon's CPU time", seconds(stats.daemon_cpu_s)),
        ("daemon's memory", bytes(stats.daemon_rss_bytes)),
        ("gossip sent", stats.gossip_sent.to_string()),
        ("gossip accepted", stats.gossip_received.to_string()),
        ("gossip dropped", stats.gossip_dropped.to_string()),
        ("measured by", clean(&stats.probe)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect()
}

/// Median and worst of the freeze times.
fn freeze(times_ms: &[f64]) -> String {
    let mut sorted = times_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(worst)) => {
            format!("median {}, worst {} of {}", milliseconds(*median), milliseconds(*worst), sorted.len())
        }
        _ => "-".into(),
    }
}

/// A table without lines. Columns whose title begins with `>` (not shown) are aligned to the right.
fn table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(titles.iter().map(|title| title.trim_start_matches('>')));
    for (column, title) in table.column_iter_mut().zip(titles) {
        column.set_padding((0, 2));
        if title.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn text_of(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::control::DecisionRow;

    fn node(name: &str, age_s: Option<f64>) -> NodeRow {
        NodeRow {
            name: name.into(),
            state: if age_s.is_some() { "up" } else { "unknown" }.into(),
            speed: 1.0,
            cpus: 2,
            load: 1.256,
            memory_total_bytes: 8 << 30,
            memory_free_bytes: 512 << 20,
            guests: 1,
            away: 3,
            age_s,
        }
    }

    #[test]
    fn status_is_a_health_line_and_a_table() {
        let text = status(&Status {
            health: "2 of 3 nodes up".into(),
            this_node: "ws1".into(),
            nodes: vec![node("ws1", Some(0.0)), node("ws22", Some(4.25)), node("ws3", None)],
        });
        let expected = "\
2 of 3 nodes up
NODE  STATE    SPEED  CPUS  LOAD   MEMORY       FREE  GUESTS  AWAY    AGE
ws1*  up        1.00     2  1.26  8.0 GiB  512.0 MiB       1     3  0.0 s
ws22  up        1.00     2  1.26  8.0 GiB  512.0 MiB       1     3  4.2 s
ws3   unknown      -     -     -        -          -       -     -      -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn processes_are_a_table_or_a_sentence() {
        assert!(processes(&[]).contains("--all"));
        let text = processes(&[ProcessRow {
            pid: 4321,
            command: "bu\u{1b}rn".into(),
            uid: 1000,
            node: "ws2".into(),
            since_s: 75.0,
            cpu_s: 3.04,
            rss_bytes: 3 << 20,
            moves: 2,
            state: "running".into(),
        }]);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split("  ").map(str::trim).filter(|s| !s.is_empty()).collect();
        assert_eq!(row, ["4321", "1000", "bu?rn", "ws2", "running", "1 min 15 s", "3.0 s", "3.0 MiB", "2"]);
    }

    #[test]
    fn a_move_is_told_with_its_parts() {
        let mut record =
            Downtime { prepare_ms: 20.0, dump_ms: 12.0, sent_ms: 13.5, prepared_ms: 25.0, freeze_ms: 31.04, ..Downtime::default() };
        let told = |record: &Downtime| {
            let (from, to, record) = ("a".into(), "b".into(), record.clone());
            moved(&Moved { pid: 7, from, to, total_ms: 143.2, freeze_ms: 31.04, sent_bytes: 1 << 20, patched: false, record })
        };
        let first = "process 7 moved from a to b: 143 ms in all, of which it stood still for 31.0 ms; 1.0 MiB sent\n";
        let last = "all sent at 13.5 ms, copy complete at 25.0 ms, running at 31.0 ms\n";
        assert_eq!(told(&record), format!("{first}  target ready after 20.0 ms\n  after the stop: images complete at 12.0 ms, {last}"));
        record.frozen_because = "it fits".into();
        record.rounds = vec![mosix_wire::control::Round { bytes: 4 << 20, ms: 9.0 }, mosix_wire::control::Round { bytes: 8192, ms: 1.0 }];
        (record.precopy_ms, record.delta_ms) = (11.0, 3.0);
        let text = told(&record);
        assert!(text.contains("; memory copied in 11.0 ms while it ran (4.0 MiB, 8.0 KiB): it fits\n"), "{text}");
        assert!(text.contains("complete at 12.0 ms, last pages sent at 3.0 ms, all sent"), "{text}");
    }

    #[test]
    fn an_explanation_gives_every_reason() {
        let text = explained(&Explained {
            pid: 9,
            command: "vim".into(),
            node: "a".into(),
            movable: false,
            refusals: vec!["it uses io_uring".into()],
            not_automatic: vec!["it is interactive".into()],
            decisions: vec![DecisionRow { ago_s: 2.0, rule: "balance".into(), text: "stay: no gain".into() }],
        });
        assert!(text.starts_with("process 9 (vim) runs on a and cannot be moved\n"));
        for part in ["  - it uses io_uring\n", "  - it is interactive\n", "balance", "stay: no gain"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_diagnosis_is_a_table() {
        let row = |what: &str, state| Check { what: what.into(), state, detail: "so".into() };
        let text = diagnosis(&[row("criu", Health::Good), row("pre-copy", Health::Slow)]);
        assert_eq!(text, "WHAT      STATE  DETAIL\ncriu      good   so\npre-copy  slow   so\n");
    }

    #[test]
    fn stats_sum_up_the_freezes() {
        assert_eq!(freeze(&[]), "-");
        assert_eq!(freeze(&[30.0, 10.0, 20.0]), "median 20.0 ms, worst 30.0 ms of 3");
        assert!(stats(&Stats { migrations: 42, ..Stats::default() }).starts_with("moves committed    42\n"));
    }
}
