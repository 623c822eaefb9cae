//! The texts of `/proc`, as pure functions. None panics, whatever the text.

use serde::{Deserialize, Serialize};

use super::{Facts, Fd, Thread};

/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A device number in its two parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Device {
    /// From a `st_rdev` or `st_dev`.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self { major: libc::major(raw), minor: libc::minor(raw) }
    }

    /// As a `st_rdev`.
    #[must_use]
    pub fn to_raw(self) -> u64 {
        libc::makedev(self.major, self.minor)
    }
}

/// A mapping that is shared or special.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Address range, as the kernel prints it.
    pub range: String,
    /// The name behind it; empty for none.
    pub name: String,
    /// Changes are seen by others.
    pub shared: bool,
    /// It can be written now.
    pub writable: bool,
}

/// `/proc/PID/stat` into the fields it has; everything else is default.
pub(super) fn stat(text: &str) -> Option<Facts> {
    // The name may hold blanks and parentheses: it ends at the last one.
    let (pid, rest) = text.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields are numbered from 1 in proc(5); the state is number 3.
    let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
    let number = |at: usize| field(at)?.parse::<i64>().ok();
    let small = |at: usize| i32::try_from(number(at)?).ok();
    // The kernel prints the packed number as a signed one.
    let tty = u64::from(u32::from_ne_bytes(small(7)?.to_ne_bytes()));
    let device =
        Device { major: u32::try_from((tty >> 8) & 0xfff).ok()?, minor: u32::try_from((tty & 0xff) | ((tty >> 12) & 0xf_ff00)).ok()? };
    Some(Facts {
        pid: pid.trim().parse().ok()?,
        comm: comm.to_owned(),
        state: field(3)?.chars().next()?,
        ppid: small(4)?,
        pgid: small(5)?,
        sid: small(6)?,
        tty: (tty != 0).then_some(device),
        tpgid: small(8)?,
        kernel_thread: field(9)?.parse::<u64>().ok()? & KERNEL_THREAD != 0,
        nice: small(19)?,
        start_time_ticks: field(22)?.parse().ok()?,
        // SCHED_FIFO, SCHED_RR, SCHED_DEADLINE.
        realtime: matches!(number(41)?, 1 | 2 | 6),
        ..Facts::default()
    })
}

/// `/proc/PID/status`: who it is, what is pending, how much memory.
pub(super) fn status(text: &str, facts: &mut Facts) -> Option<()> {
    facts.uids = four(value(text, "Uid")?)?;
    facts.gids = four(value(text, "Gid")?)?;
    facts.ns_pids = value(text, "NSpid").map(numbers).unwrap_or_default();
    let signals = |name| u64::from_str_radix(value(text, name)?.trim(), 16).ok();
    facts.pending_signals = signals("SigPnd")? | signals("ShdPnd")?;
    // A process that is just ending has no memory lines.
    let rss_kib = value(text, "VmRSS").and_then(|rss| rss.split_ascii_whitespace().next()?.parse::<u64>().ok());
    facts.memory_bytes = rss_kib.unwrap_or(0).saturating_mul(1024);
    Some(())
}

/// `/proc/PID/task/TID/status`: what may differ from thread to thread.
pub(super) fn thread_status(text: &str, thread: &mut Thread) {
    let number = |name| value(text, name).and_then(|number| number.trim().parse::<i32>().ok());
    thread.tracer_pid = number("TracerPid").unwrap_or(0);
    // A kernel without seccomp has no such line.
    thread.seccomp_mode = number("Seccomp").and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0);
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn numbers<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn four(text: &str) -> Option<[u32; 4]> {
    numbers(text).try_into().ok()
}

