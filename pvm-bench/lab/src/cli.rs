//! The commands.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use mosix_lab::{Exec, Lab, LabSpec, Node, SlowNodes, StopFlag, default_run_dir, holder, rsh, selftest};
use nix::sys::signal::Signal;
use nix::unistd::User;
use signal_hook::iterator::Signals;

/// How often the foreground owner looks whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// Workstations on one machine: namespaces, CPU speeds, a shared wire.
#[derive(Debug, Parser)]
#[command(name = "mosix-lab", version)]
pub(crate) struct Cli {
    /// Folder in which labs keep their files [default: $MOSIX_LAB_RUN_DIR, else .lab in the workspace]
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Which lab [default: $MOSIX_LAB_ID, else lab]
    #[arg(long)]
    id: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a lab; stays in the foreground until Ctrl-C unless --keep
    Up(UpArgs),
    /// Take the lab down, whoever runs it; fine if there is none
    Down,
    /// Run a command in a node; the exit status is the command's (128 + signal if it was killed, 255 for lab errors)
    Exec(ExecArgs),
    /// An interactive shell in a node
    Shell {
        /// Node name, or `switch`
        node: String,
    },
    /// Run a command in a node, with the arguments of rsh and ssh
    #[command(disable_help_flag = true)]
    Rsh {
        /// [-l user] [-n] [user@]host [--] command...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Show the nodes
    List,
    /// Check that nodes keep time: 1 process per node takes T, 2 take 2T
    Selftest {
        /// T in seconds
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// The `burn` workload [default: beside this program]
        #[arg(long)]
        burn: Option<PathBuf>,
    },
    /// Switch the speed limits of all nodes on or off
    Quota {
        /// Wanted state
        state: OnOff,
    },
    /// Pid 1 of a node; started by `up`
    #[command(hide = true)]
    Init {
        /// The node's folder
        node_dir: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

#[derive(Debug, Args)]
struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 16)]
    nodes: usize,
    /// Speed of a node as a share of one core: 0.05, 5% or 1/20
    #[arg(long, default_value = "0.05", value_parser = fraction)]
    speed: f64,
    /// Slower nodes, e.g. 13-16:1/3; may be repeated
    #[arg(long)]
    slow: Vec<SlowNodes>,
    /// What nodes are called, before their number
    #[arg(long, default_value = "node")]
    prefix: String,
    /// Leave the lab up and return
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct ExecArgs {
    /// Run it outside the node's quota
    #[arg(long)]
    sys: bool,
    /// Run it as this user
    #[arg(long, short)]
    user: Option<String>,
    /// Print the command's pid in the node and return; it goes on, with /dev/null as its streams
    #[arg(long)]
    detach: bool,
    /// Node name, or `switch`
    node: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    argv: Vec<OsString>,
}

fn fraction(text: &str) -> Result<f64, String> {
    mosix_lab::parse_fraction(text).ok_or_else(|| format!("`{text}` is not a number, n/m or n%"))
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let run_dir = self.run_dir.or_else(|| env("MOSIX_LAB_RUN_DIR").map(Into::into)).unwrap_or_else(default_run_dir);
        let id = self.id.or_else(|| env("MOSIX_LAB_ID")?.into_string().ok()).unwrap_or_else(|| "lab".into());
        let spec = LabSpec { run_dir, id, ..LabSpec::default() };
        match self.command {
            Command::Init { node_dir } => holder::run(&node_dir)?,
            Command::Up(args) => up(spec, args)?,
            Command::Down => {
                let found = Lab::take_down(&spec.id, &spec.lab_dir())?;
                println!("lab {} {}", spec.id, if found { "is down" } else { "was not up" });
            }
            Command::Exec(args) => return exec(&attach(&spec)?, args),
            Command::Shell { node } => {
                let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
                return foreground(attach(&spec)?.node(&node)?, Exec::new([shell]).env("PATH", search_path()));
            }
            Command::Rsh { args } => return remote_shell(&attach(&spec)?, args),
            Command::List => list(&attach(&spec)?),
            Command::Selftest { seconds, burn } => return self_test(&attach(&spec)?, seconds, burn),
            Command::Quota { state } => attach(&spec)?.set_quota(matches!(state, OnOff::On))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn attach(spec: &LabSpec) -> anyhow::Result<Lab> {
    Ok(Lab::attach(&spec.lab_dir())?)
}

fn up(spec: LabSpec, args: UpArgs) -> anyhow::Result<()> {
    let UpArgs { nodes, speed, slow, prefix, keep } = args;
    let stop = StopFlag::install()?;
    let lab = Lab::up(&LabSpec { nodes, speed, slow, name_prefix: prefix, keep, ..spec })?;
    println!("lab {} is up: {} nodes, files in {}", lab.id(), lab.nodes().len(), lab.dir().display());
    if keep {
        return Ok(());
    }
    println!("Ctrl-C takes it down");
    while !stop.is_set() {
        if !lab.is_healthy() {
            bail!("a node's first process was killed; the lab is being taken down");
        }
        std::thread::sleep(TICK);
    }
    Ok(lab.down()?)
}

/// The caller's, and the folder of this program last: mosixctl and the workloads are beside it.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::current_exe().ok().as_deref().and_then(std::path::Path::parent) {
        path.push(":");
        path.push(dir);
    }
    path
}

fn exec(lab: &Lab, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let mut exec = Exec::new(args.argv).throttled(!args.sys).env("PATH", search_path());
    if let Some(name) = args.user {
        let (uid, gid) = user_ids(&name)?;
        exec = exec.run_as(uid, gid);
    }
    if args.detach {
        let child = lab.node(&args.node)?.spawn(exec.detached())?;
        println!("{}", child.pid());
        return Ok(ExitCode::SUCCESS);
    }
    foreground(lab.node(&args.node)?, exec)
}

fn user_ids(name: &str) -> anyhow::Result<(u32, u32)> {
    let user = User::from_name(name).context("reading the user database")?;
    let user = user.or_else(|| User::from_uid(nix::unistd::Uid::from_raw(name.parse().ok()?)).ok()?);
    let user = user.with_context(|| format!("no user `{name}`"))?;
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

/// Runs a command with our streams; our signals become its signals.
fn foreground(node: &Node, exec: Exec) -> anyhow::Result<ExitCode> {
    let passed_on = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    let mut signals = Signals::new(passed_on.map(|signal| signal as i32))?;
    let mut child = node.spawn(exec.inherit_streams()?)?;
    loop {
        if let Some(status) = child.wait_for(Some(TICK))? {
            return Ok(exit_code(status));
        }
        for number in signals.pending() {
            child.kill(Signal::try_from(number)?)?;
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn remote_shell(lab: &Lab, args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let call = rsh::parse(args).map_err(anyhow::Error::msg)?;
    let argv: Vec<OsString> = match call.command {
        Some(command) => vec!["/bin/sh".into(), "-c".into(), command],
        None => vec!["/bin/sh".into()],
    };
    let mut exec = Exec::new(argv).inherit_streams()?;
    if call.no_stdin {
        exec = exec.stdin(std::fs::File::open("/dev/null")?);
    }
    if let Some(user) = call.user {
        let (uid, gid) = user_ids(&user)?;
        exec = exec.run_as(uid, gid);
    }
    // Unlike `exec`, signals are not passed on: rsh's remote commands outlive it, and PVM relies on that.
    let mut child = lab.node(&call.host)?.spawn(exec)?;
    Ok(exit_code(child.wait()?))
}

fn list(lab: &Lab) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["node", "address", "cpu", "speed", "pid 1", "used_s", "sys_s"]);
    for node in lab.nodes() {
        let seconds = |usage: mosix_lab::Result<Duration>| usage.map_or("?".into(), |used| format!("{:.2}", used.as_secs_f64()));
        let holder = node.holder.filter(|holder| holder.is_alive()).map_or("dead".into(), |holder| holder.pid.to_string());
        table.add_row([
            node.name.clone(),
            node.ip.to_string(),
            node.cpu.to_string(),
            format!("{:.2} %", node.speed() * 100.0),
            holder,
            seconds(lab.usage(node)),
            seconds(lab.sys_usage(node)),
        ]);
    }
    println!("{table}");
}

fn self_test(lab: &Lab, seconds: f64, burn: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    /// What the prototypes reached, and what the benchmark asks.
    const MAX_LAST_PERCENT: f64 = 1.0;
    let burn = burn.map_or_else(|| mosix_lab::find_beside("burn"), Ok)?;
    let rows = selftest::run(lab, &burn, seconds, &StopFlag::install()?)?;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["per node", "expected_s", "mean %", "first %", "last %", "entitlement"]);
    for row in &rows {
        table.add_row([
            row.per_node.to_string(),
            format!("{:.2}", row.expected_s),
            format!("{:+.2}", row.mean_percent),
            format!("{:+.2}", row.first_percent),
            format!("{:+.2}", row.last_percent),
            format!("{:.3}", row.entitlement),
        ]);
    }
    println!("{table}");
    let good = rows.iter().all(|row| row.last_percent.abs() <= MAX_LAST_PERCENT);
    println!("{}", if good { "the lab keeps time" } else { "the makespan is off by more than 1 %: is the machine overloaded?" });
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
