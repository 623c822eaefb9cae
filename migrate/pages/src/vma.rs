//! The mappings of a process, and whose business the pages of each are.
//!
//! `/proc/PID/maps` is cheap at any size, but says nothing of the flags which decide where pages can go. `smaps` does, and walks
//! all page tables for it: 13 ms/GiB and more. So `smaps` is read once, and then only when `maps` and what was known before leave
//! a doubt ([`with_known_flags`]).

use std::io;

use crate::range::Range;

/// Most mappings of a process that are looked at; beyond twice the kernel's default limit something is wrong.
pub const MAX_VMAS: usize = 1 << 17;

/// The mapping of the code that CRIU runs in a process while it dumps it, as seen by who looks meanwhile. It is gone before the process goes on.
const CRIUS_OWN: &str = "/memfd:CRIUMFD";

/// The `VmFlags` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// `gd`: grows downward.
    pub grows_down: bool,
    /// `lo`: locked in memory.
    pub locked: bool,
    /// `nr`: swap space is not reserved.
    pub no_reserve: bool,
    /// `ht`: huge pages of hugetlbfs.
    pub huge_tlb: bool,
    /// `io`, `pf` or `mm`: memory of a device.
    pub device: bool,
    /// `dp`: the kernel may drop it (MAP_DROPPABLE), or `ss`: shadow stack.
    pub special: bool,
}

impl Flags {
    fn parse(words: &str) -> Flags {
        let mut flags = Flags::default();
        for word in words.split_ascii_whitespace() {
            match word {
                "gd" => flags.grows_down = true,
                "lo" => flags.locked = true,
                "nr" => flags.no_reserve = true,
                "ht" => flags.huge_tlb = true,
                "io" | "pf" | "mm" => flags.device = true,
                "dp" | "ss" => flags.special = true,
                _ => {}
            }
        }
        flags
    }
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range,
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file as `maps` writes it, `00:00` if there is none.
    pub device: String,
    /// Inode of the file, 0 if there is none.
    pub inode: u64,
    /// Path or `[name]`; empty if there is none.
    pub name: String,
    /// What `smaps` says besides. `None`: not known.
    pub flags: Option<Flags>,
}

/// Whose business the pages of a mapping are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Private anonymous memory that a window can take.
    Anonymous,
    /// Private memory whose own pages go to the store: files' changed pages, stacks that grow, locked memory.
    Private,
    /// The vdso: all of it goes to the store, once.
    Vdso,
    /// Anonymous, but not readable: whatever is in it is saved by the restorer (CRIU) itself.
    Unreadable,
    /// Shared memory without a file system: a segment of its own.
    SharedMemory,
    /// Everything else: devices, shared files, huge pages of hugetlbfs, what the kernel makes.
    NotOurs,
}

impl Vma {
    /// No file behind it.
    pub fn is_anonymous(&self) -> bool {
        self.inode == 0 && !self.shared && (!self.name.starts_with('[') || self.name == "[heap]" || self.name.starts_with("[anon:"))
    }

    /// Whose business its pages are. Unknown flags count as none set.
    pub fn class(&self) -> Class {
        let flags = self.flags.unwrap_or_default();
        if flags.device || flags.huge_tlb || flags.special || self.name == "[vsyscall]" || self.name.starts_with("[vvar") {
            return Class::NotOurs;
        }
        if self.shared {
            return if self.is_shared_memory() { Class::SharedMemory } else { Class::NotOurs };
        }
        match (self.name.as_str(), self.read) {
            ("[vdso]", _) => Class::Vdso,
            (_, false) => Class::Unreadable,
            _ if self.is_anonymous() && !flags.grows_down && !flags.locked => Class::Anonymous,
            _ => Class::Private,
        }
    }

    fn is_shared_memory(&self) -> bool {
        let names = ["/dev/zero (deleted)", "[anon_shmem:", "/memfd:", "/SYSV", "/dev/shm/"];
        self.inode != 0 && names.iter().any(|name| self.name.starts_with(name))
    }
}

/// Reads `/proc/PID/maps`: no flags.
///
/// # Errors
/// From reading it; more than [`MAX_VMAS`] mappings.
pub fn read_maps(pid: i32) -> io::Result<Vec<Vma>> {
    parse(&std::fs::read(format!("/proc/{pid}/maps"))?)
}

/// Reads `/proc/PID/smaps`: with flags, at 13 ms/GiB.
///
/// # Errors
/// As [`read_maps`].
pub fn read_smaps(pid: i32) -> io::Result<Vec<Vma>> {
    parse(&std::fs::read(format!("/proc/{pid}/smaps"))?)
}

/// Locked memory of a process, KiB: tells of `mlock` at no cost.
///
/// # Errors
/// From reading `/proc/PID/status`.
pub fn locked_kib(pid: i32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    value.ok_or_else(|| io::Error::other("no VmLck in its status"))
}

