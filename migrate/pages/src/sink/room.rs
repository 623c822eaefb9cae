//! Places for pages, and the memory of what was put where.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Mismatch, Room, SinkError};
use crate::range::{PAGE_BYTES, Range, RangeMap, RangeSet};
use crate::sys;
use crate::window::Dest;
use crate::wire::Run;

/// A huge page.
const HUGE_BYTES: u64 = 2 << 20;

/// Zeros written at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where bytes are written to.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// The store, at the address.
    Store(&'a File),
    /// A waiting process.
    Memory { room: Room, window: Range },
}

impl Target<'_> {
    pub(super) fn write(&self, range: Range, bytes: &[u8]) -> io::Result<()> {
        match self {
            Target::Store(file) => file.write_all_at(bytes, range.start),
            Target::Memory { room, window } => {
                let start = room.address + (range.start - window.start);
                let there = Range::new(start, start + range.bytes());
                let done = sys::write_memory(room.pid, &[there], bytes)?;
                if done == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            }
        }
    }

    /// Blocks of which a write to `range` reached the middle: with the first half there, `first_half` is asked, and the block becomes a huge page
    /// before the second half comes. Filling is faster then, and a restored process inherits it in a hundredth of the time.
    /// Best effort: without huge pages all is the same. One of which the second half never comes costs up to 1 MiB until the restore, which gives
    /// back what does not exist.
    pub(super) fn make_huge(&self, range: Range, first_half: impl Fn(Range) -> bool) {
        let Target::Memory { room, window } = self else { return };
        if room.address % HUGE_BYTES != window.start % HUGE_BYTES {
            return;
        }
        const HALF: u64 = HUGE_BYTES / 2;
        // Middles within (start, end].
        let mut middle = (range.start + PAGE_BYTES).saturating_sub(HALF).next_multiple_of(HUGE_BYTES) + HALF;
        while middle <= range.end {
            let block = Range::new(middle - HALF, middle + HALF);
            if window.contains(block) && first_half(Range::new(block.start, middle)) {
                let start = room.address + (block.start - window.start);
                let _ = sys::collapse(room.pid, Range::new(start, start + HUGE_BYTES));
            }
            middle += HUGE_BYTES;
        }
    }

    pub(super) fn zero(&self, range: Range) -> io::Result<()> {
        range.chunks(ZEROS.len() as u64).try_for_each(|part| self.write(part, &ZEROS[..part.bytes() as usize]))
    }
}

/// What was received of one process.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// The place each page was put last, or was said to be zero.
    latest: RangeMap<Dest>,
    /// Everything that was ever written, by place.
    touched: HashMap<Dest, RangeSet>,
    /// The list of all pages with contents, as far as it has come.
    present: Vec<Run>,
    complete: bool,
}

impl Received {
    /// Parts of `range` that were written at that place before.
    pub(super) fn touched(&self, dest: Dest, range: Range) -> Vec<Range> {
        self.touched.get(&dest).map(|set| set.inside(range).collect()).unwrap_or_default()
    }

    /// Whether all of `range` was written at that place.
    pub(super) fn has_all(&self, dest: Dest, range: Range) -> bool {
        self.touched(dest, range).iter().map(|part| part.bytes()).sum::<u64>() == range.bytes()
    }

    /// Notes pages; returns how many bytes of memory they take in addition.
    pub(super) fn note(&mut self, dest: Dest, range: Range, written: bool) -> u64 {
        self.latest.insert(range, dest);
        if !written {
            return 0;
        }
        let set = self.touched.entry(dest).or_default();
        let known: u64 = set.inside(range).map(Range::bytes).sum();
        set.add(range);
        range.bytes() - known
    }

    pub(super) fn add_present(&mut self, runs: &[Run], most: usize) -> Result<(), SinkError> {
        if self.complete {
            self.present.clear(); // a newer list replaces the old one
            self.complete = false;
        }
        if self.present.len() + runs.len() > most {
            return Err(SinkError::Rules("too long a list of pages"));
        }
        for run in runs {
            if self.present.last().is_some_and(|last| last.range.end > run.range.start) {
                return Err(SinkError::Rules("a list of pages that is not in order"));
            }
            match self.present.last_mut() {
                Some(last) if last.range.end == run.range.start && last.dest == run.dest => last.range.end = run.range.end,
                _ => self.present.push(*run),
            }
        }
        Ok(())
    }

    pub(super) fn complete(&mut self, pages: u64) -> Result<(), SinkError> {
        if self.complete {
            self.present.clear();
        }
        let found: u64 = self.present.iter().map(|run| run.range.pages()).sum();
        if found != pages {
            return Err(SinkError::Rules("a list of pages with another number of them than it says"));
        }
        self.complete = true;
        Ok(())
    }

    /// The list of pages, if all are where it says; and what lies where no page is.
    pub(super) fn finish(&self, process: u16) -> Result<(Vec<Run>, Vec<Run>), Mismatch> {
        if !self.complete {
            return Err(Mismatch::NoList { process });
        }
        let mut listed: HashMap<Dest, RangeSet> = HashMap::new();
        for run in &self.present {
            if let Some((piece, _)) = self.latest.pieces(run.range).into_iter().find(|(_, dest)| *dest != Some(run.dest)) {
                return Err(Mismatch::NotArrived { process, range: piece, dest: run.dest });
            }
            listed.entry(run.dest).or_default().add(run.range);
        }
        let mut stale = Vec::new();
        let nothing = RangeSet::default();
        for (dest, touched) in &self.touched {
            let keep = listed.get(dest).unwrap_or(&nothing);
            let old = touched.iter().flat_map(|(range, ())| keep.outside(range));
            stale.extend(old.map(|range| Run { range, dest: *dest }));
        }
        stale.sort_by_key(|run| (run.dest, run.range));
        Ok((self.present.clone(), stale))
    }
}
