//! What plain CRIU needs inside a node: the end that dumps, and the end that restores.
//!
//! CRIU must run in the pid namespace whose numbers the process has. So the bench starts itself there (the hidden command `copy-end`), with
//! the process's own streams as stdin and stdout and a socket as stderr, over which both speak [`Order`]s and [`News`], one JSON line each.
//! An end is started before anything is measured, says that it is ready, and waits for the word. The restoring end is the process's parent
//! from then on, forwards signals, and ends as the process does; if the socket ends first, it kills the process.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mosix_criu::{Criu, DumpRequest, Reply, RestoreRequest, Stage};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::subject::now_ms;

/// For one dump or restore.
const DEADLINE: Duration = Duration::from_secs(120);
/// Exit status if there was nothing to wait for.
const FAILED: u8 = 120;

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Writes the images; the process is stopped afterwards.
    Dump,
    /// Makes the process anew.
    Restore,
}

/// The hidden command's arguments.
#[derive(Debug, Args)]
pub struct CopyEndArgs {
    /// Which end
    #[arg(long, value_enum)]
    pub side: Side,
    /// The program
    #[arg(long)]
    pub criu: PathBuf,
    /// Folder of the images
    #[arg(long)]
    pub images: PathBuf,
    /// Pid in this node, to dump
    #[arg(long, default_value_t = 0)]
    pub pid: i32,
}

/// From the bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Begin.
    Go,
    /// Send this signal to the restored process.
    Signal(i32),
}

/// To the bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// Waiting for the word.
    Ready,
    /// The images are complete.
    Dumped {
        /// When the process stopped: ms since 1970.
        frozen_at_ms: f64,
        /// CPU time of CRIU, ms.
        cpu_ms: f64,
    },
    /// The process runs.
    Running {
        /// Since when: ms since 1970.
        at_ms: f64,
        /// CPU time of CRIU, ms.
        cpu_ms: f64,
    },
    /// It did not work.
    Failed(String),
}

/// Runs an end; the exit status is that of the restored process.
pub fn run(args: &CopyEndArgs) -> ExitCode {
    let Ok(socket) = std::io::stderr().as_fd().try_clone_to_owned().map(UnixStream::from) else { return ExitCode::from(FAILED) };
    let result = match args.side {
        Side::Dump => dump(args, &socket),
        Side::Restore => restore(args, &socket),
    };
    result.unwrap_or_else(|why| {
        // If nobody listens any more, nobody minds.
        let _ = say(&socket, &News::Failed(why));
        ExitCode::from(FAILED)
    })
}

fn say(mut socket: &UnixStream, news: &News) -> Result<(), String> {
    let mut line = serde_json::to_string(news).map_err(|error| error.to_string())?;
    line.push('\n');
    socket.write_all(line.as_bytes()).map_err(|error| error.to_string())
}

/// The next order; `None` at the end.
fn order(lines: &mut impl BufRead) -> Option<Order> {
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

fn wait_for_go(socket: &UnixStream, lines: &mut impl BufRead) -> Result<(), String> {
    say(socket, &News::Ready)?;
    match order(lines) {
        Some(Order::Go) => Ok(()),
        other => Err(format!("{other:?} instead of the word to go")),
    }
}

fn dump(args: &CopyEndArgs, socket: &UnixStream) -> Result<ExitCode, String> {
    wait_for_go(socket, &mut BufReader::new(socket))?;
    let mut frozen_at_ms = now_ms();
    let request = DumpRequest { pid: args.pid, images_dir: &args.images, external: &[], shell_job: true };
    let on_stage = &mut |stage| match stage {
        Stage::QueryExtFiles => {
            frozen_at_ms = now_ms();
            Reply::Continue
        }
        // What was dumped must not run on; what CRIU lets go now stops again at once.
        Stage::PostDump => match kill(Pid::from_raw(args.pid), Signal::SIGSTOP) {
            Ok(()) => Reply::Continue,
            Err(error) => Reply::Veto(format!("stopping process {}: {error}", args.pid)),
        },
        _ => Reply::Continue,
    };
    Criu::at(&args.criu).dump(&request, DEADLINE, on_stage).map_err(|error| error.to_string())?;
    say(socket, &News::Dumped { frozen_at_ms, cpu_ms: cpu_of_children_ms() })?;
    Ok(ExitCode::SUCCESS)
}

fn restore(args: &CopyEndArgs, socket: &UnixStream) -> Result<ExitCode, String> {
    let mut lines = BufReader::new(socket.try_clone().map_err(|error| error.to_string())?);
    // CRIU's worker gets streams of its own under the numbers 0 to 2; the copies have others.
    let streams = [stream(std::io::stdin().as_fd())?, stream(std::io::stdout().as_fd())?];
    let inherit: Vec<(String, BorrowedFd<'_>)> = streams.iter().map(|(key, fd)| (key.clone(), fd.as_fd())).collect();
    wait_for_go(socket, &mut lines)?;
    let request = RestoreRequest { images_dir: &args.images, inherit: &inherit, terminal: None, shell_job: true };
    let pid = Criu::at(&args.criu).restore(&request, DEADLINE, &mut |_| Reply::Continue).map_err(|error| error.to_string())?;
    let process = Pid::from_raw(pid);
    say(socket, &News::Running { at_ms: now_ms(), cpu_ms: cpu_of_children_ms() })?;
    std::thread::spawn(move || forward(process, &mut lines));
    Ok(status(process))
}

/// CPU time of the children that have ended and been waited for: CRIU's worker, and what it waited for itself.
fn cpu_of_children_ms() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return 0.0 };
    let ms = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1000.0;
    ms(usage.user_time()) + ms(usage.system_time())
}

/// CRIU's key of a pipe, and a copy of our descriptor of it.
fn stream(fd: BorrowedFd<'_>) -> Result<(String, OwnedFd), String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|error| error.to_string())?;
    let key = link.to_string_lossy().into_owned();
    if !key.starts_with("pipe:[") {
        return Err(format!("a stream is {key}, not a pipe"));
    }
    Ok((key, fd.try_clone_to_owned().map_err(|error| error.to_string())?))
}

fn forward(process: Pid, lines: &mut impl BufRead) {
    while let Some(Order::Signal(number)) = order(lines) {
        if let Ok(signal) = Signal::try_from(number) {
            // It may just have ended.
            let _ = kill(process, signal);
        }
    }
    let _ = kill(process, Signal::SIGKILL);
}

fn status(process: Pid) -> ExitCode {
    loop {
        match waitpid(process, None) {
            Ok(WaitStatus::Exited(_, status)) => return ExitCode::from(u8::try_from(status).unwrap_or(FAILED)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return ExitCode::from(128_u8.saturating_add(signal as u8)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return ExitCode::from(FAILED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_their_end() {
        let mut lines = std::io::Cursor::new("\"go\"\n{\"signal\":10}\nnonsense\n");
        assert_eq!(order(&mut lines), Some(Order::Go));
        assert_eq!(order(&mut lines), Some(Order::Signal(10)));
        assert_eq!(order(&mut lines), None);
        assert_eq!(order(&mut lines), None);
    }

    #[test]
    fn only_pipes_can_be_handed_over() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(stream(reader.as_fd()).unwrap().0.starts_with("pipe:["));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(stream(file.as_fd()).unwrap_err().contains("/dev/null"));
    }
}
