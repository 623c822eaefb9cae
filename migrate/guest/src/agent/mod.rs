//! The parts of the agent; see the crate's `main.rs` for the family of processes.

mod channel;
mod family;
mod hop;
mod init;
mod parent;
mod readers;
mod sys;
mod tty;

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use mosix_guest::Setup;
use nix::sys::wait::waitpid;

use sys::Fork;

/// Starts pid 1 of the guest's namespaces and waits for it.
pub(crate) fn start(control: UnixStream, setup: Setup) -> Result<()> {
    match sys::clone_into_namespaces().context("cannot make the guest's namespaces")? {
        Fork::Child => {
            let code = match init::run(control, setup) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("mosix-agent: {error:#}");
                    1
                }
            };
            std::process::exit(code)
        }
        Fork::Parent(pid) => {
            drop(control);
            waitpid(pid, None).context("waiting for the guest's init")?;
            Ok(())
        }
    }
}
