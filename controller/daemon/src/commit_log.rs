//! The commit log of this home: one JSON line for each record of the commit protocol, written before it is acted upon.
//!
//! It answers one question, after a crash of this daemon: may a body that is found frozen run on? (Yes, unless its last record says Committed.)
//! A plain write survives the daemon, which is what counts: if the machine dies, the frozen body dies with it. It is emptied when nothing is under way.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result};
use mosix_engine::commit::{Record, Stamp};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    stamp: Stamp,
    record: Record,
}

/// Epoch and kind of the last record of each group.
pub(crate) type LastRecords = BTreeMap<u64, (u32, Record)>;

/// The open log.
#[derive(Debug)]
pub(crate) struct CommitLog(File);

impl CommitLog {
    /// Opens it, returning the last record of each group of the run before.
    pub(crate) fn open(path: &Path) -> Result<(Self, LastRecords)> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot open the commit log {}", path.display()))?;
        let mut last = BTreeMap::new();
        for line in BufReader::new(&file).lines() {
            // The last line may be cut by a crash; it was not acted upon then.
            let Ok(line) = serde_json::from_str::<Line>(&line.context("cannot read the commit log")?) else { continue };
            last.insert(line.stamp.group, (line.stamp.epoch, line.record));
        }
        Ok((Self(file), last))
    }

    /// Appends a record; on an error it must not be acted upon.
    pub(crate) fn write(&mut self, stamp: Stamp, record: Record) -> Result<()> {
        let mut text = serde_json::to_string(&Line { stamp, record })?;
        text.push('\n');
        self.0.write_all(text.as_bytes()).context("cannot write the commit log")
    }

    /// Forgets everything; only while no move is under way.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.0.set_len(0).context("cannot empty the commit log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_of_each_group_counts_and_a_cut_line_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, last) = CommitLog::open(&path).unwrap();
        assert!(last.is_empty());
        log.write(Stamp { group: 1, epoch: 1 }, Record::Committed).unwrap();
        log.write(Stamp { group: 1, epoch: 2 }, Record::Aborted).unwrap();
        log.write(Stamp { group: 2, epoch: 1 }, Record::Committed).unwrap();
        log.0.write_all(b"{\"stamp\":{\"gro").unwrap();
        let (_, last) = CommitLog::open(&path).unwrap();
        assert_eq!(last[&1], (2, Record::Aborted));
        assert_eq!(last[&2], (1, Record::Committed));
    }
}
