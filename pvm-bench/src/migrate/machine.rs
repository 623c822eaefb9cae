//! What the kernel says of the machine.

use std::time::Duration;

/// Kernel release.
pub(crate) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()
}

/// The machine's load averages.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Memory that can be had without swapping; `None` if the kernel does not say.
pub(crate) fn memory_available_bytes() -> Option<u64> {
    meminfo_bytes("MemAvailable")
}

/// A line of `/proc/meminfo`.
pub(crate) fn meminfo_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Share of all CPUs that is used during the next second; 0 if the kernel does not say.
pub(crate) fn busy_share() -> f64 {
    let before = cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    before.zip(cpu_ticks()).map_or(0.0, |(before, after)| share(before, after))
}

fn share((busy, all): (u64, u64), (busy_later, all_later): (u64, u64)) -> f64 {
    let (busy, all) = (busy_later.saturating_sub(busy), all_later.saturating_sub(all));
    if all == 0 { 0.0 } else { busy as f64 / all as f64 }
}

/// Busy and all ticks of all CPUs since the start.
fn cpu_ticks() -> Option<(u64, u64)> {
    parse_ticks(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_ticks(text: &str) -> Option<(u64, u64)> {
    // user nice system idle iowait irq softirq steal; what guests use is in the first two.
    let ticks: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_split_into_busy_and_idle() {
        let first = parse_ticks("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 ...").unwrap();
        assert_eq!(first, (20, 100));
        assert!((share(first, (30, 140)) - 0.25).abs() < 1e-9);
        assert!(share(first, first).abs() < 1e-9);
        assert_eq!(parse_ticks(""), None);
    }

    #[test]
    fn the_machine_tells() {
        assert_eq!(load_average().split(' ').count(), 3);
        assert!(memory_available_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(!kernel().is_empty() && meminfo_bytes("NoSuchLine").is_none());
    }
}
