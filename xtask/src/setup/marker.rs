//! The marker of a finished set-up: a hash over all that it depends on, in `.tools/setup.done` (`setup-run.done` without what only tests need).
//!
//! It holds the recipes of all steps, the kernel's release (CRIU is checked against a kernel), the state of the package
//! database, and size and time of each installed tool. Comparing it takes a millisecond; any difference means that
//! the steps look again, which costs less than a second and is never wrong.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::Scope;
use crate::workspace::Workspace;

const PACKAGE_DATABASE: &str = "/var/lib/dpkg/status";
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Whether set-up finished with these recipes and nothing changed since.
pub(super) fn is_current(workspace: &Workspace, scope: Scope, recipes: &str) -> bool {
    fs::read_to_string(workspace.tools().join(file(scope))).is_ok_and(|found| found.trim() == fingerprint(workspace, recipes))
}

/// Records that set-up finished.
pub(super) fn write(workspace: &Workspace, scope: Scope, recipes: &str) -> Result<()> {
    let path = workspace.tools().join(file(scope));
    fs::write(&path, fingerprint(workspace, recipes) + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn file(scope: Scope) -> &'static str {
    match scope {
        Scope::Run => "setup-run.done",
        Scope::Everything => "setup.done",
    }
}

fn fingerprint(workspace: &Workspace, recipes: &str) -> String {
    let mut text = recipes.to_owned();
    text += &fs::read_to_string(KERNEL_RELEASE).unwrap_or_default();
    text += &fs::read_to_string(workspace.root().join("rust-toolchain.toml")).unwrap_or_default();
    describe(&mut text, Path::new(PACKAGE_DATABASE));
    for tool in ["cargo-nextest", "bpf-linker", "criu", "criu-plain"] {
        describe(&mut text, &workspace.tools_bin().join(tool));
    }
    hex(&Sha256::digest(text.as_bytes()))
}

fn describe(text: &mut String, path: &Path) {
    // Writing to a String cannot fail.
    let _ = match fs::metadata(path) {
        Ok(meta) => writeln!(text, "{} {} {}.{}", path.display(), meta.len(), meta.mtime(), meta.mtime_nsec()),
        Err(_) => writeln!(text, "{} absent", path.display()),
    };
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_makes_the_marker_stale() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(dir.path());
        fs::create_dir_all(workspace.tools_bin()).unwrap();
        assert!(!is_current(&workspace, Scope::Run, "a"), "nothing was set up yet");
        write(&workspace, Scope::Run, "a").unwrap();
        assert!(is_current(&workspace, Scope::Run, "a"));
        assert!(!is_current(&workspace, Scope::Run, "b"), "another recipe");
        fs::write(workspace.tools_bin().join("criu"), "new").unwrap();
        assert!(!is_current(&workspace, Scope::Run, "a"), "a tool changed");
    }

    #[test]
    fn hex_is_the_usual_form() {
        assert_eq!(hex(&[0, 0x0f, 0xff]), "000fff");
    }
}
