//! The whole system at work: daemons, agents and CRIU in a small lab, with processes that are moved while they run.
//!
//! Each test has a lab of its own. What is looked at is what users and parents see at home (output, exit statuses, stops), and that
//! a process neither gets lost nor runs twice, whatever is killed meanwhile. Needs root, CRIU, cgroup v2, and the workspace's programs
//! beside this test's (`cargo xtask test` builds them); else every test prints why it was skipped.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bed;
mod counter;
mod job;
mod processes;
mod steps;

mod balancing;
mod crash_home;
mod crash_target;
mod endings;
mod faults;
mod hostile;
mod pipes;
mod refusals;
mod stopping;
