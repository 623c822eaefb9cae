//! Tracking by write protection: a userfaultfd in WP_ASYNC mode, and PAGEMAP_SCAN.
//!
//! # How it works
//!
//! The process is made to call `userfaultfd()`; we take the descriptor by `pidfd_getfd` and have it closed inside, so nothing
//! shows there. Mappings are registered from here. A scan that protects what it reports is one atomic step per page table:
//! no write between the two is lost. The first write to a protected page takes the protection off, without asking anyone.
//!
//! # What is safe by itself
//!
//! A page that was never protected counts as written. So new mappings, moved mappings, new processes and new programs are
//! never missed. The scans run with a check that fails where a mapping is not registered: such an area is registered then and
//! reported as a whole.
//!
//! # The last scan
//!
//! Asking the kernel for "present or swapped, and is it written" walks all page tables at 5 ms/GiB. Asking for nothing but
//! "written" is a fast path, 0.5 to 0.9 ms/GiB, but tells nothing of pages that vanished. So presence is put together:
//! * *Written* runs include emptied entries of page tables that exist. They are looked at closely; there are few.
//! * Every other page of an existing page table is protected, so it is there, and was reported in some round (the caller's
//!   `sent`).
//! * What remains are page tables that were freed as a whole: one page for each 2 MiB is probed.
//!
//! All this only for anonymous memory: a file's page that was protected and dropped leaves a marker that looks like swap, and
//! counts as written here (its contents are read, which is right in any case).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use mosix_ptrace::{Threads, VisitError, visit};

use super::{Area, Backing, Found, Kind, Tracker};
use crate::pagemap::{Pagemap, populated};
use crate::range::{Range, RangeSet};
use crate::sys::{self, Query, category};

/// Longest time the process may take for two system calls.
const VISIT_LIMIT: Duration = Duration::from_secs(2);
/// What one page table covers.
const TABLE_BYTES: u64 = 2 << 20;

/// Tracks one process.
#[derive(Debug)]
pub(super) struct WriteProtect {
    pid: i32,
    uffd: OwnedFd,
    blind: bool,
}

pub(super) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| sys::own_userfaultfd().and_then(|uffd| sys::uffd_set_up(&uffd)).is_ok())
}

impl WriteProtect {
    pub(super) fn start(pid: i32, take: Option<super::Take>) -> io::Result<WriteProtect> {
        if !is_supported() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no userfaultfd with WP_ASYNC"));
        }
        let uffd = take.unwrap_or(super::take_userfaultfd)(pid)?;
        sys::uffd_set_up(&uffd)?;
        Ok(WriteProtect { pid, uffd, blind: false })
    }

    /// Finds the changes of one area. `false`: it cannot be tracked, and everything in it was found.
    fn round_of(&self, pagemap: &Pagemap, area: &Area, found: &mut Vec<Range>) -> io::Result<bool> {
        let all = Query { protect: true, check: true, ..populated(area.backing == Backing::File) };
        let some = Query { mask: all.mask | category::WRITTEN, ..all };
        let query = if area.whole { all } else { some };
        let before = found.len();
        match scan_into(pagemap, area, query, found) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => return other.map(|()| true),
        }
        // not registered, at least not all of it: pages may have been protected without being reported
        found.truncate(before);
        if sys::uffd_register(&self.uffd, area.range).is_ok() && scan_into(pagemap, area, all, found).is_ok() {
            return Ok(true);
        }
        found.truncate(before);
        scan_into(pagemap, area, Query { protect: false, check: false, ..all }, found)?;
        Ok(found.len() == before)
    }

    fn last_of(&self, pagemap: &Pagemap, area: &Area, sent: &RangeSet, found: &mut Vec<Found>) -> io::Result<()> {
        let before = found.len();
        let result = if area.backing == Backing::Nothing && !area.whole {
            let written = Query { mask: category::WRITTEN, wanted: category::WRITTEN, check: true, ..Query::default() };
            let mut runs = RangeSet::default();
            let scanned = pagemap.scan(area.range, written, &mut |range, _| runs.add(range));
            scanned.and_then(|()| patched(pagemap, area.range, &runs, sent, found))
        } else {
            exact(pagemap, area, !area.whole, found)
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                // new since the last round. Before Linux 6.13 pages that were moved here may still look protected
                found.truncate(before);
                exact(pagemap, &Area { whole: true, ..*area }, false, found)
            }
            other => other,
        }
    }
}

