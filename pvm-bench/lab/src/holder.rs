//! Pid 1 of a node: makes the node's view of the machine, starts programs on request, reaps.
//!
//! `mosix-lab init FOLDER` is started by [`crate::Lab::up`] with the life-line as stdin and a report pipe as stdout. It
//! makes new namespaces and forks; the child is pid 1 of the new pid namespace and does the rest:
//! 1. mounts: everything private, a new `/proc`, `/etc/hosts`, `/etc/hostname` and the `private` folder;
//! 2. the socket; then `ready` on the report pipe, which is closed;
//! 3. a loop over: the life-line (end of file = exit, and the kernel kills the node; a byte = the lab is to be kept, stop
//!    watching), SIGCHLD by signalfd, new clients, requests ([`crate::proto`]).
//!
//! Single-threaded, so that it may fork. A client that goes away takes nothing with it unless it asked for that.
//! A client that is not root can run programs only as itself, and only inside the quota.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{self, ForkResult, Pid};
use serde::{Deserialize, Serialize};

use crate::child_side::Plan;
use crate::error::{LabError, Result, failed};
use crate::proto::{self, ExecRequest, Reader, Received, Reply, Request, RunAs};
use crate::sys;

/// Most clients at once; more wait in the listen queue.
const MAX_CLIENTS: usize = 1024;

/// What a holder must know; in `holder.json` of the node's folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HolderConfig {
    /// Host name.
    pub name: String,
    /// CPU to pin everything to.
    pub cpu: usize,
    /// Files that move the writer into the quota group.
    pub throttled: Vec<PathBuf>,
    /// Files that move the writer into the group without quota.
    pub unthrottled: Vec<PathBuf>,
    /// File to show as `/etc/hosts`.
    pub hosts: PathBuf,
    /// Path at which this node's own `private` folder is shown.
    pub private_dir: PathBuf,
    /// Added to every program's environment.
    pub env: Vec<(String, String)>,
}

impl HolderConfig {
    /// Name of the file in the node's folder.
    pub(crate) const FILE: &str = "holder.json";
}

/// The `init` command. Returns in the first process at once, in pid 1 only on failure.
///
/// # Errors
/// If the namespaces, mounts or the socket cannot be made. The report pipe has said so then.
pub fn run(node_dir: &Path) -> Result<()> {
    sys::keep_from_children().map_err(failed("closing what was inherited"))?;
    let path = node_dir.join(HolderConfig::FILE);
    let text = fs::read(&path).map_err(failed(format!("reading {}", path.display())))?;
    let config: HolderConfig = serde_json::from_slice(&text).map_err(|error| LabError::Protocol(format!("{}: {error}", path.display())))?;
    let flags =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(flags).map_err(failed("making namespaces"))?;
    match sys::fork().map_err(failed("forking the node's first process"))? {
        ForkResult::Parent { child } => {
            println!("pid {child}");
            Ok(())
        }
        ForkResult::Child => {
            let holder = Holder::new(config, node_dir);
            match &holder {
                Ok(_) => println!("ready"),
                Err(error) => println!("error {error}"),
            }
            close_report()?;
            holder?.serve()
        }
    }
}

/// Closes the report pipe: the owner reads it to its end.
fn close_report() -> Result<()> {
    let _ = std::io::stdout().flush();
    let null = fs::OpenOptions::new().write(true).open("/dev/null").map_err(failed("opening /dev/null"))?;
    unistd::dup2_stdout(null).map_err(failed("closing the report pipe"))
}

/// A connection.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    reader: Reader,
    /// What it started and waits for.
    job: Option<Pid>,
    signal_on_disconnect: Option<i32>,
}

#[derive(Debug)]
struct Holder {
    config: HolderConfig,
    listener: UnixListener,
    children: SignalFd,
    lifeline: Option<OwnedFd>,
    clients: HashMap<u64, Client>,
    next_client: u64,
}

