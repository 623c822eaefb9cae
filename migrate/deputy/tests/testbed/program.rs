//! Processes for the tests of the deputy: `parent ARGS...` starts `victim ARGS...` as its child and prints
//! what `waitpid(WUNTRACED | WCONTINUED)` tells of it, as a shell would see it; `victim KIND FILE THREADS`
//! behaves as its kind says, counting in the mapped FILE. Not installed, used by nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("parent") => parent(&args),
        Some("victim") => victim(&args[2], &args[3], args[4].parse().expect("number of threads")),
        _ => eprintln!("this program is only for the tests of mosix-deputy"),
    }
}

/// Starts the victim in a process group of its own within our session, and tells of each change of its state.
#[allow(clippy::zombie_processes)] // it is waited for, by a call that also tells of stops
fn parent(args: &[String]) {
    use std::os::unix::process::CommandExt;
    // a group leader could not make its own session
    // SAFETY: no memory is involved.
    let group = if args[2] == "orphan" { unsafe { libc::getpgrp() } } else { 0 };
    let child = Command::new("/proc/self/exe").arg("victim").args(&args[2..]).process_group(group).spawn().expect("spawn");
    println!("pid {}", child.id());
    loop {
        let mut status = 0;
        // SAFETY: `status` is live.
        let found = unsafe { libc::waitpid(child.id() as i32, &raw mut status, libc::WUNTRACED | libc::WCONTINUED) };
        assert_eq!(found, child.id() as i32);
        if libc::WIFSTOPPED(status) {
            println!("stopped {}", libc::WSTOPSIG(status));
        } else if libc::WIFCONTINUED(status) {
            println!("continued");
        } else if libc::WIFSIGNALED(status) {
            return println!("signaled {}", libc::WTERMSIG(status));
        } else {
            return println!("exited {}", libc::WEXITSTATUS(status));
        }
    }
}

/// A page of the file, shared with the test.
fn counters(path: &str) -> (&'static [AtomicU64], std::fs::File) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("counter file");
    // SAFETY: a fresh shared mapping of 4096 bytes of a file that long; never unmapped, used as atomics only.
    let slice = unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(page, libc::MAP_FAILED);
        std::slice::from_raw_parts(page.cast::<AtomicU64>(), 512)
    };
    (slice, file)
}

fn victim(kind: &str, path: &str, threads: usize) {
    let (slots, file) = counters(path);
    // SAFETY: plain calls on our own process; the name is a C string, `lock` is live.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"the victim".as_ptr());
        libc::lseek(file.as_raw_fd(), 1234, libc::SEEK_SET);
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock), 0);
    }
    set_up(kind);
    for slot in slots.iter().take(threads).skip(1) {
        std::thread::spawn(move || count(slot));
    }
    slots[511].store(file.as_raw_fd() as u64, Ordering::SeqCst); // ready
    match kind {
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(3600)),
        "futex" => loop {
            std::thread::park();
        },
        "leader-exit" => {
            // when told to: a process without its leader can no longer be moved to a cgroup
            while slots[510].load(Ordering::SeqCst) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            exit_leader();
        }
        _ => count(&slots[0]),
    }
    // only if the sleep ended: the tests look for it
    slots[0].store(u64::MAX, Ordering::SeqCst);
}

fn count(slot: &AtomicU64) {
    loop {
        slot.fetch_add(1, Ordering::SeqCst);
    }
}

/// What sets a kind of victim apart from the plain one.
fn set_up(kind: &str) {
    // SAFETY: plain calls on our own process with live arguments, before there is a second thread.
    unsafe {
        match kind {
            "ignore" => {
                for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGTSTP] {
                    libc::signal(signal, libc::SIG_IGN);
                }
            }
            "block" => {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut set);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            }
            "seccomp" => refuse_with_seccomp(),
            "alarm" => {
                libc::alarm(1);
                libc::signal(libc::SIGALRM, libc::SIG_IGN);
            }
            "no-fd" => {
                let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            }
            "orphan" => assert!(libc::setsid() > 0 || libc::getsid(0) == libc::getpid()),
            "core" => {
                let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
            }
            _ => {}
        }
    }
}

/// A filter that kills the process for memfd_create and execveat.
fn refuse_with_seccomp() {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut code = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(jump, 2, 0, libc::SYS_memfd_create as u32),
        op(jump, 1, 0, libc::SYS_execveat as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: `program` and its code live through the calls; the kernel copies them.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Ends the main thread only; the others go on.
fn exit_leader() {
    // SAFETY: the thread's own resources are left as they are; nothing of the main thread is used by others.
    unsafe {
        libc::syscall(libc::SYS_exit, 0);
    }
}
