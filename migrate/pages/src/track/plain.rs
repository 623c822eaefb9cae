//! Tracking without help of userfaultfd: soft-dirty bits, and contents. Both read the page map entry by entry, as any kernel lets.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use mosix_ptrace::{Threads, visit};

use super::{Area, Backing, Found, Kind, Tracker};
use crate::pagemap::{Entry, Pagemap};
use crate::range::{PAGE_BYTES, Range, RangeSet};

/// Longest time that reading and clearing the bits may take.
const VISIT_LIMIT: Duration = Duration::from_secs(10);

/// Soft-dirty bits. There is no atomic "read and clear", so the process stands still for both.
#[derive(Debug)]
pub(super) struct SoftDirty {
    pid: i32,
    cleared: bool,
}

pub(super) fn soft_dirty_is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        // a page that was just written is dirty, unless the kernel does not know the bit
        let page = vec![1u8; 2 * PAGE_BYTES as usize];
        let address = (page.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let own = Pagemap::open(std::process::id() as i32);
        own.and_then(|own| own.entry(address)).is_ok_and(Entry::soft_dirty)
    })
}

impl SoftDirty {
    pub(super) fn start(pid: i32) -> io::Result<SoftDirty> {
        if !soft_dirty_is_supported() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no soft-dirty bits"));
        }
        Pagemap::open(pid).map(|_| SoftDirty { pid, cleared: false })
    }
}

impl Tracker for SoftDirty {
    fn kind(&self) -> Kind {
        Kind::SoftDirty
    }

    fn round(&mut self, areas: &[Area]) -> io::Result<Vec<Range>> {
        let (pid, everything) = (self.pid, !self.cleared);
        let found = visit(pid, Threads::All, VISIT_LIMIT, |_| {
            Ok(Pagemap::open(pid).and_then(|pagemap| {
                let changed = |area: &Area, entry: Entry| everything || area.whole || entry.soft_dirty();
                let found = matching(&pagemap, areas, &changed)?;
                std::fs::write(format!("/proc/{pid}/clear_refs"), "4")?;
                Ok(found)
            }))
        });
        let found = found.map_err(io::Error::other)??;
        self.cleared = true;
        Ok(found)
    }

    fn last(&mut self, areas: &[Area], _: &RangeSet) -> io::Result<Vec<Found>> {
        let everything = !self.cleared;
        present(self.pid, areas, &|area, entry| everything || area.whole || entry.soft_dirty())
    }
}

/// No tracking: everything present is reported, and who reads it compares hashes.
#[derive(Debug)]
pub(super) struct Content {
    pid: i32,
}

impl Content {
    pub(super) fn start(pid: i32) -> io::Result<Content> {
        Pagemap::open(pid).map(|_| Content { pid })
    }
}

impl Tracker for Content {
    fn kind(&self) -> Kind {
        Kind::Content
    }

    fn round(&mut self, areas: &[Area]) -> io::Result<Vec<Range>> {
        matching(&Pagemap::open(self.pid)?, areas, &|_, _| true)
    }

    fn last(&mut self, areas: &[Area], _: &RangeSet) -> io::Result<Vec<Found>> {
        present(self.pid, areas, &|_, _| true)
    }
}

type Test<'a> = &'a dyn Fn(&Area, Entry) -> bool;

fn matching(pagemap: &Pagemap, areas: &[Area], wanted: Test<'_>) -> io::Result<Vec<Range>> {
    let mut found: Vec<Range> = Vec::new();
    for area in areas {
        pagemap.own_pages(area.range, area.backing == Backing::Shared, &mut |address, entry| {
            if !wanted(area, entry) {
                return;
            }
            match found.last_mut() {
                Some(last) if last.end == address => last.end += PAGE_BYTES,
                _ => found.push(Range::new(address, address + PAGE_BYTES)),
            }
        })?;
    }
    Ok(found)
}

fn present(pid: i32, areas: &[Area], changed: Test<'_>) -> io::Result<Vec<Found>> {
    let pagemap = Pagemap::open(pid)?;
    let mut found: Vec<Found> = Vec::new();
    for area in areas {
        pagemap.own_pages(area.range, area.backing == Backing::Shared, &mut |address, entry| {
            let changed = changed(area, entry);
            match found.last_mut() {
                Some(last) if last.range.end == address && last.changed == changed => last.range.end += PAGE_BYTES,
                _ => found.push(Found { range: Range::new(address, address + PAGE_BYTES), changed }),
            }
        })?;
    }
    Ok(found)
}
