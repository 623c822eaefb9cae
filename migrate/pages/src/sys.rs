//! The system calls of this crate, each wrapped once: userfaultfd, PAGEMAP_SCAN, foreign memory.
//!
//! All `unsafe` of the crate is here. Errors are the kernel's own (`io::Error` with its errno).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_ulong, c_void, iovec};

use crate::range::Range;

/// Most pieces of memory that one call reads or writes (the kernel's `UIO_MAXIOV`).
pub(crate) const MAX_PIECES: usize = 1024;

/// Flags of `userfaultfd(2)`. `UFFD_USER_MODE_ONLY` needs no privilege; with WP_ASYNC no fault ever waits for us, the kernel's neither.
pub(crate) const UFFD_FLAGS: c_int = libc::O_CLOEXEC | libc::O_NONBLOCK | 1;

const UFFD_API: u64 = 0xaa;
const FEATURE_WP: u64 = 1 << 0;
const FEATURE_WP_SHARED: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// Page categories of PAGEMAP_SCAN (`linux/fs.h`).
pub(crate) mod category {
    /// Written since it was last protected, or never protected.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// The page of a file, or of shared memory.
    pub(crate) const FILE: u64 = 1 << 2;
    /// In memory.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// In swap space, or a marker that looks so.
    pub(crate) const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub(crate) const ZERO: u64 = 1 << 5;
    /// A guard page (MADV_GUARD_INSTALL); since Linux 6.15.
    pub(crate) const GUARD: u64 = 1 << 8;
}

const SCAN_PROTECT: u64 = 1 << 0;
const SCAN_CHECK_ASYNC: u64 = 1 << 1;

const fn iowr(group: u8, number: u8, bytes: usize) -> c_ulong {
    (3 << 30) | ((bytes as c_ulong) << 16) | ((group as c_ulong) << 8) | number as c_ulong
}

#[repr(C)]
#[derive(Default)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    wanted: u64,
}

/// A run of pages of the same categories, as the kernel reports it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Region {
    /// First address.
    pub(crate) start: u64,
    /// First address behind it.
    pub(crate) end: u64,
    /// Its categories, of those that were wanted.
    pub(crate) categories: u64,
}

/// What PAGEMAP_SCAN shall look for. A page matches if, after turning the `inverted` bits, it has all of `mask` and one of `any_of` (if that is not 0).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Query {
    /// Categories that count as had when they are not.
    pub(crate) inverted: u64,
    /// Categories a page must have.
    pub(crate) mask: u64,
    /// Categories of which it must have one.
    pub(crate) any_of: u64,
    /// Categories to be reported.
    pub(crate) wanted: u64,
    /// Protect the matching pages in the same step.
    pub(crate) protect: bool,
    /// Fail with EPERM where a mapping is not registered with a userfaultfd for WP_ASYNC.
    pub(crate) check: bool,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A userfaultfd of this process: to see what the kernel can do.
pub(crate) fn own_userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, UFFD_FLAGS) })? as c_int;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a new userfaultfd up for write protection without events. EINVAL: the kernel cannot (before 6.7).
pub(crate) fn uffd_set_up(uffd: &OwnedFd) -> io::Result<()> {
    let features = FEATURE_WP | FEATURE_WP_SHARED | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
    let mut api = UffdApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes one uffdio_api, which `api` is laid out as.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), iowr(0xaa, 0x3f, size_of::<UffdApi>()), &raw mut api) }.into()).map(drop)
}

/// Registers mappings for write protection. Nothing changes where they are registered already.
pub(crate) fn uffd_register(uffd: &OwnedFd, range: Range) -> io::Result<()> {
    let mut register = UffdRegister { start: range.start, len: range.bytes(), mode: REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: the kernel reads and writes one uffdio_register, which `register` is laid out as.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), iowr(0xaa, 0x00, size_of::<UffdRegister>()), &raw mut register) }.into()).map(drop)
}

/// One PAGEMAP_SCAN: fills `regions`, tells how many, and where the walk ended.
///
/// `regions` must not be empty: without them the kernel also marks pages that were never populated, and these look swapped ever after.
pub(crate) fn pagemap_scan(pagemap: &File, range: Range, query: Query, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    if regions.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = if query.protect { SCAN_PROTECT } else { 0 } | if query.check { SCAN_CHECK_ASYNC } else { 0 };
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags,
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        inverted: query.inverted,
        mask: query.mask,
        any_of: query.any_of,
        wanted: query.wanted,
    };
    // SAFETY: the kernel reads and writes one pm_scan_arg, which `arg` is laid out as, and at most `vec_len` regions at `vec`.
    let found = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), iowr(b'f', 16, size_of::<ScanArg>()), &raw mut arg) }.into())?;
    Ok((found as usize, arg.walk_end))
}

/// Reads the memory of another process, `pieces` one behind the other into `buffer`; returns how many bytes could be read.
///
/// At most [`MAX_PIECES`]; together not longer than `buffer`.
pub(crate) fn read_memory(pid: i32, pieces: &[Range], buffer: &mut [u8]) -> io::Result<usize> {
    let bytes: u64 = pieces.iter().map(|piece| piece.bytes()).sum();
    let local = buffer.get_mut(..bytes as usize).ok_or(io::ErrorKind::InvalidInput)?;
    let local = iovec { iov_base: local.as_mut_ptr().cast(), iov_len: local.len() };
    let remote = foreign(pieces);
    // SAFETY: `local` is exactly a part of `buffer`; the remote addresses are checked by the kernel.
    let done = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as c_ulong, 0) };
    check(done as c_long).map(|n| n as usize)
}

/// Writes `bytes` to the memory of another process, over `pieces` one behind the other; returns how many bytes could be written.
pub(crate) fn write_memory(pid: i32, pieces: &[Range], bytes: &[u8]) -> io::Result<usize> {
    let local = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = foreign(pieces);
    // SAFETY: the kernel only reads `local`, which is exactly `bytes`; the remote addresses are checked by it.
    let done = unsafe { libc::process_vm_writev(pid, &raw const local, 1, remote.as_ptr(), remote.len() as c_ulong, 0) };
    check(done as c_long).map(|n| n as usize)
}

/// Makes a range of another process's memory huge pages, where the kernel can; what is in it stays.
pub(crate) fn collapse(pid: i32, range: Range) -> io::Result<()> {
    const MADV_COLLAPSE: c_int = 25;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? as c_int;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    let process = unsafe { OwnedFd::from_raw_fd(fd) };
    let remote = foreign(&[range]);
    // SAFETY: the kernel reads one iovec; the addresses in it are the other process's, and the advice changes no contents.
    let done = unsafe {
        libc::syscall(libc::SYS_process_madvise, process.as_raw_fd(), remote.as_ptr(), remote.len() as c_ulong, MADV_COLLAPSE, 0)
    };
    check(done).map(drop)
}

fn foreign(pieces: &[Range]) -> Vec<iovec> {
    pieces.iter().map(|piece| iovec { iov_base: piece.start as *mut c_void, iov_len: piece.bytes() as usize }).collect()
}

/// `lseek(2)`: for holes and data, which the standard library does not know.
pub(crate) fn seek(fd: c_int, offset: i64, whence: c_int) -> io::Result<i64> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::lseek(fd, offset, whence) })
}
