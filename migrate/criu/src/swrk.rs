//! The worker protocol: one request, notifications to answer, one response.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use prost::Message;

use crate::rpc;
use crate::spawn;

/// Switches that a worker must not inherit from our own environment.
const SWITCHES: [&str; 8] = [
    "CRIU_SKELETON",
    "CRIU_SKELETON_TRUST",
    "CRIU_SMAPS",
    "CRIU_PREMEM",
    "CRIU_KERNDAT",
    "CRIU_NO_BREAKPOINTS",
    "CRIU_FAULT",
    "CRIU_CONFIG_FILE",
];

/// CRIU's largest message; responses are far smaller.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// The program did not start.
    #[error("cannot start CRIU at {program}: {source}; install it or set `criu.path`")]
    Start {
        /// Path tried.
        program: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// The connection to the worker broke.
    #[error("lost the CRIU worker ({0})")]
    Lost(String),
    /// Deadline passed; the worker was killed.
    #[error("CRIU did not finish within {0:?} and was stopped")]
    Deadline(Duration),
    /// We said no at a stage.
    #[error("{0}")]
    Vetoed(String),
    /// CRIU said no.
    #[error("CRIU could not {what}: {reason}")]
    Refused {
        /// The request.
        what: &'static str,
        /// From its log.
        reason: String,
    },
    /// Something unexpected on the wire.
    #[error("CRIU answered something unexpected: {0}")]
    Protocol(String),
}

impl CriuError {
    /// Adds the reason from CRIU's log to a plain refusal or loss.
    pub(crate) fn explain(self, what: &'static str, log: &Path) -> Self {
        match self {
            Self::Refused { reason, .. } => {
                let text = read_log_tail(log);
                let better = first_error(&text);
                Self::Refused { what, reason: if better.is_empty() { reason } else { better } }
            }
            Self::Lost(reason) => Self::Lost(format!("{reason}; {}", first_error(&read_log_tail(log)))),
            other => other,
        }
    }
}

/// The points at which CRIU waits for our word. Names as in `criu/include/action-scripts.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been touched yet.
    PreDump,
    /// All threads are stopped by CRIU, nothing collected yet.
    QueryExtFiles,
    /// Images are complete, tasks still stopped by CRIU.
    PostDump,
    /// Nothing restored yet.
    PreRestore,
    /// Everything is restored, nothing ran.
    PostRestore,
    /// About to run; too late to say no.
    PreResume,
    /// Runs.
    PostResume,
    /// Any other.
    Other,
}

impl Stage {
    fn named(name: &str) -> Self {
        match name {
            "pre-dump" => Self::PreDump,
            "query-ext-files" => Self::QueryExtFiles,
            "post-dump" => Self::PostDump,
            "pre-restore" => Self::PreRestore,
            "post-restore" => Self::PostRestore,
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            _ => Self::Other,
        }
    }
}

/// Our word at a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Go on.
    Continue,
    /// Undo, for this reason.
    Veto(String),
}

/// How a worker is started.
pub(crate) struct WorkerSetup<'a> {
    pub(crate) program: &'a Path,
    pub(crate) inherit: &'a [RawFd],
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    /// Switches of our patches: one worker serves one request, so they are its environment.
    pub(crate) env: &'a [(&'static str, OsString)],
}

/// A running `criu swrk`; killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    socket: OwnedFd,
    /// Readable when the worker has ended. The socket alone does not tell: the processes that CRIU forks to restore them have copies of
    /// the other end, and live on for as long as they wait for a worker that was killed.
    ended: OwnedFd,
    child: Child,
}

