//! The descriptors of a process: one pass over `/proc/PID/fd` and `fdinfo`.

use nix::sys::stat::stat;

use super::sys::{self, Kcmp};
use super::{FactsError, Fd, MAX_FDS, Proc, parse};

/// Reads all descriptors, sorted by number. One that is closed meanwhile is left out.
pub(super) fn read(proc: &Proc) -> Result<Vec<Fd>, FactsError> {
    let numbers = proc.numbers("fd")?;
    if numbers.len() > MAX_FDS {
        return Err(FactsError::TooMany { pid: proc.pid, what: "open files", limit: MAX_FDS });
    }
    let mounts = mount_ids(&proc.text("mountinfo")?);
    let mut fds = Vec::with_capacity(numbers.len());
    for number in numbers {
        match read_one(proc, number) {
            Ok(fd) => fds.push(Fd { foreign_mount: fd.link.starts_with('/') && !mounts.contains(&fd.mnt_id), ..fd }),
            Err(FactsError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    find_duplicates(proc, &mut fds)?;
    Ok(fds)
}

/// The mounts that the process can name: first field of each line of mountinfo.
fn mount_ids(mountinfo: &str) -> Vec<i32> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

fn read_one(proc: &Proc, number: i32) -> Result<Fd, FactsError> {
    let name = format!("fd/{number}");
    let link = proc.link(&name)?;
    let path = proc.path(&name);
    let held = stat(path.as_str()).map_err(|errno| proc.io(&name, errno.into()))?;
    let text = proc.text(&format!("fdinfo/{number}"))?;
    let mut fd = parse::fdinfo(&text).ok_or_else(|| proc.odd("fdinfo", &text))?;
    fd.fd = number;
    fd.description = number;
    fd.leads_there = leads_to(&link, held.st_dev, held.st_ino);
    fd.link = link;
    fd.dev = held.st_dev;
    fd.inode = held.st_ino;
    fd.rdev = held.st_rdev;
    fd.mode = held.st_mode;
    if held.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        fd.socket = Some(sys::socket_protocol(&path).unwrap_or_else(|| "unknown".to_owned()));
    }
    Ok(fd)
}

/// Whether the path names this inode. False for everything that is no path.
pub(super) fn leads_to(path: &str, dev: u64, inode: u64) -> bool {
    path.starts_with('/') && stat(path).is_ok_and(|found| found.st_dev == dev && found.st_ino == inode)
}

/// Finds which descriptors of regular files are dups of a lower one. Of other kinds nobody asks.
fn find_duplicates(proc: &Proc, fds: &mut [Fd]) -> Result<(), FactsError> {
    for later in 1..fds.len() {
        for earlier in 0..later {
            let (lower, upper) = (&fds[earlier], &fds[later]);
            // Only heads of a chain need to be asked, and only about the same object.
            let regular = upper.mode & libc::S_IFMT == libc::S_IFREG;
            let candidate = regular
                && lower.description == lower.fd
                && lower.inode == upper.inode
                && lower.dev == upper.dev
                && lower.link == upper.link;
            if candidate && same(proc, lower.fd, upper.fd)? {
                fds[later].description = fds[earlier].fd;
                break;
            }
        }
    }
    Ok(())
}

fn same(proc: &Proc, one: i32, other: i32) -> Result<bool, FactsError> {
    match sys::kcmp(proc.pid, proc.pid, Kcmp::File, one, other) {
        Ok(same) => Ok(same),
        // Closed meanwhile.
        Err(nix::errno::Errno::EBADF) => Ok(false),
        Err(errno) => Err(proc.io("open files (kcmp)", errno.into())),
    }
}
