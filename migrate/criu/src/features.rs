//! Which of our patches a CRIU program has.
//!
//! `criu --version` prints their names (see `patches/README.md`). Asking costs one start of the program (about 3 ms), so the answer is kept
//! for as long as the file stays the same.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::swrk::CriuError;
use crate::{Version, parse_version};

/// What a CRIU program can do beyond the distribution's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Its release.
    pub version: Version,
    /// Names of our patches in it; empty for a plain CRIU.
    pub patches: Vec<String>,
}

impl Features {
    fn has(&self, patch: &str) -> bool {
        self.patches.iter().any(|name| name == patch)
    }

    /// Dumps without the contents of memory.
    pub fn skeleton(&self) -> bool {
        self.has("mosix-skeleton")
    }

    /// Leaves out memory whose page map we write, without looking at it.
    pub fn trust(&self) -> bool {
        self.has("mosix-trust")
    }

    /// Takes the flags of mappings from a copy of smaps.
    pub fn smaps(&self) -> bool {
        self.has("mosix-smaps")
    }

    /// Restores into memory supplied beforehand.
    pub fn premem(&self) -> bool {
        self.has("mosix-premem")
    }

    /// Keeps its cache of kernel features where we say.
    pub fn kerndat(&self) -> bool {
        self.has("mosix-kerndat")
    }

    /// Dumps other users' processes without CAP_SYS_RESOURCE.
    pub fn rlimits(&self) -> bool {
        self.has("mosix-rlimits")
    }

    /// All that a move whose blackout does not depend on the size needs.
    pub fn complete(&self) -> bool {
        self.skeleton() && self.trust() && self.smaps() && self.premem() && self.kerndat()
    }
}

/// Device, inode, size and time of change: another program at the same path differs in one of them.
type Identity = (u64, u64, u64, i64, i64);

/// Asks the program at `path`, or remembers.
pub(crate) fn of(path: &Path) -> Result<Features, CriuError> {
    static KNOWN: OnceLock<Mutex<HashMap<PathBuf, (Identity, Features)>>> = OnceLock::new();
    let start_error = |source| CriuError::Start { program: path.to_owned(), source };
    // A bare name is looked up by the system at each start: its file is not known here.
    let identity = std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()));
    let known = KNOWN.get_or_init(Mutex::default);
    if let Some(identity) = identity {
        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, features)) = known.get(path).filter(|(seen, _)| *seen == identity) {
            return Ok(features.clone());
        }
    }
    let output = Command::new(path).arg("--version").output().map_err(start_error)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let features = parse(&text).ok_or_else(|| CriuError::Protocol(format!("{} --version printed {text:?}", path.display())))?;
    if let Some(identity) = identity {
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), (identity, features.clone()));
    }
    Ok(features)
}

fn parse(text: &str) -> Option<Features> {
    let version = parse_version(text)?;
    let patches = text.lines().find_map(|line| line.strip_prefix("Patches:")).unwrap_or_default();
    Some(Features { version, patches: patches.split_whitespace().map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_read_from_the_version_text() {
        let plain = parse("Version: 4.2.1\nGitID: x\n").unwrap();
        assert!(plain.patches.is_empty() && !plain.complete() && !plain.premem());
        let text = "Version: 4.2.1\nPatches: mosix-kerndat mosix-skeleton mosix-trust mosix-smaps mosix-premem\n";
        assert!(parse(text).unwrap().complete());
        assert!(parse("criu").is_none());
    }

    #[test]
    fn a_changed_program_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("criu");
        let install = |text: &str| {
            let fresh = dir.path().join("new");
            std::fs::write(&fresh, format!("#!/bin/sh\nprintf '{text}'\n")).unwrap();
            std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
        };
        install("Version: 4.2.1\\n");
        assert!(!of(&path).unwrap().skeleton());
        install("Version: 4.2.1\\nPatches: mosix-skeleton\\n");
        assert!(of(&path).unwrap().skeleton());
    }
}
