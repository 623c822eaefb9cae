//! Pure decisions: load index, gossip window, placement, balance, admission.
//!
//! No I/O, no clock, no threads, no global random numbers: time is an argument (seconds on any monotone clock),
//! randomness a `&mut impl Rng`. Same arguments, same result, so that the daemon, the tests and the simulator run
//! the very same code and a decision can be replayed.
//!
//! * [`Params`] holds every constant. All times scale with the gossip period, for labs that run faster than life.
//! * [`Record`]s describe nodes. They travel in [`Message`]s between the nodes' [`Window`]s; [`age`] tells how old they get.
//! * [`decide`] picks a process to move and its target; [`admit`] lets the target check that on its own state; the
//!   [`Ledger`] keeps both sides' *committed* counts while a move is under way; [`place`] picks where a program starts.
//! * [`lag`] is what rotation goes by.
//! * A [`Case`] is a decision with all its inputs: it can be stored and taken again.
//! * [`optimal`] has the bounds against which balancing is measured.
//!
//! Decisions use committed counts (what runs here, plus what was accepted, minus what is leaving), never a smoothed
//! load: smoothed figures make a cluster overshoot. Predicted times are compared with a margin, never for equality:
//! a rounding error between two equal nodes otherwise makes processes go back and forth for ever.

mod admit;
pub mod age;
mod deaths;
mod decide;
mod dice;
mod explain;
pub mod lag;
mod ledger;
mod opportunity;
pub mod optimal;
mod params;
mod place;
mod predict;
mod process;
mod record;
mod rotate;
mod view;
mod window;

pub use admit::{Own, Refusal, Request, Verdict, admit};
pub use decide::decide;
pub use dice::Dice;
pub use explain::{Case, Conclusion, Explanation, Ineligible, MAX_ROWS, Ring, Row};
pub use ledger::{Ledger, MAX_ENTRIES, Reserved};
pub use params::{BadParam, Objective, Params};
pub use place::{Explorer, Newborn, place, place_process};
pub use predict::{Figures, cpu_load, rate, time_per_work};
pub use process::{Candidate, Local, Move, Outcome, Partner, Rule, Stance, Terms, eligible};
pub use record::{Death, Features, MAX_DEATHS, MAX_RECORDS, Message, NodeId, Record};
pub use rotate::swap_back;
pub use window::{Heard, Standing, Window, pick_peer};
