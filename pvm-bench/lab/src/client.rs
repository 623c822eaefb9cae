//! Running programs in a node, from outside or from another node.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::error::{LabError, Result, failed};
use crate::proto::{self, ExecRequest, Reader, Received, Reply, Request, RunAs};
use crate::state::Node;

/// How long a holder may take to answer; it forks at once, whatever the node's load.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Most output that [`Node::output`] keeps, bytes.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// A program to run in a node. By default: the caller's environment and folder, inside the quota, no streams.
#[derive(Debug)]
pub struct Exec {
    request: ExecRequest,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Exec {
    /// A program (looked up in `PATH`) and its arguments.
    pub fn new<I>(argv: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let request = ExecRequest {
            argv: argv.into_iter().map(Into::into).collect(),
            env: std::env::vars_os().collect(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            throttled: true,
            wait: true,
            signal_on_disconnect: None,
            run_as: None,
        };
        Self { request, stdin: None, stdout: None, stderr: None }
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let key = key.into();
        self.request.env.retain(|(other, _)| *other != key);
        self.request.env.push((key, value.into()));
        self
    }

    /// Sets the folder it starts in.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.request.cwd = dir.into();
        self
    }

    /// `false`: run it in the group without quota, for what is not to be charged to the node. Only root may.
    #[must_use]
    pub fn throttled(mut self, on: bool) -> Self {
        self.request.throttled = on;
        self
    }

    /// Run it as this user; only root may choose.
    #[must_use]
    pub fn run_as(mut self, uid: u32, gid: u32) -> Self {
        self.request.run_as = Some(RunAs { uid, gid });
        self
    }

    /// Do not wait for its end: it goes on when the [`Child`] is dropped in any case, but the holder then keeps nothing for us.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.request.wait = false;
        self
    }

    /// Send this signal if the [`Child`] is dropped, or the caller dies, before the program ended.
    #[must_use]
    pub fn signal_on_disconnect(mut self, signal: Signal) -> Self {
        self.request.signal_on_disconnect = Some(signal as i32);
        self
    }

    /// Its stdin; `/dev/null` if not set.
    #[must_use]
    pub fn stdin(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(fd.into());
        self
    }

    /// Its stdout; `/dev/null` if not set.
    #[must_use]
    pub fn stdout(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdout = Some(fd.into());
        self
    }

    /// Its stderr; `/dev/null` if not set.
    #[must_use]
    pub fn stderr(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(fd.into());
        self
    }

    /// All three streams are the caller's own.
    ///
    /// # Errors
    /// If they cannot be duplicated.
    pub fn inherit_streams(self) -> Result<Self> {
        let clone = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("duplicating a stream"));
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        Ok(self.stdin(clone(stdin.as_fd())?).stdout(clone(stdout.as_fd())?).stderr(clone(stderr.as_fd())?))
    }
}

/// A program that runs in a node. Dropping it does not end the program (see [`Exec::signal_on_disconnect`]).
#[derive(Debug)]
pub struct Child {
    node: String,
    stream: UnixStream,
    reader: Reader,
    pid: i32,
    pid_outside: Option<i32>,
    status: Option<ExitStatus>,
    waits: bool,
}

impl Node {
    /// Starts a program in this node. Works from outside the lab and from inside any of its nodes.
    ///
    /// # Errors
    /// [`LabError::NodeGone`] if the node is not up, [`LabError::Refused`] if it does not want to. A program that does not
    /// exist is no error here: it ends with 127, as under a shell.
    pub fn spawn(&self, exec: Exec) -> Result<Child> {
        spawn(&self.name, &self.dir, exec)
    }

    /// Runs a program to its end; its status, and the first MiB of its stdout and stderr. Waits until both are closed: not
    /// for programs that leave others behind.
    ///
    /// # Errors
    /// As [`Self::spawn`], and if the node goes away.
    pub fn output(&self, exec: Exec) -> Result<(ExitStatus, String)> {
        let (mut from, to) = std::io::pipe().map_err(failed("making a pipe"))?;
        let stderr = to.try_clone().map_err(failed("making a pipe"))?;
        let mut child = self.spawn(exec.stdout(to).stderr(stderr))?;
        let mut output = Vec::new();
        (&mut from).take(MAX_OUTPUT_BYTES).read_to_end(&mut output).map_err(failed("reading a program's output"))?;
        drop(from);
        Ok((child.wait()?, String::from_utf8_lossy(&output).into_owned()))
    }
}

