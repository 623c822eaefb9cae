//! CRIU's source: the original tarball from a newer Debian suite than the system's, pinned by its SHA-256.
//!
//! apt fetches it, with lists and sources of its own inside the tools folder: the system's package lists stay as they
//! are, and whatever mirror and proxy the system uses is used here too. Whether apt says that it succeeded does not
//! matter (it may not find the packaging that goes with the tarball): the hash decides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::marker::hex;
use super::packages::apt_get;
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

/// Debian's archive keys, under their new and their old name.
const KEYRINGS: [&str; 2] = ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

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
    let apt = PrivateApt::create(workspace, log)?;
    let available = apt.versions_of_criu()?;
    for (version, _) in PINNED {
        let Some(package) = available.iter().find(|found| upstream(found) == version) else { continue };
        match apt.download(package, &tarball_path(&download, version), log) {
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

/// An apt that knows only the source packages of [`SUITES`] and writes only below the tools folder.
struct PrivateApt<'a> {
    workspace: &'a Workspace,
    dir: PathBuf,
}

impl<'a> PrivateApt<'a> {
    /// Makes it and loads the package lists.
    fn create(workspace: &'a Workspace, log: &mut StepLog) -> Result<Self> {
        let apt = Self { workspace, dir: workspace.tools().join("apt") };
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = apt.dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        }
        let sources = sources_text(&mirror(workspace, log)?);
        fs::write(apt.sources(), sources).with_context(|| format!("cannot write {}", apt.sources().display()))?;
        // It fails as a whole if one suite is not there; what it got counts.
        if let Err(error) = log.run(apt.command("apt-get").arg("update")) {
            log.note(&format!("going on with what was loaded: {error:#}"))?;
        }
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("criu.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = if program == "apt-get" { apt_get(self.workspace) } else { self.workspace.command(program) };
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::sourcelist={}", self.sources().display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // The user _apt may not be able to write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn versions_of_criu(&self) -> Result<Vec<String>> {
        let listed = output_of(self.command("apt-cache").args(["showsrc", "criu"])).unwrap_or_default();
        Ok(listed.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::to_owned).collect())
    }

    fn download(&self, package: &str, tarball: &Path, log: &mut StepLog) -> Result<Source> {
        let dir = tarball.parent().context("the tarball's path has no folder")?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let mut source = self.command("apt-get");
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

    /// Frees the 100 MB of lists.
    fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

/// The base address of the Debian mirror that this system uses.
fn mirror(workspace: &Workspace, log: &mut StepLog) -> Result<String> {
    let ask = || {
        let mut command = workspace.command("apt-get");
        command.args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
        output_of(&mut command).ok().and_then(|listed| debian_mirror(&listed))
    };
    if let Some(found) = ask() {
        return Ok(found);
    }
    // A fresh container has no lists: apt then knows nothing.
    log.run(apt_get(workspace).arg("update"))?;
    ask().context("the system's apt sources name no Debian mirror")
}

fn debian_mirror(listed: &str) -> Option<String> {
    listed
        .lines()
        .filter_map(|line| line.split_once('|'))
        .find(|(label, uri)| *label == "Debian" && !uri.is_empty())
        .map(|(_, uri)| uri.trim_end_matches('/').to_owned())
}

fn sources_text(mirror: &str) -> String {
    let mut text = format!("Types: deb-src\nURIs: {mirror}\nSuites: {SUITES}\nComponents: main\n");
    // Without one, apt's own trusted keys are used.
    if let Some(keyring) = KEYRINGS.iter().find(|path| Path::new(path).exists()) {
        text += &format!("Signed-By: {keyring}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own_part() {
        let listed = "Debian-Security|http://mirror.example/security/\nDebian|http://mirror.example/debian/\n";
        assert_eq!(debian_mirror(listed).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(debian_mirror("Ubuntu|http://mirror.example/ubuntu/\n"), None);
        assert_eq!(debian_mirror(""), None);
    }

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
