//! Where things are in this workspace, and how its commands are started.
//!
//! Tools that set-up installs live in `.tools/` (never in the system's folders); every command that xtask starts finds
//! them first in `PATH`, and the folder itself in `MOSIX_TOOLS`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Paths of the workspace that this xtask was started in.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace: the parent of xtask's own folder, as cargo tells it at run time or told it at build time.
    pub(crate) fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .filter(|root| root.join("Cargo.toml").is_file())
            .with_context(|| format!("no workspace around {}: start this as `cargo xtask` inside the project", manifest.display()))?;
        Ok(Self::at(root))
    }

    /// The workspace at `root`; nothing is checked.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// The top folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What set-up installs.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join(".tools")
    }

    /// Programs that set-up installs.
    pub(crate) fn tools_bin(&self) -> PathBuf {
        self.tools().join("bin")
    }

    /// One log file for each step of the set-up.
    pub(crate) fn setup_log_dir(&self) -> PathBuf {
        self.tools().join("log")
    }

    /// Cargo's output folder.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// A command that runs at the top of the workspace and finds the tools.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("PATH", self.search_path()).env("MOSIX_TOOLS", self.tools());
        // `cargo run` describes xtask in these: the commands that we start must not take that for themselves.
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME" {
                command.env_remove(&key);
            }
        }
        command
    }

    /// The cargo that started us, so that the pinned toolchain stays the same.
    pub(crate) fn cargo(&self) -> Command {
        self.command(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
    }

    fn search_path(&self) -> OsString {
        let mut path = self.tools_bin().into_os_string();
        if let Some(inherited) = std::env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        path
    }
}

/// The first executable `name` in the system's own folders and `PATH`, apart from those below `except`.
pub(crate) fn find_program(name: &str, except: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .filter(|dir| !dir.starts_with(except))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn commands_find_the_tools_first() {
        let workspace = Workspace::at(Path::new("/somewhere"));
        let command = workspace.command("true");
        let env: Vec<_> = command.get_envs().collect();
        let path = env.iter().find(|(key, _)| *key == OsStr::new("PATH")).and_then(|(_, value)| *value);
        assert!(path.is_some_and(|path| path.to_string_lossy().starts_with("/somewhere/.tools/bin")));
        assert!(env.contains(&(OsStr::new("MOSIX_TOOLS"), Some(OsStr::new("/somewhere/.tools")))));
    }

    #[test]
    fn programs_below_the_excluded_folder_are_not_found() {
        assert!(find_program("sh", Path::new("/nowhere")).is_some());
        assert_eq!(find_program("sh", Path::new("/")), None);
    }
}
