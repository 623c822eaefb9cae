//! A process that a CPU quota holds back wants a CPU all the same.

use crate::help::{Guard, find, probes, wait_for};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

/// A CPU cgroup (version 1 or 2) of our own that gives 1 ms in 20.
struct Group(PathBuf);

impl Group {
    fn make() -> io::Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/cpu");
        let root = if v1.join("cpu.cfs_quota_us").exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let path = root.join(format!("mosix-probe-test-{}", process::id()));
        fs::create_dir(&path)?;
        let group = Self(path);
        if root == v1 {
            fs::write(group.0.join("cpu.cfs_period_us"), "20000")?;
            fs::write(group.0.join("cpu.cfs_quota_us"), "1000")?;
        } else {
            fs::write(group.0.join("cpu.max"), "1000 20000")?;
        }
        Ok(group)
    }

    fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    fn throttled(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel needs a moment after the last process is gone.
        wait_for("the cgroup to be empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn who_is_throttled_still_wants_a_cpu() {
    let group = match Group::make() {
        Ok(group) => group,
        Err(why) => return println!("skipped: no CPU cgroup can be made: {why}"),
    };
    let burner = Guard::burner();
    if let Err(why) = group.add(burner.pid()) {
        return println!("skipped: a process cannot be moved to a CPU cgroup: {why}");
    }
    for mut probe in probes() {
        wait_for("throttling", || group.throttled() > 0);
        probe.sample().unwrap();
        let before = group.throttled();
        wait_for("more throttling", || group.throttled() > before + 5);
        let sample = probe.sample().unwrap();
        let told = find(&sample, burner.pid());
        assert_eq!(told.demand, 1.0, "{}: {told:?}", probe.backend());
        assert!(told.cpu_rate < told.demand, "{}: {told:?}", probe.backend());
        assert!(sample.load >= 1.0);
    }
}
