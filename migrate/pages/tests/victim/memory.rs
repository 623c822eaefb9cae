//! All `unsafe` of the test programs: mappings, and some calls.

use std::time::Duration;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// A small generator (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Memory of our own, by address; page numbers are checked, so that only it is touched.
pub(crate) struct Mapping {
    at: usize,
    bytes: usize,
}

impl Mapping {
    fn map(bytes: usize, flags: i32, fd: i32) -> Option<Mapping> {
        // SAFETY: a new mapping at an address the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        (at != libc::MAP_FAILED).then_some(Mapping { at: at as usize, bytes })
    }

    pub(crate) fn try_new(bytes: usize, no_reserve: bool) -> Option<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if no_reserve { libc::MAP_NORESERVE } else { 0 };
        Mapping::map(bytes, flags, -1)
    }

    pub(crate) fn new(bytes: usize, thp: bool) -> Mapping {
        let mapping = Mapping::try_new(bytes, false).unwrap();
        if thp {
            mapping.advise(0, mapping.pages(), libc::MADV_HUGEPAGE);
        }
        mapping
    }

    pub(crate) fn shared(bytes: usize) -> Mapping {
        Mapping::map(bytes, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1).unwrap()
    }

    pub(crate) fn memfd(bytes: usize) -> Mapping {
        // SAFETY: the name is a C string; the descriptor is used only here.
        let fd = unsafe { libc::memfd_create(c"victim".as_ptr(), 0) };
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::ftruncate(fd, bytes as i64) }, 0);
        Mapping::map(bytes, libc::MAP_SHARED, fd).unwrap()
    }

    pub(crate) fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    pub(crate) fn address(&self) -> usize {
        self.at
    }

    fn page(&self, page: usize) -> *mut u64 {
        assert!(page < self.pages());
        (self.at + page * PAGE) as *mut u64
    }

    /// Writes a page whose every word follows from `seed`.
    pub(crate) fn fill(&self, page: usize, seed: u64) {
        let at = self.page(page);
        for word in 0..PAGE / 8 {
            // SAFETY: within the page, which is ours and writable; volatile, because other processes look at it.
            unsafe { at.add(word).write_volatile(seed.wrapping_mul(word as u64 + 1)) };
        }
    }

    /// The page holds what [`Mapping::fill`] wrote (0: zeros).
    pub(crate) fn holds(&self, page: usize, seed: u64) -> bool {
        let at = self.page(page);
        // SAFETY: within the page, which is ours and readable.
        (0..PAGE / 8).all(|word| unsafe { at.add(word).read_volatile() } == seed.wrapping_mul(word as u64 + 1))
    }

    pub(crate) fn advise(&self, page: usize, pages: usize, advice: i32) {
        assert!(page + pages <= self.pages());
        // SAFETY: the range is ours; what it held is known to be gone by the caller.
        unsafe { libc::madvise(self.page(page).cast(), pages * PAGE, advice) };
    }

    pub(crate) fn protect(&self, page: usize, pages: usize, protection: i32) -> bool {
        assert!(page + pages <= self.pages());
        // SAFETY: the range is ours, and is not touched while it is closed.
        unsafe { libc::mprotect(self.page(page).cast(), pages * PAGE, protection) == 0 }
    }

    /// Locks pages in memory, or no longer.
    pub(crate) fn lock(&self, page: usize, pages: usize, lock: bool) -> bool {
        assert!(page + pages <= self.pages());
        let (at, bytes) = (self.page(page).cast(), pages * PAGE);
        // SAFETY: the range is ours; its contents do not change.
        unsafe { if lock { libc::mlock(at, bytes) == 0 } else { libc::munlock(at, bytes) == 0 } }
    }

    /// Changes the length; it may move.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        // SAFETY: the range is ours, and nothing else points into it.
        let at = unsafe { libc::mremap(self.at as *mut libc::c_void, self.bytes, bytes, libc::MREMAP_MAYMOVE) };
        let done = at != libc::MAP_FAILED;
        if done {
            (self.at, self.bytes) = (at as usize, bytes);
        }
        done
    }

    /// Writes `mov eax, value; ret` to page 0 and calls it.
    pub(crate) fn run_code(&self, value: u32) -> u32 {
        assert!(self.protect(0, 1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC));
        let [a, b, c, d] = value.to_le_bytes();
        let code = [0xb8, a, b, c, d, 0xc3];
        // SAFETY: the page is ours, writable and executable; the code is a complete function that only returns a number.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.at as *mut u8, code.len());
            std::mem::transmute::<usize, extern "C" fn() -> u32>(self.at)()
        }
    }

    pub(crate) fn leave_open(&self) {
        assert!(self.protect(0, self.pages(), libc::PROT_READ | libc::PROT_WRITE));
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and nobody uses it any more.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.bytes) };
    }
}

/// Moves the break; the old one, if it could.
pub(crate) fn move_break(bytes: isize) -> Option<usize> {
    // SAFETY: only memory above the heap's present end comes and goes.
    let old = unsafe { libc::sbrk(bytes) };
    (old as isize != -1).then_some(old as usize)
}

pub(crate) fn fork() -> i32 {
    // SAFETY: the child of these programs only touches memory and exits.
    unsafe { libc::fork() }
}

pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

pub(crate) fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is a live c_int.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

pub(crate) fn kill_and_wait(pid: i32) {
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_for(pid);
}

/// What nanosleep(2) returned.
pub(crate) fn nanosleep(time: Duration) -> i32 {
    let time = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: `time` is live.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) }
}
