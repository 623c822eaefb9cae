//! What is read about a process from `/proc`.

use std::io;

/// Some lines of `/proc/PID/status`.
#[derive(Debug, Default)]
pub struct Status {
    /// State letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Tracer, 0 if none.
    pub tracer: i32,
    /// It has a seccomp filter.
    pub seccomp: bool,
    /// Signals pending for the leader or for the process, bit 0 is signal 1.
    pub pending: u64,
    /// Signals with disposition "ignore".
    pub ignored: u64,
}

/// Reads `/proc/PID/status`.
///
/// # Errors
/// From reading it.
pub fn status(pid: i32) -> io::Result<Status> {
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

/// Thread ids of a process.
///
/// # Errors
/// From reading `/proc/PID/task`.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The names in a directory that are numbers.
///
/// # Errors
/// From reading it.
pub fn numbers(dir: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Readable and executable memory, start and end; the vdso comes first, since it always has a `syscall`.
///
/// # Errors
/// From reading `/proc/PID/maps`.
pub fn executable_ranges(pid: i32) -> io::Result<Vec<(u64, u64)>> {
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
    fn procfs_parsing() {
        let status = parse_status("State:\tT (stopped)\nPPid:\t7\nTracerPid:\t9\nSigPnd:\t1\nShdPnd:\t2\nSeccomp:\t2\nSigIgn:\t4000\n");
        assert_eq!((status.state, status.ppid, status.tracer, status.seccomp), ('T', 7, 9, true));
        assert_eq!((status.pending, status.ignored), (3, 0x4000));
        let maps = "400000-401000 r-xp 0 0:0 1 /bin/x\n500000-501000 rw-p 0 0:0 0\n7f0000-7f1000 r-xp 0 0:0 0 [vdso]\nffffffffff600000-ffffffffff601000 --xp 0 0:0 0 [vsyscall]\n";
        assert_eq!(parse_maps(maps), [(0x7f0000, 0x7f1000), (0x400000, 0x401000)]);
    }
}
