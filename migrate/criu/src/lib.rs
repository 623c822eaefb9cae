//! Bindings to CRIU: typed requests over `criu swrk`.
//!
//! `criu swrk FD` is CRIU's own worker mode: one process a request, messages of `rpc.proto` over a sequenced-packet socket
//! that it inherits. CRIU calls back at defined points ([`Stage`]) and waits for the answer; that is how a move freezes
//! its process while CRIU still holds it, and how a restored process waits for the commit.
//!
//! [`rpc`] holds the messages, `spawn` starts the worker, [`swrk`] speaks the protocol, and this file has the requests. `options` are the switches
//! of our patches (see `patches/README.md`), [`Features`] says which a program has, [`WaitingRestore`] is a restore that is started before the
//! images exist, [`images`] reads and writes them, [`kerndat`] keeps the cache of kernel features. Every call takes a deadline; a failed one
//! carries the reason from CRIU's own log.
//!
//! Sources: criu.org/RPC, `images/rpc.proto` and `criu/cr-service.c` of CRIU 4.2.1.

mod features;
pub mod freezer;
pub mod images;
pub mod kerndat;
pub mod lazy;
mod options;
pub mod rpc;
mod spawn;
pub mod swrk;
mod waiting;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use features::Features;
pub use options::{DumpOptions, MAX_TRUSTED_RANGES, RestoreOptions, Skeleton, TrustedRange, copy_smaps, write_trusted};
pub use swrk::{CriuError, Reply, Stage};
use swrk::{Worker, WorkerSetup};
pub use waiting::{Region, WaitingRestore};

/// A CRIU program that can be started.
#[derive(Debug, Clone)]
pub struct Criu {
    path: PathBuf,
}

/// A dump of one process tree; the processes stay as they are (`leave_running`), what stops them is the caller's freezer.
#[derive(Debug, Clone)]
pub struct DumpRequest<'a> {
    /// Root of the tree, as seen in the namespace where the worker runs.
    pub pid: i32,
    /// Existing empty folder for the images.
    pub images_dir: &'a Path,
    /// `--external` keys: resources that the other side provides, e.g. `file[MNT:INODE]`.
    pub external: &'a [String],
    /// The process is part of a session whose leader is outside of the tree (`--shell-job`).
    pub shell_job: bool,
}

/// A restore of one tree, as a child of the calling process, with the pid numbers of the images.
#[derive(Debug)]
pub struct RestoreRequest<'a> {
    /// Folder with the images.
    pub images_dir: &'a Path,
    /// Descriptors that take the place of dumped ones: CRIU's key (e.g. `pipe:[INODE]`) and our open descriptor.
    pub inherit: &'a [(String, BorrowedFd<'a>)],
    /// Terminal that takes the place of the dumped controlling one; it becomes the worker's standard input.
    pub terminal: Option<BorrowedFd<'a>>,
    /// As in the dump.
    pub shell_job: bool,
}

/// Version of the program: major, minor, sublevel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Oldest CRIU that is known to work.
pub const OLDEST: Version = Version(4, 1, 1);

