//! Debian packages: what the project needs from the system.

use std::process::Command;

use anyhow::{Result, bail};

use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::{Workspace, find_program};

/// Compiler and linker for native parts, network and process tools for the lab.
const PACKAGES: &[&str] = &["ca-certificates", "gcc", "iproute2", "libc6-dev", "make", "procps", "util-linux"];

/// The step for [`PACKAGES`].
pub(super) struct Packages;

impl Step for Packages {
    fn name(&self) -> &'static str {
        "Debian packages"
    }

    fn log_name(&self) -> &'static str {
        "packages"
    }

    fn plan(&self) -> String {
        "installing them with apt-get (up to a minute)".into()
    }

    fn advice(&self) -> String {
        format!("run as root on Debian 12 or newer, with a working mirror; by hand: apt-get install {}", PACKAGES.join(" "))
    }

    fn recipe(&self) -> String {
        PACKAGES.join(" ")
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        let missing = missing(workspace, PACKAGES);
        Ok(if missing.is_empty() {
            State::Ready(format!("{} packages", PACKAGES.len()))
        } else {
            State::Missing(format!("not installed: {}", missing.join(" ")))
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        install(workspace, log, PACKAGES)
    }
}

/// Those of `wanted` that are not installed; all of them where there is no dpkg.
pub(super) fn missing<'a>(workspace: &Workspace, wanted: &[&'a str]) -> Vec<&'a str> {
    // dpkg-query fails if any name is unknown to it, but prints the known ones all the same.
    let mut query = workspace.command("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"]).args(wanted);
    let listed = match query.output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(_) => String::new(),
    };
    not_listed(&listed, wanted)
}

fn not_listed<'a>(listed: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let installed: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted.iter().copied().filter(|name| !installed.contains(name)).collect()
}

/// Installs those of `wanted` that are missing.
pub(super) fn install(workspace: &Workspace, log: &mut StepLog, wanted: &[&str]) -> Result<()> {
    let missing = missing(workspace, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    require_apt(workspace)?;
    log.run(apt_get(workspace).arg("update"))?;
    log.run(apt_get(workspace).args(["install", "--yes", "--no-install-recommends"]).args(&missing))
}

/// Whether packages can be installed at all, with the reason in words if not.
pub(super) fn require_apt(workspace: &Workspace) -> Result<()> {
    if find_program("apt-get", &workspace.tools()).is_none() {
        bail!("this system has no apt-get, and set-up knows no other package manager");
    }
    let uid = output_of(workspace.command("id").arg("-u"))?;
    if uid.trim() != "0" {
        bail!("installing packages takes root, and this runs as uid {}", uid.trim());
    }
    Ok(())
}

/// apt-get that asks nothing.
pub(super) fn apt_get(workspace: &Workspace) -> Command {
    let mut command = workspace.command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let listed = "gcc installed\nmake config-files\n";
        assert_eq!(not_listed(listed, &["gcc", "make", "pvm"]), ["make", "pvm"]);
    }
}
