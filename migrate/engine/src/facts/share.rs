//! Who shares something with a process: one pass over all others.
//!
//! Each other process costs three `kcmp` calls, and a look at each of its descriptors only if ours include something whose
//! sharing matters: files (the offset), pipes (who holds which end), and anonymous inodes.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use super::sys::{Kcmp, kcmp};
use super::{Facts, FactsError, Fd, Holder, Proc, SharedWhat, SharedWith, parse};

/// Fills `shared_with`, `opaque` and every descriptor's `holders`.
pub(super) fn survey(proc: &Proc, facts: &mut Facts) -> Result<(), FactsError> {
    let mut wanted: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    for (index, fd) in facts.fds.iter().enumerate().filter(|(_, fd)| sharing_matters(fd)) {
        wanted.entry(fd.link.as_bytes().to_vec()).or_default().push(index);
    }
    let kernel = kernel_threads();
    for other in all_pids(proc)?.into_iter().filter(|other| kernel.binary_search(other).is_err()) {
        match compare(proc, other, &wanted, facts) {
            // Even root may not look into everybody (a first process with more capabilities than ours).
            Err(FactsError::Denied { .. }) => facts.opaque.push(other),
            result => result?,
        }
    }
    Ok(())
}

/// The kernel's threads, which share nothing with us and are half of all tasks of a small machine: the children of number 2, if that
/// is the kernel's. Sorted. Empty where they cannot be told from others, which only costs time.
fn kernel_threads() -> Vec<i32> {
    let parent = Proc { pid: 2 };
    let is_kernel = parent.text("stat").ok().and_then(|text| parse::stat(&text)).is_some_and(|stat| stat.kernel_thread);
    let text = if is_kernel { parent.text("task/2/children").unwrap_or_default() } else { String::new() };
    let mut threads: Vec<i32> = text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    threads.sort_unstable();
    threads
}

fn compare(proc: &Proc, other: i32, wanted: &HashMap<Vec<u8>, Vec<usize>>, facts: &mut Facts) -> Result<(), FactsError> {
    let whats = [(Kcmp::Vm, SharedWhat::Memory), (Kcmp::Files, SharedWhat::Files), (Kcmp::Fs, SharedWhat::Directory)];
    for (kind, what) in whats {
        if ask(proc, other, kind, 0, 0)? {
            facts.shared_with.push(SharedWith { pid: other, what });
        }
    }
    if wanted.is_empty() { Ok(()) } else { look_at(proc, other, wanted, &mut facts.fds) }
}

/// Sockets and devices have no offset to share, and are judged by what they are.
fn sharing_matters(fd: &Fd) -> bool {
    let kind = fd.mode & libc::S_IFMT;
    fd.flags & libc::O_PATH == 0 && kind != libc::S_IFSOCK && kind != libc::S_IFCHR && kind != libc::S_IFBLK
}

fn look_at(proc: &Proc, other: i32, wanted: &HashMap<Vec<u8>, Vec<usize>>, fds: &mut [Fd]) -> Result<(), FactsError> {
    // It may have ended; one that we may not look into was already denied to kcmp.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut directory) = Dir::open(format!("/proc/{other}/fd").as_str(), flags, Mode::empty()) else { return Ok(()) };
    // Looked up from the directory itself, each name is one step of a path instead of four: this is most of the survey's time.
    let numbers: Vec<(CString, i32)> = directory
        .iter()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_owned(), entry.file_name().to_str().ok()?.parse().ok()?)))
        .collect();
    for (name, theirs) in numbers {
        let Ok(link) = readlinkat(&directory, name.as_c_str()) else { continue };
        let Some(indices) = wanted.get(link.as_os_str().as_bytes()) else { continue };
        // The link's own mode bits tell what the description may do: cheaper than its fdinfo.
        let Ok(access) = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        for &index in indices {
            let fd = &mut fds[index];
            let same_description = ask(proc, other, Kcmp::File, fd.fd, theirs)?;
            if same_description || fd.link.starts_with("pipe:") {
                fd.holders.push(Holder {
                    pid: other,
                    fd: theirs,
                    same_description,
                    reads: access.st_mode & libc::S_IRUSR != 0,
                    writes: access.st_mode & libc::S_IWUSR != 0,
                });
            }
        }
    }
    Ok(())
}

/// Whether a thread has a descriptor table of its own.
pub(super) fn threads_differ(proc: &Proc, tid: i32) -> Result<bool, FactsError> {
    match kcmp(proc.pid, tid, Kcmp::Files, 0, 0) {
        Ok(same) => Ok(!same),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(proc.io("threads (kcmp)", errno.into())),
    }
}

/// The children, where the kernel does not list them.
pub(super) fn children_by_parent(proc: &Proc) -> Result<Vec<i32>, FactsError> {
    let mut children = Vec::new();
    for pid in all_pids(proc)? {
        let stat = Proc { pid }.text("stat").ok().and_then(|text| parse::stat(&text));
        if stat.is_some_and(|stat| stat.ppid == proc.pid) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// All processes but this one.
fn all_pids(proc: &Proc) -> Result<Vec<i32>, FactsError> {
    let entries = std::fs::read_dir("/proc").map_err(|source| proc.io("/proc", source))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|&pid: &i32| pid != proc.pid).collect())
}

/// `kcmp`, where a process that ended or a descriptor that was closed shares nothing.
fn ask(proc: &Proc, other: i32, kind: Kcmp, ours: i32, theirs: i32) -> Result<bool, FactsError> {
    match kcmp(proc.pid, other, kind, ours, theirs) {
        Ok(same) => Ok(same),
        Err(Errno::ESRCH | Errno::EBADF | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(proc.io("what it shares (kcmp)", errno.into())),
    }
}
