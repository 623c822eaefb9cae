//! `mosixctl doctor`: what this machine lets us do, what is used instead of what it does not, and what that costs.
//!
//! Everything here has been found out elsewhere, at start or by trying; this only puts it in words.

use mosix_pages::TrackKind;
use mosix_pages::track::is_supported;
use mosix_wire::control::{Check, Health};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::config::Track;
use crate::node::Node;

/// Number of CAP_SYS_RESOURCE in the kernel's list.
const CAP_SYS_RESOURCE: u32 = 24;

/// Looks at everything.
pub(crate) fn examine(node: &Node) -> Vec<Check> {
    vec![criu(node), precopy(node), tracking(node), state_dir(node), probe(node), privileges()]
}

fn check(what: &str, state: Health, detail: impl Into<String>) -> Check {
    Check { what: what.to_owned(), state, detail: detail.into() }
}

fn criu(node: &Node) -> Check {
    let path = node.criu.path().display();
    match node.criu.features() {
        Ok(features) if features.complete() => check("criu", Health::Good, format!("{path}, {} with our patches", features.version)),
        Ok(features) => check("criu", Health::Slow, format!("{path}, {} without our patches", features.version)),
        Err(error) => check("criu", Health::Missing, error.to_string()),
    }
}

fn precopy(node: &Node) -> Check {
    match &node.kerndat {
        Ok(_) => check("pre-copy", Health::Good, "memory is copied while the process runs; it stands still only for the rest"),
        Err(why) => check(
            "pre-copy",
            Health::Slow,
            format!("{why}. Processes stand still while their memory is dumped, sent and restored: some 60 ms, and about 5 s a GiB"),
        ),
    }
}

fn tracking(node: &Node) -> Check {
    let (kind, state, cost) = match node.config.moving.track {
        Track::WriteProtect => {
            (TrackKind::WriteProtect, Health::Good, "2 ms a GiB in the blackout; meanwhile an mremap over a new and an old mapping fails")
        }
        Track::SoftDirty => (TrackKind::SoftDirty, Health::Slow, "the page tables of the process are walked in the blackout"),
        Track::Content => (
            TrackKind::Content,
            Health::Slow,
            "all memory is read and hashed in each round, in the last one in the blackout; moving.track = \"write-protect\" is faster, and not for every program",
        ),
    };
    if is_supported(kind) {
        check("changed pages", state, format!("{kind}: {cost}"))
    } else {
        check("changed pages", Health::Missing, format!("{kind} does not work on this kernel: set moving.track to another way"))
    }
}

fn state_dir(node: &Node) -> Check {
    let dir = &node.config.state_dir;
    let is_memory = statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    if is_memory {
        check("state folder", Health::Good, format!("{} is in memory", dir.display()))
    } else {
        check("state folder", Health::Slow, format!("{} is on a disk, which every image passes: put state_dir on a tmpfs", dir.display()))
    }
}

fn probe(node: &Node) -> Check {
    let by = node.probe.borrow().clone();
    let state = if by.starts_with("bpf") { Health::Good } else { Health::Slow };
    check("measuring", state, if by.is_empty() { "not begun yet".to_owned() } else { by })
}

fn privileges() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    match effective {
        Some(mask) if mask >> CAP_SYS_RESOURCE & 1 == 1 => check("privileges", Health::Good, "all that is needed"),
        Some(_) => check(
            "privileges",
            Health::Missing,
            "no CAP_SYS_RESOURCE: without our patches CRIU cannot dump the processes of other users here; limits may not be raised",
        ),
        None => check("privileges", Health::Missing, "cannot read /proc/self/status"),
    }
}
