//! The rules for open descriptors, and the channels that follow from them.

use std::collections::BTreeMap;

use crate::facts::{Device, Facts, Fd, Holder};

use super::{Channel, ChannelKind, Refusal, Tty};

/// What one descriptor turned out to be.
enum Use {
    /// CRIU carries it or opens it by path.
    ByPath,
    /// An end of a nameless pipe.
    Pipe,
    /// A shared write-only file.
    Pumped,
    /// The controlling terminal.
    Terminal,
}

/// Judges all descriptors. Reasons go to `refusals`; channels are complete only if there were none.
pub(super) fn judge(facts: &Facts, refusals: &mut Vec<Refusal>) -> (Vec<Channel>, Option<Tty>) {
    let mut pipes: BTreeMap<u64, Vec<&Fd>> = BTreeMap::new();
    let mut pumped: BTreeMap<(i32, u64), Vec<&Fd>> = BTreeMap::new();
    let mut terminal = Vec::new();
    for fd in &facts.fds {
        match judge_one(facts, fd) {
            Ok(Use::ByPath) => {}
            Ok(Use::Pipe) => pipes.entry(fd.inode).or_default().push(fd),
            Ok(Use::Pumped) => pumped.entry((fd.mnt_id, fd.inode)).or_default().push(fd),
            Ok(Use::Terminal) => terminal.push(fd),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let mut channels = Vec::new();
    for ends in pipes.values() {
        match pipe(ends) {
            Ok(channel) => channels.extend(channel),
            Err(refusal) => refusals.push(refusal),
        }
    }
    for fds in pumped.values() {
        match file_out(facts, fds) {
            Ok(channel) => channels.push(channel),
            Err(refusal) => refusals.push(refusal),
        }
    }
    // In the order of their lowest descriptor, so that the same process always gets the same numbers.
    channels.sort_by_key(|channel| channel.fds.first().copied());
    for (channel, id) in channels.iter_mut().zip(0..=u16::MAX) {
        channel.id = id;
    }
    (channels, tty(facts, &terminal))
}

fn judge_one(facts: &Facts, fd: &Fd) -> Result<Use, Refusal> {
    let (number, path) = (fd.fd, fd.link.clone());
    if !fd.locks.is_empty() {
        return Err(Refusal::Locked { fd: number, path });
    }
    if let Some(protocol) = fd.socket.clone() {
        return Err(Refusal::Socket { fd: number, protocol });
    }
    if fd.link.starts_with("/memfd:") {
        return Err(Refusal::KernelObject { fd: number, kind: "memfd".to_owned() });
    }
    if fd.foreign_mount {
        return Err(Refusal::ForeignMount { fd: number, path });
    }
    match fd.mode & libc::S_IFMT {
        libc::S_IFREG => regular(fd),
        libc::S_IFDIR => directory(fd),
        libc::S_IFCHR => character(facts, fd),
        libc::S_IFBLK => Err(Refusal::DeviceFile { fd: number, path }),
        libc::S_IFIFO if !fd.link.starts_with("pipe:[") => Err(Refusal::NamedPipe { fd: number, path }),
        libc::S_IFIFO if fd.flags & libc::O_DIRECT != 0 => Err(Refusal::PacketPipe { fd: number }),
        libc::S_IFIFO => Ok(Use::Pipe),
        libc::S_IFSOCK => Err(Refusal::Socket { fd: number, protocol: "unknown".to_owned() }),
        // The kernel's anonymous inodes have no type at all.
        0 => anonymous(fd),
        _ => Err(Refusal::UnknownFile { fd: number, link: path }),
    }
}

fn regular(fd: &Fd) -> Result<Use, Refusal> {
    let (number, path) = (fd.fd, fd.link.clone());
    // Newer kernels give some of their objects (pidfd) a regular mode.
    if fd.link.starts_with("anon_inode:") || fd.link.contains(":[") && !fd.link.starts_with('/') {
        return anonymous(fd);
    }
    if fd.link.starts_with("/proc/") || fd.link.starts_with("/sys/") {
        return Err(Refusal::MachineFile { fd: number, path });
    }
    if !fd.leads_there {
        return Err(Refusal::FileGone { fd: number, path });
    }
    let Some(holder) = sharer(fd) else { return Ok(Use::ByPath) };
    let write_only = fd.flags & libc::O_ACCMODE == libc::O_WRONLY;
    match (write_only, fd.flags & libc::O_APPEND != 0) {
        (true, true) => Ok(Use::ByPath),
        (true, false) => Ok(Use::Pumped),
        (false, _) => Err(Refusal::SharedOffset { fd: number, path, pid: holder.pid }),
    }
}

fn directory(fd: &Fd) -> Result<Use, Refusal> {
    let (number, path) = (fd.fd, fd.link.clone());
    if fd.link.starts_with("/proc") || fd.link.starts_with("/sys") {
        return Err(Refusal::MachineFile { fd: number, path });
    }
    if !fd.leads_there {
        return Err(Refusal::FileGone { fd: number, path });
    }
    match sharer(fd) {
        Some(holder) => Err(Refusal::SharedOffset { fd: number, path, pid: holder.pid }),
        None => Ok(Use::ByPath),
    }
}

fn character(facts: &Facts, fd: &Fd) -> Result<Use, Refusal> {
    let (number, path) = (fd.fd, fd.link.clone());
    let device = Device::from_raw(fd.rdev);
    if facts.tty == Some(device) {
        return if fd.leads_there { Ok(Use::Terminal) } else { Err(Refusal::FileGone { fd: number, path }) };
    }
    match (device.major, device.minor) {
        // null, zero, full, random, urandom.
        (1, 3 | 5 | 7 | 8 | 9) => Ok(Use::ByPath),
        (5, 0) => Err(Refusal::GeneralTerminal { fd: number }),
        // Virtual and serial terminals, the console, and both sides of pseudo terminals.
        (4 | 5 | 136..=143, _) => Err(Refusal::OtherTerminal { fd: number, path }),
        _ => Err(Refusal::DeviceFile { fd: number, path }),
    }
}

fn anonymous(fd: &Fd) -> Result<Use, Refusal> {
    let kind = fd.link.strip_prefix("anon_inode:").unwrap_or(&fd.link);
    let kind = kind.trim_start_matches('[').split([']', ':']).next().unwrap_or_default().to_owned();
    if !fd.link.starts_with("anon_inode:") || !matches!(kind.as_str(), "eventfd" | "timerfd" | "signalfd" | "eventpoll") {
        return Err(Refusal::KernelObject { fd: fd.fd, kind });
    }
    match sharer(fd) {
        Some(holder) => Err(Refusal::SharedObject { fd: fd.fd, kind, pid: holder.pid }),
        None => Ok(Use::ByPath),
    }
}

/// Someone else with the same description.
fn sharer(fd: &Fd) -> Option<&Holder> {
    fd.holders.iter().find(|holder| holder.same_description)
}

fn pipe(ends: &[&Fd]) -> Result<Option<Channel>, Refusal> {
    let Some(first) = ends.first() else { return Ok(None) };
    let access = |wanted: i32| ends.iter().any(|fd| fd.flags & libc::O_ACCMODE == wanted || fd.flags & libc::O_ACCMODE == libc::O_RDWR);
    let (reads, writes) = (access(libc::O_RDONLY), access(libc::O_WRONLY));
    let outside = ends.iter().flat_map(|fd| &fd.holders).next();
    if reads && writes {
        return match outside {
            None => Ok(None),
            Some(holder) => Err(Refusal::PipeBothWays { fd: first.fd, link: first.link.clone(), pid: holder.pid }),
        };
    }
    let mut holders = ends.iter().flat_map(|fd| &fd.holders);
    Ok(Some(Channel {
        id: 0,
        kind: if reads { ChannelKind::PipeIn } else { ChannelKind::PipeOut },
        // `pipe_d_name()` of CRIU's pipes.c: the inode in decimal, like the link itself.
        key: format!("pipe:[{}]", first.inode),
        external: None,
        fds: ends.iter().map(|fd| fd.fd).collect(),
        shared: holders.any(|holder| if reads { holder.reads } else { holder.writes }),
    }))
}

/// A shared write-only file. CRIU knows external files by mount and inode only, so nothing else of the process may
/// be the same file.
fn file_out(facts: &Facts, fds: &[&Fd]) -> Result<Channel, Refusal> {
    let Some(first) = fds.first() else {
        return Err(Refusal::UnknownFile { fd: -1, link: String::new() });
    };
    let second_way = facts.fds.iter().any(|fd| {
        let same_file = fd.dev == first.dev && fd.inode == first.inode;
        same_file && (fd.description != first.description || fd.mnt_id != first.mnt_id)
    });
    let is_used = [&facts.exe.path, &facts.cwd.path].contains(&&first.link) || facts.maps.iter().any(|map| map.name == first.link);
    if second_way || is_used {
        let pid = sharer(first).map_or(0, |holder| holder.pid);
        return Err(Refusal::MixedFile { fd: first.fd, path: first.link.clone(), pid });
    }
    // `dump_one_reg_file()` of CRIU's files-reg.c names it so. On restore `open_path()` first asks for the
    // name *without its first letter* and takes that descriptor as it is; under the full name it would open it again, seek and
    // compare size and mode, which no pipe survives.
    let name = format!("file[{:x}:{:x}]", first.mnt_id, first.inode);
    Ok(Channel {
        id: 0,
        kind: ChannelKind::FileOut,
        key: name[1..].to_owned(),
        external: Some(name),
        fds: fds.iter().map(|fd| fd.fd).collect(),
        shared: true,
    })
}

fn tty(facts: &Facts, fds: &[&Fd]) -> Option<Tty> {
    let first = fds.first()?;
    Some(Tty { fds: fds.iter().map(|fd| fd.fd).collect(), rdev: first.rdev, dev: first.dev, foreground: facts.tpgid == facts.pgid })
}