/// `/proc/PID/cmdline` into arguments.
pub(super) fn cmdline(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|&byte| byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// `/proc/PID/fdinfo/N` into the fields it has.
pub(super) fn fdinfo(text: &str) -> Option<Fd> {
    let flags = i32::from_str_radix(value(text, "flags")?.trim(), 8).ok()?;
    let locks = text.lines().filter_map(|line| line.strip_prefix("lock:")).map(|lock| lock.trim().to_owned());
    Some(Fd {
        flags: flags & !libc::O_CLOEXEC,
        cloexec: flags & libc::O_CLOEXEC != 0,
        pos: value(text, "pos")?.trim().parse().ok()?,
        mnt_id: value(text, "mnt_id")?.trim().parse().ok()?,
        locks: locks.collect(),
        ..Fd::default()
    })
}

/// `/proc/PID/maps`: only what is shared or has a name that is not an existing path or one of the kernel's plain areas.
pub(super) fn maps(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(mapping).filter(|map| map.shared || is_special(&map.name)).collect()
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let range = fields.next()?.to_owned();
    let permissions = fields.next()?;
    let name = fields.nth(3).unwrap_or_default().trim_start().to_owned();
    Some(Mapping { range, name, shared: permissions.contains('s'), writable: permissions.contains('w') })
}

/// Plain are: nothing, `[heap]` and its like, and files that exist.
fn is_special(name: &str) -> bool {
    let plain = name.is_empty() || name.starts_with('[') || (name.starts_with('/') && !name.starts_with("/dev/"));
    !plain || name.ends_with(" (deleted)")
}

/// Who waits for a lock, by `/proc/locks`.
pub(super) fn lock_waiters(text: &str) -> impl Iterator<Item = i32> {
    // "1: -> POSIX  ADVISORY  WRITE 1234 fe:00:99 0 EOF"
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next() == Some("->")).then(|| words.nth(3)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str =
        "77 (a) b (c) S 1 77 76 34817 78 4194304 1 2 3 4 5 6 7 8 20 -5 3 0 9999 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 17 1 0 1 0 0 0";

    #[test]
    fn stat_with_a_hostile_name() {
        let facts = stat(STAT).expect("parses");
        assert_eq!((facts.pid, facts.comm.as_str(), facts.state), (77, "a) b (c", 'S'));
        assert_eq!((facts.ppid, facts.pgid, facts.sid, facts.tpgid), (1, 77, 76, 78));
        assert_eq!(facts.tty, Some(Device { major: 136, minor: 1 }));
        assert_eq!((facts.nice, facts.start_time_ticks, facts.realtime), (-5, 9999, true));
    }

    #[test]
    fn maps_keep_only_what_matters() {
        let text = "1000-2000 r--p 00000000 fe:00 12 /usr/lib/libc.so.6\n\
                    2000-3000 rw-p 00000000 00:00 0 \n\
                    3000-4000 rw-p 00000000 00:00 0                          [heap]\n\
                    4000-5000 rw-s 00000000 00:01 7                          /dev/zero (deleted)\n\
                    5000-6000 r-xp 00000000 fe:00 9 /tmp/with blank (deleted)\n\
                    6000-7000 rw-s 00000000 00:0e 3 anon_inode:[io_uring]";
        let names: Vec<_> = maps(text).into_iter().map(|map| (map.name, map.shared, map.writable)).collect();
        let wanted =
            [("/dev/zero (deleted)", true, true), ("/tmp/with blank (deleted)", false, false), ("anon_inode:[io_uring]", true, true)];
        assert_eq!(names, wanted.map(|(name, shared, writable)| (name.to_owned(), shared, writable)));
    }

    #[test]
    fn fdinfo_with_locks() {
        let text = "pos:\t12\nflags:\t02102001\nmnt_id:\t29\nino:\t7\nlock:\t1: FLOCK  ADVISORY  WRITE 1 fe:00:7 0 EOF\n";
        let fd = fdinfo(text).expect("parses");
        assert_eq!((fd.pos, fd.mnt_id, fd.cloexec, fd.locks.len()), (12, 29, true, 1));
        assert_eq!(fd.flags & (libc::O_ACCMODE | libc::O_APPEND), libc::O_WRONLY | libc::O_APPEND);
    }

    #[test]
    fn waiters_not_holders() {
        let text = "1: POSIX  ADVISORY  WRITE 10 fe:00:1 0 EOF\n1: -> POSIX  ADVISORY  WRITE 11 fe:00:1 0 EOF\n";
        assert_eq!(lock_waiters(text).collect::<Vec<_>>(), [11]);
    }

    #[test]
    fn arguments() {
        assert_eq!(cmdline(b"a\0\0b\0"), ["a", "", "b"]);
        assert!(cmdline(b"").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", numbers in proptest::collection::vec(any::<i64>(), 0..60)) {
            let listed: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            let text = format!("1 ({text}) S {} {text}", listed.join(" "));
            let mut facts = stat(&text).unwrap_or_default();
            let _ = status(&text, &mut facts);
            thread_status(&text, &mut Thread::default());
            let _ = (fdinfo(&text), maps(&text), lock_waiters(&text).count(), cmdline(text.as_bytes()));
        }
    }
}
