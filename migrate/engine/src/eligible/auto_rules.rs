//! What is left alone although it could move.
//!
//! An older system of this family moved everything, and its users fought with migrated shells. So by default only processes
//! of ordinary users move by themselves, and nothing interactive. Any of them can still be moved by hand.

use serde::{Deserialize, Serialize};

use crate::facts::Facts;

/// Rules for automatic moves, part of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoRules {
    /// Real uids below this one stay: they are system services.
    pub min_uid: u32,
    /// Short names that stay; a `*` at the end stands for anything. Replaces the default list.
    pub exclude: Vec<String>,
    /// Further names that stay, besides `exclude`.
    pub exclude_more: Vec<String>,
    /// Younger processes stay: most end before a move would pay. In ms.
    pub min_age_ms: u64,
    /// Processes with a lower nice value stay: somebody wants them served here and now.
    pub min_nice: i32,
    /// Leaders of a session with a terminal stay.
    pub keep_session_leaders: bool,
    /// Processes that hold the foreground of a terminal and read from it stay.
    pub keep_foreground: bool,
}

impl Default for AutoRules {
    fn default() -> Self {
        let exclude = [
            // Shells and what keeps them.
            "bash",
            "sh",
            "dash",
            "zsh",
            "fish",
            "ksh*",
            "tcsh",
            "csh",
            "login",
            "su",
            "sudo",
            "ssh",
            "sshd*",
            "screen",
            "tmux*",
            // Editors and other programs one sits before.
            "vi",
            "vim*",
            "nvim",
            "nano",
            "emacs*",
            "less",
            "more",
            "man",
            "top",
            "htop",
            "mc",
            "gdb",
            "strace",
            // The system.
            "init",
            "systemd*",
            "(sd-pam)",
            "dbus*",
            "cron",
            "rsyslogd",
            "agetty",
            "Xorg",
            "Xwayland",
            "gnome-*",
            "pipewire*",
            "criu",
            // Ourselves and the run-time systems that place processes themselves.
            "mosix*",
            "mosrun",
            "mosps",
            "migrate",
            "pvmd3",
            "pvm",
            "pvm-bench",
        ];
        Self {
            min_uid: 1000,
            exclude: exclude.map(str::to_owned).to_vec(),
            exclude_more: Vec::new(),
            min_age_ms: 1000,
            min_nice: 0,
            keep_session_leaders: true,
            keep_foreground: false,
        }
    }
}

/// The reasons why a process is not moved by itself; empty if it may be. Pure. Asks nothing that [`super::judge`] answers.
#[must_use]
pub fn automatic(facts: &Facts, rules: &AutoRules) -> Vec<String> {
    let mut reasons = Vec::new();
    let (comm, uid) = (&facts.comm, facts.uids[0]);
    if uid < rules.min_uid {
        reasons.push(format!("its user {uid} is a system user (below {}): services are left alone", rules.min_uid));
    }
    if let Some(pattern) = rules.exclude.iter().chain(&rules.exclude_more).find(|pattern| matches(pattern, comm)) {
        reasons.push(format!("its name {comm} is on the list of programs that are left alone ({pattern})"));
    }
    if facts.age_ms < rules.min_age_ms {
        reasons.push(format!("it is {} ms old (less than {}): most so young end before a move would pay", facts.age_ms, rules.min_age_ms));
    }
    if facts.nice < rules.min_nice {
        reasons.push(format!("its nice value {} is below {}: somebody wants it served here and now", facts.nice, rules.min_nice));
    }
    if facts.realtime {
        reasons.push("it has a real-time priority, which only this machine's scheduler can honour".to_owned());
    }
    if rules.keep_session_leaders && facts.tty.is_some() && facts.sid == facts.pid {
        reasons.push("it leads a terminal's session: it is what its user talks to".to_owned());
    }
    if rules.keep_foreground && reads_its_terminal(facts) {
        reasons.push("it holds the foreground of a terminal and can read from it: its user may be typing".to_owned());
    }
    reasons
}

fn reads_its_terminal(facts: &Facts) -> bool {
    let readable = |flags: i32| flags & libc::O_ACCMODE != libc::O_WRONLY;
    let stdin = facts.fds.iter().find(|fd| fd.fd == 0);
    let from_terminal = stdin.is_some_and(|fd| facts.tty.is_some_and(|tty| tty.to_raw() == fd.rdev) && readable(fd.flags));
    from_terminal && facts.tpgid == facts.pgid
}

/// A name against a pattern with an optional `*` at the end. The kernel cuts names at 15 bytes; so is the pattern.
fn matches(pattern: &str, comm: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => comm.starts_with(prefix),
        None => pattern == comm || (comm.len() == 15 && pattern.starts_with(comm)),
    }
}
