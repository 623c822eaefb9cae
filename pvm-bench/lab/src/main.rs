//! `mosix-lab`: workstations on one machine. See the library's documentation for how it works.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mosix-lab: {error:#}");
            // 255, as ssh: any other status may be that of the command that was run.
            ExitCode::from(255)
        }
    }
}
