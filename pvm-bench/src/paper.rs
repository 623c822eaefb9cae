//! What the paper measured: Barak, Braverman, Gilderman, Laden (1996), Table 1.
//!
//! 16 Pentium-90, K identical CPU-bound processes of 300 s each. Its row 31 is impossible: 563 s is the optimum for 30
//! processes, and 574.03 s is less than 31 * 300 / 16 = 581.25 s, which no schedule can beat.

/// Nodes in the paper's cluster.
pub const NODES: u32 = 16;
/// CPU seconds of one process.
pub const WORK_S: f64 = 300.0;

/// One row of Table 1, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperRow {
    /// Number of processes.
    pub processes: u32,
    /// The column "MOSIX".
    pub mosix_s: f64,
    /// The column "PVM".
    pub pvm_s: f64,
    /// The column "PVM on MOSIX".
    pub pvm_on_mosix_s: f64,
}

const fn row(processes: u32, mosix_s: f64, pvm_s: f64, pvm_on_mosix_s: f64) -> PaperRow {
    PaperRow { processes, mosix_s, pvm_s, pvm_on_mosix_s }
}

/// Table 1.
pub const TABLE1: [PaperRow; 19] = [
    row(1, 301.91, 301.83, 304.54),
    row(2, 302.92, 303.78, 304.70),
    row(4, 304.57, 305.60, 306.59),
    row(8, 305.73, 308.57, 301.88),
    row(16, 310.83, 317.12, 303.40),
    row(17, 456.91, 604.36, 452.84),
    row(20, 462.07, 602.40, 454.07),
    row(24, 471.87, 603.25, 454.67),
    row(25, 533.15, 603.83, 530.15),
    row(27, 549.07, 603.86, 559.81),
    row(31, 574.03, 604.63, 595.17),
    row(32, 603.17, 603.14, 604.64),
    row(33, 705.93, 906.31, 707.39),
    row(36, 715.35, 905.27, 708.41),
    row(38, 759.90, 905.34, 755.53),
    row(40, 767.67, 905.39, 771.71),
    row(43, 833.33, 908.96, 839.61),
    row(47, 901.81, 907.79, 893.65),
    row(48, 916.11, 908.51, 907.71),
];

/// The paper's row for so many processes.
pub fn table1_row(processes: u32) -> Option<&'static PaperRow> {
    TABLE1.iter().find(|row| row.processes == processes)
}

/// What a static placement must take in theory, seconds: the fullest node decides.
pub fn static_s(processes: u32, nodes: u32) -> f64 {
    f64::from(processes.div_ceil(nodes.max(1))) * WORK_S
}

#[cfg(test)]
mod tests {
    use mosix_policy::optimal::{bound_s, greedy_s};

    use super::*;

    #[test]
    fn pvms_column_is_the_staircase() {
        for row in TABLE1 {
            let theory = static_s(row.processes, NODES);
            assert!((row.pvm_s / theory - 1.0).abs() < 0.06, "{row:?} {theory}");
        }
    }

    #[test]
    fn only_row_31_beats_the_bound() {
        let beats = |row: &&PaperRow| row.mosix_s < bound_s(row.processes, NODES, WORK_S);
        let rows: Vec<u32> = TABLE1.iter().filter(beats).map(|row| row.processes).collect();
        assert_eq!(rows, [31]);
        assert!((greedy_s(30, NODES, WORK_S) - 562.5).abs() < 1e-6);
    }
}