fn null(write: bool) -> Result<OwnedFd> {
    let file = OpenOptions::new().read(!write).write(write).open("/dev/null");
    file.map(OwnedFd::from).map_err(failed("opening /dev/null"))
}

fn spawn(node: &str, node_dir: &Path, exec: Exec) -> Result<Child> {
    let stream = proto::connect(node_dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => LabError::NodeGone(node.into()),
        _ => failed(format!("reaching node {node}"))(error),
    })?;
    let or_null = |fd: Option<OwnedFd>, write: bool| fd.map_or_else(|| null(write), Ok);
    let stdio = [or_null(exec.stdin, false)?, or_null(exec.stdout, true)?, or_null(exec.stderr, true)?];
    let fds: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
    let waits = exec.request.wait;
    proto::send(&stream, &Request::Exec(Box::new(exec.request)), &fds)?;
    let mut child = Child { node: node.into(), stream, reader: Reader::default(), pid: 0, pid_outside: None, status: None, waits };
    match child.next_reply(Some(START_PATIENCE))? {
        Some(Reply::Started { pid }) => {
            child.pid = pid;
            child.pid_outside = child.reader.take_fds().first().and_then(pid_of);
            Ok(child)
        }
        Some(Reply::Refused { why }) => Err(LabError::Refused { node: node.into(), why }),
        Some(Reply::Exited { .. }) => Err(LabError::Protocol("an end without a start".into())),
        None => Err(LabError::NodeGone(node.into())),
    }
}

/// The pid behind a pidfd, as this process sees it: the kernel translates it to the namespace of our `/proc`.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())?;
    (pid > 0).then_some(pid)
}

impl Child {
    /// Its pid as seen in the node.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pid as the caller sees it; `None` in another node, on kernels before 5.3, or if it ended very soon.
    pub fn pid_outside(&self) -> Option<i32> {
        self.pid_outside
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::NodeGone`] if the lab went down meanwhile; [`LabError::Refused`] if it was started detached.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_for(None)? {
                return Ok(status);
            }
        }
    }

    /// Looks whether it has ended.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.wait_for(Some(Duration::ZERO))
    }

    /// Waits for its end, at most so long (`None`: for ever).
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_for(&mut self, patience: Option<Duration>) -> Result<Option<ExitStatus>> {
        if !self.waits {
            return Err(LabError::Refused { node: self.node.clone(), why: "a detached program has no status".into() });
        }
        if self.status.is_none()
            && let Some(reply) = self.next_reply(patience)?
        {
            let Reply::Exited { status } = reply else {
                return Err(LabError::Protocol("a second start".into()));
            };
            self.status = Some(ExitStatus::from_raw(status));
        }
        Ok(self.status)
    }

    /// Signals its process group. Nothing happens if it has ended.
    ///
    /// # Errors
    /// If the node cannot be told.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        proto::send(&self.stream, &Request::Signal(signal as i32), &[])
    }

    /// The next reply; `None` when the time is over.
    fn next_reply(&mut self, patience: Option<Duration>) -> Result<Option<Reply>> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(reply) = self.reader.next()? {
                return Ok(Some(reply));
            }
            let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                // Rounded up: a poll that returns too early would spin.
                Some(left) => PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let timeout = if patience == Some(Duration::ZERO) { PollTimeout::ZERO } else { timeout };
            let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(None),
                // A signal may be the user's wish to stop: let the caller look.
                Err(nix::errno::Errno::EINTR) => return Ok(None),
                Ok(0) => {}
                Ok(_) => match self.reader.receive(&self.stream) {
                    Ok(Received::Some | Received::Nothing) => {}
                    Ok(Received::End) | Err(_) => return Err(LabError::NodeGone(self.node.clone())),
                },
                Err(error) => return Err(failed("waiting for a node")(error)),
            }
        }
    }
}

/// Opens (or makes) a file for a program's output.
pub(crate) fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(failed(format!("opening {}", path.display())))
}
