//! Looking at the machine's processes from outside the lab, which sees those of all nodes and of all guests.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// State letter, parent and name.
fn stat(pid: i32) -> Option<(char, i32, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (left, right) = text.rsplit_once(')')?;
    let mut fields = right.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?, left.split_once('(')?.1.to_owned()))
}

/// State letter of a living process.
pub(crate) fn state(pid: i32) -> Option<char> {
    stat(pid).map(|(state, ..)| state)
}

/// Short name of a process.
pub(crate) fn name(pid: i32) -> Option<String> {
    stat(pid).map(|(_, _, name)| name)
}

/// Living processes whose environment has a variable that begins so. (A stub has none.)
pub(crate) fn with_environment(beginning: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(beginning.as_bytes()))
    };
    all().filter(has).filter(|pid| state(*pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))).collect()
}

/// Which node of the lab `id` a process is charged to.
pub(crate) fn lab_node(pid: i32, id: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let parent = format!("/mosix-lab-{id}/");
    let name = groups.lines().find_map(|line| line.split_once(&parent)?.1.split(['/', '.']).next().map(str::to_owned));
    name.unwrap_or_else(|| "no node".into())
}

/// All processes below this one, with their names.
pub(crate) fn descendants(root: i32) -> Vec<(i32, String)> {
    let processes: BTreeMap<i32, (char, i32, String)> = all().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let is_below = |pid: &i32| {
        let mut parent = processes.get(pid).map(|(_, parent, _)| *parent);
        while let Some(pid) = parent.filter(|pid| *pid != root) {
            parent = processes.get(&pid).map(|(_, parent, _)| *parent);
        }
        parent == Some(root)
    };
    let living = processes.iter().filter(|(_, (state, ..))| *state != 'Z');
    living.filter(|(pid, _)| is_below(pid)).map(|(pid, (_, _, comm))| (*pid, comm.clone())).collect()
}

/// Sends a signal to a process of this test's lab; nothing happens if it has just ended.
pub(crate) fn kill(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}
