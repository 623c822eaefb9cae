//! Children that are always cleaned up, and the kernel's other view of them.

use mosix_probe::{Probe, ProcessSample, Sample};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Longest wait for something that must happen sooner or later.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child that does not outlive its test.
pub(crate) struct Guard(Child);

impl Guard {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// A shell that runs `script`; `exec` in it keeps the pid.
    pub(crate) fn shell(script: &str) -> Self {
        Self::spawn(Command::new("sh").args(["-c", script]))
    }

    /// Burns CPU for ever.
    pub(crate) fn burner() -> Self {
        Self::shell("while :; do :; done")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Stops it and waits until it stands still: then its counters do too.
    pub(crate) fn stop(&self) {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGSTOP).unwrap();
        wait_for("the child to stop", || state(self.pid()) == Some('T'));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `done`; gives up after a minute.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "gave up waiting for {what}");
        sleep(Duration::from_millis(10));
    }
}

/// All probes that work here. Says if BPF is left out.
pub(crate) fn probes() -> Vec<Box<dyn Probe>> {
    let bpf = mosix_probe::open_bpf();
    if let Err(why) = &bpf {
        println!("skipped: BPF: {why}");
    }
    bpf.into_iter().chain([mosix_probe::open_proc()]).collect()
}

/// The process with this pid.
pub(crate) fn find(sample: &Sample, pid: u32) -> &ProcessSample {
    try_find(sample, pid).unwrap_or_else(|| panic!("{pid} is not in the sample"))
}

pub(crate) fn try_find(sample: &Sample, pid: u32) -> Option<&ProcessSample> {
    sample.processes.iter().find(|process| process.pid == pid)
}

/// State letter of `/proc/PID/stat`.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Run and wait of `/proc/PID/schedstat`, in ns.
pub(crate) fn schedstat(pid: u32) -> (u64, u64) {
    let content = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let words: Vec<u64> = content.split_whitespace().map(|word| word.parse().unwrap()).collect();
    (words[0], words[1])
}

/// Length of a clock tick in ns.
pub(crate) fn tick_ns() -> u64 {
    1_000_000_000 / nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap() as u64
}

/// By how many bytes the kernel's memory counters may be behind: a batch for each CPU and counter, and the same again
/// for the file it is compared with.
pub(crate) fn memory_slack_bytes(sample: &Sample) -> u64 {
    let batch = u64::from(sample.cpus * 2).max(32);
    2 * 3 * batch * u64::from(sample.cpus) * 4096
}
