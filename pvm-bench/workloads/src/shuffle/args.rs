//! `shuffle`'s command line, read by hand: an argument parser would travel with every move.

/// How it is called.
pub const USAGE: &str =
    "usage: shuffle [--mib N] [--seed S] [--steps-per-s R] [--threads T] [--child-ms M] [--steps N (then end by itself)]";

/// Most memory.
const MAX_MIB: u64 = 1 << 14;
/// Most operations a second.
const MAX_STEPS_PER_S: u64 = 1_000_000;
/// Most threads with stacks.
const MAX_THREADS: u32 = 256;
/// Longest life of a forked child.
const MAX_CHILD_MS: u64 = 60_000;

/// What it shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Memory that is mapped about all the time, MiB.
    pub mib: u64,
    /// Start of the random numbers.
    pub seed: u64,
    /// Operations a second; fewer if they take longer.
    pub steps_per_s: u64,
    /// Threads that write to their stacks.
    pub threads: u32,
    /// How long forked children live on beside their parent, ms. With 0 the parent waits for each.
    pub child_ms: u64,
    /// End after so many operations.
    pub steps: Option<u64>,
}

impl Default for Args {
    fn default() -> Self {
        Self { mib: 16, seed: 1, steps_per_s: 1000, threads: 4, child_ms: 0, steps: None }
    }
}

/// Reads the words after the program's name.
///
/// # Errors
/// In words.
pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number: u64 = value.parse().map_err(|_| format!("{word} needs a whole number, not `{value}`"))?;
        let at_most = |most: u64| if number <= most { Ok(number) } else { Err(format!("{word} must be at most {most}")) };
        match word.as_str() {
            "--mib" => args.mib = at_most(MAX_MIB)?.max(1),
            "--seed" => args.seed = number,
            "--steps-per-s" => args.steps_per_s = at_most(MAX_STEPS_PER_S)?.max(1),
            "--threads" => args.threads = at_most(u64::from(MAX_THREADS))? as u32,
            "--child-ms" => args.child_ms = at_most(MAX_CHILD_MS)?,
            "--steps" => args.steps = Some(number),
            _ => return Err(format!("what is `{word}`?")),
        }
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
        assert_eq!(parsed(""), Ok(Args::default()));
        let all = parsed("--mib 64 --seed 7 --steps-per-s 20 --threads 0 --child-ms 5 --steps 9");
        assert_eq!(all, Ok(Args { mib: 64, seed: 7, steps_per_s: 20, threads: 0, child_ms: 5, steps: Some(9) }));
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in ["--mib", "--mib x", "--mib 16385", "--seed -1", "--threads 257", "--child-ms 60001", "--what 1"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
