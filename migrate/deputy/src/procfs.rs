//! What we read about a process from `/proc`.

use std::io;

use mosix_ptrace::procfs::numbers;

/// Longest command line that a stub carries on, in bytes: it is part of its resident memory.
const CMDLINE_BYTES: usize = 64 * 1024;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deputy_procfs_parsing() {
        assert_eq!(split_arguments(b"a\0\0b c\0"), [b"a".to_vec(), vec![], b"b c".to_vec()]);
    }
}
