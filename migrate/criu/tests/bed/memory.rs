//! The memory of a process, seen from outside: mappings, existing pages, contents. Plays the part of the page transport.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

use mosix_criu::images::pagemap::{Place, Run};
use mosix_criu::{Region, WaitingRestore};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

const PAGE_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 1 << 20;

/// A mapping in smaps.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub flags: Vec<String>,
    anonymous: bool,
    readable: bool,
    name: String,
}

impl Mapping {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|have| have == flag)
    }

    /// Could be a region: the locked one as well, to see what becomes of it.
    fn suits(&self) -> bool {
        self.anonymous
            && self.readable
            && !self.name.starts_with("[stack")
            && !self.name.starts_with("[v")
            && !["gd", "ht", "io", "pf"].iter().any(|flag| self.has(flag))
    }
}

pub fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "VmFlags:" {
            if let Some(last) = found.last_mut() {
                last.flags = words.map(str::to_owned).collect();
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let (rights, rest): (&str, Vec<&str>) = (words.next().unwrap_or_default(), words.collect());
            found.push(Mapping {
                start: u64::from_str_radix(start, 16).unwrap(),
                end: u64::from_str_radix(end, 16).unwrap(),
                flags: Vec::new(),
                anonymous: rest.get(2) == Some(&"0") && rights.ends_with('p'),
                readable: rights.starts_with('r'),
                name: rest.get(3).unwrap_or(&"").to_string(),
            });
        }
    }
    found
}

/// A region for each mapping that suits.
pub fn regions(pid: i32, smaps: &str) -> Vec<Region> {
    let suits = mappings(smaps).into_iter().filter(Mapping::suits);
    suits.map(|m| Region { pid, start: m.start, length_bytes: m.end - m.start, no_reserve: m.has("nr"), copy_only: false }).collect()
}

/// Existing pages of a range: from pagemap, present or swapped.
pub fn existing(pid: i32, start: u64, end: u64, place: Place) -> Vec<Run> {
    let file = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut entries = vec![0; ((end - start) / PAGE_BYTES * 8) as usize];
    file.read_exact_at(&mut entries, start / PAGE_BYTES * 8).unwrap();
    let mut runs: Vec<Run> = Vec::new();
    for (entry, at) in entries.chunks(8).zip((start..).step_by(PAGE_BYTES as usize)) {
        if u64::from_le_bytes(entry.try_into().unwrap()) >> 62 == 0 {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end() == at => last.pages += 1,
            _ => runs.push(Run::placed(at, 1, place)),
        }
    }
    runs
}

/// Where a region's memory is.
pub struct Filled {
    pub region: Region,
    pub address: u64,
}

/// Asks for the regions.
pub fn add_all(waiting: &WaitingRestore, regions: &[Region]) -> Vec<Filled> {
    regions.iter().map(|region| Filled { region: *region, address: waiting.add_region(region).unwrap() }).collect()
}

/// Copies existing pages of all regions from the original into the waiting restore; returns the list of them.
pub fn fill(waiting: i32, filled: &[Filled]) -> Vec<Run> {
    let mut all = Vec::new();
    for Filled { region, address } in filled {
        let runs = existing(region.pid, region.start, region.start + region.length_bytes, Place::Region);
        for run in &runs {
            copy(region.pid, run, |at, bytes| write_to(waiting, address + (at - region.start), bytes));
        }
        all.extend(runs);
    }
    all
}

fn write_to(pid: i32, address: u64, bytes: &[u8]) {
    let remote = RemoteIoVec { base: address as usize, len: bytes.len() };
    assert_eq!(process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(bytes)], &[remote]).unwrap(), bytes.len());
}

/// Reads a run from a process in chunks.
pub fn copy(pid: i32, run: &Run, mut each: impl FnMut(u64, &[u8])) {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut at = run.start;
    while at < run.end() {
        let length = (run.end() - at).min(CHUNK_BYTES) as usize;
        let part = &mut buffer[..length];
        let remote = RemoteIoVec { base: at as usize, len: length };
        let read = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(part)], &[remote]);
        if read != Ok(length) {
            // Without read permission: as the kernel's debugger interface.
            File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(part, at).unwrap();
        }
        each(at, part);
        at += length as u64;
    }
}

/// Copies runs to a store whose offsets are addresses.
pub fn store(pid: i32, runs: impl Iterator<Item = Run>, store: &std::path::Path) {
    let file = File::options().write(true).open(store).unwrap();
    for run in runs {
        copy(pid, &run, |at, bytes| file.write_all_at(bytes, at).unwrap());
    }
}
