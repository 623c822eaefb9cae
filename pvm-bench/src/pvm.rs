//! A PVM virtual machine on a lab: the real PVM 3.4, started through the lab's rsh as it was on a real network.
//!
//! The daemons run inside the nodes' quota, as PVM's did on the paper's workstations. They are started, and the tasks of a
//! run too, while the quota is off; it is on from before the start signal (GO) to the last result.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node, StopFlag, find_beside};
use mosix_workloads::tasks::{ELAPSED, PLACED};
use nix::sys::signal::Signal;

use crate::check::{Measured, lowest};
use crate::{BenchError, Result, failed};

/// Where Debian's package puts PVM; `PVM_ROOT` overrides it.
const DEFAULT_ROOT: &str = "/usr/lib/pvm3";
/// How long daemons may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a daemon that is to be halted may take to become ready first.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// Longest folder name for which PVM's own socket names still fit into a socket address.
const MAX_TMP_BYTES: usize = 85;
/// A run may take this many times what it should, and [`PATIENCE`].
const RUN_FACTOR: f64 = 20.0;

/// PVM running on all nodes of a lab. Halts when dropped.
#[derive(Debug)]
pub struct VirtualMachine<'lab> {
    lab: &'lab Lab,
    root: PathBuf,
    master: PathBuf,
    /// The first daemon, on the first node; `None` once halted.
    daemon: Option<Child>,
    /// Where the first daemon writes its address once it takes tasks.
    said: PathBuf,
    stop: StopFlag,
}

/// Result of a run without migration.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticRun {
    /// From GO to the last result, real seconds, as seen by the master on the first node.
    pub elapsed_s: f64,
    /// The node (index in the lab) where PVM put each task.
    pub placement: Vec<usize>,
    /// Lowest CPU received / CPU entitled of the nodes with most tasks: they were busy all the time.
    pub entitlement: f64,
}

impl Measured for StaticRun {
    fn entitlement(&self) -> f64 {
        self.entitlement
    }
}

/// Where PVM is installed, or what to do about it.
///
/// # Errors
/// [`BenchError::Pvm`] if it is not.
pub fn installed() -> Result<PathBuf> {
    let root = std::env::var_os("PVM_ROOT").map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
    if root.join("lib/pvmd").exists() && root.join("lib/pvm").exists() {
        return Ok(root);
    }
    Err(BenchError::Pvm(format!("not found in {}; install it (Debian: pvm) or set PVM_ROOT", root.display())))
}

impl<'lab> VirtualMachine<'lab> {
    /// Starts PVM on all nodes; takes about half a second. Leaves the quota on.
    ///
    /// # Errors
    /// If PVM is not installed or does not come up; nothing of it then runs.
    pub fn boot(lab: &'lab Lab, stop: &StopFlag) -> Result<Self> {
        let root = installed()?;
        let first = first_node(lab)?;
        if first.private_dir.as_os_str().len() > MAX_TMP_BYTES {
            let text = format!("the lab's folder {} is too long a path for PVM's sockets", lab.dir().display());
            return Err(BenchError::Pvm(text));
        }
        let master = find_beside("pvm-master")?;
        find_beside("pvm-worker")?;
        let mut machine = Self { lab, root, master, daemon: None, said: lab.dir().join("pvmd.out"), stop: stop.clone() };
        lab.set_quota(false)?;
        machine.start_daemons(first)?;
        lab.set_quota(true)?;
        Ok(machine)
    }

    fn start_daemons(&mut self, first: &Node) -> Result<()> {
        let hosts = self.lab.dir().join("pvm.hosts");
        let names: String = self.lab.nodes().iter().map(|node| format!("{}\n", node.name)).collect();
        fs::write(&hosts, format!("* wd=/\n{names}")).map_err(failed(format!("writing {}", hosts.display())))?;
        let stdout = fs::File::create(&self.said).map_err(failed(format!("making {}", self.said.display())))?;
        let exec = self.exec([self.root.join("lib/pvmd").into_os_string(), hosts.into_os_string()]);
        self.daemon = Some(first.spawn(exec.stdout(stdout).stderr(self.log()?))?);
        self.until("PVM's daemon did not start", |machine| Ok(machine.is_ready()))?;
        let wanted = format!("{} host", self.lab.nodes().len());
        self.until("not all nodes joined PVM", |machine| {
            let text = machine.console("conf\nquit\n")?;
            Ok(text.lines().any(|line| line.starts_with(&wanted)))
        })
    }

    /// Whether the first daemon takes tasks. The console must not be used before: it would start another daemon.
    fn is_ready(&self) -> bool {
        fs::read_to_string(&self.said).is_ok_and(|text| text.contains('\n'))
    }

