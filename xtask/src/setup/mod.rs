//! `cargo xtask setup`: everything that building, testing and running needs, once.
//!
//! A list of [`Step`]s. Each first looks whether its part is there, and installs it only if not, so set-up can be started
//! at any time, and again after a failure. Built tools go to `.tools/`, logs to `.tools/log/`.
//! The other commands start with [`ensure`], which trusts a marker file (see [`marker`]) as long as nothing that it
//! was made of has changed.

mod bpf_linker;
mod criu;
mod criu_build;
mod criu_source;
mod marker;
mod nextest;
mod packages;
mod private_apt;
mod pvm;
mod rust;

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::steplog::StepLog;
use crate::workspace::Workspace;

/// Whether a step's part is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It is; with a few words, such as its version.
    Ready(String),
    /// It is not; with the reason.
    Missing(String),
}

/// One thing that set-up provides.
trait Step {
    /// Short name for the reader.
    fn name(&self) -> &'static str;
    /// Name of its log file, without `.log`.
    fn log_name(&self) -> &'static str;
    /// What [`Step::install`] is going to do, and how long that takes.
    fn plan(&self) -> String;
    /// What a user can do if it fails.
    fn advice(&self) -> String;
    /// Versions, hashes and options: if this text changes, what an older set-up made is checked again.
    fn recipe(&self) -> String;
    /// Looks, changes nothing.
    fn check(&self, workspace: &Workspace) -> Result<State>;
    /// Provides it.
    fn install(&self, workspace: &Workspace, log: &mut StepLog) -> Result<()>;
}

/// How much of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To run the demo and the lab. The BPF object comes with the sources, so no linker for it is needed.
    Run,
    /// To test and develop, too.
    Everything,
}

fn steps(scope: Scope) -> Vec<Box<dyn Step>> {
    let mut steps: Vec<Box<dyn Step>> = vec![Box::new(packages::Packages), Box::new(pvm::Pvm), Box::new(rust::RustComponents)];
    if scope == Scope::Everything {
        steps.push(Box::new(nextest::Nextest));
        steps.push(Box::new(bpf_linker::BpfLinker));
    }
    steps.push(Box::new(criu::Criu));
    steps
}

/// Runs every step; returns at the first that fails.
pub(crate) fn run(workspace: &Workspace, scope: Scope) -> Result<()> {
    let start = Instant::now();
    fs::create_dir_all(workspace.tools_bin()).with_context(|| format!("cannot make the folder {}", workspace.tools_bin().display()))?;
    let _lock = lock(workspace)?;
    let steps = steps(scope);
    for step in &steps {
        provide(step.as_ref(), workspace)?;
    }
    marker::write(workspace, scope, &recipes(&steps))?;
    println!("setup: everything is there ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(())
}

/// Reports what is there and what is not, and changes nothing.
///
/// # Errors
/// If anything is missing.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut missing = 0;
    for step in steps(Scope::Everything) {
        match step.check(workspace)? {
            State::Ready(what) => say(step.as_ref(), &format!("there: {what}")),
            State::Missing(why) => {
                missing += 1;
                say(step.as_ref(), &format!("MISSING: {why}"));
            }
        }
    }
    if missing > 0 {
        bail!("{missing} of the steps are not done: run `cargo xtask setup` as root");
    }
    Ok(())
}

/// Runs the set-up unless the marker says that it is done.
pub(crate) fn ensure(workspace: &Workspace, scope: Scope) -> Result<()> {
    if marker::is_current(workspace, scope, &recipes(&steps(scope))) { Ok(()) } else { run(workspace, scope) }
}

fn provide(step: &dyn Step, workspace: &Workspace) -> Result<()> {
    let why = match step.check(workspace)? {
        State::Ready(what) => {
            say(step, &format!("already there: {what}"));
            return Ok(());
        }
        State::Missing(why) => why,
    };
    say(step, &format!("{why}; {} ...", step.plan()));
    let start = Instant::now();
    let mut log = StepLog::create(&workspace.setup_log_dir(), step.log_name())?;
    let done = step.install(workspace, &mut log).and_then(|()| match step.check(workspace)? {
        State::Ready(what) => Ok(what),
        State::Missing(why) => Err(anyhow!("it was installed, but {why}")),
    });
    match done {
        Ok(what) => {
            say(step, &format!("done in {:.0} s: {what}", start.elapsed().as_secs_f64()));
            Ok(())
        }
        Err(error) => Err(anyhow!(
            "the set-up step \"{}\" failed: {error:#}\n  last lines of {}:\n{}  What to do: {}",
            step.name(),
            log.path().display(),
            log.tail(),
            step.advice()
        )),
    }
}

fn say(step: &dyn Step, text: &str) {
    println!("setup: {:<16} {text}", step.name());
    // Long steps follow: the line should be seen before them even if this goes to a file.
    if !std::io::stdout().is_terminal() {
        let _ = std::io::stdout().flush();
    }
}

fn recipes(steps: &[Box<dyn Step>]) -> String {
    steps.iter().map(|step| format!("{}: {}\n", step.name(), step.recipe())).collect()
}

/// Two set-ups at once would undo each other's work: the second waits.
fn lock(workspace: &Workspace) -> Result<File> {
    let path = workspace.tools().join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("setup: another set-up is running here; waiting for it ...");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
