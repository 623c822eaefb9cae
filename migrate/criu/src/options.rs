//! Options of dumps and restores beyond those every request has, most of them switches of our patches.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::rpc;

/// How a dump leaves out the contents of memory, which somebody else carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skeleton<'a> {
    /// By our patch. With `shared` also the contents of shared memory are left out.
    Patched {
        /// Leave out shared memory, too.
        shared: bool,
    },
    /// By an unpatched CRIU that is made to believe that nothing changed since the images in a parent folder (see
    /// [`crate::images::parent`]).
    Plain {
        /// The parent folder, relative to the image folder.
        parent: &'a str,
        /// Folder with a cache made by [`crate::kerndat::prepare_plain`].
        kerndat_dir: &'a Path,
    },
}

/// Options of a dump.
#[derive(Debug, Clone, Copy, Default)]
pub struct DumpOptions<'a> {
    /// Leave out the contents of memory; without it the images have everything.
    pub skeleton: Option<Skeleton<'a>>,
    /// File written by [`write_trusted`]: memory that CRIU does not even look at. Needs our patch. Read while the processes are stopped, so it
    /// may be written until [`crate::Stage::PreDump`] is answered.
    pub trust: Option<&'a Path>,
    /// Folder filled by [`copy_smaps`]. Needs our patch; may be filled until [`crate::Stage::PreDump`] is answered.
    pub smaps: Option<&'a Path>,
    /// File for the cache of kernel features; on a tmpfs. Needs our patch.
    pub kerndat: Option<&'a Path>,
    /// Stop tasks without hardware breakpoints. Needs our patch.
    pub no_breakpoints: bool,
    /// Carry established TCP connections.
    pub tcp_established: bool,
    /// Carry file locks held inside the tree.
    pub file_locks: bool,
    /// Largest deleted file that is carried along, in bytes; CRIU's own limit is 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
}

impl DumpOptions<'_> {
    /// Environment of the worker.
    pub(crate) fn env(&self) -> Vec<(&'static str, OsString)> {
        let mut env = Vec::new();
        match self.skeleton {
            Some(Skeleton::Patched { shared }) => env.push(("CRIU_SKELETON", if shared { "all" } else { "private" }.into())),
            // CRIU takes this place for its cache when told that it has no privileges. What else that switch does concerns
            // cgroups, which we leave alone, and restores.
            Some(Skeleton::Plain { kerndat_dir, .. }) => env.push(("XDG_RUNTIME_DIR", kerndat_dir.into())),
            None => {}
        }
        let paths = [("CRIU_SKELETON_TRUST", self.trust), ("CRIU_SMAPS", self.smaps), ("CRIU_KERNDAT", self.kerndat)];
        env.extend(paths.into_iter().filter_map(|(name, path)| Some((name, path?.into()))));
        if self.no_breakpoints {
            env.push(("CRIU_NO_BREAKPOINTS", "1".into()));
        }
        env
    }

    /// Adds these options to those of a request.
    pub(crate) fn complete(&self, opts: rpc::CriuOpts) -> rpc::CriuOpts {
        let parent = match self.skeleton {
            Some(Skeleton::Plain { parent, .. }) => Some(parent.to_owned()),
            _ => None,
        };
        rpc::CriuOpts {
            track_mem: parent.as_ref().map(|_| true),
            unprivileged: parent.as_ref().map(|_| true),
            parent_img: parent,
            tcp_established: self.tcp_established.then_some(true),
            file_locks: self.file_locks.then_some(true),
            ghost_limit: self.ghost_limit_bytes,
            ..opts
        }
    }
}

/// Options of a restore.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreOptions<'a> {
    /// File for the cache of kernel features; on a tmpfs. Needs our patch.
    pub kerndat: Option<&'a Path>,
    /// Stop tasks without hardware breakpoints. Needs our patch.
    pub no_breakpoints: bool,
    /// Pages that the page map says are lazy come from a server that listens at `lazy-pages.socket` in the image folder.
    pub lazy_pages: bool,
}

impl RestoreOptions<'_> {
    pub(crate) fn env(&self) -> Vec<(&'static str, OsString)> {
        let mut env = Vec::new();
        if let Some(path) = self.kerndat {
            env.push(("CRIU_KERNDAT", path.into()));
        }
        if self.no_breakpoints {
            env.push(("CRIU_NO_BREAKPOINTS", "1".into()));
        }
        env
    }
}

/// Memory that a dump does not look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustedRange {
    /// Process as the worker sees it.
    pub pid: i32,
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

/// CRIU compares each mapping with each range, and refuses more.
pub const MAX_TRUSTED_RANGES: usize = 4096;

/// Writes the file for [`DumpOptions::trust`].
///
/// # Errors
/// From the file system, or more than [`MAX_TRUSTED_RANGES`].
pub fn write_trusted(path: &Path, ranges: &[TrustedRange]) -> io::Result<()> {
    if ranges.len() > MAX_TRUSTED_RANGES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} trusted ranges are too many", ranges.len())));
    }
    let mut text = Vec::new();
    for range in ranges {
        writeln!(text, "{} {:x} {:x}", range.pid, range.start, range.end)?;
    }
    fs::write(path, text)
}

/// Copies `/proc/PID/smaps` to where [`DumpOptions::smaps`] (`folder`) wants it, and returns the text. The kernel needs about 13 ms a GiB of
/// 4 KiB pages for it: do it before the freeze, but shortly before.
///
/// # Errors
/// The process has ended, or from the file system.
pub fn copy_smaps(folder: &Path, pid: i32) -> io::Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    fs::write(folder.join(pid.to_string()), &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_dump_has_no_switches() {
        let options = DumpOptions::default();
        assert!(options.env().is_empty());
        assert_eq!(options.complete(rpc::CriuOpts::default()), rpc::CriuOpts::default());
    }

    #[test]
    fn too_many_ranges_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust");
        let range = TrustedRange { pid: 7, start: 0x1000, end: 0x3000 };
        write_trusted(&path, &[range, range]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7 1000 3000\n7 1000 3000\n");
        assert!(write_trusted(&path, &vec![range; MAX_TRUSTED_RANGES + 1]).is_err());
    }
}
