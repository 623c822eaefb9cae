//! `cargo xtask demo` and `cargo xtask lab`: build in release mode, then become the program that does the work.
//!
//! xtask replaces itself by it (`exec`), so Ctrl-C, the terminal and the exit status are that program's own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::setup;
use crate::workspace::Workspace;

/// Arguments of the demo; they go to `pvm-bench table1` as they are. What is left out and has no default here is its choice.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Workstations in the lab
    #[arg(long, default_value_t = 16)]
    nodes: u32,
    /// Numbers of processes to run, as in the paper's table 1
    #[arg(long, default_value = "16,17,24,25,33")]
    rows: String,
    /// Real seconds that stand for the 300 s of the paper
    #[arg(long, default_value = "10")]
    time_scale: String,
    /// Repetitions of each row
    #[arg(long)]
    runs: Option<u32>,
    /// Also write all figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab up afterwards
    #[arg(long)]
    keep: bool,
}

impl Demo {
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = ["table1", "--nodes"].map(OsString::from).to_vec();
        arguments.push(self.nodes.to_string().into());
        arguments.extend(["--rows".into(), self.rows.clone().into()]);
        arguments.extend(["--time-scale".into(), self.time_scale.clone().into()]);
        if let Some(runs) = self.runs {
            arguments.extend(["--runs".into(), runs.to_string().into()]);
        }
        if let Some(file) = &self.json {
            // pvm-bench runs at the top of the workspace; the user named the file from where they are.
            let file = std::path::absolute(file).with_context(|| format!("no path to {}", file.display()))?;
            arguments.extend(["--json".into(), file.into_os_string()]);
        }
        if self.keep {
            arguments.push("--keep".into());
        }
        Ok(arguments)
    }
}

/// Builds and becomes `pvm-bench table1`.
pub(crate) fn demo(workspace: &Workspace, demo: &Demo) -> Result<ExitCode> {
    let arguments = demo.arguments()?;
    prepare(workspace)?;
    become_program(workspace, "pvm-bench", &arguments)
}

/// Builds and becomes `mosix-lab`.
pub(crate) fn lab(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    prepare(workspace)?;
    become_program(workspace, "mosix-lab", arguments)
}

/// All programs of the project in release mode: the lab starts daemons and agents from beside itself.
fn prepare(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, setup::Scope::Run)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--workspace", "--exclude", "xtask", "--bins"]);
    if !workspace.target().join("release").exists() {
        eprintln!("xtask: building the programs in release mode (some minutes the first time)");
    } else {
        cargo.arg("--quiet");
    }
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the programs could not be built; cargo's messages above say why");
    }
    Ok(())
}

fn become_program(workspace: &Workspace, name: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let program = workspace.target().join("release").join(name);
    let mut command: Command = workspace.command(&program);
    command.args(arguments);
    Err(command.exec()).with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        demo: Demo,
    }

    fn arguments(line: &[&str]) -> Vec<String> {
        let line = Line::parse_from([&["demo"], line].concat());
        line.demo.arguments().unwrap().into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn the_demo_runs_the_papers_rows() {
        let expected = "table1 --nodes 16 --rows 16,17,24,25,33 --time-scale 10";
        assert_eq!(arguments(&[]).join(" "), expected);
        assert_eq!(arguments(&["--runs", "3"]).join(" "), format!("{expected} --runs 3"));
    }

    #[test]
    fn the_result_file_is_where_the_user_is() {
        let arguments = arguments(&["--json", "out.json", "--keep", "--time-scale", "2.5"]);
        let at = arguments.iter().position(|word| word == "--json").unwrap();
        assert!(arguments[at + 1].starts_with('/') && arguments[at + 1].ends_with("/out.json"));
        assert_eq!(arguments.last().unwrap(), "--keep");
        assert!(arguments.contains(&"2.5".to_owned()));
    }
}
