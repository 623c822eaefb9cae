//! The process with the number of the guest's parent: it runs CRIU, is the restored guest's parent, and waits for it.
//!
//! It tells init each step over a packet socket and obeys its answers. If that socket ends, init has ended, and the kernel ends this process too.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mosix_criu::{Criu, Reply, RestoreRequest, Stage};
use mosix_guest::Setup;
use nix::sys::socket::{MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::family::Ends;
use super::sys;

/// Largest packet: a reason in words.
const MAX_PACKET_BYTES: usize = 16 << 10;

/// From the parent to init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ParentNews {
    /// Everything is restored, nothing ran.
    Prepared,
    /// It runs.
    Running,
    /// Nothing is left of it.
    Failed(String),
    /// wait(2) status of the guest.
    Status { status: i32, cpu_ms: u64 },
}

/// From init to the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ParentOrder {
    Restore { images_dir: String },
    Go,
    Veto(String),
}

/// One end of the packet socket between init and the parent.
pub(crate) struct Link(OwnedFd);

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn send<T: Serialize>(&self, message: &T) -> Result<()> {
        let bytes = postcard::to_stdvec(message)?;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    pub(crate) fn receive<T: DeserializeOwned>(&self) -> Result<T> {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, None, MsgFlags::empty())?.bytes;
        if length == 0 {
            return Err(anyhow!("the other end has gone"));
        }
        postcard::from_bytes(buffer.get(..length).unwrap_or_default()).context("malformed packet")
    }
}

pub(crate) fn run(setup: &Setup, link: Link, ends: Ends) -> Result<()> {
    let ParentOrder::Restore { images_dir } = link.receive()? else {
        return Err(anyhow!("expected the order to restore"));
    };
    match restore(setup, &link, &ends, Path::new(&images_dir)) {
        Ok(()) => link.send(&ParentNews::Running)?,
        Err(error) => return link.send(&ParentNews::Failed(error.to_string())),
    }
    drop(ends);
    // A guest whose parent at home is init becomes init's child here, too: when this process ends.
    if setup.ppid > 1 { relay_status(setup.pid, &link) } else { Ok(()) }
}

fn restore(setup: &Setup, link: &Link, ends: &Ends, images_dir: &Path) -> Result<(), mosix_criu::CriuError> {
    let inherit: Vec<(String, BorrowedFd<'_>)> = ends.pipes.iter().map(|(key, fd)| (key.clone(), fd.as_fd())).collect();
    let request = RestoreRequest {
        images_dir,
        inherit: &inherit,
        terminal: ends.terminal.as_ref().map(AsFd::as_fd),
        shell_job: setup.sid != setup.pid,
    };
    let deadline = Duration::from_millis(setup.criu_deadline_ms);
    Criu::at(&setup.criu)
        .restore(&request, deadline, &mut |stage| match stage {
            Stage::PostRestore => ask(link),
            _ => Reply::Continue,
        })
        .map(drop)
}

/// The guest is complete and has not run: init (that is: home) decides.
fn ask(link: &Link) -> Reply {
    match link.send(&ParentNews::Prepared).and_then(|()| link.receive()) {
        Ok(ParentOrder::Go) => Reply::Continue,
        Ok(ParentOrder::Veto(why)) => Reply::Veto(why),
        Ok(other) => Reply::Veto(format!("unexpected order {other:?}")),
        Err(error) => Reply::Veto(format!("lost the agent's init: {error}")),
    }
}

fn relay_status(guest: i32, link: &Link) -> Result<()> {
    while let Some(news) = sys::wait_child(guest, true) {
        let told = link.send(&ParentNews::Status { status: news.status, cpu_ms: news.cpu_ms });
        // Init does not listen any more when it ends the guest on purpose.
        if told.is_err() || libc::WIFEXITED(news.status) || libc::WIFSIGNALED(news.status) {
            break;
        }
    }
    Ok(())
}
