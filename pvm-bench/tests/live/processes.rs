//! Looking at the machine's processes from outside the lab, which sees those of all nodes and of all guests.

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

/// All processes below this one, with their names, parents first. By the kernel's own lists of children, which CRIU needs too: much
/// faster than a look at every process.
pub(crate) fn descendants(root: i32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{root}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            if let Some((_, _, comm)) = stat(child).filter(|(state, ..)| *state != 'Z') {
                found.push((child, comm));
                found.extend(descendants(child));
            }
        }
    }
    found
}

/// Sends a signal to a process of this test's lab; nothing happens if it has just ended.
pub(crate) fn kill(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}
