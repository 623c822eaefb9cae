//! The probe against real processes of this machine: what it tells must be what the kernel's other interfaces tell.
//!
//! No test asserts a time. Counters that grow are caught between two readings of the same counter elsewhere, or the
//! process is stopped.

// Helpers of tests are tests; the exemption in clippy.toml reaches only the functions that are marked.
#![allow(clippy::unwrap_used)]

mod agree;
mod counters;
mod help;
mod namespace;
mod quota;
