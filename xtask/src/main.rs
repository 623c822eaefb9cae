//! Set-up, demo, tests and lab from one command: `cargo xtask setup|test|demo|lab`.
//!
//! Every command but `setup --check` first makes sure that the set-up is done, so a fresh checkout needs no other step.

mod doctests;
mod junit;
mod release;
mod setup;
mod steplog;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, tests and lab of MOSIX on today's Linux")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Provide everything that building, testing and running needs (once; later runs only look)
    Setup {
        /// Only report what is there and what is missing
        #[arg(long)]
        check: bool,
    },
    /// Run all tests; the last line is `N passed, N failed, N skipped`
    Test {
        /// Further arguments for `cargo nextest run`, e.g. a name to filter by
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        nextest: Vec<OsString>,
    },
    /// Run the comparison with PVM's static placement in the lab, and print its table
    Demo(release::Demo),
    /// Pass a command to the lab: up, down, list, exec, shell, selftest
    #[command(disable_help_flag = true)]
    Lab {
        /// The lab's own arguments; `--help` shows them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = Workspace::find().and_then(|workspace| match arguments.command {
        Task::Setup { check: true } => setup::check(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Setup { check: false } => setup::run(&workspace, setup::Scope::Everything).map(|()| ExitCode::SUCCESS),
        Task::Test { nextest } => test::run(&workspace, &nextest),
        Task::Demo(demo) => release::demo(&workspace, &demo),
        Task::Lab { arguments } => release::lab(&workspace, &arguments),
    });
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
