//! `/proc/PID/pagemap`: scanned by the kernel (PAGEMAP_SCAN, since Linux 6.7) or read entry by entry.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::range::{PAGE_BYTES, Range};
use crate::sys::{self, Query, Region, category};

/// Memory scanned in one call: the kernel holds the lock of the mappings meanwhile, and the program (or CRIU's parasite) may want it.
const SLICE_BYTES: u64 = 64 << 20;
/// Most regions fetched in one call.
const REGIONS: u64 = 1024;
/// Entries read at once.
const ENTRIES: usize = 4096;

const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_SOFT_DIRTY: u64 = 1 << 55;

/// The page map of the memory that a process has now: open it anew after an `execve`.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
}

/// One entry of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry(u64);

impl Entry {
    /// In memory.
    pub(crate) fn present(self) -> bool {
        self.0 & ENTRY_PRESENT != 0
    }

    /// A page of its own: in memory or swap space, and not a file's.
    pub(crate) fn own(self) -> bool {
        self.0 & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && self.0 & ENTRY_FILE == 0
    }

    /// Written since `clear_refs`.
    pub(crate) fn soft_dirty(self) -> bool {
        self.0 & ENTRY_SOFT_DIRTY != 0
    }
}

impl Pagemap {
    /// Opens that of `pid`.
    ///
    /// # Errors
    /// From open(2): the right to trace the process is needed.
    pub(crate) fn open(pid: i32) -> io::Result<Pagemap> {
        Ok(Pagemap { file: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// Hands each run of matching pages to `found`, with its categories. Where nothing is mapped, nothing is found.
    ///
    /// # Errors
    /// EPERM as [`Query::check`] says; then pages may have been protected without being reported.
    pub(crate) fn scan(&self, range: Range, query: Query, found: &mut dyn FnMut(Range, u64)) -> io::Result<()> {
        // for a short range a short list: the kernel makes one of the same length for each call
        let mut regions = vec![Region::default(); range.pages().clamp(1, REGIONS) as usize];
        for slice in range.chunks(SLICE_BYTES) {
            let mut rest = slice;
            while !rest.is_empty() {
                let (count, walked) = sys::pagemap_scan(&self.file, rest, query, &mut regions)?;
                for region in regions.get(..count).unwrap_or_default() {
                    found(Range::new(region.start, region.end), region.categories);
                }
                if walked <= rest.start {
                    return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
                }
                rest.start = walked;
            }
        }
        Ok(())
    }

    /// Reads entry by entry.
    ///
    /// # Errors
    /// From pread(2); a short read.
    pub(crate) fn entries(&self, range: Range, each: &mut dyn FnMut(u64, Entry)) -> io::Result<()> {
        let mut buffer = vec![0u8; ENTRIES * 8];
        for chunk in range.chunks(ENTRIES as u64 * PAGE_BYTES) {
            let bytes = buffer.get_mut(..chunk.pages() as usize * 8).ok_or(io::ErrorKind::InvalidInput)?;
            self.file.read_exact_at(bytes, chunk.start / PAGE_BYTES * 8)?;
            let (words, _) = bytes.as_chunks::<8>();
            for (index, word) in words.iter().enumerate() {
                each(chunk.start + index as u64 * PAGE_BYTES, Entry(u64::from_ne_bytes(*word)));
            }
        }
        Ok(())
    }

    /// The entry of one page.
    ///
    /// # Errors
    /// From pread(2).
    pub(crate) fn entry(&self, address: u64) -> io::Result<Entry> {
        let mut word = [0u8; 8];
        self.file.read_exact_at(&mut word, address / PAGE_BYTES * 8)?;
        Ok(Entry(u64::from_ne_bytes(word)))
    }

    /// All pages of its own, whether changed or not.
    ///
    /// # Errors
    /// As [`Pagemap::entries`].
    pub(crate) fn own_pages(&self, range: Range, shared: bool, each: &mut dyn FnMut(u64, Entry)) -> io::Result<()> {
        self.entries(range, &mut |address, entry| {
            if entry.own() || (shared && entry.present()) {
                each(address, entry);
            }
        })
    }
}

/// The kernel can tell guard pages from swapped ones (6.15).
pub(crate) fn knows_guards() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let query = Query { mask: category::GUARD, wanted: category::GUARD, ..Query::default() };
        let own = Pagemap::open(std::process::id() as i32);
        own.and_then(|own| own.scan(Range::new(PAGE_BYTES, 2 * PAGE_BYTES), query, &mut |_, _| {})).is_ok()
    })
}

/// Finds pages with contents of their own. `file`: the mapping has a file behind it, whose unchanged pages are not wanted.
pub(crate) fn populated(file: bool) -> Query {
    let mut not = category::ZERO;
    if file {
        not |= category::FILE; // costs a look at every struct page: 4 to 10 times the time
    }
    if knows_guards() {
        not |= category::GUARD;
    }
    Query { inverted: not, mask: not, any_of: category::PRESENT | category::SWAPPED, ..Query::default() }
}
