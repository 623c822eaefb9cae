//! cargo-nextest, which runs the tests.

use anyhow::Result;

use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

/// Installed where none is found; any newer one will do (`.config/nextest.toml` names the oldest).
const VERSION: &str = "0.9.143";

/// The step.
pub(super) struct Nextest;

impl Step for Nextest {
    fn name(&self) -> &'static str {
        "cargo-nextest"
    }

    fn log_name(&self) -> &'static str {
        "nextest"
    }

    fn plan(&self) -> String {
        format!("compiling {VERSION} (some minutes)")
    }

    fn advice(&self) -> String {
        format!("look into the log; by hand: cargo install --locked cargo-nextest@{VERSION}")
    }

    fn recipe(&self) -> String {
        VERSION.into()
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        Ok(match output_of(workspace.command("cargo-nextest").args(["nextest", "--version"])) {
            Ok(text) => State::Ready(text.lines().next().unwrap_or("found").trim().to_owned()),
            Err(_) => State::Missing("not found".into()),
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        cargo_install(workspace, log, "cargo-nextest", VERSION)
    }
}

/// Compiles the published program `name` into the tools folder.
pub(super) fn cargo_install(workspace: &Workspace, log: &mut StepLog, name: &str, version: &str) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["install", "--locked", "--version", version, "--root"]).arg(workspace.tools()).arg(name);
    log.run(&mut cargo)
}
