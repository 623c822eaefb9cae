//! Building CRIU from source, with our patches and, if asked for, without.
//!
//! One source tree serves both: the plain program is built first, then the patches are applied and only what they touch is compiled again.
//! The source is the original tarball of a newer Debian suite (see [`super::criu_source`]), pinned by hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::criu_source::{self, Source};
use super::marker::hex;
use super::packages;
use crate::steplog::StepLog;
use crate::workspace::Workspace;

/// The patches in order, with their text; `migrate/criu/patches/README.md` explains them.
pub(super) const PATCHES: &[(&str, &str)] = &[
    ("0001-features.patch", include_str!("../../../migrate/criu/patches/0001-features.patch")),
    ("0002-kerndat.patch", include_str!("../../../migrate/criu/patches/0002-kerndat.patch")),
    ("0003-no-breakpoints.patch", include_str!("../../../migrate/criu/patches/0003-no-breakpoints.patch")),
    ("0004-rlimits.patch", include_str!("../../../migrate/criu/patches/0004-rlimits.patch")),
    ("0005-skeleton.patch", include_str!("../../../migrate/criu/patches/0005-skeleton.patch")),
    ("0006-trust.patch", include_str!("../../../migrate/criu/patches/0006-trust.patch")),
    ("0007-smaps.patch", include_str!("../../../migrate/criu/patches/0007-smaps.patch")),
    ("0008-premem.patch", include_str!("../../../migrate/criu/patches/0008-premem.patch")),
];

/// What `make criu` needs; measured by watching which programs and libraries a build uses.
const BUILD_PACKAGES: &[&str] = &[
    "gcc",
    "libbsd-dev",
    "libc6-dev",
    "libcap-dev",
    "libnet1-dev",
    "libnftables-dev",
    "libnl-3-dev",
    "libprotobuf-c-dev",
    "libprotobuf-dev",
    "make",
    "patch",
    "pkgconf",
    "protobuf-c-compiler",
    "protobuf-compiler",
    "tar",
    "uuid-dev",
    "xz-utils",
];

/// TLS between nodes is the daemon's duty, so CRIU is built without its own: one library less for each start of it.
const MAKE_ARGS: &[&str] = &["criu", "NO_GNUTLS=1"];

/// Beside the patched program: hash of the recipe that made it.
const RECIPE_FILE: &str = "recipe";

/// What was built.
pub(super) struct Built {
    /// With our patches, or why not.
    pub(super) patched: Result<PathBuf>,
    /// Without, if that was asked for.
    pub(super) plain: Option<PathBuf>,
}

/// Everything that the result depends on.
pub(super) fn recipe() -> String {
    format!("{:?} {MAKE_ARGS:?} {BUILD_PACKAGES:?} {PATCHES:?}", criu_source::PINNED)
}

fn recipe_hash() -> String {
    hex(&Sha256::digest(recipe().as_bytes()))
}

/// Whether `link` leads to a program that was built by this recipe.
pub(super) fn is_current(workspace: &Workspace, link: &Path) -> bool {
    let made_by = || -> Option<String> {
        let program = fs::canonicalize(link).ok()?;
        let inside = program.starts_with(fs::canonicalize(workspace.tools()).ok()?);
        inside.then(|| fs::read_to_string(program.with_file_name(RECIPE_FILE)).ok())?
    };
    made_by().is_some_and(|found| found.trim() == recipe_hash())
}

/// Builds the patched program, and the plain one too if `with_plain`.
///
/// # Errors
/// What is missing or failed; programs of an earlier build stay.
pub(super) fn build(workspace: &Workspace, log: &mut StepLog, with_plain: bool) -> Result<Built> {
    packages::install(workspace, log, BUILD_PACKAGES)?;
    let source = criu_source::fetch(workspace, log)?;
    let tree = unpack(workspace, log, &source)?;
    let plain = if with_plain { Some(build_plain(workspace, log, &tree, source.version)?) } else { None };
    let patched = build_patched(workspace, log, &tree, source.version);
    let sources = sources(workspace);
    fs::remove_dir_all(&sources).with_context(|| format!("cannot remove {}", sources.display()))?;
    Ok(Built { patched, plain })
}

