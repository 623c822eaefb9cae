//! What a sample tells of the machine as a whole, and the clocks.

use crate::ProbeError;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use std::{fs::File, os::unix::fs::FileExt};

const MEMINFO: &str = "/proc/meminfo";
/// CPUs come and go rarely; they are counted again after so many samples.
const SAMPLES_PER_CPU_COUNT: u32 = 64;

/// When a reading was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// For periods, in ns: stands still while the machine sleeps, as processes do.
    pub(crate) monotonic_ns: u64,
    /// For ages, in ns since boot.
    pub(crate) boottime_ns: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { monotonic_ns: clock_ns(ClockId::CLOCK_MONOTONIC), boottime_ns: clock_ns(ClockId::CLOCK_BOOTTIME) }
    }
}

fn clock_ns(clock: ClockId) -> u64 {
    // Cannot fail for these clocks; if it did, a period of zero is handled like a first sample.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Facts about the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) memory_total_bytes: u64,
    pub(crate) memory_available_bytes: u64,
    pub(crate) cpus: u32,
}

/// Reads facts about the machine, with one file kept open.
pub(crate) struct MachineReader {
    meminfo: File,
    cpus: u32,
    samples: u32,
}

impl MachineReader {
    pub(crate) fn open() -> Result<Self, ProbeError> {
        let meminfo = File::open(MEMINFO).map_err(|error| ProbeError::read(MEMINFO, error))?;
        Ok(Self { meminfo, cpus: 1, samples: 0 })
    }

    pub(crate) fn read(&mut self) -> Result<Machine, ProbeError> {
        if self.samples.is_multiple_of(SAMPLES_PER_CPU_COUNT) {
            self.cpus = count_cpus();
        }
        self.samples = self.samples.wrapping_add(1);
        // The two values are among the first three lines.
        let mut bytes = [0; 256];
        let length = self.meminfo.read_at(&mut bytes, 0).map_err(|error| ProbeError::read(MEMINFO, error))?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        Ok(Machine {
            memory_total_bytes: memory_value(&text, "MemTotal:")?,
            memory_available_bytes: memory_value(&text, "MemAvailable:")?,
            cpus: self.cpus,
        })
    }
}

fn count_cpus() -> u32 {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|count| u32::try_from(count).ok()).unwrap_or(1).max(1)
}

fn memory_value(text: &str, name: &str) -> Result<u64, ProbeError> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    kilobytes.map(|value| value * 1024).ok_or_else(|| ProbeError::content(MEMINFO, format!("no {name}")))
}

/// Bytes in a page.
pub(crate) fn page_bytes() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

/// Clock ticks per second in the files of `/proc`.
pub(crate) fn ticks_per_second() -> u64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_value_says_what_is_missing() {
        assert_eq!(memory_value("MemTotal:   2 kB\nMemFree: 1 kB", "MemTotal:").unwrap(), 2048);
        assert!(memory_value("MemTotal: x kB", "MemTotal:").unwrap_err().to_string().contains("no MemTotal:"));
    }

    #[test]
    fn the_machine_has_memory_and_cpus() {
        let machine = MachineReader::open().unwrap().read().unwrap();
        assert!(machine.memory_total_bytes > machine.memory_available_bytes);
        assert!(machine.memory_available_bytes > 0 && machine.cpus > 0);
    }
}
