//! `churn`'s command line, read by hand: an argument parser would travel with every move.

/// How it is called.
pub const USAGE: &str = "usage: churn --mib N [--rate-mib-s R] [--threads T] [--walk-mib W] [--verify]";

/// Most memory: what a lab's machine can have.
const MAX_MIB: u64 = 1 << 20;
/// Fastest writing, MiB/s: far beyond memory.
const MAX_RATE: f64 = 1e5;
/// Most writers.
const MAX_THREADS: u32 = 256;

/// What it shall do.
#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    /// Memory, MiB.
    pub mib: u64,
    /// Written to random pages by all writers together, MiB/s.
    pub rate_mib_s: f64,
    /// Writers.
    pub threads: u32,
    /// Memory that one more thread walks through, MiB; without it there is no such thread.
    pub walk_mib: u64,
    /// Check all pages at every report, not just the next slice of them.
    pub verify: bool,
}

/// Reads the words after the program's name.
///
/// # Errors
/// In words.
pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args { mib: 0, rate_mib_s: 0.0, threads: 1, walk_mib: 0, verify: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--mib" => args.mib = value()?.parse().map_err(|_| "--mib needs a whole number".to_owned())?,
            "--rate-mib-s" => args.rate_mib_s = value()?.parse().map_err(|_| "--rate-mib-s needs a number".to_owned())?,
            "--threads" => args.threads = value()?.parse().map_err(|_| "--threads needs a whole number".to_owned())?,
            "--walk-mib" => args.walk_mib = value()?.parse().map_err(|_| "--walk-mib needs a whole number".to_owned())?,
            "--verify" => args.verify = true,
            _ => return Err(format!("what is `{word}`?")),
        }
    }
    if !(1..=MAX_MIB).contains(&args.mib) {
        return Err(format!("--mib must be within 1 and {MAX_MIB}"));
    }
    if args.walk_mib > MAX_MIB {
        return Err(format!("--walk-mib must be at most {MAX_MIB}"));
    }
    if !(0.0..=MAX_RATE).contains(&args.rate_mib_s) {
        return Err(format!("--rate-mib-s must be within 0 and {MAX_RATE}"));
    }
    if !(1..=MAX_THREADS).contains(&args.threads) {
        return Err(format!("--threads must be within 1 and {MAX_THREADS}"));
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn good_lines() {
        assert_eq!(parsed("--mib 4"), Ok(Args { mib: 4, rate_mib_s: 0.0, threads: 1, walk_mib: 0, verify: false }));
        let all = parsed("--verify --threads 32 --mib 64 --rate-mib-s 12.5 --walk-mib 8");
        assert_eq!(all, Ok(Args { mib: 64, rate_mib_s: 12.5, threads: 32, walk_mib: 8, verify: true }));
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in [
            "",
            "--mib",
            "--mib 0",
            "--mib x",
            "--mib 4 --rate-mib-s -1",
            "--mib 4 --rate-mib-s NaN",
            "--mib 4 --threads 0",
            "--mib 4 --walk-mib -1",
            "--mib 4 --walk-mib 9999999",
            "--mib 4 --what",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
