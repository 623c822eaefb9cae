//! bpf-linker, which links the BPF programs.

use anyhow::Result;

use super::nextest::cargo_install;
use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

/// The version that belongs to the pinned aya and Rust: its LLVM must be able to read rustc's bitcode.
const VERSION: &str = "0.10.3";

/// The step.
pub(super) struct BpfLinker;

impl Step for BpfLinker {
    fn name(&self) -> &'static str {
        "bpf-linker"
    }

    fn log_name(&self) -> &'static str {
        "bpf-linker"
    }

    fn plan(&self) -> String {
        format!("compiling {VERSION} (about two minutes)")
    }

    fn advice(&self) -> String {
        format!("look into the log; by hand: cargo install --locked bpf-linker@{VERSION}")
    }

    fn recipe(&self) -> String {
        VERSION.into()
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        Ok(match output_of(workspace.command("bpf-linker").arg("--version")) {
            Ok(text) if text.split_whitespace().any(|word| word == VERSION) => State::Ready(text.trim().to_owned()),
            Ok(text) => State::Missing(format!("found {}, need {VERSION}", text.trim())),
            Err(_) => State::Missing("not found".into()),
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        cargo_install(workspace, log, "bpf-linker", VERSION)
    }
}
