//! The memory of one process that runs while pages of it are missing.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};

use super::Report;
use super::missing::{Missing, Piece};
use super::sys::{self, Event, Placed};
use crate::images::PAGE_BYTES;

/// Copied at once in the background. A fault that comes meanwhile waits for it, about 60 us.
const FILL_BYTES: usize = 256 << 10;

/// Copied at once for a fault, from the page to the end of the block of this size: programs read on.
const FAULT_BYTES: u64 = 64 << 10;

/// The file where all pages of a process are.
#[derive(Debug)]
pub(super) struct Store {
    file: File,
}

impl Store {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().read(true).write(true).open(path)? })
    }

    /// Gives memory back that is not needed any more. A file system that cannot do it keeps it until the file is deleted.
    fn release(&self, source: u64, length_bytes: u64) {
        let (Ok(at), Ok(length)) = (i64::try_from(source), i64::try_from(length_bytes)) else { return };
        let _ = fallocate(&self.file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length);
    }
}

/// What all processes share.
#[derive(Debug)]
pub(super) struct Work {
    buffer: Vec<u8>,
    pub(super) report: Report,
    /// CRIU has said that all is restored: what has no mapping now has gone, and is not just yet to come.
    pub(super) restored: bool,
}

impl Work {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; FILL_BYTES], report: Report::default(), restored: false }
    }
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    /// Events must be read first.
    Later,
}

/// One process.
#[derive(Debug)]
pub(super) struct Memory {
    uffd: OwnedFd,
    store: Arc<Store>,
    missing: Missing,
    /// Addresses of pages that threads wait for; at most one for each thread.
    faults: VecDeque<u64>,
    /// Where the background copy goes on.
    cursor: u64,
}

impl Memory {
    pub(super) fn new(uffd: OwnedFd, store: Arc<Store>, missing: Missing) -> Self {
        Self { uffd, store, missing, faults: VecDeque::new(), cursor: 0 }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.uffd
    }

    /// Whether nothing is missing and nobody waits.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.faults.is_empty()
    }

    /// Reads all events. Returns children that were forked; they miss what this process missed at that moment.
    ///
    /// The kernel hands out faults before changes of the mappings that happened earlier. So faults are only noted here, and as long as changes are unread
    /// the kernel refuses to place pages.
    pub(super) fn read_events(&mut self, work: &mut Work) -> io::Result<Vec<Self>> {
        let mut children = Vec::new();
        while let Some(event) = sys::next_event(self.uffd.as_fd())? {
            match event {
                Event::Fault(address) => {
                    work.report.faults += 1;
                    self.faults.push_back(address - address % PAGE_BYTES);
                }
                Event::Fork(uffd) => {
                    work.report.forks += 1;
                    children.push(Self::new(uffd, Arc::clone(&self.store), self.missing.clone()));
                }
                Event::Moved { from, to, length_bytes } => self.missing.moved(from, to, length_bytes),
                // What is read there later is zeros.
                Event::Dropped { start, end } => drop(self.missing.take(start, end)),
            }
        }
        Ok(children)
    }

    /// Supplies the pages that threads wait for.
    pub(super) fn serve_faults(&mut self, work: &mut Work) -> io::Result<()> {
        while let Some(page) = self.faults.front().copied() {
            let step = match self.missing.at(page) {
                Some(piece) => {
                    let block_end = (page - page % FAULT_BYTES).saturating_add(FAULT_BYTES);
                    let length_bytes = piece.length_bytes.min(block_end - page);
                    self.cursor = page;
                    self.place(Piece { length_bytes, ..piece }, work)?
                }
                None => self.place_zeros(page, work)?,
            };
            match step {
                Step::Done => drop(self.faults.pop_front()),
                Step::Later => break,
            }
        }
        Ok(())
    }

    /// Copies some of what is missing. Returns whether it could place anything.
    pub(super) fn fill(&mut self, work: &mut Work) -> io::Result<bool> {
        let Some(piece) = self.missing.next(self.cursor) else { return Ok(false) };
        let before = work.report.copied_pages;
        self.place(piece, work)?;
        let length_bytes = (work.report.copied_pages - before) * PAGE_BYTES;
        self.cursor = piece.start + length_bytes;
        // No other process needs these, nor will one that is forked later. A restore that is given up may be tried again.
        if length_bytes > 0 && work.restored && Arc::strong_count(&self.store) == 1 {
            self.store.release(piece.source, length_bytes);
        }
        Ok(length_bytes > 0)
    }

    /// Copies a piece, or as much of its start as fits the buffer and can be placed at once.
    fn place(&mut self, piece: Piece, work: &mut Work) -> io::Result<Step> {
        let mut length = usize::try_from(piece.length_bytes).unwrap_or(usize::MAX).min(work.buffer.len());
        let bytes = work.buffer.get_mut(..length).unwrap_or_default();
        self.store.file.read_exact_at(bytes, piece.source)?;
        loop {
            match sys::copy(self.uffd.as_fd(), piece.start, bytes.get(..length).unwrap_or_default())? {
                Placed::Bytes(done) => {
                    work.report.copied_pages += done / PAGE_BYTES;
                    drop(self.missing.take(piece.start, piece.start + done));
                }
                Placed::There => self.settle(piece.start)?,
                Placed::Changing => return Ok(Step::Later),
                // A range must be inside one mapping, and mprotect(2) splits them without an event.
                Placed::Nowhere if length as u64 > PAGE_BYTES => {
                    length = length / 2 / PAGE_BYTES as usize * PAGE_BYTES as usize;
                    continue;
                }
                Placed::Nowhere if work.restored => {
                    work.report.vanished_pages += 1;
                    self.settle(piece.start)?;
                }
                // CRIU is still moving things: who waits for it will ask again.
                Placed::Nowhere => sys::wake(self.uffd.as_fd(), piece.start, PAGE_BYTES)?,
                Placed::Ended => self.end(),
            }
            return Ok(Step::Done);
        }
    }

    /// A page that never was: a hole.
    fn place_zeros(&mut self, page: u64, work: &mut Work) -> io::Result<Step> {
        match sys::zero(self.uffd.as_fd(), page, PAGE_BYTES)? {
            Placed::Bytes(_) => work.report.zero_pages += 1,
            // Another thread asked for it, too; or it is not ours any more.
            Placed::There | Placed::Nowhere => sys::wake(self.uffd.as_fd(), page, PAGE_BYTES)?,
            Placed::Changing => return Ok(Step::Later),
            Placed::Ended => self.end(),
        }
        Ok(Step::Done)
    }

    /// Nothing is to be placed at this page; who waits for it may try again.
    fn settle(&mut self, page: u64) -> io::Result<()> {
        drop(self.missing.take(page, page + PAGE_BYTES));
        sys::wake(self.uffd.as_fd(), page, PAGE_BYTES)
    }

    fn end(&mut self) {
        self.missing.clear();
        self.faults.clear();
    }
}
