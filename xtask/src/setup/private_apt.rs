//! An apt of our own: it knows only the suites that it is told, and writes only below the tools folder.
//!
//! The system's package lists and sources stay as they are, and whatever mirror and proxy the system uses is used here
//! too. What it fetches is verified by Debian's signatures as usual.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::packages::apt_get;
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

/// Debian's archive keys, under their new and their old name.
const KEYRINGS: [&str; 2] = ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// What it is to know of its suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Source packages.
    Source,
    /// Built packages for this machine.
    Binary,
}

/// See the module. Its folder stays until [`PrivateApt::remove`].
pub(super) struct PrivateApt<'a> {
    workspace: &'a Workspace,
    dir: PathBuf,
}

impl<'a> PrivateApt<'a> {
    /// Makes it and loads the package lists of `suites` (names with spaces between); those that the mirror does not have
    /// are passed over.
    pub(super) fn create(workspace: &'a Workspace, log: &mut StepLog, kind: Kind, suites: &str) -> Result<Self> {
        let apt = Self { workspace, dir: workspace.tools().join("apt") };
        // Lists of another kind may be left from a failure.
        let _ = fs::remove_dir_all(&apt.dir);
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = apt.dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        }
        let sources = sources_text(kind, suites, &mirror(workspace, log)?);
        fs::write(apt.sources(), sources).with_context(|| format!("cannot write {}", apt.sources().display()))?;
        // It fails as a whole if one suite is not there; what it got counts.
        if let Err(error) = log.run(apt.command("apt-get").arg("update")) {
            log.note(&format!("going on with what was loaded: {error:#}"))?;
        }
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("private.sources")
    }

    /// `apt-get` or `apt-cache` with its options.
    pub(super) fn command(&self, program: &str) -> Command {
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

    /// Frees the lists, up to 100 MB.
    pub(super) fn remove(&self) -> Result<()> {
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

fn sources_text(kind: Kind, suites: &str, mirror: &str) -> String {
    let types = match kind {
        Kind::Source => "deb-src",
        Kind::Binary => "deb",
    };
    let mut text = format!("Types: {types}\nURIs: {mirror}\nSuites: {suites}\nComponents: main\n");
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
    fn only_the_wanted_kind_is_known() {
        let text = sources_text(Kind::Binary, "one two", "http://mirror.example/debian");
        assert!(text.starts_with("Types: deb\nURIs: http://mirror.example/debian\nSuites: one two\n"), "{text}");
        assert!(sources_text(Kind::Source, "one", "m").starts_with("Types: deb-src\n"));
    }
}
