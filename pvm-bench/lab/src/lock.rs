//! One lab per id on this machine: a lock that dies with its holder.
//!
//! The lock is on a file in `/run`, whatever folder the lab's own files are in, because the cgroups' names depend on the id
//! alone. The file holds the path of the lab's folder, so that a lab is found (and its remains are) by its id.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{LabError, Result, failed};

/// Where lock files are.
const LOCK_DIR: &str = "/run/mosix-lab";
/// Longest path kept in a lock file, bytes.
const MAX_PATH_BYTES: u64 = 4096;

/// The lock on one lab's id; released when dropped or when the process dies.
#[derive(Debug)]
pub(crate) struct LabLock {
    file: File,
    path: PathBuf,
}

impl LabLock {
    /// Takes the lock of `id`; `None` if someone else has it.
    pub(crate) fn try_take(id: &str) -> Result<Option<Self>> {
        let path = lock_path(id);
        loop {
            let Some(lock) = Self::try_file(&path)? else { return Ok(None) };
            // Whoever had the lock may have removed the file between our opening and locking it; then it locks nothing.
            if lock.is_current() {
                return Ok(Some(lock));
            }
        }
    }

    /// Opens and locks the file.
    fn try_file(path: &Path) -> Result<Option<Self>> {
        let failing = || format!("opening {}", path.display());
        fs::create_dir_all(LOCK_DIR).map_err(failed(format!("making {LOCK_DIR}")))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed(failing()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, path: path.into() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(format!("locking {}", path.display()))(error)),
        }
    }

    /// Whether the locked file is the one that others would open.
    fn is_current(&self) -> bool {
        let (Ok(mine), Ok(others)) = (self.file.metadata(), fs::metadata(&self.path)) else { return false };
        mine.ino() == others.ino() && mine.dev() == others.dev()
    }

    /// Releases the lock of a lab that is gone, and removes the file.
    pub(crate) fn forget(self) {
        // A file that cannot be removed is harmless: it names a folder without a lab.
        let _ = fs::remove_file(&self.path);
    }

    /// Writes down where the lab's folder is.
    pub(crate) fn record(&mut self, lab_dir: &Path) -> Result<()> {
        let text = lab_dir.display().to_string();
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .map_err(failed("writing the lab's lock file"))
    }
}

/// The folder of the lab `id`, as last recorded.
pub(crate) fn recorded_dir(id: &str) -> Option<PathBuf> {
    let mut text = String::new();
    File::open(lock_path(id)).ok()?.take(MAX_PATH_BYTES).read_to_string(&mut text).ok()?;
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// The error for a lab that someone else runs.
pub(crate) fn busy(id: &str, why: impl Into<String>) -> LabError {
    LabError::Busy { id: id.into(), why: why.into() }
}

fn lock_path(id: &str) -> PathBuf {
    Path::new(LOCK_DIR).join(format!("{id}.lock"))
}
