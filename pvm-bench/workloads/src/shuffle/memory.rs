//! The system calls of `shuffle`, on pages given by number.
//!
//! A [`Memory`] owns two ranges of addresses that the kernel gives to nobody else by itself, and the part of the heap that it got by brk. No Rust
//! reference to any of it ever exists: pages are read and written by copies through raw pointers. A call outside of its ranges is refused.
//! Access to a page that is not there, or must not be used so, ends the program by a signal, which is what a move that lost a mapping deserves.

use std::io;

use super::model::Access;
use crate::churn::pages::{PAGE_BYTES, PAGE_WORDS};

/// First page of the window: far from what the kernel chooses for programs, heaps, libraries and stacks.
const WINDOW: usize = 0x1000_0000_0000 / PAGE_BYTES;
/// First page of the memory of which most is never touched.
const SPARSE: usize = 0x1800_0000_0000 / PAGE_BYTES;
/// Pages of it: 64 MiB.
pub const SPARSE_PAGES: usize = (64 << 20) / PAGE_BYTES;
/// Most pages got by brk.
pub const MAX_HEAP_PAGES: usize = 1024;

/// Advice to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// MADV_DONTNEED.
    DontNeed,
    /// MADV_FREE.
    Free,
    /// MADV_HUGEPAGE.
    Huge,
    /// MADV_NOHUGEPAGE.
    NoHuge,
}

/// See the module's text.
#[derive(Debug)]
pub struct Memory {
    window_pages: usize,
    heap_first: usize,
    heap_pages: usize,
}

impl Memory {
    /// A window of so many pages, nothing in it yet; the sparse memory, mapped; no heap.
    ///
    /// # Errors
    /// If the pages are not of 4096 bytes, or the addresses are in use.
    pub fn new(window_pages: usize) -> io::Result<Self> {
        // SAFETY: sysconf only returns a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        if page_bytes != PAGE_BYTES as libc::c_long {
            return Err(io::Error::other(format!("pages are of {page_bytes} bytes; this program knows those of {PAGE_BYTES} only")));
        }
        if window_pages > SPARSE - WINDOW {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let memory = Self { window_pages, heap_first: 0, heap_pages: 0 };
        memory.map_with(SPARSE, SPARSE_PAGES, Access::Write, libc::MAP_NORESERVE)?;
        Ok(memory)
    }

    /// First and end of the window.
    pub fn window(&self) -> (usize, usize) {
        (WINDOW, WINDOW + self.window_pages)
    }

    /// First and end of the sparse memory.
    pub fn sparse() -> (usize, usize) {
        (SPARSE, SPARSE + SPARSE_PAGES)
    }

    /// First and end of what brk gave.
    pub fn heap(&self) -> (usize, usize) {
        (self.heap_first, self.heap_first + self.heap_pages)
    }

    fn owns(&self, first: usize, count: usize) -> io::Result<()> {
        let within = |(start, end): (usize, usize)| first >= start && first.checked_add(count).is_some_and(|last| last <= end);
        if count > 0 && [self.window(), Self::sparse(), self.heap()].into_iter().any(within) {
            Ok(())
        } else {
            Err(io::Error::other(format!("{count} pages from {first:#x} on are not this program's to change")))
        }
    }

    /// New private anonymous memory.
    ///
    /// # Errors
    /// From the kernel; EEXIST if something is there.
    pub fn map(&self, first: usize, count: usize, access: Access) -> io::Result<()> {
        self.map_with(first, count, access, 0)
    }

