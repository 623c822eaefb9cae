//! Measures the processes of this node.
//!
//! The kernel counts almost all that a balancer wants to know, per thread: CPU time, time spent waiting for a CPU,
//! switches, memory. A *collector* reads these counters once per period; a *tracker* compares them with the reading
//! before and turns them into a [`Sample`]: who wanted how many CPUs, who got how many, who holds how much memory.
//!
//! There are two collectors behind one trait, [`Probe`]. The first is a BPF program that walks all tasks inside the
//! kernel and hands over one binary record each (microseconds per task, and nothing at all in between). Where the
//! kernel refuses it, the other reads `/proc`, with the same results at a higher price. [`open`] chooses.
//!
//! Both show what the pid namespace of the calling process shows: its own processes and those of namespaces below,
//! under the pids that they have here.
//!
//! ```no_run
//! let mut probe = mosix_probe::open();
//! let first = probe.sample()?;            // averages over the whole life of each process
//! std::thread::sleep(std::time::Duration::from_secs(1));
//! let second = probe.sample()?;           // averages over the second between
//! println!("{}: load {:.2}", probe.backend(), second.load);
//! # Ok::<(), mosix_probe::ProbeError>(())
//! ```

pub mod btf;
mod collector;
mod delta;
mod error;
mod idmap;
mod kernel;
mod probe;
mod procfs;
mod sample;
mod system;

pub use error::ProbeError;
pub use probe::{Probe, open, open_bpf, open_proc};
pub use sample::{Comm, ProcessSample, Sample, State};
