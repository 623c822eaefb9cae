//! The paper's experiments on a [lab](mosix_lab): static placement by the real PVM against live balancing.
//!
//! * [`paper`]: what the paper measured.
//! * [`scale`]: how the paper's seconds become ours.
//! * [`check`]: a run is only believed if the nodes got the CPU they were entitled to.
//! * [`pvm`]: a PVM virtual machine on a lab, and its static runs.
//! * [`table1`]: Table 1: both sides, row by row; the live side comes in by the trait [`table1::LiveSide`].
//! * [`cluster`], [`live`]: `mosixd` on every node, and the live side that it makes.
//! * [`free`]: the control, a [`table1::LiveSide`] whose migrations cost nothing: it shows what this lab can reach.
//! * [`idle`]: what the daemons of an idle cluster cost.
//! * [`migrate`]: how long a process stands still when it is moved.
//! * [`soak`]: a thousand moves under load: is anything lost, doubled, damaged or left behind?
//! * [`sim`]: scenarios for the simulator.
//! * [`row`]: what is printed and written as JSON.

pub mod check;
pub mod cluster;
pub mod free;
pub mod idle;
pub mod live;
pub mod migrate;
pub mod paper;
pub mod pvm;
mod race;
pub mod row;
pub mod scale;
pub mod sim;
pub mod soak;
pub mod table1;

/// Result of the benchmark's operations.
pub type Result<T> = std::result::Result<T, BenchError>;

/// Errors of the benchmark. The lab and PVM are taken down by dropping them, whatever the error.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] mosix_lab::LabError),
    /// PVM is not installed or not usable.
    #[error("PVM: {0}")]
    Pvm(String),
    /// A run did not do what it should.
    #[error("{what}: {why}")]
    Run {
        /// Which run.
        what: String,
        /// What happened.
        why: String,
    },
    /// A file operation failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Turns an I/O error into a [`BenchError`] that names the action.
pub(crate) fn failed(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
    let action = action.into();
    move |source| BenchError::Io { action, source }
}