    fn map_with(&self, first: usize, count: usize, access: Access, flags: i32) -> io::Result<()> {
        self.owns(first, count)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | flags;
        // SAFETY: NOREPLACE never touches what is mapped already, and nobody else uses these addresses.
        let got = unsafe { libc::mmap(address(first), count * PAGE_BYTES, protection(access), flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if got == address(first) { Ok(()) } else { Err(io::Error::other("the kernel knows no MAP_FIXED_NOREPLACE")) }
    }

    /// # Errors
    /// From the kernel.
    pub fn unmap(&self, first: usize, count: usize) -> io::Result<()> {
        self.owns(first, count)?;
        // SAFETY: the pages are this value's own, and there are no references into them.
        checked(unsafe { libc::munmap(address(first), count * PAGE_BYTES) })
    }

    /// # Errors
    /// From the kernel.
    pub fn protect(&self, first: usize, count: usize, access: Access) -> io::Result<()> {
        self.owns(first, count)?;
        // SAFETY: the pages are this value's own, and there are no references into them.
        checked(unsafe { libc::mprotect(address(first), count * PAGE_BYTES, protection(access)) })
    }

    /// # Errors
    /// From the kernel.
    pub fn advise(&self, first: usize, count: usize, advice: Advice) -> io::Result<()> {
        self.owns(first, count)?;
        let advice = match advice {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Free => libc::MADV_FREE,
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::NoHuge => libc::MADV_NOHUGEPAGE,
        };
        // SAFETY: the pages are this value's own; that their content changes is known to the model.
        checked(unsafe { libc::madvise(address(first), count * PAGE_BYTES, advice) })
    }

    /// Moves `count` pages to `to`, where nothing may be, and adds fresh ones until there are `new_count`.
    ///
    /// # Errors
    /// From the kernel; then nothing was moved, and nothing is at `to`. EFAULT: this kernel does not move several mappings at once.
    pub fn remap(&self, from: usize, count: usize, to: usize, new_count: usize) -> io::Result<()> {
        self.owns(from, count)?;
        // So that mremap, which replaces what it finds, finds this and nobody else's.
        self.map(to, new_count, Access::None)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: source and destination are this value's own, do not overlap, and there are no references into them.
        let got = unsafe { libc::mremap(address(from), count * PAGE_BYTES, new_count * PAGE_BYTES, flags, address(to)) };
        if got == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            self.unmap(to, new_count)?;
            return Err(error);
        }
        Ok(())
    }

    /// More heap. `false` if somebody else moved the break meanwhile, or there is enough.
    ///
    /// # Errors
    /// From the kernel.
    pub fn grow_heap(&mut self, count: usize) -> io::Result<bool> {
        if self.heap_pages == 0 {
            let now = the_break();
            let up = now.next_multiple_of(PAGE_BYTES);
            move_break(up - now)?;
            self.heap_first = up / PAGE_BYTES;
        }
        if the_break() != self.heap().1 * PAGE_BYTES || self.heap_pages + count > MAX_HEAP_PAGES {
            return Ok(false);
        }
        move_break(count * PAGE_BYTES)?;
        self.heap_pages += count;
        Ok(true)
    }

    /// Less heap. `false` if somebody else moved the break meanwhile, or there is not that much.
    ///
    /// # Errors
    /// From the kernel.
    pub fn shrink_heap(&mut self, count: usize) -> io::Result<bool> {
        if count > self.heap_pages || the_break() != self.heap().1 * PAGE_BYTES {
            return Ok(false);
        }
        // SAFETY: the pages at the end of the heap are this value's own, and there are no references into them.
        let old = unsafe { libc::sbrk(-((count * PAGE_BYTES) as libc::intptr_t)) };
        if old.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        self.heap_pages -= count;
        Ok(true)
    }

    /// A copy of a page that must be readable.
    ///
    /// # Errors
    /// If it is not this value's.
    pub fn read(&self, page: usize) -> io::Result<[u64; PAGE_WORDS]> {
        self.owns(page, 1)?;
        // SAFETY: the page is this value's own, aligned, and mapped unless something is broken, which then ends the program.
        Ok(unsafe { address(page).cast::<[u64; PAGE_WORDS]>().read_volatile() })
    }

    /// Writes a page that must be writable.
    ///
    /// # Errors
    /// If it is not this value's.
    pub fn write(&self, page: usize, words: &[u64; PAGE_WORDS]) -> io::Result<()> {
        self.owns(page, 1)?;
        // SAFETY: as for `read`; nobody refers to it.
        unsafe { address(page).cast::<[u64; PAGE_WORDS]>().write_volatile(*words) };
        Ok(())
    }

    /// Calls the code at the beginning of a page; `None` on processors whose code it is not. The page must be executable and have been
    /// found to begin with `mov eax, RESULT; ret`.
    ///
    /// # Errors
    /// If it is not this value's.
    pub fn call(&self, page: usize) -> io::Result<Option<u32>> {
        self.owns(page, 1)?;
        if !cfg!(target_arch = "x86_64") {
            return Ok(None);
        }
        // SAFETY: by the caller's check the page holds a function of this type, which touches nothing but its result.
        let function = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> u32>(address(page)) };
        Ok(Some(function()))
    }
}

/// Forks. In the child (`None`) only this thread exists: it must not allocate, and must end by [`end_child`].
///
/// # Errors
/// From the kernel.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the callers' children keep to memory that they have, and end without running destructors.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child)),
    }
}

/// Ends a forked child at once.
pub fn end_child(status: i32) -> ! {
    // SAFETY: _exit(2) is made for this.
    unsafe { libc::_exit(status) }
}

fn address(page: usize) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(page * PAGE_BYTES)
}

fn protection(access: Access) -> i32 {
    match access {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        Access::Code => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn the_break() -> usize {
    // SAFETY: asks only.
    unsafe { libc::sbrk(0) }.addr()
}

fn move_break(bytes: usize) -> io::Result<()> {
    // SAFETY: more heap takes nothing from anybody; the allocator copes with a break that others move.
    let old = unsafe { libc::sbrk(bytes as libc::intptr_t) };
    if old.addr() == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(()) }
}
