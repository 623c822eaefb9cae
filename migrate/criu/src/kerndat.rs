//! The cache of kernel features that each start of CRIU would otherwise probe for (35-50 ms).
//!
//! CRIU keeps it as `/run/criu.kdat`, and only if `/run` is a tmpfs (it must not survive a reboot). With our patch it goes to a file of our choice;
//! [`prepare`] fills that. An unpatched CRIU can be given one as well, through the folder of its cache for other users than root, and in that
//! copy one byte can be changed so that it believes in page tracking ([`prepare_plain`]): then it writes a skeleton although the kernel has no
//! soft-dirty bits. Nobody else sees that copy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::Criu;
use crate::spawn;
use crate::swrk::CriuError;

/// CRIU's name for the cache.
const FILE_NAME: &str = "criu.kdat";

/// First word of the cache: CRIU's KDAT_MAGIC.
const MAGIC: u32 = 0x57023458;

/// Where `has_dirty_track` lies: after two magics, a device number, an int (padded) and a page frame number. The same in 4.1.1 and 4.2.1.
const DIRTY_TRACK_OFFSET: usize = 32;

/// The flags after it are bytes of 0 and 1, too.
const FLAGS_BYTES: usize = 4;

/// A folder for caches on a tmpfs; made with access for us only if it is missing. `/run/mosix`, else `/dev/shm/mosix-UID`.
///
/// # Errors
/// Neither place is a tmpfs that we can write to.
pub fn default_dir() -> io::Result<PathBuf> {
    let places = [PathBuf::from("/run/mosix"), PathBuf::from(format!("/dev/shm/mosix-{}", nix::unistd::geteuid()))];
    let mut problem = io::Error::new(io::ErrorKind::NotFound, "no tmpfs");
    for place in places {
        match private_tmpfs(&place) {
            Ok(()) => return Ok(place),
            Err(error) => problem = io::Error::new(error.kind(), format!("{}: {error}", place.display())),
        }
    }
    Err(problem)
}

fn private_tmpfs(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let parent = dir.parent().unwrap_or(dir);
    if statfs(parent)?.filesystem_type() != TMPFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not on a tmpfs"));
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Somebody else may have made it in a folder that all can write to.
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else or others can write to it"));
    }
    Ok(())
}

/// Makes the cache for a patched CRIU in `file` unless it is there already. To be given as [`crate::DumpOptions::kerndat`].
///
/// # Errors
/// CRIU's own words when the kernel lacks something it needs.
pub fn prepare(criu: &Criu, file: &Path) -> Result<(), CriuError> {
    let mut command = Command::new(criu.path());
    command.arg("check").env("CRIU_KERNDAT", file);
    crate::run_check(criu, &mut command)
}

/// Makes a cache for an unpatched CRIU in `dir`, which must be on a tmpfs, with page tracking claimed. To be given as
/// [`crate::Skeleton::Plain`]. Uses a private mount namespace (needs root), so that `/run` of the system is neither read nor written.
///
/// # Errors
/// The kernel lacks something, the namespace cannot be made, or this CRIU keeps another kind of cache (it is then of no use and removed).
pub fn prepare_plain(criu: &Criu, dir: &Path) -> Result<(), CriuError> {
    let file = dir.join(FILE_NAME);
    if fs::read(&file).is_ok_and(|cache| claims_tracking(&cache)) {
        return Ok(());
    }
    let mut command = Command::new(criu.path());
    command.arg("check");
    spawn::with_run_folder(&mut command, dir).map_err(|source| CriuError::Start { program: criu.path().to_owned(), source })?;
    crate::run_check(criu, &mut command)?;
    let claimed = claim_tracking(&file).and_then(|()| believes(criu, dir));
    claimed.inspect_err(|_| drop(fs::remove_file(&file)))
}

fn looks_right(cache: &[u8]) -> bool {
    let magic = cache.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let flags = cache.get(DIRTY_TRACK_OFFSET..DIRTY_TRACK_OFFSET + FLAGS_BYTES);
    magic == Some(MAGIC) && flags.is_some_and(|flags| flags.iter().all(|flag| *flag <= 1))
}

fn claims_tracking(cache: &[u8]) -> bool {
    looks_right(cache) && cache.get(DIRTY_TRACK_OFFSET) == Some(&1)
}

fn claim_tracking(file: &Path) -> Result<(), CriuError> {
    let problem = |what: String| CriuError::Protocol(format!("the cache of kernel features {}: {what}", file.display()));
    let mut cache = fs::read(file).map_err(|error| problem(error.to_string()))?;
    if !looks_right(&cache) {
        return Err(problem("has another layout than that of CRIU 4.1.1 and 4.2.1".into()));
    }
    if let Some(flag) = cache.get_mut(DIRTY_TRACK_OFFSET) {
        *flag = 1;
    }
    let fresh = file.with_extension("new");
    fs::write(&fresh, &cache).and_then(|()| fs::rename(&fresh, file)).map_err(|error| problem(error.to_string()))
}

/// CRIU itself is asked whether the byte was the right one.
fn believes(criu: &Criu, dir: &Path) -> Result<(), CriuError> {
    let mut command = Command::new(criu.path());
    command.args(["check", "--unprivileged", "--feature", "mem_dirty_track"]).env("XDG_RUNTIME_DIR", dir);
    command.stdin(Stdio::null());
    crate::run_check(criu, &mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cache_of_the_known_layout_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        fs::write(&file, vec![0; 100]).unwrap();
        assert!(claim_tracking(&file).is_err(), "no magic");
        let mut cache = MAGIC.to_le_bytes().to_vec();
        cache.resize(900, 0);
        cache[DIRTY_TRACK_OFFSET + 1] = 9;
        fs::write(&file, &cache).unwrap();
        assert!(claim_tracking(&file).is_err(), "the flags do not look like flags");
        cache[DIRTY_TRACK_OFFSET + 1] = 1;
        fs::write(&file, &cache).unwrap();
        claim_tracking(&file).unwrap();
        let changed = fs::read(&file).unwrap();
        assert!(claims_tracking(&changed));
        cache[DIRTY_TRACK_OFFSET] = 1;
        assert_eq!(changed, cache, "one byte differs");
    }
}
