//! `mosix-agent`: restores one guest, stands in for its parent, and carries its input, output, signals and exit status.
//!
//! Started by `mosixd` only, with the control socket as standard input (protocol: the crate's library). The processes of one guest:
//!
//! ```text
//! mosix-agent (in the node's pid namespace; waits)
//!  `- init      pid 1 of the guest's namespaces: event loop, reaper           agent::init
//!      `- leader    only if the session's leader is another process           agent::family
//!          `- parent    the number of the guest's parent; runs CRIU, waits    agent::parent
//!              `- guest     the restored process, its own number
//! ```

mod agent;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mosix_guest::{Setup, ToAgent, receive};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mosix-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut control = control_socket()?;
    let setup = first_message(&mut control)?;
    agent::start(control, setup)
}

fn control_socket() -> Result<UnixStream> {
    let stdin = nix::unistd::dup(std::io::stdin()).context("standard input")?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::fcntl::fcntl(&stdin, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let is_socket = nix::sys::stat::fstat(&stdin).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK);
    if !is_socket {
        bail!("standard input is not a socket: mosixd starts this program, there is nothing to do by hand");
    }
    Ok(UnixStream::from(stdin))
}

fn first_message(control: &mut UnixStream) -> Result<Setup> {
    match receive(control).context("no set-up from mosixd")? {
        ToAgent::Setup(setup) => Ok(*setup),
        other => bail!("the first message must be the set-up, not {other:?}"),
    }
}