impl Holder {
    fn new(config: HolderConfig, node_dir: &Path) -> Result<Self> {
        // A session of its own: Ctrl-C at the owner's terminal must not reach the node.
        unistd::setsid().map_err(failed("starting a session"))?;
        make_view(&config, node_dir)?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block().map_err(failed("blocking SIGCHLD"))?;
        let children =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed("making a signalfd"))?;
        let listener = proto::listen(node_dir).map_err(failed("binding the node's socket"))?;
        listener.set_nonblocking(true).map_err(failed("setting up the node's socket"))?;
        // Ordinary users in a node may use rsh; see `allow`.
        fs::set_permissions(node_dir.join("exec.sock"), fs::Permissions::from_mode(0o666))
            .map_err(failed("opening the node's socket to users"))?;
        let lifeline = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed("taking the life-line"))?;
        Ok(Self { config, listener, children, lifeline: Some(lifeline), clients: HashMap::new(), next_client: 0 })
    }

    fn serve(mut self) -> Result<()> {
        loop {
            let ready = self.poll()?;
            if ready.lifeline && !self.lifeline_says_go_on() {
                return Ok(());
            }
            if ready.children {
                self.reap();
            }
            if ready.listener {
                self.accept();
            }
            for id in ready.clients {
                if !self.handle(id) {
                    self.forget(id);
                }
            }
        }
    }

    fn poll(&self) -> Result<Ready> {
        let accepts = if self.clients.len() < MAX_CLIENTS { PollFlags::POLLIN } else { PollFlags::empty() };
        let (ids, clients): (Vec<u64>, Vec<&Client>) = self.clients.iter().unzip();
        let mut fds = vec![PollFd::new(self.children.as_fd(), PollFlags::POLLIN), PollFd::new(self.listener.as_fd(), accepts)];
        fds.extend(clients.iter().map(|client| PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)));
        if let Some(lifeline) = &self.lifeline {
            fds.push(PollFd::new(lifeline.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed("polling")(error)),
        }
        let is_ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready {
            children: is_ready(0),
            listener: is_ready(1),
            lifeline: is_ready(2 + ids.len()),
            clients: ids.iter().enumerate().filter(|(index, _)| is_ready(2 + index)).map(|(_, id)| *id).collect(),
        })
    }

    /// A byte means that the lab is kept, the end that its owner is gone.
    fn lifeline_says_go_on(&mut self) -> bool {
        let Some(lifeline) = self.lifeline.take() else { return true };
        matches!(fs::File::from(lifeline).read(&mut [0_u8]), Ok(1))
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            let client = Client { stream, reader: Reader::default(), job: None, signal_on_disconnect: None };
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
    }

    /// Reads from a client and does what it asks; `false` if it is to be forgotten.
    fn handle(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return true };
        if !matches!(client.reader.receive(&client.stream), Ok(Received::Some | Received::Nothing)) {
            return false;
        }
        loop {
            match client.reader.next::<Request>() {
                Ok(None) => return true,
                Ok(Some(Request::Exec(request))) if client.job.is_none() => {
                    if !start(&self.config, client, *request) {
                        return false;
                    }
                }
                Ok(Some(Request::Signal(number))) => client.signal(number),
                Ok(Some(Request::Exec(_))) | Err(_) => return false,
            }
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(client) = self.clients.remove(&id)
            && let Some(number) = client.signal_on_disconnect
        {
            client.signal(number);
        }
    }

    /// Collects everything that ended, orphans too, and tells who waits for it.
    fn reap(&mut self) {
        while matches!(self.children.read_signal(), Ok(Some(_))) {}
        while let Some((pid, status)) = sys::reap_one() {
            let waiting = self.clients.iter().find(|(_, client)| client.job == Some(pid)).map(|(id, _)| *id);
            if let Some(client) = waiting.and_then(|id| self.clients.remove(&id)) {
                let _ = proto::send(&client.stream, &Reply::Exited { status }, &[]);
            }
        }
    }
}

struct Ready {
    children: bool,
    listener: bool,
    lifeline: bool,
    clients: Vec<u64>,
}

