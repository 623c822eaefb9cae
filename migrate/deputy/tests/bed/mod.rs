//! A victim with a parent of its own, in a cgroup of its own; all is removed on drop.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mosix_deputy::{AdoptError, StubEvent, Watcher};

/// Long enough for any machine: reached only when a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The cgroup-v2 hierarchy, if we may make groups in it.
pub(crate) fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let root = PathBuf::from(line.split(' ').nth(4)?);
    let probe = root.join(format!("deputy-probe-{}-{}", std::process::id(), next_number()));
    std::fs::create_dir(&probe).ok()?;
    std::fs::remove_dir(&probe).ok()?;
    Some(root)
}

fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::SeqCst)
}

pub(crate) struct Bed {
    pub(crate) pid: i32,
    pub(crate) cgroup: PathBuf,
    parent: Child,
    told: BufReader<ChildStdout>,
    counters: PathBuf,
}

impl Bed {
    /// `None` if this machine has no usable cgroup v2, or we are not root.
    pub(crate) fn new(kind: &str, threads: usize) -> Option<Bed> {
        let Some(root) = cgroup_root() else {
            println!("skipped: no writable cgroup v2 hierarchy");
            return None;
        };
        let name = format!("deputy-test-{}-{}", std::process::id(), next_number());
        let counters = std::env::temp_dir().join(&name);
        std::fs::write(&counters, vec![0u8; 4096]).unwrap();
        let mut parent = Command::new(env!("CARGO_BIN_EXE_deputy-testbed"))
            .args(["parent", kind, counters.to_str().unwrap(), &threads.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(parent.stdout.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        let pid = line.trim().strip_prefix("pid ").unwrap().parse().unwrap();
        let cgroup = root.join(name);
        std::fs::create_dir(&cgroup).unwrap();
        let bed = Bed { pid, cgroup, parent, told, counters };
        bed.wait("ready", || bed.counter(511) != 0);
        bed.wait("threads", || bed.threads() == threads);
        std::fs::write(bed.cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(bed)
    }

    pub(crate) fn freeze(&self) {
        std::fs::write(self.cgroup.join("cgroup.freeze"), "1").unwrap();
        self.wait("frozen", || self.is_frozen());
    }

    pub(crate) fn thaw(&self) {
        std::fs::write(self.cgroup.join("cgroup.freeze"), "0").unwrap();
    }

    pub(crate) fn is_frozen(&self) -> bool {
        let wanted = std::fs::read_to_string(self.cgroup.join("cgroup.freeze")).unwrap().trim() == "1";
        wanted && std::fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Freezes and adopts; events come out of the receiver.
    pub(crate) fn adopt(&self, watcher: &Watcher) -> Receiver<StubEvent> {
        self.freeze();
        self.try_adopt(watcher, &[]).unwrap()
    }

    pub(crate) fn try_adopt(&self, watcher: &Watcher, swallow: &[i32]) -> Result<Receiver<StubEvent>, AdoptError> {
        let (events, received) = channel();
        let handler = Box::new(move |event| events.send(event).unwrap_or(()));
        watcher.adopt(self.pid, &self.cgroup, swallow, handler)?;
        Ok(received)
    }

    /// The next thing that the parent saw.
    pub(crate) fn parent_sees(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        line.trim().to_string()
    }

    pub(crate) fn counter(&self, slot: usize) -> u64 {
        let bytes = std::fs::read(&self.counters).unwrap();
        u64::from_le_bytes(bytes[slot * 8..][..8].try_into().unwrap())
    }

    pub(crate) fn set_counter(&self, slot: usize, value: u64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&self.counters).unwrap();
        file.write_all_at(&value.to_le_bytes(), slot as u64 * 8).unwrap();
    }

    pub(crate) fn counters(&self) -> Vec<u8> {
        std::fs::read(&self.counters).unwrap()
    }

    pub(crate) fn counter_file(&self) -> &Path {
        &self.counters
    }

    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.proc(file)).unwrap()
    }

    /// One line of `/proc/PID/status`.
    pub(crate) fn status(&self, key: &str) -> String {
        let text = self.read("status");
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap().trim().to_string()
    }

    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(self.proc("task")).unwrap().count()
    }

    pub(crate) fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn kill(&self, signal: i32) {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = std::fs::write(self.cgroup.join("cgroup.freeze"), "0");
        if let Ok(None) = self.parent.try_wait() {
            // The pid is still the victim's, since its parent has not waited for it. In case it is not in the cgroup.
            // SAFETY: no memory is involved.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        let _ = self.parent.wait(); // it ends with the victim
        let deadline = Instant::now() + PATIENCE;
        while std::fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::fs::remove_file(&self.counters);
    }
}
