//! A discrete-event simulator of a cluster. It calls `mosix-policy` exactly as the daemon does: the same functions on the same types.
//!
//! * [`Plan`] reads a scenario file: nodes, network, jobs, and the variations to compare.
//! * [`World`] is one run: an event queue, nodes that share their CPUs, processes, transfers, messages, failures. Same scenario and seed,
//!   same run, on any machine.
//! * [`run_plan`] does all runs of a plan on all cores, [`Report`] sums them up as JSON, CSV or a table.
//!
//! What the model has: processor sharing on one or more CPUs, slowdown by overcommitted memory, pre-copy and freeze over network interfaces that
//! transfers share, CPU taken by copying, messages that take time, get lost and come twice, nodes that crash, join and are cut off.
//! What it leaves out: scheduling noise below a second, disks, and the time that decisions themselves take. Real runs were about 1 % slower.

mod births;
mod chances;
mod churn;
mod event;
mod gossip;
mod handshake;
mod node;
mod plan;
mod process;
mod report;
mod result;
mod runner;
mod spec;
mod transfer;
mod watch;
mod world;

pub use chances::Chance;
pub use plan::{Plan, PlannedRun};
pub use report::{Figure, Point, Report};
pub use result::RunResult;
pub use runner::run_plan;
pub use spec::Scenario;
pub use world::World;

/// What can be wrong with a scenario, or with writing its results. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A scenario is not valid TOML, or has unknown or missing keys.
    #[error("{path}: {why}")]
    Syntax {
        /// Which file.
        path: String,
        /// What the parser says.
        why: String,
    },
    /// A value is out of bounds.
    #[error("{what}: {why}")]
    Value {
        /// Which key.
        what: String,
        /// What it must be.
        why: String,
    },
}

pub(crate) fn bad(what: impl Into<String>, why: impl Into<String>) -> SimError {
    SimError::Value { what: what.into(), why: why.into() }
}

/// Result of the simulator's operations.
pub type Result<T> = std::result::Result<T, SimError>;
