//! What the benchmark runs.
//!
//! * [`burn`]: uses a given amount of CPU time, measured by the process's own CPU clock; survives migration.
//! * [`churn`]: memory and a clock that show what a move did to a process.
//! * [`shuffle`]: memory to which everything is done that can be done to memory, and of which every page is known.
//! * [`walk`]: a memory-bound loop that shows how much slower it became.
//! * [`report`]: how the last three tell.
//! * [`pvm`]: the dozen calls of libpvm3 that the PVM programs need, loaded at run time.
//! * [`tasks`]: what the PVM master and its workers say to each other.
//!
//! Programs: `burn`, `churn`, `shuffle`, `pvm-master`, `pvm-worker`; in `scripts`, small programs for python, node and java that
//! tell the same lines. They are small on purpose: on a node with 5 % of a core every
//! millisecond of start-up is 20 ms, and everything in their memory travels when they are migrated.

pub mod burn;
pub mod churn;
pub mod pvm;
pub mod report;
pub mod shuffle;
pub mod tasks;
pub mod walk;
