//! `cargo xtask test`: set-up, then every test, then one line with the result.
//!
//! nextest runs them (see `.config/nextest.toml`); its output is shown as it comes and kept in `target/xtask/`.
//! The counts are taken from the JUnit file that it writes, see [`crate::junit`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::doctests;
use crate::junit::{self, Counts};
use crate::setup;
use crate::workspace::Workspace;

/// Runs all tests, or those that `arguments` (for nextest) select; exit code 1 if any failed.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace, setup::Scope::Everything)?;
    build_programs(workspace)?;
    let mut counts = run_nextest(workspace, arguments)?;
    if arguments.is_empty()
        && let Some(doctests) = doctests::run(workspace)?
    {
        counts.add(doctests);
    }
    report(&counts);
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Integration tests start the daemon, the agent, the lab and so on: cargo would only build those of their own package.
fn build_programs(workspace: &Workspace) -> Result<()> {
    let status = workspace.cargo().args(["build", "--workspace", "--exclude", "xtask", "--bins"]).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the programs could not be built; cargo's messages above say why");
    }
    Ok(())
}

fn run_nextest(workspace: &Workspace, arguments: &[OsString]) -> Result<Counts> {
    let report = workspace.target().join("nextest/default/junit.xml");
    // A report of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(&report);

    let mut nextest = own_session(workspace.cargo());
    nextest.args(["nextest", "run", "--workspace", "--profile", "default", "--no-tests", "pass"]);
    nextest.args(["--color", if std::io::stderr().is_terminal() { "always" } else { "never" }]);
    nextest.args(arguments);
    let logs = workspace.target().join("xtask");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make the folder {}", logs.display()))?;
    let (said, success) = show_and_keep(&mut nextest, &logs.join("nextest.log"))?;

    let mut counts = match fs::read_to_string(&report) {
        Ok(xml) => junit::count(&xml),
        Err(_) if success => Counts::default(),
        Err(_) => bail!("the tests did not run: nextest's messages above say why"),
    };
    if arguments.is_empty() {
        counts.skipped += junit::ignored(&said);
    }
    if !success && counts.failed == 0 {
        bail!("nextest failed although no test did: its messages above say why");
    }
    Ok(counts)
}

/// Where our session has no number (it is led from outside of this pid namespace, or by an init that never made one), CRIU cannot
/// dump what the tests start in it: then `command` runs in a session of its own. Elsewhere it must not, for the sake of Ctrl-C.
fn own_session(command: Command) -> Command {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if session_in(&stat) != Some("0") {
        return command;
    }
    let mut setsid = Command::new("setsid");
    setsid.arg("--wait").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => setsid.env(key, value),
            None => setsid.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        setsid.current_dir(dir);
    }
    setsid
}

/// The session in the text of `/proc/PID/stat`: the fourth field behind the name, which may hold anything.
fn session_in(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)
}

/// Runs `command` with its standard error (where nextest reports) both shown and kept in the file `log`.
/// Returns the text without colours, and whether it exited with 0.
fn show_and_keep(command: &mut Command, log: &Path) -> Result<(String, bool)> {
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start cargo nextest")?;
    let pipe = child.stderr.take().context("cargo nextest has no standard error")?;
    let mut text = String::new();
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("cannot read what nextest says")? > 0 {
        std::io::stderr().write_all(&line).context("cannot show what nextest says")?;
        let plain = without_colours(&String::from_utf8_lossy(&line));
        file.write_all(plain.as_bytes()).with_context(|| format!("cannot write {}", log.display()))?;
        // Only the summary is looked for, and it is one of the last lines: no need to hold all of a long run.
        if plain.trim_start().starts_with("Summary [") {
            text += &plain;
        }
        line.clear();
    }
    let status = child.wait().context("cannot wait for cargo nextest")?;
    Ok((text, status.success()))
}

/// Removes terminal escapes of the form `ESC [ ... letter`.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split("\u{1b}[");
    plain.extend(parts.next());
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        plain += &part[end..];
    }
    plain
}

fn report(counts: &Counts) {
    for reason in &counts.reasons {
        println!("skipped: {reason}");
    }
    println!("{}", summary(counts));
}

fn summary(counts: &Counts) -> String {
    format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_one_plain_line() {
        let counts = Counts { passed: 12, failed: 0, skipped: 3, reasons: vec!["a: b".into()] };
        assert_eq!(summary(&counts), "12 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session_in("12 (a) b 1) S 5 12 0 34 -1"), Some("0"));
        assert_eq!(session_in("12 (sh) S 5 12 9 34 -1"), Some("9"));
        assert_eq!(session_in(""), None);
    }

    #[test]
    fn colours_are_removed() {
        assert_eq!(without_colours("\u{1b}[32;1m     Summary\u{1b}[0m [ 1s]\n"), "     Summary [ 1s]\n");
        assert_eq!(without_colours("plain"), "plain");
    }

    #[test]
    fn what_is_shown_is_also_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "echo noise >&2; printf '\\033[1mSummary [ 1s] 1 tests run: 1 passed, 4 skipped\\n' >&2; exit 1";
        let (text, success) = show_and_keep(Command::new("sh").args(["-c", script]), &log).unwrap();
        assert!(!success);
        assert_eq!(junit::ignored(&text), 4);
        assert_eq!(fs::read_to_string(log).unwrap().lines().count(), 2);
    }
}
