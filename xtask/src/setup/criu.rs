//! CRIU, which freezes and restores processes: one with our patches if it can be built, and a plain one.
//!
//! `.tools/bin/criu` is the patched one (see [`super::criu_build`] and `migrate/criu/patches`), `.tools/bin/criu-plain` the system's own if
//! that works here, else a build of the same source without the patches. Old releases fail on new kernels (Debian 12's 3.17 does), so
//! "works" means: new enough, and `criu check` passes on the running kernel. If nothing can be built but the system's CRIU works, both names
//! lead to it and the reason is kept in `.tools/criu-unpatched`, so that it is not tried again until something changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::criu_build;
use super::criu_source;
use super::marker::hex;
use super::packages;
use super::{State, Step};
use crate::steplog::{StepLog, output_of};
use crate::workspace::{Workspace, find_program};

/// Oldest release that this project was tried with.
const OLDEST: [u32; 3] = [4, 1, 1];

/// Why there is no patched build, and the recipe that was tried.
const UNPATCHED: &str = "criu-unpatched";

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
        "building it from source, with our patches and if needed without (a minute or two)".into()
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
        format!("{} {OLDEST:?}", criu_build::recipe())
    }

    fn check(&self, workspace: &Workspace) -> Result<State> {
        let (patched, plain) = (workspace.tools_bin().join("criu"), workspace.tools_bin().join("criu-plain"));
        if fs::symlink_metadata(&patched).is_err() || fs::symlink_metadata(&plain).is_err() {
            return Ok(State::Missing("not set up yet".into()));
        }
        let (version, plain) = match (works(workspace, &patched), works(workspace, &plain)) {
            (Ok(version), Ok(plain)) => (version, plain),
            (Err(why), _) | (_, Err(why)) => return Ok(State::Missing(format!("{why:#}"))),
        };
        if criu_build::is_current(workspace, &patched) {
            return Ok(State::Ready(format!(
                "{version} with {} patches, and {plain} without; both pass `criu check`",
                criu_build::PATCHES.len()
            )));
        }
        Ok(match unpatched_reason(workspace, &self.recipe()) {
            Some(reason) => State::Ready(format!("{version} passes `criu check`; without our patches moves are slower ({reason})")),
            None => State::Missing("the build with our patches is absent or old".into()),
        })
    }

    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()> {
        let system = system_criu(workspace, log)?;
        let _ = fs::remove_file(workspace.tools().join(UNPATCHED));
        let (built, plain) = match criu_build::build(workspace, log, system.is_none()) {
            Ok(built) => (built.patched, built.plain.or(system)),
            Err(error) => (Err(error), system),
        };
        let (patched, plain) = match (built, plain) {
            (Ok(patched), Some(plain)) => (patched, plain),
            (Err(error), None) => return Err(error),
            (Ok(_), None) => bail!("there is no plain CRIU"),
            (Err(error), Some(plain)) => {
                log.note(&format!("no build with our patches: {error:#}"))?;
                let text = format!("{}\n{error:#}\n", hash(&self.recipe()));
                fs::write(workspace.tools().join(UNPATCHED), text).context("cannot write the reason down")?;
                (plain.clone(), plain)
            }
        };
        link(&workspace.tools_bin().join("criu"), &patched)?;
        link(&workspace.tools_bin().join("criu-plain"), &plain)
    }
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// The first line of the reason why this recipe could not be built, if that was tried.
fn unpatched_reason(workspace: &Workspace, recipe: &str) -> Option<String> {
    let text = fs::read_to_string(workspace.tools().join(UNPATCHED)).ok()?;
    let (tried, reason) = text.split_once('\n')?;
    (tried == hash(recipe)).then(|| reason.lines().next().unwrap_or_default().to_owned())
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
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::copy(&made, &program).unwrap();
        link(&bin.join("criu"), &program).unwrap();
        link(&bin.join("criu"), &program).unwrap();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("b/.tools/bin/criu")).unwrap(), "program");
    }

    #[test]
    fn a_failed_build_is_not_tried_again_with_the_same_recipe() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(dir.path());
        fs::create_dir_all(workspace.tools()).unwrap();
        assert_eq!(unpatched_reason(&workspace, "recipe"), None);
        fs::write(workspace.tools().join(UNPATCHED), format!("{}\nno compiler\nmore\n", hash("recipe"))).unwrap();
        assert_eq!(unpatched_reason(&workspace, "recipe").as_deref(), Some("no compiler"));
        assert_eq!(unpatched_reason(&workspace, "another recipe"), None);
    }

    #[test]
    fn a_program_that_is_no_criu_does_not_work() {
        let workspace = Workspace::at(Path::new("/"));
        assert!(works(&workspace, Path::new("/bin/true")).is_err());
        assert!(works(&workspace, Path::new("/nonexistent/criu")).is_err());
    }
}
