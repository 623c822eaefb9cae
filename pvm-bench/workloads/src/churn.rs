//! What the program `churn` is made of: memory that shows whether it was moved intact, and a clock that shows when it stood still.
//!
//! * [`pages`]: pages whose every word follows from the page's number and version, so that each can be checked at any time.
//! * [`gaps`]: the times between readings of a clock; what is longer than the loop explains is a time in which it did not run.
//! * [`pace`]: how many pages a writer owes by now.
//! * [`args`]: the command line.

pub mod args;
pub mod gaps;
pub mod pace;
pub mod pages;