impl Tracker for WriteProtect {
    fn kind(&self) -> Kind {
        Kind::WriteProtect
    }

    fn round(&mut self, areas: &[Area]) -> io::Result<Vec<Range>> {
        let pagemap = Pagemap::open(self.pid)?;
        let mut found = Vec::new();
        let (mut good, mut bad) = (0, 0);
        for area in areas {
            match self.round_of(&pagemap, area, &mut found)? {
                true => good += 1,
                false => bad += 1,
            }
        }
        // single areas may have vanished meanwhile; if most cannot be tracked, this is another program
        self.blind = bad > good;
        Ok(found)
    }

    fn last(&mut self, areas: &[Area], sent: &RangeSet) -> io::Result<Vec<Found>> {
        let pagemap = Pagemap::open(self.pid)?;
        let mut found = Vec::new();
        areas.iter().try_for_each(|area| self.last_of(&pagemap, area, sent, &mut found))?;
        Ok(found)
    }

    fn is_blind(&self) -> bool {
        self.blind
    }
}

fn scan_into(pagemap: &Pagemap, area: &Area, query: Query, found: &mut Vec<Range>) -> io::Result<()> {
    pagemap.scan(area.range, query, &mut |range, _| found.push(range))
}

/// Present pages and whether they are written, by the full walk. `check`: EPERM where it is not registered.
fn exact(pagemap: &Pagemap, area: &Area, check: bool, found: &mut Vec<Found>) -> io::Result<()> {
    let file = area.backing != Backing::Nothing;
    let wanted = category::WRITTEN | if file { category::SWAPPED } else { 0 };
    let query = Query { wanted, check, ..populated(area.backing == Backing::File) };
    let marks = if file { category::WRITTEN | category::SWAPPED } else { category::WRITTEN };
    pagemap.scan(area.range, query, &mut |range, categories| {
        found.push(Found { range, changed: area.whole || categories & marks != 0 });
    })
}

/// Present pages and whether they are written, from the written runs and what was sent.
fn patched(pagemap: &Pagemap, range: Range, runs: &RangeSet, sent: &RangeSet, found: &mut Vec<Found>) -> io::Result<()> {
    for (run, ()) in runs.iter() {
        pagemap.scan(run, populated(false), &mut |range, _| found.push(Found { range, changed: true }))?;
    }
    let first_table = range.start / TABLE_BYTES * TABLE_BYTES;
    let mut known: Option<(u64, bool)> = None;
    for old in sent.inside(range).flat_map(|old| runs.outside(old)) {
        let start = first_table + (old.start - first_table) / TABLE_BYTES * TABLE_BYTES;
        for table in Range::new(start, old.end).chunks(TABLE_BYTES) {
            let Some(part) = table.overlap(old) else { continue };
            let there = match known {
                Some((probed, there)) if probed == table.start => there,
                _ => pagemap.entry(part.start)?.own(),
            };
            known = Some((table.start, there));
            if there {
                found.push(Found { range: part, changed: false });
            }
        }
    }
    Ok(())
}

/// Has the process make a userfaultfd, takes it, and has it closed there. All threads stand still, so nobody forks with it or takes its number.
pub(super) fn take_userfaultfd(pid: i32) -> Result<OwnedFd, VisitError> {
    visit(pid, Threads::All, VISIT_LIMIT, |stopped| {
        let os = |doing| move |source| VisitError::Os { pid, doing, source };
        let fd = stopped.call(libc::SYS_userfaultfd, &[sys::UFFD_FLAGS as u64])?.map_err(os("its userfaultfd()"))?;
        let taken = mosix_ptrace::sys::fd_of(pid, fd as i32);
        stopped.call(libc::SYS_close, &[fd])?.map_err(os("its close()"))?;
        taken.map_err(os("taking its userfaultfd"))
    })
}