impl Criu {
    /// Uses the program at `path`. Nothing is started yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The program's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the program for its version.
    ///
    /// # Errors
    /// The program is missing, cannot run, or prints something else.
    pub fn version(&self) -> Result<Version, CriuError> {
        let output = Command::new(&self.path).arg("--version").output().map_err(|source| self.unstartable(source))?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text).ok_or_else(|| CriuError::Protocol(format!("{} --version printed {text:?}", self.path.display())))
    }

    /// Runs `criu check`, which also fills the kernel-feature cache that later workers reuse.
    ///
    /// # Errors
    /// CRIU's own words when this kernel lacks something it needs.
    pub fn check(&self) -> Result<(), CriuError> {
        run_check(self, Command::new(&self.path).arg("check"))
    }

    /// Which of our patches the program has; remembered as long as the file stays the same.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn features(&self) -> Result<Features, CriuError> {
        features::of(&self.path)
    }

    /// Dumps a tree with its memory. See [`Self::dump_with`].
    ///
    /// # Errors
    /// As [`Self::dump_with`].
    pub fn dump(&self, request: &DumpRequest<'_>, deadline: Duration, on_stage: &mut dyn FnMut(Stage) -> Reply) -> Result<(), CriuError> {
        self.dump_with(request, &DumpOptions::default(), deadline, on_stage)
    }

    /// Dumps a tree. `on_stage` is called at each of CRIU's stages and may veto; a veto before `post-dump` leaves the
    /// processes running as if nothing had happened.
    ///
    /// # Errors
    /// On any error the processes have been let go by CRIU; they run unless the caller's freezer holds them.
    pub fn dump_with(
        &self,
        request: &DumpRequest<'_>,
        options: &DumpOptions<'_>,
        deadline: Duration,
        on_stage: &mut dyn FnMut(Stage) -> Reply,
    ) -> Result<(), CriuError> {
        let log = "dump.log";
        let images = open_images("dump", request.images_dir)?;
        let opts = rpc::CriuOpts {
            pid: Some(request.pid),
            leave_running: Some(true),
            external: request.external.to_vec(),
            ..options.complete(common_options(&images, request.shell_job, log))
        };
        let mut worker =
            Worker::start(&WorkerSetup { program: &self.path, inherit: &[images.as_raw_fd()], stdin: None, env: &options.env() })?;
        worker
            .run(rpc::CriuReqType::Dump, opts, deadline, on_stage)
            .map(drop)
            .map_err(|error| error.explain("dump", &request.images_dir.join(log)))
    }

    /// Writes the memory of a running tree to `request.images_dir`, as the parent of a later dump. Needs a kernel with soft-dirty tracking.
    ///
    /// # Errors
    /// The processes run on.
    pub fn pre_dump(&self, request: &DumpRequest<'_>, parent: Option<&str>, deadline: Duration) -> Result<(), CriuError> {
        let log = "pre-dump.log";
        let images = open_images("pre-dump", request.images_dir)?;
        let opts = rpc::CriuOpts {
            pid: Some(request.pid),
            track_mem: Some(true),
            parent_img: parent.map(str::to_owned),
            ..common_options(&images, request.shell_job, log)
        };
        let mut worker = Worker::start(&WorkerSetup { program: &self.path, inherit: &[images.as_raw_fd()], stdin: None, env: &[] })?;
        worker
            .run(rpc::CriuReqType::SinglePreDump, opts, deadline, &mut |_| Reply::Continue)
            .map(drop)
            .map_err(|error| error.explain("pre-dump", &request.images_dir.join(log)))
    }

    /// Asks what this CRIU can do on this kernel: soft-dirty tracking, lazy pages, pidfds. The kernel is probed if there is no cache (35-50 ms).
    ///
    /// # Errors
    /// The program cannot run.
    pub fn kernel_features(&self, deadline: Duration) -> Result<rpc::CriuFeatures, CriuError> {
        let mut worker = Worker::start(&WorkerSetup { program: &self.path, inherit: &[], stdin: None, env: &[] })?;
        worker.ask_features(rpc::CriuFeatures { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) })?;
        let response = worker.finish(std::time::Instant::now() + deadline, deadline, &mut |_| Reply::Continue)?;
        response.features.ok_or_else(|| CriuError::Protocol("a feature check without features".into()))
    }

    /// Restores a tree as a child of the calling process. At [`Stage::PostRestore`] everything is restored and no instruction
    /// has run: a veto there destroys the copy; a veto later does *not* (CRIU goes on), so decide there.
    /// Returns the pid of the root.
    ///
    /// # Errors
    /// No restored process is left, but for those that CRIU has just killed: they have run no instruction of their own and end at once.
    pub fn restore(
        &self,
        request: &RestoreRequest<'_>,
        deadline: Duration,
        on_stage: &mut dyn FnMut(Stage) -> Reply,
    ) -> Result<i32, CriuError> {
        self.restore_with(request, &RestoreOptions::default(), deadline, on_stage)
    }

    /// [`Self::restore`] with options.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_with(
        &self,
        request: &RestoreRequest<'_>,
        options: &RestoreOptions<'_>,
        deadline: Duration,
        on_stage: &mut dyn FnMut(Stage) -> Reply,
    ) -> Result<i32, CriuError> {
        let images = open_images("restore", request.images_dir)?;
        let mut raw = raw_fds(request);
        raw.push(images.as_raw_fd());
        let mut worker = Worker::start(&WorkerSetup { program: &self.path, inherit: &raw, stdin: request.terminal, env: &options.env() })?;
        let response = worker
            .run(rpc::CriuReqType::Restore, restore_options(request, &images, options), deadline, on_stage)
            .map_err(|error| error.explain("restore", &request.images_dir.join(RESTORE_LOG)))?;
        waiting::restored_pid(&response)
    }

    /// Starts a restore that waits for its memory; `request.images_dir` must exist and may be empty until [`WaitingRestore::go`].
    /// Needs [`Features::premem`]. `deadline` is for the start and for each order.
    ///
    /// # Errors
    /// Nothing is left. A CRIU without the patch fails for want of images.
    pub fn prepare_restore(
        &self,
        request: &RestoreRequest<'_>,
        options: &RestoreOptions<'_>,
        deadline: Duration,
    ) -> Result<WaitingRestore, CriuError> {
        let (ours, theirs) = waiting::order_socket().map_err(|errno| self.unstartable(errno.into()))?;
        let images = open_images("restore", request.images_dir)?;
        let mut raw = raw_fds(request);
        raw.push(images.as_raw_fd());
        raw.push(theirs.as_raw_fd());
        let mut env = options.env();
        env.push(("CRIU_PREMEM", theirs.as_raw_fd().to_string().into()));
        let worker = Worker::start(&WorkerSetup { program: &self.path, inherit: &raw, stdin: request.terminal, env: &env })?;
        // Only the worker holds the other end now: its death is seen.
        drop(theirs);
        worker.ask(rpc::CriuReqType::Restore, restore_options(request, &images, options))?;
        WaitingRestore::begin(worker, ours, request.images_dir.join(RESTORE_LOG), deadline)
    }

    fn unstartable(&self, source: std::io::Error) -> CriuError {
        CriuError::Start { program: self.path.clone(), source }
    }
}

