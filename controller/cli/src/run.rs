//! `mosixctl run`: starts a program here, as our child, and asks the daemon to move it to the best node at once.
//!
//! The child has our terminal, files and environment, and so has it after the move: that is the deputy's work.
//! Whatever goes wrong with placing or moving it is a note on standard error: the program then runs here.
//!
//! Signals: those of the terminal (interrupt, quit) reach the program by themselves, for it is in our process group; we
//! only have to survive them. Those that are sent to us alone (terminate, hang up, the two user ones) are passed on.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mosix_wire::control::{Moved, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::client::Client;
use crate::format::clean;
use crate::output::Output;
use crate::unexpected;

/// The target that means "here".
const HOME: &str = "home";

/// How long a note about the move may still come after the program ended.
const LAST_NOTE: Duration = Duration::from_millis(100);

/// Runs `command` to its end; the exit code is the program's own, or 128 + the signal that killed it.
///
/// # Errors
/// If it cannot be waited for. A program that cannot be started gives 127 (not found) or 126, as in a shell.
pub(crate) fn execute(client: Client, on: Option<String>, command: &[OsString], output: Output) -> Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else { bail!("no program to run") };
    // Before the start, so that the move follows at once; and before the handlers, so that Ctrl-C ends us meanwhile.
    let target = target(&client, on).unwrap_or_else(|error| {
        note(output, &json!({ "moved": null, "message": format!("{error:#}") }), &format!("it runs here: {error:#}"));
        None
    });
    let signals = Signals::new(watched(&own_status())).context("cannot watch signals")?;
    // When this returns without error, the program is past its exec.
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("mosixctl: cannot start {}: {error}", clean(&program.to_string_lossy()));
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { 127 } else { 126 }));
        }
    };
    let passing_on = signals.handle();
    pass_on(signals, &child)?;
    let noted = target.map(|target| start_move(client, &child, target, output)).transpose()?;
    let status = child.wait().context("cannot wait for the program")?;
    // From here on its pid may mean another process.
    passing_on.close();
    if let Some(noted) = noted {
        // Closed as soon as the note is written; if the move still goes on, the program's end has made it void.
        let _ = noted.recv_timeout(LAST_NOTE);
    }
    Ok(exit_code(status))
}

/// The signals to watch: all that concern the program, but those that we were started to ignore (by `nohup`, or by a
/// script's `&`). A handler would not outlive the program's exec, and it would then die of them.
fn watched(status: &str) -> Vec<i32> {
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let concerned = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
    concerned.into_iter().filter(|number| ignored & (1 << (number - 1)) == 0).collect()
}

fn own_status() -> String {
    std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}

/// The node to move to, or `None` if that is this one.
fn target(client: &Client, on: Option<String>) -> Result<Option<String>> {
    let node = match on {
        Some(node) if node == HOME => return Ok(None),
        Some(node) => node,
        None => match client.ask(&Request::Place)? {
            Reply::Placed { node } => node,
            other => bail!("{}", unexpected(&other)),
        },
    };
    match client.ask(&Request::Status)? {
        Reply::Status(status) => Ok((node != status.this_node).then_some(node)),
        other => bail!("{}", unexpected(&other)),
    }
}

/// Asks for the move beside the running program. The returned channel closes when that is over.
fn start_move(client: Client, child: &Child, target: String, output: Output) -> Result<mpsc::Receiver<()>> {
    let pid = pid_of(child)?;
    let (over, noted) = mpsc::channel();
    thread::Builder::new()
        .name("move".into())
        .spawn(move || {
            let request = Request::Migrate { pid: pid.as_raw(), target };
            match client.ask(&request).and_then(|reply| match reply {
                Reply::Moved(moved) => Ok(moved),
                other => bail!("{}", unexpected(&other)),
            }) {
                Ok(moved) => note_moved(output, &moved),
                Err(error) => {
                    let message = format!("{error:#}");
                    note(
                        output,
                        &json!({ "pid": pid.as_raw(), "moved": null, "message": message }),
                        &format!("process {pid} runs here: {message}"),
                    );
                }
            }
            drop(over);
        })
        .context("cannot start a thread for the move")?;
    Ok(noted)
}

/// A move that went well is silent for people: it changes nothing for them.
fn note_moved(output: Output, moved: &Moved) {
    if output.is_json() {
        note(output, &json!({ "pid": moved.pid, "moved": moved, "message": null }), "");
    }
}

/// Standard output is the program's: notes go to standard error, one line each.
fn note(output: Output, json: &serde_json::Value, text: &str) {
    let line = if output.is_json() { format!("{json}\n") } else { format!("mosixctl: {}\n", clean(text)) };
    // As one piece, for the program may write there, too.
    eprint!("{line}");
}

fn pass_on(mut signals: Signals, child: &Child) -> Result<()> {
    let pid = pid_of(child)?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for number in signals.forever() {
                if number == SIGINT || number == SIGQUIT {
                    continue;
                }
                // If sending fails, the program has just ended.
                if let Ok(signal) = Signal::try_from(number) {
                    let _ = kill(pid, signal);
                }
            }
        })
        .context("cannot start a thread for signals")?;
    Ok(())
}

fn pid_of(child: &Child) -> Result<Pid> {
    i32::try_from(child.id()).map(Pid::from_raw).context("the program's pid is no pid")
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(exit_number(status))
}

/// As a shell has it.
fn exit_number(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // Exit codes are 0 to 255 and signals 1 to 64: both fit.
    u8::try_from(number).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_numbers_are_a_shells() {
        assert_eq!(exit_number(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_number(ExitStatus::from_raw(42 << 8)), 42);
        assert_eq!(exit_number(ExitStatus::from_raw(255 << 8)), 255);
        assert_eq!(exit_number(ExitStatus::from_raw(9)), 137);
        // Killed with a core dump.
        assert_eq!(exit_number(ExitStatus::from_raw(6 | 0x80)), 134);
    }

    #[test]
    fn ignored_signals_stay_ignored() {
        let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        assert_eq!(watched("SigIgn:\t0000000000001000\n"), all);
        assert_eq!(watched("Name:\tx\nSigIgn:\t0000000000001001\n"), all[1..]);
        assert_eq!(watched("SigIgn:\t0000000000000006\n"), [SIGHUP, SIGTERM, SIGUSR1, SIGUSR2]);
        assert_eq!(watched("nothing"), all);
    }

    #[test]
    fn home_needs_no_daemon() {
        let client = Client::new("/nonexistent/socket".into());
        assert_eq!(target(&client, Some("home".into())).unwrap(), None);
        assert!(target(&client, None).is_err());
    }
}
