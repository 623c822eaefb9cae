//! CRIU's source: the original tarball from a newer Debian suite than the system's, pinned by its SHA-256.
//!
//! A private apt fetches it (see [`super::private_apt`]). Whether apt says that it succeeded does not matter (it may not
//! find the packaging that goes with the tarball): the hash decides.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::marker::hex;
use super::private_apt::{Kind, PrivateApt};
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

/// Releases that were tried, best first, with the SHA-256 of `criu_VERSION.orig.tar.xz`.
pub(super) const PINNED: [(&str, &str); 2] = [
    ("4.2.1", "29ec0ee09e296479fe7048c80980e8ef1d0684d0b0204c2b101dfea19f6725b9"),
    ("4.1.1", "f80a66cb3726bb2116266d4759ce3bcbfab7abdb6b6d430bf20dd41911717afe"),
];

/// Environment variable with the path of a tarball to take instead of asking apt.
pub(super) const TARBALL_VARIABLE: &str = "MOSIX_CRIU_TARBALL";

/// Where the releases may be found; those that a mirror does not have are passed over.
const SUITES: &str = "forky sid trixie";

/// A tarball whose hash is one of the pinned ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Release.
    pub(super) version: &'static str,
    /// The file.
    pub(super) tarball: PathBuf,
}

/// The best release that can be had; a tarball fetched earlier is used again.
pub(super) fn fetch(workspace: &Workspace, log: &mut StepLog) -> Result<Source> {
    if let Some(path) = std::env::var_os(TARBALL_VARIABLE) {
        let path = PathBuf::from(path);
        return known(&path)?.with_context(|| format!("{} (from {TARBALL_VARIABLE}) is none of the pinned tarballs", path.display()));
    }
    let download = workspace.tools().join("download");
    for (version, _) in PINNED {
        if let Ok(Some(source)) = known(&tarball_path(&download, version)) {
            return Ok(source);
        }
    }
    let apt = PrivateApt::create(workspace, log, Kind::Source, SUITES)?;
    let available = versions_of_criu(&apt);
    for (version, _) in PINNED {
        let Some(package) = available.iter().find(|found| upstream(found) == version) else { continue };
        match download_source(&apt, package, &tarball_path(&download, version), log) {
            Ok(source) => {
                apt.remove()?;
                return Ok(source);
            }
            Err(error) => log.note(&format!("criu {package} could not be had: {error:#}"))?,
        }
    }
    let wanted = PINNED.map(|(version, _)| version).join(" or ");
    bail!("no suite of the mirror has the source of CRIU {wanted} (it has: {})", available.join(" "))
}

/// Which pinned release the file at `path` is.
fn known(path: &Path) -> Result<Option<Source>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = hex(&Sha256::digest(&bytes));
    Ok(PINNED.iter().find(|(_, hash)| *hash == found).map(|(version, _)| Source { version, tarball: path.to_path_buf() }))
}

fn tarball_path(download: &Path, version: &str) -> PathBuf {
    download.join(format!("criu_{version}.orig.tar.xz"))
}

/// `4.2.1-1` without Debian's revision.
fn upstream(version: &str) -> &str {
    version.rsplit_once('-').map_or(version, |(upstream, _)| upstream)
}

fn versions_of_criu(apt: &PrivateApt) -> Vec<String> {
    let listed = output_of(apt.command("apt-cache").args(["showsrc", "criu"])).unwrap_or_default();
    listed.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::to_owned).collect()
}

fn download_source(apt: &PrivateApt, package: &str, tarball: &Path, log: &mut StepLog) -> Result<Source> {
    let dir = tarball.parent().context("the tarball's path has no folder")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let mut source = apt.command("apt-get");
    source.args(["source", "--download-only", "--tar-only"]).arg(format!("criu={package}")).current_dir(dir);
    let said = log.run(&mut source);
    match known(tarball) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => {
            let _ = fs::remove_file(tarball);
            bail!("{} has another SHA-256 than the pinned one and was removed", tarball.display())
        }
        Err(absent) => Err(said.err().unwrap_or(absent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_hash_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = tarball_path(dir.path(), "4.2.1");
        fs::write(&path, "something else").unwrap();
        assert_eq!(known(&path).unwrap(), None);
        assert!(known(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn revisions_are_not_part_of_the_release() {
        assert_eq!(upstream("4.2.1-1"), "4.2.1");
        assert_eq!(upstream("4.2.1"), "4.2.1");
    }
}