/// Runs a form of `criu check`.
fn run_check(criu: &Criu, command: &mut Command) -> Result<(), CriuError> {
    let output = command.output().map_err(|source| criu.unstartable(source))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(CriuError::Refused { what: "check", reason: swrk::first_error(&text) })
}

const RESTORE_LOG: &str = "restore.log";

fn raw_fds(request: &RestoreRequest<'_>) -> Vec<RawFd> {
    request.inherit.iter().map(|(_, fd)| fd.as_raw_fd()).collect()
}

fn restore_options(request: &RestoreRequest<'_>, images: &File, options: &RestoreOptions<'_>) -> rpc::CriuOpts {
    let inherit = request.inherit.iter().map(|(key, fd)| rpc::InheritFd { key: key.clone(), fd: fd.as_raw_fd() });
    rpc::CriuOpts {
        rst_sibling: Some(true),
        inherit_fd: inherit.collect(),
        lazy_pages: options.lazy_pages.then_some(true),
        ..common_options(images, request.shell_job, RESTORE_LOG)
    }
}

/// Opens the folder of the images for a worker to inherit.
fn open_images(what: &'static str, dir: &Path) -> Result<File, CriuError> {
    File::open(dir).map_err(|error| CriuError::Refused { what, reason: format!("{}: {error}", dir.display()) })
}

/// Options that both requests share; the worker must inherit `images`. Cgroups and the network are the caller's business.
fn common_options(images: &File, shell_job: bool, log: &str) -> rpc::CriuOpts {
    rpc::CriuOpts {
        images_dir_fd: -1,
        // CRIU 4.1.1 accepts only a symbolic link here. Its other way, `images_dir_fd`, is a descriptor of ours and needs our pid.
        images_dir: Some(format!("/proc/self/fd/{}", images.as_raw_fd())),
        log_file: Some(log.to_owned()),
        // Warnings and errors: level 4 costs 4-20 ms of the blackout.
        log_level: Some(2),
        notify_scripts: Some(true),
        shell_job: Some(shell_job),
        manage_cgroups_mode: Some(rpc::CriuCgMode::Ignore as i32),
        network_lock: Some(rpc::CriuNetworkLockMethod::Skip as i32),
        // Executables are found by path on a tree that home and target share; modes may differ there.
        skip_file_rwx_check: Some(true),
        ..rpc::CriuOpts::default()
    }
}

fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Version(parts.next()?.ok()?, parts.next()?.ok()?, parts.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse() {
        assert_eq!(parse_version("Version: 4.2.1\n"), Some(Version(4, 2, 1)));
        assert_eq!(parse_version("Version: 4.1\nGitID: x\n"), Some(Version(4, 1, 0)));
        assert_eq!(parse_version("criu"), None);
        assert!(Version(4, 2, 0) > OLDEST && Version(3, 17, 1) < OLDEST);
    }

    #[test]
    fn a_missing_program_is_told_by_name() {
        let error = Criu::at("/nonexistent/criu").version().unwrap_err();
        assert!(error.to_string().contains("/nonexistent/criu"), "{error}");
    }
}
