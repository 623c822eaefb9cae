//! Small files of the cluster's folder: bounded reads, atomic writes with the right mode, one writer at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::ClusterError;

/// Mode of keys.
pub(super) const SECRET: u32 = 0o600;
/// Mode of what everybody may read.
pub(super) const PUBLIC: u32 = 0o644;

/// No file of the folder is larger: 4 MiB hold 50,000 members.
const MAX_FILE_BYTES: u64 = 4 << 20;

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |source| ClusterError::Io { action, path, source }
}

/// Makes the folder (0700) and its parents; an existing one is left as it is.
pub(super) fn create_dir(dir: &Path) -> Result<(), ClusterError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))
}

/// Holds other writers of the folder off until the handle is dropped.
pub(super) fn lock_dir(dir: &Path) -> Result<File, ClusterError> {
    let handle = File::open(dir).map_err(io_error("open", dir))?;
    handle.lock().map_err(io_error("lock", dir))?;
    Ok(handle)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ClusterError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    read_bounded(file, path)
}

/// Reads a key, and refuses one that others could have read.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>, ClusterError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let mode = file.metadata().map_err(io_error("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ClusterError::OpenKey { path: path.to_owned(), mode });
    }
    read_bounded(file, path)
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, ClusterError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ClusterError::Damaged { path: path.to_owned(), why: format!("it is larger than {MAX_FILE_BYTES} bytes") });
    }
    Ok(bytes)
}

/// Writes a file so that a crash leaves either the old or the new one, and a key is at no moment readable by others.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ClusterError> {
    let temporary = temporary_name(path);
    // A left-over of a crash may have any mode: it must be made anew.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", &temporary)(e)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(io_error("create", &temporary))?;
    // The umask may have taken bits that a public file should have.
    file.set_permissions(Permissions::from_mode(mode)).map_err(io_error("set the mode of", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io_error("write", path))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}
