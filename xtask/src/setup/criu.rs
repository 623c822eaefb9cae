//! CRIU, which freezes and restores processes: the system's own if it works here, else a build from source.
//!
//! Old releases fail on new kernels (Debian 12's 3.17 does), so "works" means: new enough, and `criu check` passes on the
//! running kernel. The source is the original tarball of a newer Debian suite (see [`super::criu_source`]), pinned by hash.
//! Either way `.tools/bin/criu` is a link to the result.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::criu_source::{self, Source};
use super::packages;
use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::{Workspace, find_program};

/// Oldest release that this project was tried with.
const OLDEST: [u32; 3] = [4, 1, 1];

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
    "pkgconf",
    "protobuf-c-compiler",
    "protobuf-compiler",
    "tar",
    "uuid-dev",
    "xz-utils",
];

/// TLS between nodes is the daemon's duty, so CRIU is built without its own: one library less for each start of it.
const MAKE_ARGS: &[&str] = &["criu", "NO_GNUTLS=1"];

/// The step.
pub(super) struct Criu;

impl Step for Criu {
    fn name(&self) -> &'static str {
        "CRIU"
    }

    fn log_name(&self) -> &'static str {
        "criu"
    }

    fn plan(&self) -> String {
        "taking the system's, or building it from source (about a minute)".into()
    }

    fn advice(&self) -> String {
        format!(
            "run as root; if no mirror has the source, get criu_{}.orig.tar.xz elsewhere and name it in {}; or install \
             CRIU >= {} so that `criu check` passes",
            criu_source::PINNED[0].0,
            criu_source::TARBALL_VARIABLE,
            dotted(OLDEST),
        )
    }

    fn recipe(&self) -> String {
        format!("{:?} {MAKE_ARGS:?} {BUILD_PACKAGES:?} {OLDEST:?}", criu_source::PINNED)
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        let link = workspace.tools_bin().join("criu");
        if fs::symlink_metadata(&link).is_err() {
            return Ok(State::Missing("not set up yet".into()));
        }
        Ok(match works(workspace, &link) {
            Ok(version) => State::Ready(format!("{version} passes `criu check`")),
            Err(why) => State::Missing(format!("{why:#}")),
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        let program = match system_criu(workspace, log)? {
            Some(program) => program,
            None => build(workspace, log)?,
        };
        link(&workspace.tools_bin().join("criu"), &program)
    }
}

/// The version of the CRIU at `program`, if it can be used on the running kernel.
fn works(workspace: &Workspace, program: &Path) -> Result<String> {
    let text = output_of(workspace.command(program).arg("--version"))?;
    let version = version_in(&text).with_context(|| format!("{} tells no version", program.display()))?;
    if version < OLDEST {
        bail!("{} is {}, older than {}", program.display(), dotted(version), dotted(OLDEST));
    }
    output_of(workspace.command(program).arg("check"))?;
    Ok(dotted(version))
}

/// The system's CRIU if it works; a new enough one that the package manager offers is installed first.
fn system_criu(workspace: &Workspace, log: &mut StepLog) -> Result<Option<PathBuf>> {
    if find_program("criu", &workspace.tools()).is_none() && offered(workspace).is_some_and(|version| version >= OLDEST) {
        // A failure is no reason to stop: it can still be built.
        if let Err(error) = packages::install(workspace, log, &["criu"]) {
            log.note(&format!("the system's criu was not installed: {error:#}"))?;
        }
    }
    let Some(program) = find_program("criu", &workspace.tools()) else {
        log.note("the system has no criu, or offers one that is too old: building it")?;
        return Ok(None);
    };
    match works(workspace, &program) {
        Ok(_) => Ok(Some(program)),
        Err(why) => {
            log.note(&format!("the system's criu does not do: {why:#}"))?;
            Ok(None)
        }
    }
}

/// The version that apt would install.
fn offered(workspace: &Workspace) -> Option<[u32; 3]> {
    let policy = output_of(workspace.command("apt-cache").env("LC_ALL", "C").args(["policy", "criu"])).ok()?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    parse_version(candidate.trim())
}

fn build(workspace: &Workspace, log: &mut StepLog) -> Result<PathBuf> {
    packages::install(workspace, log, BUILD_PACKAGES)?;
    let Source { version, tarball } = criu_source::fetch(workspace, log)?;

    let sources = workspace.tools().join("src");
    let _ = fs::remove_dir_all(&sources);
    fs::create_dir_all(&sources).with_context(|| format!("cannot make the folder {}", sources.display()))?;
    log.run(workspace.command("tar").arg("--extract").arg("--file").arg(&tarball).arg("--directory").arg(&sources))?;

    let tree = sources.join(format!("criu-{version}"));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    // Not the MAKEFLAGS of a `make` around cargo.
    let mut make = workspace.command("make");
    make.env_remove("MAKEFLAGS").arg("-C").arg(&tree).arg(format!("-j{jobs}")).args(MAKE_ARGS);
    log.run(&mut make)?;

    let program = workspace.tools().join(format!("criu-{version}/sbin/criu"));
    install_program(&tree.join("criu/criu"), &program)?;
    fs::remove_dir_all(&sources).with_context(|| format!("cannot remove {}", sources.display()))?;
    Ok(program)
}

/// Copies beside and renames, so that a CRIU in use is replaced whole.
fn install_program(from: &Path, to: &Path) -> Result<()> {
    let dir = to.parent().context("the program's path has no folder")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh).with_context(|| format!("cannot copy {} to {}", from.display(), fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot rename {} to {}", fresh.display(), to.display()))
}

/// Makes `link` point to `program`; relative if both are in the tools folder, so that the project can be moved.
fn link(link: &Path, program: &Path) -> Result<()> {
    let tools = link.parent().and_then(Path::parent);
    let target = match tools.and_then(|tools| program.strip_prefix(tools).ok()) {
        Some(inside) => Path::new("..").join(inside),
        None => program.to_path_buf(),
    };
    let fresh = link.with_extension("new");
    let _ = fs::remove_file(&fresh);
    symlink(&target, &fresh).with_context(|| format!("cannot link {}", fresh.display()))?;
    fs::rename(&fresh, link).with_context(|| format!("cannot rename {} to {}", fresh.display(), link.display()))
}

fn version_in(text: &str) -> Option<[u32; 3]> {
    parse_version(text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim())
}

/// `4.2.1-1` is 4.2.1; parts that are absent are 0.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    let upstream = text.split(['-', '+', '~', ' ']).next()?;
    let mut version = [0; 3];
    for (part, number) in version.iter_mut().zip(upstream.split('.')) {
        *part = number.parse().ok()?;
    }
    Some(version)
}

fn dotted(version: [u32; 3]) -> String {
    version.map(|part| part.to_string()).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_releases() {
        assert_eq!(version_in("Version: 4.2.1\n"), Some([4, 2, 1]));
        assert_eq!(parse_version("3.17.1-2+deb12u2"), Some([3, 17, 1]));
        assert_eq!(parse_version("4.2-1"), Some([4, 2, 0]));
        assert_eq!(parse_version("(none)"), None);
        assert!(parse_version("3.17.1-2").unwrap() < OLDEST);
        assert!(parse_version("4.2").unwrap() >= OLDEST);
    }

    #[test]
    fn the_link_survives_a_move_of_the_project() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("a/.tools/bin");
        fs::create_dir_all(&bin).unwrap();
        let program = dir.path().join("a/.tools/criu-9/sbin/criu");
        let made = dir.path().join("made");
        fs::write(&made, "program").unwrap();
        install_program(&made, &program).unwrap();
        link(&bin.join("criu"), &program).unwrap();
        link(&bin.join("criu"), &program).unwrap();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("b/.tools/bin/criu")).unwrap(), "program");
    }

    #[test]
    fn a_program_that_is_no_criu_does_not_work() {
        let workspace = Workspace::at(Path::new("/"));
        assert!(works(&workspace, Path::new("/bin/true")).is_err());
        assert!(works(&workspace, Path::new("/nonexistent/criu")).is_err());
    }
}
