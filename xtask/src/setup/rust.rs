//! Components of the pinned Rust toolchain: `rust-src` for the BPF programs, `rustfmt` and `clippy` for developers.

use std::path::Path;

use anyhow::{Context, Result};

use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::Workspace;

const COMPONENTS: [(&str, &str); 3] =
    [("rust-src", "lib/rustlib/src/rust/library/Cargo.toml"), ("rustfmt", "bin/cargo-fmt"), ("clippy", "bin/cargo-clippy")];

/// The step for [`COMPONENTS`].
pub(super) struct RustComponents;

impl Step for RustComponents {
    fn name(&self) -> &'static str {
        "Rust components"
    }

    fn log_name(&self) -> &'static str {
        "rust"
    }

    fn plan(&self) -> String {
        "adding them with rustup".into()
    }

    fn advice(&self) -> String {
        "install Rust by rustup (a distribution's own Rust lacks rust-src), then run this again".into()
    }

    fn recipe(&self) -> String {
        COMPONENTS.map(|(name, _)| name).join(" ")
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        let sysroot = output_of(workspace.command("rustc").args(["--print", "sysroot"]))?;
        let missing = missing_in(Path::new(sysroot.trim()));
        Ok(if missing.is_empty() { State::Ready(self.recipe()) } else { State::Missing(format!("not installed: {}", missing.join(" "))) })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        let sysroot = output_of(workspace.command("rustc").args(["--print", "sysroot"]))?;
        let mut rustup = workspace.command("rustup");
        rustup.args(["component", "add", "--toolchain", &channel(workspace)?]);
        log.run(rustup.args(missing_in(Path::new(sysroot.trim()))))
    }
}

fn missing_in(sysroot: &Path) -> Vec<&'static str> {
    COMPONENTS.iter().filter(|(_, file)| !sysroot.join(file).exists()).map(|(name, _)| *name).collect()
}

fn channel(workspace: &Workspace) -> Result<String> {
    let path = workspace.root().join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    channel_in(&text).with_context(|| format!("{} names no `channel`", path.display()))
}

fn channel_in(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "channel")
        .map(|(_, value)| value.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_is_read_from_the_pin() {
        assert_eq!(channel_in("[toolchain]\nchannel = \"1.95.0\"\n"), Some("1.95.0".into()));
        assert_eq!(channel_in("[toolchain]\n"), None);
    }

    #[test]
    fn an_empty_sysroot_lacks_everything() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(missing_in(dir.path()), ["rust-src", "rustfmt", "clippy"]);
    }
}
