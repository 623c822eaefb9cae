//! What of a process could change the verdict about it, in a form that is cheap to read and to compare.
//!
//! Judging takes some milliseconds, most of it for looking at all other processes. A process that is judged while it runs and has the
//! same fingerprint when it is frozen need not be judged again in the blackout.

use std::collections::BTreeMap;

use super::{FactsError, Proc};

/// Descriptors, children, directories and the mappings that are not plain memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    descriptors: BTreeMap<i32, (String, String)>,
    children: Vec<i32>,
    links: [String; 3],
    mappings: Vec<String>,
}

impl Fingerprint {
    /// Reads it. Descriptors that are closed meanwhile are left out.
    ///
    /// # Errors
    /// The process has ended, or the kernel does not show it.
    pub fn of(pid: i32) -> Result<Self, FactsError> {
        let proc = Proc { pid };
        let mut descriptors = BTreeMap::new();
        for number in proc.numbers("fd")? {
            let found = proc.link(&format!("fd/{number}")).and_then(|link| Ok((link, proc.text(&format!("fdinfo/{number}"))?)));
            match found {
                Ok((link, info)) => drop(descriptors.insert(number, (link, lasting(&info)))),
                Err(FactsError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut children = Vec::new();
        for thread in proc.numbers("task")? {
            match proc.text(&format!("task/{thread}/children")) {
                Ok(text) => children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
                Err(FactsError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        children.sort_unstable();
        let maps = proc.text("maps")?;
        let mappings = maps.lines().filter(|line| is_telling(line)).map(str::to_owned).collect();
        Ok(Self { descriptors, children, links: [proc.link("cwd")?, proc.link("root")?, proc.link("exe")?], mappings })
    }
}

/// What of `fdinfo` does not change with every read and write.
fn lasting(info: &str) -> String {
    let telling = ["flags:", "mnt_id:", "ino:", "lock:"];
    info.lines().filter(|line| telling.iter().any(|word| line.starts_with(word))).flat_map(|line| [line, "\n"]).collect()
}

/// Shared mappings, and those of devices and of files that are no more.
fn is_telling(line: &str) -> bool {
    let shared = line.split(' ').nth(1).is_some_and(|mode| mode.ends_with('s'));
    shared || line.ends_with(" (deleted)") || line.contains(" /dev/") || line.contains(" /anon_hugepage")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_do_not_count_and_locks_do() {
        let info = |pos, rest: &str| lasting(&format!("pos:\t{pos}\nflags:\t0100002\nmnt_id:\t29\nino:\t5\n{rest}"));
        assert_eq!(info(0, ""), info(77, "eventfd-count: 3\n"));
        assert_ne!(info(0, ""), info(0, "lock:\t1: POSIX  ADVISORY  WRITE 9 fd:00:5 0 EOF\n"));
    }

    #[test]
    fn plain_memory_does_not_count() {
        assert!(!is_telling("7f00-7f10 rw-p 00000000 00:00 0 "));
        assert!(!is_telling("7f00-7f10 r-xp 00000000 08:01 5 /usr/bin/cat"));
        assert!(is_telling("7f00-7f10 rw-s 00000000 00:01 5 /dev/zero (deleted)"));
        assert!(is_telling("7f00-7f10 rw-p 00000000 00:01 5 /dev/mem"));
    }

    #[test]
    fn an_opened_file_shows() {
        let own = i32::try_from(std::process::id()).unwrap();
        let child = std::process::Command::new("sleep").arg("100").spawn();
        let mut child = child.unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(Fingerprint::of(pid).unwrap(), Fingerprint::of(pid).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Fingerprint::of(pid).is_err());
        let before = Fingerprint::of(own).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_ne!(Fingerprint::of(own).unwrap(), before);
        drop(file);
    }
}