fn build_plain(workspace: &Workspace, log: &mut StepLog, tree: &Path, version: &str) -> Result<PathBuf> {
    make(workspace, log, tree, version)?;
    let program = programs(workspace, version).join("criu-plain");
    install_program(&tree.join("criu/criu"), &program)?;
    Ok(program)
}

fn build_patched(workspace: &Workspace, log: &mut StepLog, tree: &Path, version: &str) -> Result<PathBuf> {
    apply_patches(workspace, log, tree)?;
    make(workspace, log, tree, version)?;
    let program = programs(workspace, version).join("criu");
    install_program(&tree.join("criu/criu"), &program)?;
    fs::write(program.with_file_name(RECIPE_FILE), recipe_hash() + "\n").context("cannot write the recipe's hash")?;
    Ok(program)
}

fn programs(workspace: &Workspace, version: &str) -> PathBuf {
    workspace.tools().join(format!("criu-{version}/sbin"))
}

fn sources(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("src")
}

fn unpack(workspace: &Workspace, log: &mut StepLog, source: &Source) -> Result<PathBuf> {
    let sources = sources(workspace);
    let _ = fs::remove_dir_all(&sources);
    fs::create_dir_all(&sources).with_context(|| format!("cannot make the folder {}", sources.display()))?;
    log.run(workspace.command("tar").arg("--extract").arg("--file").arg(&source.tarball).arg("--directory").arg(&sources))?;
    Ok(sources.join(format!("criu-{}", source.version)))
}

fn apply_patches(workspace: &Workspace, log: &mut StepLog, tree: &Path) -> Result<()> {
    for (name, _) in PATCHES {
        let file = workspace.root().join("migrate/criu/patches").join(name);
        let mut patch: Command = workspace.command("patch");
        patch.args(["--strip=1", "--batch", "--forward", "--no-backup-if-mismatch"]);
        log.run(patch.arg("--directory").arg(tree).arg("--input").arg(&file)).with_context(|| format!("cannot apply {name}"))?;
    }
    Ok(())
}

fn make(workspace: &Workspace, log: &mut StepLog, tree: &Path, version: &str) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    // Not the MAKEFLAGS of a `make` around cargo.
    let mut make = workspace.command("make");
    make.env_remove("MAKEFLAGS").arg("-C").arg(tree).arg(format!("-j{jobs}")).args(MAKE_ARGS);
    // CRIU marks its cache of kernel features with the time of its build and drops one with another mark: the patched and the plain build
    // of a release share theirs, whose layout is the same.
    make.env("SOURCE_DATE_EPOCH", cache_mark(version).to_string());
    log.run(&mut make)
}

/// A number for each release, which CRIU takes for a time in seconds.
fn cache_mark(version: &str) -> u32 {
    let digits = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0)).fold(0, |sum, part| sum * 100 + part);
    1_000_000_000 + digits
}

/// Copies beside and renames, so that a CRIU in use is replaced whole.
fn install_program(from: &Path, to: &Path) -> Result<()> {
    let dir = to.parent().context("the program's path has no folder")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh).with_context(|| format!("cannot copy {} to {}", from.display(), fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot rename {} to {}", fresh.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patches_of_the_folder_are_applied() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrate/criu/patches");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut there: Vec<String> = names.filter(|name| name.ends_with(".patch")).collect();
        there.sort();
        let listed: Vec<&str> = PATCHES.iter().map(|(name, _)| *name).collect();
        assert_eq!(there, listed);
    }

    #[test]
    fn a_program_without_the_hash_of_this_recipe_is_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(dir.path());
        let program = workspace.tools().join("criu-9/sbin/criu");
        let made = dir.path().join("made");
        fs::write(&made, "program").unwrap();
        install_program(&made, &program).unwrap();
        assert!(!is_current(&workspace, &program));
        fs::write(program.with_file_name(RECIPE_FILE), "old").unwrap();
        assert!(!is_current(&workspace, &program));
        fs::write(program.with_file_name(RECIPE_FILE), recipe_hash()).unwrap();
        assert!(is_current(&workspace, &program));
        assert!(!is_current(&workspace, Path::new("/bin/true")));
    }

    #[test]
    fn releases_do_not_share_a_cache() {
        assert_ne!(cache_mark("4.2.1"), cache_mark("4.1.1"));
    }
}