impl Worker {
    pub(crate) fn start(setup: &WorkerSetup<'_>) -> Result<Self, CriuError> {
        let start_error = |source: io::Error| CriuError::Start { program: setup.program.to_owned(), source };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(|e| start_error(e.into()))?;
        let mut command = Command::new(setup.program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        command.stdin(match setup.stdin {
            Some(fd) => Stdio::from(fd.try_clone_to_owned().map_err(start_error)?),
            None => Stdio::null(),
        });
        command.stdout(Stdio::null()).stderr(Stdio::null());
        for name in SWITCHES {
            command.env_remove(name);
        }
        command.envs(setup.env.iter().map(|(name, value)| (name, value)));
        let mut fds = setup.inherit.to_vec();
        fds.push(theirs.as_raw_fd());
        spawn::inherit(&mut command, fds);
        let mut child = command.spawn().map_err(start_error)?;
        match descriptor_of(&child) {
            Ok(ended) => Ok(Self { socket: ours, ended, child }),
            Err(error) => {
                // Not to be left behind as a process that nobody waits for. What these two say does not matter any more.
                let _ = child.kill();
                let _ = child.wait();
                Err(start_error(error))
            }
        }
    }

    pub(crate) fn run(
        &mut self,
        kind: rpc::CriuReqType,
        opts: rpc::CriuOpts,
        limit: Duration,
        on_stage: &mut dyn FnMut(Stage) -> Reply,
    ) -> Result<rpc::CriuResp, CriuError> {
        let deadline = Instant::now() + limit;
        self.ask(kind, opts)?;
        self.finish(deadline, limit, on_stage)
    }

    /// Sends the request.
    pub(crate) fn ask(&self, kind: rpc::CriuReqType, opts: rpc::CriuOpts) -> Result<(), CriuError> {
        self.send(&rpc::CriuReq { r#type: kind as i32, opts: Some(opts), notify_success: None, features: None })
    }

    /// Asks what CRIU and the kernel can do.
    pub(crate) fn ask_features(&self, features: rpc::CriuFeatures) -> Result<(), CriuError> {
        self.send(&rpc::CriuReq {
            r#type: rpc::CriuReqType::FeatureCheck as i32,
            opts: None,
            notify_success: None,
            features: Some(features),
        })
    }

    /// Answers notifications until the response comes.
    pub(crate) fn finish(
        &mut self,
        deadline: Instant,
        limit: Duration,
        on_stage: &mut dyn FnMut(Stage) -> Reply,
    ) -> Result<rpc::CriuResp, CriuError> {
        let mut veto = None;
        loop {
            let response = self.receive(deadline, limit)?;
            if response.r#type == rpc::CriuReqType::Notify as i32 {
                let name = response.notify.and_then(|notify| notify.script).unwrap_or_default();
                let go_on = match on_stage(Stage::named(&name)) {
                    Reply::Continue => true,
                    Reply::Veto(reason) => {
                        veto = Some(reason);
                        false
                    }
                };
                self.send(&rpc::CriuReq {
                    r#type: rpc::CriuReqType::Notify as i32,
                    opts: None,
                    notify_success: Some(go_on),
                    features: None,
                })?;
                continue;
            }
            return match (response.success, veto) {
                (true, None) => Ok(response),
                (_, Some(reason)) => Err(CriuError::Vetoed(reason)),
                (false, None) => Err(CriuError::Refused { what: "finish", reason: refusal_text(&response) }),
            };
        }
    }

    fn send(&self, request: &rpc::CriuReq) -> Result<(), CriuError> {
        let bytes = request.encode_to_vec();
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::MSG_NOSIGNAL, None)
            .map_err(|errno| CriuError::Lost(format!("sending a request: {errno}")))?;
        Ok(())
    }

    fn receive(&self, deadline: Instant, limit: Duration) -> Result<rpc::CriuResp, CriuError> {
        self.wait_readable(deadline, limit)?;
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(|errno| CriuError::Lost(format!("waiting for its answer: {errno}")))?
            .bytes;
        if length == 0 {
            return Err(CriuError::Lost("it ended without an answer".into()));
        }
        rpc::CriuResp::decode(buffer.get(..length).unwrap_or_default()).map_err(|e| CriuError::Protocol(e.to_string()))
    }

    fn wait_readable(&self, deadline: Instant, limit: Duration) -> Result<(), CriuError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CriuError::Deadline(limit));
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [self.socket.as_fd(), self.ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                // What it said before it ended comes first.
                Ok(_) if fds.first().and_then(PollFd::any) == Some(true) => return Ok(()),
                Ok(_) => return Err(CriuError::Lost("it ended without an answer".into())),
                Err(errno) => return Err(CriuError::Lost(errno.to_string())),
            }
        }
    }
}

