//! The formats of the files that are read (proc_pid_stat(5), proc_pid_status(5)). Pure functions of the content.

use mosix_ebpf::COMM_LEN;

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: [u8; COMM_LEN],
    pub(crate) state: u8,
    pub(crate) ppid: u32,
    pub(crate) pgid: u32,
    pub(crate) sid: u32,
    /// `major << 20 | minor`.
    pub(crate) tty: u32,
    pub(crate) flags: u32,
    /// CPU time of the process with its ended threads (of the thread, in a thread's file), a whole number of ticks.
    pub(crate) cpu_ns: u64,
    pub(crate) threads: u32,
    pub(crate) start_time_ns: u64,
    pub(crate) rss_pages: u64,
}

impl Stat {
    /// `None` if the content is not as documented (or the process has just vanished).
    pub(crate) fn parse(content: &[u8], tick_ns: u64) -> Option<Self> {
        // The name stands in parentheses and may contain anything, parentheses included.
        let open = content.iter().position(|byte| *byte == b'(')?;
        let close = content.iter().rposition(|byte| *byte == b')')?;
        let name = content.get(open + 1..close)?;
        let mut comm = [0; COMM_LEN];
        // Kernel threads may have longer names here than in their task.
        let length = name.len().min(COMM_LEN - 1);
        comm[..length].copy_from_slice(&name[..length]);
        let rest = std::str::from_utf8(content.get(close + 1..)?).ok()?;
        let mut words = [""; 22];
        let mut found = 0;
        for (slot, word) in words.iter_mut().zip(rest.split_ascii_whitespace()) {
            *slot = word;
            found += 1;
        }
        if found < words.len() {
            return None;
        }
        // Field numbers as in the manual page, where the state is field 3.
        let signed = |field: usize| words[field - 3].parse::<i64>().ok();
        let id = |field: usize| signed(field).map(|value| u32::try_from(value).unwrap_or(0));
        let count = |field: usize| signed(field).map(|value| u64::try_from(value).unwrap_or(0));
        Some(Self {
            comm,
            state: words[0].bytes().next()?,
            ppid: id(4)?,
            pgid: id(5)?,
            sid: id(6)?,
            tty: device(signed(7)? as u32),
            flags: id(9)?,
            cpu_ns: count(14)?.saturating_add(count(15)?).saturating_mul(tick_ns),
            threads: id(20)?,
            start_time_ns: words[22 - 3].parse::<u64>().ok()?.saturating_mul(tick_ns),
            rss_pages: count(24)?,
        })
    }
}

/// From the encoding of device numbers towards programs (minor bits split) to `major << 20 | minor`.
fn device(encoded: u32) -> u32 {
    let major = encoded >> 8 & 0xfff;
    let minor = encoded & 0xff | encoded >> 12 & 0xfff00;
    major << 20 | minor
}

/// What is used of `/proc/PID/schedstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedstat {
    pub(crate) run_ns: u64,
    pub(crate) wait_ns: u64,
}

impl Schedstat {
    pub(crate) fn parse(content: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(content).ok()?.split_ascii_whitespace();
        Some(Self { run_ns: words.next()?.parse().ok()?, wait_ns: words.next()?.parse().ok()? })
    }
}

/// What is used of `/proc/PID/status`. A line that is missing leaves its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) uid: u32,
    /// Pid in the innermost namespace.
    pub(crate) inner_pid: Option<u32>,
    /// It has a pid in more than one namespace, seen from here.
    pub(crate) nested: bool,
    pub(crate) nvcsw: u64,
    pub(crate) nivcsw: u64,
}

impl Status {
    pub(crate) fn parse(content: &[u8]) -> Self {
        let mut status = Self::default();
        for line in content.split(|byte| *byte == b'\n') {
            let Some((name, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':')) else { continue };
            let mut words = value.split_ascii_whitespace();
            match name {
                "Uid" => status.uid = words.next().and_then(|word| word.parse().ok()).unwrap_or_default(),
                "NSpid" => {
                    status.nested = words.clone().count() > 1;
                    status.inner_pid = words.next_back().and_then(|word| word.parse().ok());
                }
                "voluntary_ctxt_switches" => status.nvcsw = value.trim().parse().unwrap_or_default(),
                "nonvoluntary_ctxt_switches" => status.nivcsw = value.trim().parse().unwrap_or_default(),
                _ => {}
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &[u8] = b"42 (a) (b) S 7 8 9 34817 -1 4194560 0 0 0 0 150 50 0 0 20 0 3 0 1000 99 1234 18446744073709551615 0";

    #[test]
    fn stat_fields_are_found_behind_a_nasty_name() {
        let stat = Stat::parse(STAT, 10_000_000).unwrap();
        assert_eq!(&stat.comm[..6], b"a) (b\0");
        assert_eq!((stat.state, stat.ppid, stat.pgid, stat.sid, stat.threads), (b'S', 7, 8, 9, 3));
        assert_eq!(stat.tty, 136 << 20 | 1);
        assert_eq!((stat.cpu_ns, stat.start_time_ns, stat.rss_pages), (2_000_000_000, 10_000_000_000, 1234));
    }

    #[test]
    fn device_numbers_with_large_minors() {
        assert_eq!(device(0x0010_8801), 136 << 20 | 0x101);
    }

    #[test]
    fn status_of_a_nested_process() {
        let status = Status::parse(
            b"Name:\tx\nUid:\t1000\t0\t0\t0\nNSpid:\t42\t7\t1\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t6\n",
        );
        assert_eq!(status, Status { uid: 1000, inner_pid: Some(1), nested: true, nvcsw: 5, nivcsw: 6 });
        assert_eq!(Status::parse(b"NSpid:\t42\n").inner_pid, Some(42));
        assert!(!Status::parse(b"NSpid:\t42\n").nested);
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..STAT.len()) {
            for content in [&bytes[..], &STAT[..cut]] {
                let _ = Stat::parse(content, u64::MAX);
                let _ = Schedstat::parse(content);
                let _ = Status::parse(content);
            }
        }
    }
}
