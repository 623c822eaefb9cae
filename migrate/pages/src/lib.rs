//! The pages of running processes: which changed, where they go, how they travel, and whether all have arrived.
//!
//! A library without knowledge of CRIU, TLS or the daemon. One move in four lines (errors left out):
//!
//! ```text
//! source: Source::start(pids, options);  Outlet::new(links)            sink: Sink::new(place, limits)
//!         loop { round(out); precopy::next(goal, rounds) }                   run(link) in a thread per link
//!         -- freeze --  freeze_round(out)  -- dump --  after_dump(out)
//!         end(out)                                                           finish()?, check_map(arrived, vmas)?, go
//! ```
//!
//! Nothing flows back on these streams: that all has arrived is told by the caller, in its own protocol.
//!
//! | module | what it is | I/O |
//! |---|---|---|
//! | [`range`] | ranges of pages, maps from them | none |
//! | [`vma`] | mappings, and whose business their pages are | reads `/proc` |
//! | [`track`] | which pages changed: write protection, soft-dirty, contents | the process |
//! | [`window`] | where pages go: windows or the store | none |
//! | [`ledger`] | what was delivered where, and what must be sent again | none |
//! | [`precopy`] | when to freeze | none |
//! | [`wire`] | frames, packing, rate limit | any `Read`/`Write` |
//! | [`source`], [`sink`] | both ends | all of it |
//!
//! What the program notices: a stop of some 100 us at the start, minor faults when it writes to pages for the first time in a
//! round, and huge pages that are split by such writes. While it is followed, a new mapping does not merge with a registered
//! neighbour until the next round: an `mremap` over both fails meanwhile, as it does between mappings of different kinds.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mosix-pages knows the page tables of x86_64 Linux only");

pub mod ledger;
mod pagemap;
pub mod precopy;
pub mod range;
pub mod sink;
pub mod source;
mod sys;
pub mod track;
pub mod vma;
pub mod window;
pub mod wire;

pub use sink::{Arrived, Limits, Mismatch, Place, Room, Sink, SinkError, check_map};
pub use source::{Final, Known, Options, Outlet, OutletOptions, RoundFigures, Source, SourceError};
pub use track::Kind as TrackKind;