/// Gives each mapping the flags of the known ones that it overlaps. `false`: some are uncertain, because a mapping overlaps none
/// or differing ones, or because a known one was split for no reason that could be seen.
pub fn with_known_flags(vmas: &mut [Vma], known: &[Vma]) -> bool {
    let is_split = |pair: &[Vma]| match pair {
        [one, other] => {
            let modes = (one.read, one.write, one.exec) == (other.read, other.write, other.exec);
            let border = Range::new(one.range.end.saturating_sub(1), one.range.end + 1);
            let inside =
                known.get(known.partition_point(|vma| vma.range.end <= border.start)).is_some_and(|vma| vma.range.contains(border));
            one.range.end == other.range.start && modes && same_kind(one, other) && inside
        }
        _ => false,
    };
    let mut all = !vmas.windows(2).any(is_split);
    for vma in vmas {
        let first = known.partition_point(|other| other.range.end <= vma.range.start);
        let behind = known.get(first..).unwrap_or_default();
        let mut over = behind.iter().take_while(|other| other.range.start < vma.range.end);
        vma.flags = over.next().filter(|other| same_kind(other, vma)).and_then(|other| other.flags);
        let flags = vma.flags;
        all &= flags.is_some() && over.all(|other| other.flags == flags && same_kind(other, vma));
    }
    all
}

fn same_kind(one: &Vma, other: &Vma) -> bool {
    (one.shared, one.inode, &one.device, one.is_anonymous()) == (other.shared, other.inode, &other.device, other.is_anonymous())
}

fn parse(text: &[u8]) -> io::Result<Vec<Vma>> {
    let text = String::from_utf8_lossy(text);
    let mut vmas: Vec<Vma> = Vec::new();
    let mut foreign = false;
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("VmFlags:") {
            if let Some(vma) = vmas.last_mut().filter(|_| !foreign) {
                vma.flags = Some(Flags::parse(words));
            }
        } else if let Some(vma) = parse_line(line) {
            foreign = vma.name.starts_with(CRIUS_OWN);
            if foreign {
                continue;
            }
            if vmas.len() == MAX_VMAS {
                return Err(io::Error::other(format!("more than {MAX_VMAS} mappings")));
            }
            vmas.push(vma);
        }
    }
    Ok(vmas)
}

/// A line of `maps`; `None` for the other lines of `smaps`, and for `[vsyscall]`, which lies outside of user addresses.
fn parse_line(line: &str) -> Option<Vma> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let range = Range::checked(hex(start)?, hex(end)?)?;
    let mode = words.next()?.as_bytes();
    let [read, write, exec, shared] = *mode else { return None };
    let (offset, device) = (hex(words.next()?)?, words.next()?.to_owned());
    let inode = words.next()?.parse().ok()?;
    let name = words.next().unwrap_or_default().trim_start().to_owned();
    Some(Vma {
        range,
        read: read == b'r',
        write: write == b'w',
        exec: exec == b'x',
        shared: shared == b's',
        offset,
        device,
        inode,
        name,
        flags: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00401000 r-xp 00000000 08:01 12                                 /usr/bin/a b
Size:                  4 kB
VmFlags: rd ex mr mw me
01000000-01100000 rw-p 00000000 00:00 0                                  [heap]
Rss:                  12 kB
VmFlags: rd wr mr mw me ac nr
7f0000000000-7f0000100000 ---p 00000000 00:00 0
VmFlags: mr mw me nr
7f0000200000-7f0000300000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms
7f0000400000-7f0000500000 rw-p 00000000 00:00 0                          [anon:arena]
VmFlags: rd wr mr mw me lo
7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
7ffff0100000-7ffff0104000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd
7ffff0104000-7ffff0106000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn what_criu_maps_for_its_dump_is_not_the_programs() {
        let own =
            "7f0000000000-7f0000002000 rwxs 00000000 00:01 99                        /memfd:CRIUMFD (deleted)\nVmFlags: rd wr ex sh\n";
        assert_eq!(parse(format!("{SMAPS}{own}").as_bytes()).unwrap(), parse(SMAPS.as_bytes()).unwrap());
    }

    #[test]
    fn classes() {
        let vmas = parse(SMAPS.as_bytes()).unwrap();
        let classes: Vec<Class> = vmas.iter().map(Vma::class).collect();
        use Class::*;
        assert_eq!(classes, [Private, Anonymous, Unreadable, SharedMemory, Private, Private, NotOurs, Vdso]);
        assert_eq!(vmas[0].name, "/usr/bin/a b");
        assert!(vmas[1].flags.unwrap().no_reserve && vmas[4].flags.unwrap().locked);
    }

    #[test]
    fn flags_are_taken_over_where_they_are_certain() {
        let known = parse(SMAPS.as_bytes()).unwrap();
        let grown = "01000000-01200000 rw-p 00000000 00:00 0 [heap]\n7f0000000000-7f0000080000 rw-p 00000000 00:00 0\n";
        let mut vmas = parse(grown.as_bytes()).unwrap();
        assert!(with_known_flags(&mut vmas, &known));
        assert!(vmas.iter().all(|vma| vma.flags.unwrap().no_reserve));
        for unknown in
            ["02000000-02200000 rw-p 0 00:00 0 \n", "01000000-7f0000400000 rw-p 0 00:00 0 \n", "01000000-01100000 rw-p 0 08:01 9 /x\n"]
        {
            let mut vmas = parse(unknown.as_bytes()).unwrap();
            assert!(!with_known_flags(&mut vmas, &known), "{unknown}");
        }
    }

    #[test]
    fn own_maps_and_smaps_agree() {
        let pid = std::process::id() as i32;
        let full = read_smaps(pid).unwrap();
        assert!(full.iter().all(|vma| vma.flags.is_some()));
        assert!(full.iter().any(|vma| vma.class() == Class::Vdso) && full.iter().any(|vma| vma.class() == Class::Anonymous));
        assert!(read_maps(pid).unwrap().iter().any(|vma| vma.name == "[stack]" && vma.flags.is_none()));
    }
}
