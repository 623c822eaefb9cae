//! What we read about a process from `/proc`.

use std::io;

/// Longest command line that a stub carries on, in bytes: it is part of its resident memory.
const CMDLINE_BYTES: usize = 64 * 1024;

/// Some lines of `/proc/PID/status`.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) state: char,
    pub(crate) ppid: i32,
    pub(crate) tracer: i32,
    pub(crate) seccomp: bool,
    /// Signals pending for the leader or for the process, bit 0 is signal 1.
    pub(crate) pending: u64,
    /// Signals with disposition "ignore".
    pub(crate) ignored: u64,
}

pub(crate) fn status(pid: i32) -> io::Result<Status> {
    Ok(parse_status(&std::fs::read_to_string(format!("/proc/{pid}/status"))?))
}

fn parse_status(text: &str) -> Status {
    let mut status = Status { state: '?', ..Status::default() };
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let number = || value.parse().unwrap_or(0);
        let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            "State" => status.state = value.chars().next().unwrap_or('?'),
            "PPid" => status.ppid = number(),
            "TracerPid" => status.tracer = number(),
            "Seccomp" => status.seccomp = value != "0",
            "SigPnd" | "ShdPnd" => status.pending |= mask(),
            "SigIgn" => status.ignored = mask(),
            _ => {}
        }
    }
    status
}

/// Parent, process group and session.
fn family(pid: i32) -> Option<(i32, i32, i32)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = words.next()?;
    let mut number = || words.next()?.parse().ok();
    let family = (number()?, number()?, number()?);
    (state != "Z").then_some(family)
}

/// Whether nobody in its session could continue its process group: the kernel then ignores terminal stops. Looks at all processes.
pub(crate) fn in_orphaned_group(pid: i32) -> bool {
    let Some((_, group, session)) = family(pid) else { return false };
    let all = numbers("/proc").unwrap_or_default();
    let guarded = |(parent, its_group, _): (i32, i32, i32)| {
        its_group == group && parent > 1 && family(parent).is_some_and(|(_, other, its_session)| other != group && its_session == session)
    };
    !all.into_iter().filter_map(family).any(guarded)
}

/// Thread ids of a process.
pub(crate) fn threads(pid: i32) -> io::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// Descriptors of a process that `execve` would close.
pub(crate) fn close_on_exec_fds(pid: i32) -> io::Result<Vec<i32>> {
    let mut fds = numbers(&format!("/proc/{pid}/fdinfo"))?;
    fds.retain(|fd| {
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|text| i32::from_str_radix(text.trim(), 8).ok());
        flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
    });
    Ok(fds)
}

fn numbers(dir: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Name of the leader, NUL-terminated as the kernel wants it back.
pub(crate) fn comm(pid: i32) -> io::Result<Vec<u8>> {
    let mut name = std::fs::read(format!("/proc/{pid}/comm"))?;
    name.pop(); // the kernel's newline
    name.truncate(15);
    name.push(0);
    Ok(name)
}

/// The arguments that `ps` shows, each without its NUL.
pub(crate) fn arguments(pid: i32) -> io::Result<Vec<Vec<u8>>> {
    let mut text = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    text.truncate(CMDLINE_BYTES);
    Ok(split_arguments(&text))
}

fn split_arguments(text: &[u8]) -> Vec<Vec<u8>> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Readable and executable memory, start and end; the vdso comes first, since it always has a `syscall`.
pub(crate) fn executable_ranges(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(parse_maps(&String::from_utf8_lossy(&text)))
}

fn parse_maps(text: &str) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(mode)) = (words.next(), words.next()) else { continue };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let ends = range.split_once('-').and_then(|(from, to)| Some((hex(from)?, hex(to)?)));
        let Some(ends) = ends else { continue };
        // [vsyscall] is emulated by the kernel: no instruction may be run there
        if !(mode.starts_with("r-x") || mode.starts_with("rwx")) || line.ends_with("[vsyscall]") {
            continue;
        }
        let place = if line.ends_with("[vdso]") { 0 } else { ranges.len() };
        ranges.insert(place, ends);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deputy_procfs_parsing() {
        let status = parse_status("State:\tT (stopped)\nPPid:\t7\nTracerPid:\t9\nSigPnd:\t1\nShdPnd:\t2\nSeccomp:\t2\nSigIgn:\t4000\n");
        assert_eq!((status.state, status.ppid, status.tracer, status.seccomp), ('T', 7, 9, true));
        assert_eq!((status.pending, status.ignored), (3, 0x4000));
        let maps = "400000-401000 r-xp 0 0:0 1 /bin/x\n500000-501000 rw-p 0 0:0 0\n7f0000-7f1000 r-xp 0 0:0 0 [vdso]\nffffffffff600000-ffffffffff601000 --xp 0 0:0 0 [vsyscall]\n";
        assert_eq!(parse_maps(maps), [(0x7f0000, 0x7f1000), (0x400000, 0x401000)]);
        assert_eq!(split_arguments(b"a\0\0b c\0"), [b"a".to_vec(), vec![], b"b c".to_vec()]);
    }
}
