//! Runs commands quietly: their output goes to one log file a step, whose end is shown if the step fails.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a log's end is shown after a failure.
const TAIL_LINES: usize = 25;

/// The log of one set-up step.
#[derive(Debug)]
pub(crate) struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Begins a new log `name.log` in `dir`; the one of an earlier run is replaced.
    pub(crate) fn create(dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the log folder {}", dir.display()))?;
        let path = dir.join(format!("{name}.log"));
        let file = File::create(&path).with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line of our own.
    pub(crate) fn note(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}").with_context(|| format!("cannot write the log {}", self.path.display()))
    }

    /// Runs `command` to its end with its output in the log and nothing to read.
    ///
    /// # Errors
    /// If it cannot be started or does not exit with 0.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<()> {
        let line = command_line(command);
        self.note(&format!("$ {line}"))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(self.file.try_clone()?)
            .stderr(self.file.try_clone()?)
            .status()
            .with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed ({status})");
        }
        Ok(())
    }

    /// The last lines, indented, for an error message.
    pub(crate) fn tail(&self) -> String {
        let text = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        lines[from..].iter().map(|line| format!("    {line}\n")).collect()
    }
}

/// Runs `command` and returns what it printed to its standard output, if it exits with 0.
///
/// # Errors
/// If it cannot be started or fails; the error holds the end of its standard error.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        bail!("`{line}` failed ({}): {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_leaves_its_words_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = StepLog::create(dir.path(), "step").unwrap();
        log.run(Command::new("sh").args(["-c", "echo fine"])).unwrap();
        let error = log.run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(log.tail().contains("fine") && log.tail().contains("    broken\n"), "{}", log.tail());
    }

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = StepLog::create(dir.path(), "step").unwrap();
        for i in 0..100 {
            log.note(&format!("line {i}")).unwrap();
        }
        assert_eq!(log.tail().lines().count(), TAIL_LINES);
        assert!(log.tail().ends_with("line 99\n"));
    }

    #[test]
    fn output_is_returned_or_the_reason_told() {
        assert_eq!(output_of(Command::new("echo").arg("hello")).unwrap(), "hello\n");
        let error = output_of(Command::new("sh").args(["-c", "echo no such luck >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("no such luck"));
    }
}
