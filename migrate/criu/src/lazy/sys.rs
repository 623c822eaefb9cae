//! The requests of userfaultfd(2) that the server makes, each wrapped once. All `unsafe` of the module is here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// What became of a request to put pages somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// So many bytes from the start are in place, and who waited for them runs.
    Bytes(u64),
    /// The first page is there already. Nobody was woken.
    There,
    /// The mappings are being changed: there are events to read first.
    Changing,
    /// No registered mapping holds the whole range. Nobody was woken.
    Nowhere,
    /// The process has ended, or runs another program.
    Ended,
}

/// What the kernel tells. Addresses are multiples of the page size except for [`Event::Fault`].
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for the page that holds this address.
    Fault(u64),
    /// The process has forked, and the child has this descriptor of its own. The parent waited for the event to be read.
    Fork(OwnedFd),
    /// mremap(2): what was at `from` is at `to`.
    Moved { from: u64, to: u64, length_bytes: u64 },
    /// The contents are, or are going to be, dropped.
    Dropped { start: u64, end: u64 },
}

#[repr(C)]
struct CopyRequest {
    to: u64,
    from: u64,
    length_bytes: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct ZeroRequest {
    start: u64,
    length_bytes: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct WakeRequest {
    start: u64,
    length_bytes: u64,
}

/// The ioctl numbers of `linux/userfaultfd.h`.
mod request {
    nix::ioctl_read!(wake, 0xaa, 0x02, super::WakeRequest);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, super::CopyRequest);
    nix::ioctl_readwrite!(zero, 0xaa, 0x04, super::ZeroRequest);
}

/// Puts copies of `bytes` (whole pages) at `to`.
pub(super) fn copy(uffd: BorrowedFd<'_>, to: u64, bytes: &[u8]) -> io::Result<Placed> {
    let mut order = CopyRequest { to, from: bytes.as_ptr() as u64, length_bytes: bytes.len() as u64, mode: 0, done: 0 };
    // SAFETY: the structure is the kernel's uffdio_copy. It reads `bytes`, which outlive the call, and writes to the other process only.
    let result = unsafe { request::copy(uffd.as_raw_fd(), &raw mut order) };
    placed(result, order.done, bytes.len() as u64)
}

/// Puts pages of zeros there.
pub(super) fn zero(uffd: BorrowedFd<'_>, start: u64, length_bytes: u64) -> io::Result<Placed> {
    let mut order = ZeroRequest { start, length_bytes, mode: 0, done: 0 };
    // SAFETY: the structure is the kernel's uffdio_zeropage; no memory of ours besides it is used.
    let result = unsafe { request::zero(uffd.as_raw_fd(), &raw mut order) };
    placed(result, order.done, length_bytes)
}

/// Lets threads that wait for pages of this range try again.
pub(super) fn wake(uffd: BorrowedFd<'_>, start: u64, length_bytes: u64) -> io::Result<()> {
    let mut order = WakeRequest { start, length_bytes };
    // SAFETY: the structure is the kernel's uffdio_range; no memory of ours besides it is used.
    unsafe { request::wake(uffd.as_raw_fd(), &raw mut order) }?;
    Ok(())
}

/// A part that was done is told by EAGAIN and a positive count.
fn placed(result: nix::Result<i32>, done: i64, length_bytes: u64) -> io::Result<Placed> {
    let part = u64::try_from(done).ok().filter(|done| *done > 0);
    match (result, part) {
        (Ok(_), _) => Ok(Placed::Bytes(length_bytes)),
        (Err(Errno::EAGAIN), Some(done)) => Ok(Placed::Bytes(done)),
        (Err(Errno::EAGAIN), None) => Ok(Placed::Changing),
        (Err(Errno::EEXIST), _) => Ok(Placed::There),
        (Err(Errno::ENOENT), _) => Ok(Placed::Nowhere),
        // ENOSPC: the same in old kernels.
        (Err(Errno::ESRCH | Errno::ENOSPC), _) => Ok(Placed::Ended),
        (Err(errno), _) => Err(errno.into()),
    }
}

const MESSAGE_BYTES: usize = 32;

/// Takes over the descriptors of one SCM_RIGHTS message, which must have been received just now and be used nowhere else. Returns the last;
/// others are closed.
pub(super) fn own_received(numbers: &[RawFd]) -> Option<OwnedFd> {
    // SAFETY: the kernel made these descriptors in our table for this message, and the caller gives them away.
    numbers.iter().fold(None, |_, number| Some(unsafe { OwnedFd::from_raw_fd(*number) }))
}

/// The next event, if there is one.
pub(super) fn next_event(uffd: BorrowedFd<'_>) -> io::Result<Option<Event>> {
    let mut message = [0; MESSAGE_BYTES];
    match nix::unistd::read(uffd, &mut message) {
        Ok(MESSAGE_BYTES) => {}
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Ok(length) => return Err(io::Error::other(format!("an event of {length} bytes"))),
        Err(errno) => return Err(errno.into()),
    }
    let word = |at: usize| message.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let (first, second, third) = (word(8), word(16), word(24));
    // Numbers and layouts of `struct uffd_msg`.
    match message.first() {
        Some(0x12) => Ok(Some(Event::Fault(second))),
        Some(0x13) => {
            // The union's 32-bit member, in the first bytes.
            let number = message.get(8..).and_then(<[u8]>::first_chunk).map_or(-1, |bytes| i32::from_ne_bytes(*bytes));
            if number < 0 {
                return Err(io::Error::other("a fork without a descriptor"));
            }
            // SAFETY: the kernel has just made this descriptor in our table for the reader of the event, and nobody else knows it.
            Ok(Some(Event::Fork(unsafe { OwnedFd::from_raw_fd(number) })))
        }
        Some(0x14) => Ok(Some(Event::Moved { from: first, to: second, length_bytes: third })),
        Some(0x15 | 0x16) => Ok(Some(Event::Dropped { start: first, end: second })),
        kind => Err(io::Error::other(format!("an event of the unknown kind {kind:x?}"))),
    }
}
