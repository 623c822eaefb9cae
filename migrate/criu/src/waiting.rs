//! A restore that was started early and waits, while its memory is filled from outside.
//!
//! Needs a CRIU with our `premem` patch; `patches/0008-premem.patch` (criu/premem.c) holds the protocol, of which this is the client. The waiting
//! CRIU owns regions of anonymous memory. Whoever holds their addresses writes into them with process_vm_writev(2); `go` then turns them into
//! the restored processes' memory. Until `go` nothing of the process exists: dropping this value ends CRIU and leaves nothing.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};

use crate::rpc;
use crate::swrk::{CriuError, Reply, Stage, Worker};

/// Largest answer; criu/premem.c has the same limit.
const MAX_ANSWER_BYTES: usize = 256;

/// A window of the address space of one process whose pages will be supplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Pid of the process in the images.
    pub pid: i32,
    /// First address in the process; a multiple of the page size.
    pub start: u64,
    /// Length; a multiple of the page size.
    pub length_bytes: u64,
    /// What is mapped there has MAP_NORESERVE (`nr` in smaps). If this is wrong the pages are copied instead of moved.
    pub no_reserve: bool,
    /// Only a source of copies: the mapping itself is inherited from the parent process (fork), and the region holds the pages that differ.
    pub copy_only: bool,
}

/// CRIU, waiting for its memory and images.
#[derive(Debug)]
pub struct WaitingRestore {
    worker: Worker,
    orders: OwnedFd,
    pid: i32,
    log: PathBuf,
    deadline: Duration,
}

/// The two ends of the order socket: ours and CRIU's.
pub(crate) fn order_socket() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

impl WaitingRestore {
    /// Waits until CRIU is ready for orders. `deadline` also holds for each order later.
    pub(crate) fn begin(worker: Worker, orders: OwnedFd, log: PathBuf, deadline: Duration) -> Result<Self, CriuError> {
        let mut waiting = Self { worker, orders, pid: 0, log, deadline };
        let text = waiting.receive()?;
        let pid = text.strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        waiting.pid = pid.ok_or_else(|| CriuError::Protocol(format!("the waiting restore said {text:?}")))?;
        Ok(waiting)
    }

    /// Pid of the waiting CRIU as it sees itself, i.e. in the pid namespace where it was started: the target for process_vm_writev(2).
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Adds a region. Returns where its first page lies in the waiting CRIU ([`Self::pid`]).
    ///
    /// # Errors
    /// The region is malformed, overlaps another of the same process, or there is no room; the restore goes on waiting.
    pub fn add_region(&self, region: &Region) -> Result<u64, CriuError> {
        let flags = u8::from(region.no_reserve) | u8::from(region.copy_only) << 1;
        self.order(&format!("region {} {:x} {:x} {flags:x}", region.pid, region.start, region.length_bytes))
    }

    /// Makes a range of a region huge pages as far as the kernel can; what is in it stays. Returns how many there are of them.
    /// Worth it only where the process has nearly all pages: the others are allocated, too (until `go` gives them back).
    ///
    /// # Errors
    /// The range is not inside one region.
    pub fn collapse(&self, pid: i32, start: u64, length_bytes: u64) -> Result<u64, CriuError> {
        self.order(&format!("collapse {pid} {start:x} {length_bytes:x}"))
    }

    /// Lets the restore go on: the images must be complete now. As [`crate::Criu::restore`] from here.
    ///
    /// # Errors
    /// As [`crate::Criu::restore`].
    pub fn go(mut self, deadline: Duration, on_stage: &mut dyn FnMut(Stage) -> Reply) -> Result<i32, CriuError> {
        self.send("go").map_err(|error| error.explain("restore", &self.log))?;
        let response = self.worker.finish(Instant::now() + deadline, deadline, on_stage).map_err(|e| e.explain("restore", &self.log))?;
        restored_pid(&response)
    }

    fn order(&self, text: &str) -> Result<u64, CriuError> {
        self.send(text)?;
        let answer = self.receive()?;
        if let Some(reason) = answer.strip_prefix("error ") {
            return Err(CriuError::Refused { what: "prepare memory", reason: format!("{reason} ({text})") });
        }
        let value = answer.strip_prefix("ok ").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        value.ok_or_else(|| CriuError::Protocol(format!("the waiting restore answered {answer:?}")))
    }

    fn send(&self, text: &str) -> Result<(), CriuError> {
        sendmsg::<()>(self.orders.as_raw_fd(), &[IoSlice::new(text.as_bytes())], &[], MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(|errno| self.lost(format!("giving it an order: {errno}")))
    }

    fn receive(&self) -> Result<String, CriuError> {
        let end = Instant::now() + self.deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CriuError::Deadline(self.deadline));
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.orders.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(self.lost(errno.to_string())),
            }
        }
        let mut buffer = [0; MAX_ANSWER_BYTES];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(self.orders.as_raw_fd(), &mut parts, None, MsgFlags::empty())
            .map_err(|errno| self.lost(format!("waiting for an answer: {errno}")))?
            .bytes;
        if length == 0 {
            return Err(self.lost("it ended while it should wait".into()));
        }
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }

    fn lost(&self, reason: String) -> CriuError {
        CriuError::Lost(reason).explain("restore", &self.log)
    }
}

/// The pid in a restore's response.
pub(crate) fn restored_pid(response: &rpc::CriuResp) -> Result<i32, CriuError> {
    response.restore.map(|restored| restored.pid).ok_or_else(|| CriuError::Protocol("restore succeeded without a pid".into()))
}
