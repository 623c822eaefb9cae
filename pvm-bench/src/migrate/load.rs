//! The programs that are moved, and how they are started.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use mosix_lab::find_beside;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{Result, failed};

/// A program that is moved. All say the same lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// Known memory, writers at a given rate.
    Churn,
    /// Everything that can be done to memory.
    Shuffle,
    /// CPython: a thread reads the clock.
    Python,
    /// Node.js: a worker reads the clock, in whole ms.
    Node,
    /// A JVM: a thread reads the clock.
    Java,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Churn => "churn",
            Self::Shuffle => "shuffle",
            Self::Python => "python",
            Self::Node => "node",
            Self::Java => "java",
        })
    }
}

impl Program {
    /// What asks it for a report. Node.js and the JVM use SIGUSR1 themselves.
    pub fn report_signal(self) -> Signal {
        match self {
            Self::Churn | Self::Shuffle => Signal::SIGUSR1,
            Self::Python | Self::Node | Self::Java => Signal::SIGHUP,
        }
    }

    /// It has threads that write as told by [`Load::threads`].
    pub fn has_writers(self) -> bool {
        self == Self::Churn
    }
}

/// What the process is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Which program.
    pub program: Program,
    /// Memory that it fills, MiB; what an interpreter needs itself comes on top.
    pub mib: u64,
    /// Written to random pages, MiB/s. `shuffle` does 1000 operations a second instead.
    pub rate_mib_s: f64,
    /// Writers.
    pub threads: u32,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} MiB, {} MiB/s, {} threads", self.program, self.mib, self.rate_mib_s, self.threads)
    }
}

/// Where the programs are. The scripts' are made in a folder of the caller's.
#[derive(Debug)]
pub struct Programs {
    churn: PathBuf,
    shuffle: PathBuf,
    scripts: PathBuf,
}

/// The interpreters' own place: what a package manager installed, and nothing that a user put before it on PATH.
const BIN: &str = "/usr/bin";
const PYTHON: &str = include_str!("../../workloads/scripts/clock.py");
const NODE: &str = include_str!("../../workloads/scripts/clock.js");
const JAVA: &str = include_str!("../../workloads/scripts/Clock.java");
/// Above what the pages take, MiB: the JVM's heap.
const JAVA_SPARE_MIB: u64 = 48;
/// All pages are checked at each report up to this size; beyond it a slice is, and all of them at the end.
const CHECK_ALL_MIB: u64 = 1024;

impl Programs {
    /// Finds our own; the scripts are written into `dir`.
    ///
    /// # Errors
    /// If one is missing, or `dir` cannot be written.
    pub fn find(dir: &Path) -> Result<Self> {
        let scripts = dir.join("scripts");
        std::fs::create_dir_all(&scripts).map_err(failed("making a folder for scripts"))?;
        for (name, text) in [("clock.py", PYTHON), ("clock.js", NODE), ("Clock.java", JAVA)] {
            std::fs::write(scripts.join(name), text).map_err(failed(format!("writing {name}")))?;
        }
        Ok(Self { churn: find_beside("churn")?, shuffle: find_beside("shuffle")?, scripts })
    }

    /// Whether the program can be run here; else why not. The version of an interpreter. Compiles what must be compiled.
    ///
    /// # Errors
    /// In words.
    pub fn prepare(&self, program: Program) -> std::result::Result<String, String> {
        match program {
            Program::Churn | Program::Shuffle => Ok(String::new()),
            Program::Python => version("python3", "--version"),
            Program::Node => version("node", "--version"),
            Program::Java => {
                let version = version("java", "-version")?;
                let mut javac = Command::new(Path::new(BIN).join("javac"));
                let javac = javac.arg("-nowarn").arg("-d").arg(&self.scripts).arg(self.scripts.join("Clock.java"));
                said(javac).map_err(|why| format!("the program for java was not compiled: {why}"))?;
                Ok(version)
            }
        }
    }