/// A descriptor that becomes readable when the process ends.
fn descriptor_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

impl Drop for Worker {
    fn drop(&mut self) {
        // After its response the worker ends by itself; a kill of an ended child is harmless. Errors leave nothing to do.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn refusal_text(response: &rpc::CriuResp) -> String {
    let message = response.cr_errmsg.clone().unwrap_or_default();
    match response.cr_errno {
        Some(errno) if errno != 0 => format!("{} {}", io::Error::from_raw_os_error(errno), message.trim()),
        _ => message.trim().to_owned(),
    }
}

/// Longest part of a log that is looked at.
const LOG_TAIL_BYTES: usize = 64 << 10;

fn read_log_tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

/// The first error line of a CRIU log that says something: noise that appears in good runs too is left out.
pub(crate) fn first_error(log: &str) -> String {
    const NOISE: [&str; 3] = ["RLIMIT_NOFILE", "Restoring FAILED", "Dumping FAILED"];
    log.lines()
        .filter_map(|line| line.split_once("Error "))
        .map(|(_, text)| text.trim())
        .find(|text| !NOISE.iter().any(|noise| text.contains(noise)))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_line_that_matters_is_found() {
        let log = "(00.001) Error (criu/rlimit.c:1): Can't setup RLIMIT_NOFILE for self: EPERM\n\
                   (00.002) Warn  (x)\n(00.003) Error (criu/files.c:9): Can't open file opt/prog\n(00.004) Error (cr): Restoring FAILED.\n";
        assert_eq!(first_error(log), "(criu/files.c:9): Can't open file opt/prog");
        assert_eq!(first_error(""), "");
    }

    #[test]
    fn a_worker_that_dies_at_once_is_an_error() {
        let mut worker = Worker::start(&WorkerSetup { program: Path::new("/bin/true"), inherit: &[], stdin: None, env: &[] }).unwrap();
        let error =
            worker.run(rpc::CriuReqType::Version, rpc::CriuOpts::default(), Duration::from_secs(5), &mut |_| Reply::Continue).unwrap_err();
        assert!(matches!(error, CriuError::Lost(_)), "{error}");
    }

    /// A program that is this shell script.
    fn program(script: &str) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        let mut permissions = std::fs::metadata(file.path()).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(file.path(), permissions).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn the_end_of_a_worker_is_noticed_although_its_children_keep_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let path = program(&format!("#!/bin/sh\nsleep 1000 & echo $! >{}\nkill -9 $$\n", pid_file.display()));
        let mut worker = Worker::start(&WorkerSetup { program: &path, inherit: &[], stdin: None, env: &[] }).unwrap();
        let limit = Duration::from_secs(20);
        let result = worker.run(rpc::CriuReqType::Version, rpc::CriuOpts::default(), limit, &mut |_| Reply::Continue);
        let child: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
        // Without the look at the process it is the deadline that ends the wait.
        assert!(matches!(result, Err(CriuError::Lost(_))), "{result:?}");
    }

    #[test]
    fn a_silent_worker_meets_the_deadline() {
        let path = program("#!/bin/sh\nexec sleep 30\n");
        let mut worker = Worker::start(&WorkerSetup { program: &path, inherit: &[], stdin: None, env: &[] }).unwrap();
        let error = worker
            .run(rpc::CriuReqType::Version, rpc::CriuOpts::default(), Duration::from_millis(50), &mut |_| Reply::Continue)
            .unwrap_err();
        assert!(matches!(error, CriuError::Deadline(_)), "{error}");
    }
}
