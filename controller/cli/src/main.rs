//! mosixctl shows and steers the cluster: the command line of its own node's `mosixd`.
//!
//! Every command is one request on the daemon's control socket (see [`mosix_wire::control`]), but `cluster`, which
//! works on a folder of keys and needs no daemon, and `run`, which starts a program and asks for its move.
//!
//! Exit codes: 0 done, 1 refused or failed (one line on standard error says why), 2 wrong usage;
//! `run` exits as the program does.

mod client;
mod cluster;
mod format;
mod output;
mod run;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use mosix_wire::control::{Reply, Request};

use client::Client;
use output::Output;

/// Where the daemon listens unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/mosix/control.sock";

#[derive(Debug, Parser)]
#[command(name = "mosixctl", version, about = "Shows and steers the cluster, as this node sees it")]
struct Arguments {
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Control socket of this node's mosixd; without it the variable MOSIX_SOCKET, then /run/mosix/control.sock
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The nodes: load, memory, guests
    Status,
    /// This home's processes: those away, and those that want a CPU
    Ps {
        /// Also those that are idle or may not move
        #[arg(long, short)]
        all: bool,
    },
    /// Move one process; it goes on as if nothing had happened
    Migrate {
        /// Pid at this node, its home
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        pid: i32,
        /// Name of the target node, or `home`
        node: String,
    },
    /// Start a program on the best node; it stays a child here, with this terminal, and its exit status is ours
    Run {
        /// Start it on this node instead (`home`: here)
        #[arg(long, value_name = "NODE")]
        on: Option<String>,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<std::ffi::OsString>,
    },
    /// Why a process is where it is: what keeps it, and the last decisions about it
    Explain {
        /// Pid at this node, its home
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        pid: i32,
    },
    /// Switch automatic balancing at this node; moves by hand go on working
    Balance {
        /// Wanted state
        state: Switch,
    },
    /// Counters of this node's daemon
    Stats,
    /// What works on this node, what is used instead of what does not, and what that costs
    Doctor,
    /// Make and extend the folder of keys and members that the nodes share
    #[command(subcommand)]
    Cluster(cluster::Command),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    execute(arguments).unwrap_or_else(|error| {
        eprintln!("mosixctl: {}", format::clean(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

fn execute(arguments: Arguments) -> Result<ExitCode> {
    let output = Output::new(arguments.json);
    let client = Client::new(socket(arguments.socket));
    match arguments.command {
        Command::Cluster(command) => cluster::execute(&command, output)?,
        Command::Run { on, command } => return run::execute(client, on, &command, output),
        Command::Status => query(&client, &Request::Status, output)?,
        Command::Ps { all } => query(&client, &Request::Ps { all }, output)?,
        Command::Migrate { pid, node } => query(&client, &Request::Migrate { pid, target: node }, output)?,
        Command::Explain { pid } => query(&client, &Request::Explain { pid }, output)?,
        Command::Stats => query(&client, &Request::Stats, output)?,
        Command::Doctor => query(&client, &Request::Doctor, output)?,
        Command::Balance { state } => {
            let on = state == Switch::On;
            match client.ask(&Request::Balance { on })? {
                Reply::Done => output.print(&serde_json::json!({ "balance": on }), || {
                    format!("automatic balancing is {} at this node\n", if on { "on" } else { "off" })
                })?,
                other => bail!("{}", unexpected(&other)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks, and shows the answer.
fn query(client: &Client, request: &Request, output: Output) -> Result<()> {
    let reply = client.ask_with_progress(request, |stage| output.progress(stage))?;
    if !answers(&reply, request) {
        bail!("{}", unexpected(&reply));
    }
    match reply {
        Reply::Status(status) => output.print(&status, || show::status(&status)),
        Reply::Ps { processes } => output.print(&processes, || show::processes(&processes)),
        Reply::Moved(moved) => output.print(&moved, || show::moved(&moved)),
        Reply::Explained(explained) => output.print(&explained, || show::explained(&explained)),
        Reply::Stats(stats) => output.print(&stats, || show::stats(&stats)),
        Reply::Diagnosis { checks } => output.print(&checks, || show::diagnosis(&checks)),
        other => bail!("{}", unexpected(&other)),
    }
}

fn answers(reply: &Reply, request: &Request) -> bool {
    matches!(
        (request, reply),
        (Request::Status, Reply::Status(_))
            | (Request::Ps { .. }, Reply::Ps { .. })
            | (Request::Migrate { .. }, Reply::Moved(_))
            | (Request::Explain { .. }, Reply::Explained(_))
            | (Request::Stats, Reply::Stats(_))
            | (Request::Doctor, Reply::Diagnosis { .. })
    )
}

fn unexpected(reply: &Reply) -> String {
    let mut what = format!("{reply:?}");
    what.truncate(what.floor_char_boundary(60));
    format!("mosixd answered something else than was asked ({what}): are both of the same version?")
}

fn socket(argument: Option<PathBuf>) -> PathBuf {
    argument
        .or_else(|| std::env::var_os("MOSIX_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(["mosixctl"].into_iter().chain(line.split_whitespace()))
    }

    #[test]
    fn what_follows_the_program_is_its_own() {
        let Command::Run { on, command } = parse("run --on ws2 ls -l --json -- x").unwrap().command else { panic!("not a run") };
        assert_eq!(on.as_deref(), Some("ws2"));
        assert_eq!(command, ["ls", "-l", "--json", "--", "x"]);
    }

    #[test]
    fn general_options_go_anywhere() {
        assert!(parse("status --json").unwrap().json);
        assert!(parse("--json ps --all").unwrap().json);
        assert_eq!(parse("stats --socket /s").unwrap().socket, Some(PathBuf::from("/s")));
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_asked() {
        for line in ["migrate 0 ws1", "migrate -4 ws1", "migrate x ws1", "migrate 4", "balance maybe", "run", "explain"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_answer_must_fit_the_question() {
        assert!(!answers(&Reply::Done, &Request::Status));
        assert!(!answers(&Reply::Ps { processes: Vec::new() }, &Request::Stats));
        assert!(answers(&Reply::Ps { processes: Vec::new() }, &Request::Ps { all: true }));
    }
}
