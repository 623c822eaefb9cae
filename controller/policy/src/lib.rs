//! Pure decisions: load index, gossip window, placement, balance, admission.
//!
//! No I/O, no clock, no threads, no global random numbers: time is an argument (seconds on any monotone clock),
//! randomness a `&mut impl Rng`. Same arguments, same result, so that the daemon, the tests and the simulator run
//! the very same code and a decision can be replayed.
//!
//! * [`Params`] holds every constant. All times scale with the gossip period, for labs that run faster than life.
//! * [`Record`]s describe nodes. They travel in [`Message`]s between the nodes' [`Window`]s.
//! * [`decide`] picks a process to move and its target; [`admit`] lets the target check that on its own state; the
//!   [`Ledger`] keeps both sides' *committed* counts while a move is under way; [`place`] picks where a program starts.
//! * [`optimal`] has the bounds against which balancing is measured.
//!
//! Decisions use committed counts (what runs here, plus what was accepted, minus what is leaving), never a smoothed
//! load: smoothed figures make a cluster overshoot. Predicted times are compared with a margin, never for equality:
//! a rounding error between two equal nodes otherwise makes processes go back and forth for ever.

mod admit;
mod decide;
mod explain;
mod ledger;
pub mod optimal;
mod params;
mod place;
mod predict;
mod record;
mod window;

pub use admit::{Own, Refusal, Request, Verdict, admit};
pub use decide::{Candidate, Local, Move, Outcome, decide, eligible};
pub use explain::{Explanation, Ineligible, MAX_ROWS, Row};
pub use ledger::{Ledger, MAX_ENTRIES, Reserved};
pub use params::Params;
pub use place::place;
pub use predict::{Figures, cpu_load, time_per_work};
pub use record::{MAX_RECORDS, Message, NodeId, Record};
pub use window::{Heard, Window, pick_peer};