    /// Waits for something, as long as the daemon lives.
    fn until(&mut self, what: &str, reached: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self)? {
            self.stop.check()?;
            let ended = match &mut self.daemon {
                Some(daemon) => daemon.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.lab.dir().join("pvm.log")).unwrap_or_default();
                return Err(BenchError::Pvm(format!("{what}; it said: {}", log.trim())));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// A program with PVM's environment. Every node has its own folder behind the same PVM_TMP.
    fn exec<I>(&self, argv: I) -> Exec
    where
        I: IntoIterator,
        I::Item: Into<std::ffi::OsString>,
    {
        let private = self.lab.nodes().first().map(|node| node.private_dir.clone()).unwrap_or_default();
        Exec::new(argv)
            .env("PVM_ROOT", &self.root)
            .env("PVM_ALLOW_ROOT", "1")
            .env("PVM_TMP", private)
            .env("PVM_RSH", self.lab.rsh_program())
            .cwd("/")
    }

    fn log(&self) -> Result<fs::File> {
        let path = self.lab.dir().join("pvm.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(failed(format!("opening {}", path.display())))
    }

    /// Gives commands to PVM's console on the first node; what it prints.
    fn console(&self, commands: &str) -> Result<String> {
        let (stdin, mut to) = std::io::pipe().map_err(failed("making a pipe"))?;
        to.write_all(commands.as_bytes()).map_err(failed("writing to PVM's console"))?;
        drop(to);
        // Not a pipe: if the daemon had just died, the console would start one that holds a pipe open for ever.
        let path = self.lab.dir().join("pvm.console");
        let reading = || format!("using {}", path.display());
        let stdout = fs::File::create(&path).map_err(failed(reading()))?;
        let mut console = first_node(self.lab)?.spawn(self.exec([self.root.join("lib/pvm")]).stdin(stdin).stdout(stdout))?;
        if console.wait_for(Some(PATIENCE))?.is_none() {
            console.kill(Signal::SIGKILL)?;
        }
        fs::read_to_string(&path).map_err(failed(reading()))
    }

    /// One `pvm_spawn` of `tasks` tasks of `cpu_s` CPU seconds each, placed by PVM, and never moved.
    ///
    /// # Errors
    /// If a task fails or the run takes far too long. PVM should then be halted.
    pub fn run_static(&self, tasks: u32, cpu_s: f64) -> Result<StaticRun> {
        self.lab.set_quota(false)?;
        let run = self.run_tasks(tasks, cpu_s);
        self.lab.set_quota(true)?;
        run
    }

    fn run_tasks(&self, tasks: u32, cpu_s: f64) -> Result<StaticRun> {
        let (stdin, mut go) = std::io::pipe().map_err(failed("making a pipe"))?;
        let (from, stdout) = std::io::pipe().map_err(failed("making a pipe"))?;
        let argv = [self.master.clone().into_os_string(), tasks.to_string().into(), format!("{cpu_s}").into()];
        let exec = self.exec(argv).stdin(stdin).stdout(stdout).stderr(self.log()?);
        let mut master = first_node(self.lab)?.spawn(exec.signal_on_disconnect(Signal::SIGKILL))?;
        let lines = lines_of(from);
        let hosts = self.line(&lines, PLACED, PATIENCE)?;
        let placement = hosts.split_whitespace().map(|host| Ok(self.lab.node(host)?.index)).collect::<Result<Vec<_>>>()?;
        self.lab.set_quota(true)?;
        let before = self.lab.snapshot()?;
        go.write_all(b"go\n").map_err(failed("giving the start signal"))?;
        let slowest = self.lab.nodes().iter().map(Node::speed).fold(1.0, f64::min);
        let expected_s = cpu_s / slowest * f64::from(tasks);
        let patience = PATIENCE + Duration::from_secs_f64(expected_s * RUN_FACTOR);
        let elapsed = self.line(&lines, ELAPSED, patience)?;
        let after = self.lab.snapshot()?;
        let status = master.wait()?;
        let elapsed_s = elapsed.parse().ok().filter(|_| status.success());
        let elapsed_s = elapsed_s.ok_or_else(|| self.bad_run(&format!("ended with {status}")))?;
        let counts = count(&placement, self.lab.nodes().len());
        let most = counts.iter().copied().max().unwrap_or(0);
        let entitlement = lowest(&before.entitlement_until(&after), |index| counts.get(index) == Some(&most));
        Ok(StaticRun { elapsed_s, placement, entitlement })
    }

    /// The master's next line, which must begin with `word`; what follows it.
    fn line(&self, lines: &Receiver<String>, word: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            self.stop.check()?;
            match lines.recv_timeout(TICK) {
                Ok(line) => {
                    let rest = line.strip_prefix(word).map(|rest| rest.trim().to_owned());
                    return rest.ok_or_else(|| self.bad_run(&format!("said `{line}`")));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.bad_run("ended too early")),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    return Err(self.bad_run(&format!("did not say `{word}` in time")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn bad_run(&self, why: &str) -> BenchError {
        let log = fs::read_to_string(self.lab.dir().join("pvm.log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        BenchError::Run { what: "PVM's master".into(), why: format!("{why}; PVM's log ends with {last:?}") }
    }

    /// Ends PVM on all nodes. Called by `Drop` too; leaves the quota on.
    ///
    /// # Errors
    /// If PVM cannot be told; its first daemon is killed then, which ends the others.
    pub fn halt(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        self.lab.set_quota(false)?;
        // One that is only just starting has no address yet; give it the time to get one.
        let deadline = Instant::now() + START_PATIENCE;
        while daemon.try_wait()?.is_none() && !self.is_ready() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        if daemon.try_wait()?.is_none() {
            if self.is_ready() {
                self.console("halt\n")?;
                daemon.wait_for(Some(PATIENCE))?;
            }
            daemon.kill(Signal::SIGKILL)?;
        }
        Ok(self.lab.set_quota(true)?)
    }
}

impl Drop for VirtualMachine<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.halt() {
            eprintln!("pvm-bench: halting PVM: {error}");
        }
    }
}

fn first_node(lab: &Lab) -> Result<&Node> {
    lab.nodes().first().ok_or_else(|| BenchError::Pvm("the lab has no nodes".into()))
}

/// Tasks per node.
fn count(placement: &[usize], nodes: usize) -> Vec<usize> {
    let mut counts = vec![0; nodes];
    for index in placement {
        if let Some(count) = counts.get_mut(*index) {
            *count += 1;
        }
    }
    counts
}

/// Lines as they come, so that a wait for one can be given up.
fn lines_of(from: PipeReader) -> Receiver<String> {
    let (sender, receiver) = sync_channel(16);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