impl Client {
    /// Signals what this client started (its process group), if it still runs.
    fn signal(&self, number: i32) {
        if let (Some(pid), Ok(signal)) = (self.job, Signal::try_from(number)) {
            // Between fork and setpgid there is no such group yet.
            if killpg(pid, signal).is_err() {
                let _ = kill(pid, signal);
            }
        }
    }
}

/// Starts what a client asks for; `false` if the client needs nothing more.
fn start(config: &HolderConfig, client: &mut Client, request: ExecRequest) -> bool {
    let waits = request.wait;
    let signal_on_disconnect = request.signal_on_disconnect;
    match try_start(config, client, request) {
        Ok(pid) => {
            let pidfd = rustix::process::Pid::from_raw(pid.as_raw())
                .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
            let fds: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
            let told = proto::send(&client.stream, &Reply::Started { pid: pid.as_raw() }, &fds).is_ok();
            client.job = Some(pid);
            client.signal_on_disconnect = signal_on_disconnect.filter(|_| waits);
            told && waits
        }
        Err(why) => {
            let _ = proto::send(&client.stream, &Reply::Refused { why }, &[]);
            false
        }
    }
}

fn try_start(config: &HolderConfig, client: &mut Client, mut request: ExecRequest) -> std::result::Result<Pid, String> {
    let fds = client.reader.take_fds();
    let stdio: [OwnedFd; 3] = fds.try_into().map_err(|_| "three descriptors are needed")?;
    let stdio = own_nulls(stdio).map_err(|error| format!("/dev/null: {error}"))?;
    allow(&client.stream, &mut request)?;
    let groups = if request.throttled { &config.throttled } else { &config.unthrottled };
    let plan = Plan::new(&request, &config.env, groups, config.cpu, stdio)?;
    plan.start().map_err(|error| format!("fork: {error}"))
}

/// A null device that was opened outside is on a mount that this node does not have, which a program could see (and CRIU minds):
/// the node's own takes its place.
fn own_nulls(stdio: [OwnedFd; 3]) -> std::io::Result<[OwnedFd; 3]> {
    let own = |fd: OwnedFd| -> std::io::Result<OwnedFd> {
        let is_null = nix::sys::stat::fstat(&fd).is_ok_and(|stat| stat.st_rdev == nix::sys::stat::makedev(1, 3));
        if is_null { Ok(fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into()) } else { Ok(fd) }
    };
    let [stdin, stdout, stderr] = stdio;
    Ok([own(stdin)?, own(stdout)?, own(stderr)?])
}

/// Root may do anything; others run as themselves, and not outside the quota.
fn allow(stream: &UnixStream, request: &mut ExecRequest) -> std::result::Result<(), String> {
    let peer = getsockopt(stream, PeerCredentials).map_err(|error| format!("who are you? {error}"))?;
    if peer.uid() == 0 {
        return Ok(());
    }
    if !request.throttled {
        return Err("only root may run programs outside the node's quota".into());
    }
    if request.run_as.is_some_and(|run_as| run_as.uid != peer.uid()) {
        return Err("only root may run programs as another user".into());
    }
    request.run_as = Some(RunAs { uid: peer.uid(), gid: peer.gid() });
    Ok(())
}

/// Makes the node's own view of the file tree.
fn make_view(config: &HolderConfig, node_dir: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("making mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).map_err(failed("mounting the node's /proc"))?;
    unistd::sethostname(&config.name).map_err(failed("setting the host name"))?;
    // A workstation has a /run of its own, in memory; unless the lab's files are there, which all nodes must see.
    if !node_dir.starts_with("/run") && !config.private_dir.starts_with("/run") {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=755,size=50%")).map_err(failed("mounting the node's /run"))?;
    }
    let bind = |from: &Path, to: &Path| {
        mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(failed(format!("showing {} as {}", from.display(), to.display())))
    };
    bind(&config.hosts, Path::new("/etc/hosts"))?;
    bind(&node_dir.join("private"), &config.private_dir)?;
    let hostname = Path::new("/etc/hostname");
    if hostname.exists() { bind(&node_dir.join("hostname"), hostname) } else { Ok(()) }
}
