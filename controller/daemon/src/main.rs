//! `mosixd`, the node daemon: the one place where measuring, telling, deciding and moving meet.
//!
//! One thread runs everything that waits ([`tokio`], current-thread); blocking work (CRIU, ptrace) goes to helper threads. The parts:
//!
//! | module | what |
//! |---|---|
//! | [`node`] | what all parts share |
//! | [`measure`], [`gossip`], [`balance`] | the policy's eyes, mouth and hands |
//! | [`home`] | processes of this home that are elsewhere: the deputy |
//! | [`host`] | processes of other homes that are here: the guest |
//! | [`carry`] | a body on its way |
//! | [`control`], [`report`], [`doctor`] | `mosixctl` |
//! | [`recover`], [`commit_log`] | after a crash |

mod agent;
mod balance;
mod carry;
mod cgroups;
mod commit_log;
mod config;
mod control;
mod doctor;
mod gossip;
mod home;
mod host;
mod measure;
mod node;
mod protocol;
mod recover;
mod report;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use commit_log::CommitLog;
use config::Config;
use mosix_criu::OLDEST;
use node::Node;

/// While this daemon stops: how often guests are asked to go.
const EVICT_AGAIN: Duration = Duration::from_millis(200);

/// The MOSIX node daemon.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file.
    #[arg(short, long, default_value = "/etc/mosix/mosixd.toml")]
    config: PathBuf,
    /// Check the configuration, the cluster folder and the helper programs, and end.
    #[arg(long)]
    check_config: bool,
    /// What the daemon starts itself with, see `carry::follow`.
    #[arg(long, hide = true, value_name = "PID")]
    take_userfaultfd: Option<i32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(pid) = args.take_userfaultfd {
        return carry::follow::helper(pid);
    }
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mosixd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    let identity = mosix_wire::cluster::load(&config.cluster_dir, &config.name)?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).with_context(|| format!("log = {:?}", config.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    if args.check_config {
        config.freezer_root()?;
        config.agent()?;
        println!(
            "{}: ok; node {} of {} members, {}",
            args.config.display(),
            config.name,
            identity.members().len(),
            config.criu()?.display()
        );
        return Ok(());
    }
    std::fs::create_dir_all(&config.state_dir).with_context(|| format!("cannot make {}", config.state_dir.display()))?;
    // Before anything is touched: another daemon of this node may be alive.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, run(config, identity))
}

async fn run(config: Config, identity: mosix_wire::cluster::Identity) -> Result<()> {
    let control = control::bind(&config.control_socket)?;
    let (mut log, last) = CommitLog::open(&config.state_dir.join("commit.log"))?;
    recover::run(&config.freezer_root()?, &config.state_dir, &last)?;
    log.clear()?;
    let node = Rc::new(Node::new(config, identity, log)?);
    check_criu(&node)?;
    let address = node.identity.members().by_id(node.id().0).context("this node is no member")?.address;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let socket = Rc::new(gossip::bind(&node).await?);
    let probe = tokio::task::spawn_blocking(mosix_probe::open).await?;

    tokio::task::spawn_local(measure::run(node.clone(), probe));
    tokio::task::spawn_local(gossip::send(node.clone(), socket.clone()));
    tokio::task::spawn_local(gossip::receive(node.clone(), socket));
    tokio::task::spawn_local(balance::run(node.clone()));
    tokio::task::spawn_local(host::serve(node.clone(), listener));
    tokio::task::spawn_local(control::serve(node.clone(), control));
    tracing::info!(name = node.identity.name(), %address, "up");
    wait_for_end(&node).await?;
    let _ = std::fs::remove_file(&node.config.control_socket);
    Ok(())
}

/// Also fills CRIU's cache of kernel features, which every later run saves time by.
fn check_criu(node: &Node) -> Result<()> {
    let version = node.criu.version()?;
    if version < OLDEST {
        bail!("{} is version {version}; at least {OLDEST} is needed", node.criu.path().display());
    }
    node.criu.check().context("CRIU does not work on this kernel")?;
    tracing::info!(%version, path = %node.criu.path().display(), "CRIU works");
    Ok(())
}

/// Until a signal; then guests go home, and processes of this home are waited for.
async fn wait_for_end(node: &Node) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    node.closing.set(true);
    let deadline = Instant::now() + Duration::from_millis(node.config.timing.stop_ms);
    let mut told = false;
    let mut asked = None::<Instant>;
    while Instant::now() < deadline {
        let (guests, away) = (node.guests.borrow().len(), node.deputies.borrow().len());
        if guests + away == 0 {
            break;
        }
        // Again and again: home may have been busy with others.
        if asked.is_none_or(|at| at.elapsed() > EVICT_AGAIN) {
            asked = Some(Instant::now());
            evict_all(node);
        }
        if !told {
            told = true;
            tracing::warn!(
                "{guests} guests go home; {away} processes of this home are carried by this daemon and would end with it: waiting. Signal again to end now"
            );
        }
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    end_deputies(node).await;
    tracing::info!("stopped");
    Ok(())
}

fn evict_all(node: &Node) {
    for guest in node.guests.borrow().values() {
        let why = format!("{} is stopping", node.identity.name());
        if guest.info.borrow().home == node.identity.name() {
            continue;
        }
        if guest.events.try_send(host::Event::Evict { why }).is_err() {
            tracing::warn!("a guest could not be told to go home");
        }
    }
}

async fn end_deputies(node: &Node) {
    let tasks: Vec<_> = node.deputies.borrow().iter().map(|(pid, deputy)| (*pid, deputy.events.clone())).collect();
    for (pid, events) in tasks {
        tracing::error!(pid, "ends with this daemon");
        let _ = events.send(home::Event::Stop).await;
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while !node.deputies.borrow().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
