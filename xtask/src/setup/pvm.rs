//! PVM 3.4.6, the static rival in the benchmark, with its library.
//!
//! Debian 12 is the last release that has it. On a newer one the same packages are taken from Debian 12's suite; they need
//! nothing that is not there.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::packages::{self, apt_get};
use super::private_apt::{Kind, PrivateApt};
use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

/// The system's packages.
const PACKAGES: &[&str] = &["libpvm3", "pvm"];

/// The suite that has them for sure, and what they need that newer suites lack, too.
const SUITE: &str = "bookworm";
const WITH_DEPENDENCIES: [&str; 3] = ["libpvm3", "pvm", "rsh-client"];

/// The step.
pub(super) struct Pvm;

impl Step for Pvm {
    fn name(&self) -> &'static str {
        "PVM"
    }

    fn log_name(&self) -> &'static str {
        "pvm"
    }

    fn plan(&self) -> String {
        "installing it with apt-get".into()
    }

    fn advice(&self) -> String {
        format!("run as root on Debian, with a mirror that still has {SUITE}; by hand: the packages pvm and libpvm3 of {SUITE}")
    }

    fn recipe(&self) -> String {
        format!("{PACKAGES:?} {SUITE} {WITH_DEPENDENCIES:?}")
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        let missing = packages::missing(workspace, PACKAGES);
        Ok(if missing.is_empty() {
            State::Ready(PACKAGES.join(" "))
        } else {
            State::Missing(format!("not installed: {}", missing.join(" ")))
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        packages::require_apt(workspace)?;
        log.run(apt_get(workspace).arg("update"))?;
        if offered(workspace) {
            return packages::install(workspace, log, PACKAGES);
        }
        log.note(&format!("this release does not have it: taking the packages of {SUITE}"))?;
        install_from_suite(workspace, log)
    }
}

/// Whether the system's own apt has it.
fn offered(workspace: &Workspace) -> bool {
    let listed = output_of(workspace.command("apt-cache").args(["madison", "pvm"]));
    listed.is_ok_and(|listed| !listed.trim().is_empty())
}

fn install_from_suite(workspace: &Workspace, log: &mut StepLog) -> Result<()> {
    let dir = workspace.tools().join("download/pvm");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let apt = PrivateApt::create(workspace, log, Kind::Binary, SUITE)?;
    log.run(apt.command("apt-get").arg("download").args(WITH_DEPENDENCIES).current_dir(&dir))?;
    apt.remove()?;
    let files: Vec<PathBuf> = fs::read_dir(&dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("cannot list {}", dir.display()))?;
    if files.is_empty() {
        bail!("apt-get downloaded no package");
    }
    log.run(apt_get(workspace).args(["install", "--yes", "--no-install-recommends"]).args(files))
}
