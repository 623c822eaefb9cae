//! The `shuffle` program as its callers see it.

// Helpers of tests may fail like tests; clippy knows only the functions that are marked.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn shuffle(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shuffle"));
    command.args(args.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The number after `"name":` in a line.
fn number(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// Plays so many steps; the last line.
fn played(args: &str) -> String {
    let output = shuffle(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    text.lines().last().unwrap().to_owned()
}

#[test]
fn nothing_is_wrong_without_moves() {
    let end = played("--mib 4 --seed 3 --steps 20000 --steps-per-s 1000000");
    assert_eq!(number(&end, "bad_pages"), 0, "{end}");
    assert!(number(&end, "checked_pages") > 100_000 && number(&end, "written_bytes") > 10 << 20, "{end}");
}

#[test]
fn children_live_beside_their_parent() {
    let end = played("--mib 1 --threads 0 --steps 5000 --steps-per-s 1000000 --child-ms 20");
    assert_eq!(number(&end, "bad_pages"), 0, "{end}");
}

#[test]
fn the_same_seed_plays_the_same() {
    let figures = |seed: u32| {
        let end = played(&format!("--mib 2 --threads 0 --steps 5000 --steps-per-s 1000000 --seed {seed}"));
        (number(&end, "checked_pages"), number(&end, "written_bytes"))
    };
    assert_eq!(figures(5), figures(5));
    assert_ne!(figures(5), figures(6));
}

#[test]
fn one_wrong_byte_is_told_with_the_history_of_its_page() {
    use std::os::unix::fs::FileExt;
    // Next to no steps: nothing may write over the damage before it is looked for.
    let mut child = shuffle("--mib 1 --steps-per-s 1").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("ready"));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let mapping = maps.lines().find(|line| line.starts_with("1000") && line.contains(" rw")).unwrap();
    let address = u64::from_str_radix(mapping.split('-').next().unwrap(), 16).unwrap();
    let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", child.id()));
    if let Err(error) = memory.and_then(|memory| memory.write_all_at(b"wrong!", address + 800)) {
        println!("skipped: this process may not write to its child's memory: {error}");
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGUSR1).unwrap();
    let report = lines.next().unwrap().unwrap();
    assert_eq!(number(&report, "bad_pages"), 1, "{report}");
    for words in [&format!("{address:#x} at step"), "word 100 is", "Map@"] {
        assert!(report.contains(words), "no {words} in {report}");
    }
    drop(child.stdin.take());
    assert!(lines.next().unwrap().unwrap().contains("\"bad_pages\":0"), "told once");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn bad_arguments_are_refused() {
    for args in ["--mib", "--mib x", "--what 1"] {
        assert_eq!(shuffle(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}
