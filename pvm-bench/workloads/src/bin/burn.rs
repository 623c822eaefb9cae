//! `burn --cpu-s X [--no-barrier] [--report FILE] [--exit N]`: waits for a byte on stdin, uses X seconds of CPU time,
//! prints `done`, exits with N (0).
//!
//! Single-threaded; between the barrier and the end it makes no system call but `clock_gettime` and has nothing open but
//! its three streams. The report, written at the end, is one line of JSON.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mosix_workloads::burn::{Burned, burn, parse_seconds};

const USAGE: &str = "usage: burn --cpu-s SECONDS [--no-barrier] [--report FILE] [--exit STATUS]";

struct Args {
    cpu: Duration,
    barrier: bool,
    report: Option<PathBuf>,
    exit: u8,
}

/// By hand: an argument parser would be most of this program's memory.
fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut cpu, mut barrier, mut report, mut exit) = (None, true, None, 0);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--cpu-s" => cpu = Some(parse_seconds(&value()?)?),
            "--no-barrier" => barrier = false,
            "--report" => report = Some(PathBuf::from(value()?)),
            "--exit" => exit = value()?.parse().map_err(|_| "--exit needs a number from 0 to 255".to_owned())?,
            _ => return Err(format!("what is `{word}`?")),
        }
    }
    Ok(Args { cpu: cpu.ok_or("--cpu-s is missing")?, barrier, report, exit })
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("burn: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if args.barrier && !matches!(std::io::stdin().read(&mut [0_u8; 1]), Ok(1)) {
        eprintln!("burn: stdin was closed before the start signal; nothing was done");
        return ExitCode::from(3);
    }
    let started = Instant::now();
    let burned = burn(args.cpu);
    let wall = started.elapsed();
    if let Some(path) = args.report
        && let Err(error) = std::fs::write(&path, report(&burned, wall))
    {
        eprintln!("burn: writing {}: {error}", path.display());
        return ExitCode::from(4);
    }
    // The one who started us may have gone; that is no failure of the work.
    let _ = writeln!(std::io::stdout(), "done");
    ExitCode::from(args.exit)
}

fn report(burned: &Burned, wall: Duration) -> String {
    format!(
        "{{\"cpu_s\":{:.6},\"wall_s\":{:.6},\"chunks\":{},\"ignored\":{}}}\n",
        burned.cpu.as_secs_f64(),
        wall.as_secs_f64(),
        burned.chunks,
        burned.ignored
    )
}
