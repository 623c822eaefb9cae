//! Workstations on one machine: what the benchmark needs of sixteen 1996 workstations, made of namespaces.
//!
//! A *lab* is a set of *nodes* on one private Ethernet. A node has its own pid, network, uts, mount and ipc namespaces,
//! its own name and address, and a CPU of a fixed speed: a share of one core, held by a CFS quota. The file tree is
//! shared by all nodes, as if over NFS, but for `/proc`, `/etc/hosts`, `/etc/hostname` and one `private` folder.
//!
//! How it works:
//! * [`Lab::up`] starts one *holder* ([`holder`]) per node. It is pid 1 of the node, serves *exec requests* on a Unix socket
//!   in the lab's folder ([`proto`], [`Exec`], [`Child`]), and reaps orphans. Any process of any node can reach any node by
//!   these sockets; entering a sibling's pid namespace from outside its holder is not possible, and PVM starts its daemons
//!   from inside node 1.
//! * Speeds are cpu cgroups ([`cgroup`]): one group with a quota per node, one sibling `NAME.sys` without quota for what is
//!   not to be charged to the node, all below `mosix-lab-ID`, which has the highest weight there is: without that, any other
//!   load on the machine slows the nodes by up to 270 %.
//! * One more namespace holds the switch, a bridge ([`network`]). The machine's own network is not touched.
//! * Everything that exists outside the namespaces is written down in a state file before it is made ([`state`]), so that
//!   [`Lab::down`], or the next `up` after a crash, finds and removes all of it.
//!
//! A lab that is not kept dies with its owner, whatever way that dies: holders watch a pipe that the owner holds, and
//! when pid 1 of a pid namespace exits, the kernel kills everything in it.
//!
//! Needs root, iproute2 and util-linux.

mod beside;
pub mod cgroup;
mod cgroup_remove;
mod child_side;
mod clean;
mod client;
mod error;
pub mod holder;
mod lab;
mod lock;
pub mod network;
pub mod proto;
mod quota;
pub mod rsh;
pub mod selftest;
mod spec;
mod start;
pub mod state;
mod stop;
mod sys;
mod usage;

pub use beside::find_beside;
pub use client::{Child, Exec};
pub use error::{LabError, Result};
pub use lab::Lab;
pub use quota::Quota;
pub use spec::{LabSpec, SlowNodes, default_run_dir, parse_fraction};
pub use state::Node;
pub use stop::StopFlag;
pub use usage::UsageSnapshot;
