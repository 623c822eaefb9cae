//! Who may move, as a pure function of [`Facts`].
//!
//! [`judge`] says what *can* be moved without the process noticing; [`automatic`] says what *should not be moved by itself*
//! although it can. The rule of the first is: stay and say why. Never kill, never guess. Whatever is not known to survive a move
//! is refused by name, before anything is frozen.
//!
//! A movable process comes with a [`Plan`]: who it is, and the channels that must be pumped between home and guest.
//!
//! | what it holds | what happens |
//! |---|---|
//! | a file that nobody else holds | opened by its path at the guest |
//! | a file shared with others, write-only, appending | the same: the kernel appends wherever it is opened |
//! | a file shared with others, write-only | [`ChannelKind::FileOut`]: the guest writes into a pipe, home into the real file |
//! | any other shared file | refused: the offset would part |
//! | a pipe with both ends inside, nobody else has one | CRIU carries it |
//! | a pipe whose other end is outside | [`ChannelKind::PipeIn`] or [`ChannelKind::PipeOut`] |
//! | a pipe to read from that others read, too | the same; home then takes from it only what a read(2) of the guest waits for |
//! | its controlling terminal | one [`Tty`] |
//! | null, zero, full, random, urandom | opened at the guest |
//! | eventfd, timerfd, signalfd, epoll, not shared | CRIU carries it |
//! | anything else | refused |

mod auto_rules;
mod files;
mod plan;
mod refusal;

#[cfg(test)]
mod tests;

use crate::facts::{Facts, Own, SharedWhat};

pub use auto_rules::{AutoRules, automatic};
pub use plan::{Channel, ChannelKind, Plan, Tty};
pub use refusal::Refusal;

/// At most so many reasons are given for one process.
pub const MAX_REFUSALS: usize = 32;

/// What [`judge`] found.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It can move, like this.
    Movable(Plan),
    /// It stays, for all of these reasons (at least one).
    Stays(Vec<Refusal>),
}

/// Judges a process. Pure; the same facts always give the same verdict.
#[must_use]
pub fn judge(facts: &Facts, own: &Own) -> Verdict {
    let mut refusals = hopeless(facts, own);
    if !refusals.is_empty() {
        return Verdict::Stays(refusals);
    }
    refusals.extend(state(facts));
    refusals.extend(surroundings(facts, own));
    refusals.extend(memory(facts));
    let (channels, tty) = files::judge(facts, &mut refusals);
    if refusals.is_empty() {
        return Verdict::Movable(Plan::new(facts, channels, tty));
    }
    refusals.dedup();
    refusals.truncate(MAX_REFUSALS);
    Verdict::Stays(refusals)
}

/// What makes every other question pointless.
fn hopeless(facts: &Facts, own: &Own) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if facts.pid <= 1 {
        refusals.push(Refusal::Init);
    }
    if facts.kernel_thread {
        refusals.push(Refusal::KernelThread);
    }
    if matches!(facts.state, 'Z' | 'X' | 'x') {
        refusals.push(Refusal::Ended);
    }
    if own.pids.contains(&facts.pid) {
        refusals.push(Refusal::OurOwn);
    }
    refusals
}

/// What it does just now.
fn state(facts: &Facts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if facts.state == 'T' {
        refusals.push(Refusal::Stopped);
    }
    let tracer = facts.threads.iter().map(|thread| thread.tracer_pid).find(|&tracer| tracer != 0);
    if tracer.is_some() || facts.state == 't' {
        refusals.push(Refusal::Traced { tracer: tracer.unwrap_or(0) });
    }
    if facts.threads.iter().any(|thread| thread.seccomp_mode != 0) {
        refusals.push(Refusal::Seccomp);
    }
    if facts.threads.iter().any(|thread| thread.own_files) {
        refusals.push(Refusal::ThreadsDiffer);
    }
    if facts.waits_for_lock {
        refusals.push(Refusal::WaitsForLock);
    }
    refusals
}

/// What it is part of.
fn surroundings(facts: &Facts, own: &Own) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let names = own.namespaces.0.keys().chain(facts.namespaces.0.keys());
    let mut different: Vec<String> = names.filter(|name| own.namespaces.0.get(*name) != facts.namespaces.0.get(*name)).cloned().collect();
    different.sort();
    different.dedup();
    if !different.is_empty() {
        refusals.push(Refusal::OtherNamespaces { names: different });
    }
    if facts.sid == 0 || facts.pgid == 0 {
        refusals.push(Refusal::LedFromOutside);
    }
    if !facts.children.is_empty() {
        refusals.push(Refusal::HasChildren { pids: facts.children.clone() });
    }
    for shared in &facts.shared_with {
        refusals.push(match shared.what {
            SharedWhat::Memory => Refusal::SharesMemory { pid: shared.pid },
            SharedWhat::Files => Refusal::SharesFiles { pid: shared.pid },
            SharedWhat::Directory => Refusal::SharesDirectory { pid: shared.pid },
        });
    }
    // What a first process hands on are sockets, devices and pipes; it does not go on to use them. In a virtual machine it may
    // be closed even to root, which must not pin everything.
    refusals.extend(facts.opaque.iter().filter(|&&pid| pid != 1).map(|&pid| Refusal::Opaque { pid }));
    if facts.root != "/" {
        refusals.push(Refusal::Chroot { path: facts.root.clone() });
    }
    if !facts.cwd.leads_there {
        refusals.push(Refusal::DirectoryGone { path: facts.cwd.path.clone() });
    }
    if !facts.exe.leads_there {
        refusals.push(Refusal::ProgramGone { path: facts.exe.path.clone() });
    }
    refusals
}

/// What it has mapped.
fn memory(facts: &Facts) -> Vec<Refusal> {
    facts
        .maps
        .iter()
        .filter_map(|map| {
            let name = map.name.clone();
            let path = name.starts_with('/') && !name.starts_with("/dev/") && !name.ends_with(" (deleted)");
            if name.starts_with("/anon_hugepage") {
                Some(Refusal::HugePages)
            } else if map.shared && (map.writable || !path) {
                Some(Refusal::SharedMapping { name })
            } else if !path && !name.is_empty() {
                Some(Refusal::SpecialMapping { name })
            } else {
                None
            }
        })
        .collect()
}
