//! Which pages of a running process changed since the last look.
//!
//! Three ways, behind [`Tracker`]; [`start`] takes the first that works:
//!
//! | kind | kernel | a round costs | what the program notices |
//! |---|---|---|---|
//! | [`Kind::WriteProtect`] | 6.7 | a walk of the page tables, done by the kernel | a minor fault at the first write to a page in each round |
//! | [`Kind::SoftDirty`] | any with soft-dirty | reading 2 MiB of page map per GiB, stopped | the same, and standing still meanwhile |
//! | [`Kind::Content`] | any | reading and hashing everything | memory bandwidth |
//!
//! A tracker knows nothing of where pages go. It gets a list of areas and answers with ranges of pages. Its two questions are
//! [`Tracker::round`] while the program runs and [`Tracker::last`] when it stands still: that answer is exact, and also tells
//! which pages exist at all.

mod plain;
mod protect;

use std::io;
use std::os::fd::OwnedFd;

use crate::range::{Range, RangeSet};

/// How changes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// userfaultfd WP_ASYNC and PAGEMAP_SCAN.
    WriteProtect,
    /// `clear_refs` and bit 55 of the page map.
    SoftDirty,
    /// Everything present may have changed: who reads it compares hashes.
    Content,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::WriteProtect => "write protection (userfaultfd)",
            Kind::SoftDirty => "soft-dirty bits",
            Kind::Content => "hashes of contents",
        })
    }
}

/// Memory to be looked at: one mapping, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub range: Range,
    /// What is behind it.
    pub backing: Backing,
    /// Report everything present, changed or not.
    pub whole: bool,
}

/// What is behind a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: private anonymous memory.
    Nothing,
    /// A file, of which only the private copies count.
    File,
    /// Shared memory, of which all pages count that this process has mapped.
    Shared,
}

/// Pages found in the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub range: Range,
    /// They changed since they were last reported, or may have.
    pub changed: bool,
}

/// Finds changed pages of one process.
///
/// Dropping it undoes everything. For [`Kind::WriteProtect`] the kernel then takes the protection off, 60 to 110 ms per GiB:
/// drop it after the thaw.
pub trait Tracker: Send + std::fmt::Debug {
    /// How it works.
    fn kind(&self) -> Kind;

    /// Reports pages that changed since the last round, and everything present where an area is `whole` or was not tracked
    /// so far. They count as unchanged from now on. The program may run, map and unmap meanwhile.
    ///
    /// # Errors
    /// From the kernel; the process may be gone. Pages may then be lost: everything must be asked for as `whole` again.
    fn round(&mut self, areas: &[Area]) -> io::Result<Vec<Range>>;

    /// Reports all pages with contents of a process that stands still. It changes nothing, so it may be asked again.
    /// `sent` must hold all pages that rounds have reported, and may hold more.
    ///
    /// # Errors
    /// From the kernel.
    fn last(&mut self, areas: &[Area], sent: &RangeSet) -> io::Result<Vec<Found>>;

    /// It can no longer see changes (after an `execve`), and only reports everything. A new one should be made.
    fn is_blind(&self) -> bool {
        false
    }
}

/// Gets a new userfaultfd of a process; see [`take_userfaultfd`].
pub type Take = fn(i32) -> io::Result<OwnedFd>;

/// Has a process make a userfaultfd, takes it, and has it closed there: by ptrace, in about 100 us.
///
/// If *this* process is killed in that time the other one goes on with a system call's registers, and most probably crashes. A daemon that may be
/// killed at any time has a helper program call this, and gives [`start`] a [`Take`] that asks the helper.
///
/// # Errors
/// It has ended, is traced by somebody else, or the kernel refuses. The process is as before.
pub fn take_userfaultfd(pid: i32) -> io::Result<OwnedFd> {
    protect::take_userfaultfd(pid).map_err(io::Error::other)
}

/// Starts tracking `pid`, in the `forced` way or the best that works here.
///
/// # Errors
/// The reason of the last way that was tried. The process is as before.
pub fn start(pid: i32, forced: Option<Kind>, take: Option<Take>) -> io::Result<Box<dyn Tracker>> {
    let kinds = [Kind::WriteProtect, Kind::SoftDirty, Kind::Content];
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for kind in kinds.into_iter().filter(|kind| forced.is_none_or(|forced| forced == *kind)) {
        result = match kind {
            Kind::WriteProtect => protect::WriteProtect::start(pid, take).map(|tracker| Box::new(tracker) as Box<dyn Tracker>),
            Kind::SoftDirty => plain::SoftDirty::start(pid).map(|tracker| Box::new(tracker) as Box<dyn Tracker>),
            Kind::Content => plain::Content::start(pid).map(|tracker| Box::new(tracker) as Box<dyn Tracker>),
        };
        match &result {
            Ok(_) => break,
            Err(error) => tracing::debug!(pid, %kind, %error, "this way of tracking does not work here"),
        }
    }
    result
}

/// Whether this kernel can track in that way, for any process.
pub fn is_supported(kind: Kind) -> bool {
    match kind {
        Kind::WriteProtect => protect::is_supported(),
        Kind::SoftDirty => plain::soft_dirty_is_supported(),
        Kind::Content => true,
    }
}
