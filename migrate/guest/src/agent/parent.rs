//! The process with the number of the guest's parent: it runs CRIU, is the restored guest's parent, and waits for it.
//!
//! It tells init each step over a packet socket and obeys its answers. If that socket ends, init has ended, and the kernel ends this process too.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mosix_criu::{Criu, CriuError, Region, Reply, RestoreOptions, RestoreRequest, Stage, WaitingRestore};
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
    /// CRIU, which has this pid here, waits for its memory.
    Waiting { pid: i32 },
    /// Answer to a window.
    Window(Result<u64, String>),
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
    Window { start: u64, length_bytes: u64, no_reserve: bool },
    Restore,
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
    match bring_to_life(setup, &link, &ends) {
        Ok(()) => link.send(&ParentNews::Running)?,
        Err(error) => return link.send(&ParentNews::Failed(format!("{error:#}"))),
    }
    drop(ends);
    // A guest whose parent at home is init becomes init's child here, too: when this process ends.
    if setup.ppid > 1 { relay_status(setup.pid, &link) } else { Ok(()) }
}

fn bring_to_life(setup: &Setup, link: &Link, ends: &Ends) -> Result<()> {
    let inherit: Vec<(String, BorrowedFd<'_>)> = ends.pipes.iter().map(|(key, fd)| (key.clone(), fd.as_fd())).collect();
    let request = RestoreRequest {
        images_dir: Path::new(&setup.images_dir),
        inherit: &inherit,
        terminal: ends.terminal.as_ref().map(AsFd::as_fd),
        shell_job: setup.sid != setup.pid,
    };
    let deadline = Duration::from_millis(setup.criu_deadline_ms);
    let criu = Criu::at(&setup.criu);
    let mut on_stage = |stage| match stage {
        Stage::PostRestore => ask(link),
        _ => Reply::Continue,
    };
    let Some(kerndat) = &setup.premem else {
        let ParentOrder::Restore = link.receive()? else { return Err(anyhow!("expected the order to restore")) };
        criu.restore(&request, deadline, &mut on_stage)?;
        return Ok(());
    };
    let options = RestoreOptions { kerndat: Some(Path::new(kerndat)), no_breakpoints: true, ..RestoreOptions::default() };
    let waiting = criu.prepare_restore(&request, &options, deadline)?;
    link.send(&ParentNews::Waiting { pid: waiting.pid() })?;
    make_windows(setup, link, &waiting)?;
    waiting.go(deadline, &mut on_stage)?;
    Ok(())
}

/// Until the order to restore.
fn make_windows(setup: &Setup, link: &Link, waiting: &WaitingRestore) -> Result<()> {
    loop {
        match link.receive()? {
            ParentOrder::Restore => return Ok(()),
            ParentOrder::Window { start, length_bytes, no_reserve } => {
                let region = Region { pid: setup.pid, start, length_bytes, no_reserve, copy_only: false };
                let address = match waiting.add_region(&region) {
                    Ok(address) => Ok(address),
                    Err(error @ CriuError::Refused { .. }) => Err(error.to_string()),
                    Err(error) => return Err(error.into()),
                };
                link.send(&ParentNews::Window(address))?;
            }
            other => return Err(anyhow!("unexpected order {other:?}")),
        }
    }
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
