//! BPF and `/proc` tell the same.

use crate::help::{Guard, find, memory_slack_bytes, tick_ns, wait_for};
use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

#[test]
fn bpf_and_proc_agree() {
    let mut bpf = match mosix_probe::open_bpf() {
        Ok(bpf) => bpf,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut proc = mosix_probe::open_proc();
    let mut other_user = Command::new("sleep");
    other_user.arg("1000").process_group(0);
    if nix::unistd::geteuid().is_root() {
        other_user.uid(12345);
    }
    let burner = Guard::burner();
    wait_for("some CPU time", || crate::help::schedstat(burner.pid()).0 > 20_000_000);
    let children = [burner, Guard::spawn(&mut other_user), Guard::spawn(Command::new("setsid").args(["sleep", "1000"]))];
    for child in &children {
        let comm = || fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap();
        wait_for("setsid to run sleep", || comm().trim() != "setsid");
        child.stop();
    }
    let (a, b) = (bpf.sample().unwrap(), proc.sample().unwrap());
    for child in &children {
        let (mut a_child, b_child) = (find(&a, child.pid()).clone(), find(&b, child.pid()).clone());
        assert!(a_child.start_time_ns.abs_diff(b_child.start_time_ns) <= tick_ns());
        assert!(a_child.rss_bytes.abs_diff(b_child.rss_bytes) <= memory_slack_bytes(&a));
        // Averages over a life depend on when it is asked; the rest of a stopped process stands still.
        (a_child.start_time_ns, a_child.rss_bytes) = (b_child.start_time_ns, b_child.rss_bytes);
        (a_child.cpu_rate, a_child.demand, a_child.swap_bytes) = (b_child.cpu_rate, b_child.demand, b_child.swap_bytes);
        assert_eq!(a_child, b_child);
    }
    // Kernel threads, too, are in both lists or in none.
    let kernel_threads = |sample: &mosix_probe::Sample| sample.processes.iter().filter(|p| p.kernel_thread && p.pid == 2).count();
    assert_eq!(kernel_threads(&a), kernel_threads(&b));
    assert_eq!((a.cpus, a.memory_total_bytes), (b.cpus, b.memory_total_bytes));
}

/// Not a test of its own: what [`without_privilege_proc_takes_over`] runs as another user.
#[test]
fn helper_print_backend() {
    if env::var_os("MOSIX_TEST_HELPER").is_some() {
        let mut probe = mosix_probe::open();
        println!("backend={}", probe.backend());
        println!("count={}", probe.sample().unwrap().processes.len());
    }
}

#[test]
fn without_privilege_proc_takes_over() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: needs root to become somebody else");
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "agree::helper_print_backend", "--nocapture"]).env("MOSIX_TEST_HELPER", "1");
    let output = match command.uid(65534).gid(65534).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(why) => return println!("skipped: nobody may not run {:?}: {why}", env::current_exe()),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |name: &str| text.lines().find_map(|line| line.split_once(name)).map(|(_, value)| value.to_owned());
    let backend = value("backend=").unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)));
    assert!(backend.starts_with("/proc (the kernel refused the BPF program while "), "{backend}");
    assert!(value("count=").unwrap().trim().parse::<u32>().unwrap() > 0);
}