    /// The command line for a load.
    pub fn argv(&self, load: Load) -> Vec<OsString> {
        let (mib, rate) = (load.mib.to_string(), load.rate_mib_s.to_string());
        let interpreter = |name: &str| Path::new(BIN).join(name).into_os_string();
        let script = |name: &str| self.scripts.join(name).into_os_string();
        match load.program {
            Program::Churn => {
                let mut argv = vec![self.churn.clone().into_os_string()];
                for (name, number) in [("--mib", mib), ("--rate-mib-s", rate), ("--threads", load.threads.to_string())] {
                    argv.extend([name.into(), number.into()]);
                }
                if load.mib <= CHECK_ALL_MIB {
                    argv.push("--verify".into());
                }
                argv
            }
            Program::Shuffle => vec![self.shuffle.clone().into_os_string(), "--mib".into(), mib.into()],
            Program::Python => vec![interpreter("python3"), script("clock.py"), mib.into(), rate.into()],
            Program::Node => vec![interpreter("node"), script("clock.js"), mib.into(), rate.into()],
            Program::Java => {
                let heap = format!("-Xmx{}m", load.mib + load.mib / 2 + JAVA_SPARE_MIB);
                // Without the file of performance counters, which would be shared memory with nobody.
                let options = ["-XX:+UseSerialGC", "-XX:-UsePerfData", &heap, "-cp"].map(OsString::from);
                let mut argv = vec![interpreter("java")];
                argv.extend(options);
                argv.extend([self.scripts.clone().into_os_string(), "Clock".into(), mib.into(), rate.into()]);
                argv
            }
        }
    }

    /// `churn`'s command line for the walk through memory that shows a slow-down.
    pub(super) fn walk_argv(&self, walk_mib: u64) -> Vec<OsString> {
        let mut argv = vec![self.churn.clone().into_os_string()];
        argv.extend(["--mib", "1", "--walk-mib"].map(OsString::from));
        argv.push(walk_mib.to_string().into());
        argv
    }
}

fn version(name: &str, flag: &str) -> std::result::Result<String, String> {
    let path = Path::new(BIN).join(name);
    if !path.exists() {
        return Err(format!("{} is not installed", path.display()));
    }
    let text = said(Command::new(&path).arg(flag))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Runs a program to its end; all that it said, or why it failed.
fn said(command: &mut Command) -> std::result::Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(format!("{}: {}", output.status, text.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(dir: &Path) -> Programs {
        Programs { churn: "churn".into(), shuffle: "shuffle".into(), scripts: dir.into() }
    }

    fn words(load: Load) -> Vec<String> {
        programs(Path::new("/x")).argv(load).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    const LOAD: Load = Load { program: Program::Churn, mib: 4, rate_mib_s: 2.5, threads: 3 };

    #[test]
    fn the_command_lines_fit_the_programs() {
        let args = mosix_workloads::churn::args::parse(words(LOAD).into_iter().skip(1)).unwrap();
        assert_eq!((args.mib, args.rate_mib_s, args.threads, args.verify), (4, 2.5, 3, true));
        assert!(!words(Load { mib: 4096, ..LOAD }).contains(&"--verify".into()));
        let args = mosix_workloads::shuffle::args::parse(words(Load { program: Program::Shuffle, ..LOAD }).into_iter().skip(1)).unwrap();
        assert_eq!(args.mib, 4);
        let walk = programs(Path::new("/x")).walk_argv(7).into_iter().skip(1).map(|word| word.into_string().unwrap());
        assert_eq!(mosix_workloads::churn::args::parse(walk).unwrap().walk_mib, 7);
        assert_eq!(words(Load { program: Program::Python, ..LOAD }), ["/usr/bin/python3", "/x/clock.py", "4", "2.5"]);
        assert!(words(Load { program: Program::Java, mib: 100, ..LOAD }).contains(&"-Xmx198m".into()));
    }

    #[test]
    fn a_missing_interpreter_is_said() {
        assert!(version("no-such-interpreter", "--version").unwrap_err().contains("not installed"));
        assert!(said(Command::new("sh").args(["-c", "echo oh; exit 3"])).unwrap_err().contains("oh"));
    }
}
