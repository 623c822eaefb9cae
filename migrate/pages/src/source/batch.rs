//! Reading pages of a process and turning them into frames.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use crate::range::{PAGE_BYTES, Range};
use crate::sys;
use crate::wire::{FrameWriter, MAX_RUNS, Run, is_zero, page_hash};

/// Contents read and sent at once: fits the second-level cache beside its packed form.
pub(super) const BATCH_BYTES: u64 = 256 << 10;

/// Hashes of pages that the receiver still has of an earlier visit, by process number and address.
/// Processes are numbered from 0, in the order in which [`super::Source::start`] and [`super::Source::follow`] get them.
pub type Known = HashMap<(u16, u64), u128>;

/// Pages to be sent.
pub(super) type Job = Run;

/// How the pages of a process are read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) pid: i32,
    pub(super) process: u16,
    /// Hashes of what was sent: what is equal is not sent again.
    pub(super) hashes: Option<&'a Mutex<BTreeMap<u64, u128>>>,
    pub(super) known: &'a Known,
}

/// Cuts jobs into batches of at most [`BATCH_BYTES`] and as many pieces as one call reads.
pub(super) fn batches(jobs: &[Job]) -> Vec<Vec<Job>> {
    let mut all: Vec<Vec<Job>> = Vec::new();
    let mut batch: Vec<Job> = Vec::new();
    let mut bytes = 0;
    for job in jobs {
        let mut rest = job.range;
        while !rest.is_empty() {
            let part = Range::new(rest.start, rest.end.min(rest.start + (BATCH_BYTES - bytes)));
            batch.push(Run { range: part, dest: job.dest });
            bytes += part.bytes();
            rest.start = part.end;
            if bytes == BATCH_BYTES || batch.len() == sys::MAX_PIECES {
                all.push(std::mem::take(&mut batch));
                bytes = 0;
            }
        }
    }
    if !batch.is_empty() {
        all.push(batch);
    }
    all
}

/// Frames in the making, of one batch.
#[derive(Debug, Default)]
struct Sorted {
    pages: Vec<Run>,
    zeros: Vec<Run>,
    same: Vec<Run>,
    hashes: Vec<u8>,
}

/// Buffers of one sending thread.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    raw: Vec<u8>,
}

impl Buffers {
    /// Sends a batch. Returns what could not be read.
    pub(super) fn send<W: Write>(&mut self, reader: &Reader<'_>, batch: &[Job], out: &mut FrameWriter<W>) -> io::Result<Vec<Range>> {
        self.raw.resize(BATCH_BYTES as usize, 0);
        let (readable, lost) = self.fill(reader.pid, batch);
        let (sorted, kept) = self.sort(reader, &readable);
        if !sorted.pages.is_empty() {
            out.pages(reader.process, &sorted.pages, &self.raw[..kept])?;
        }
        for zeros in sorted.zeros.chunks(MAX_RUNS) {
            out.zeros(reader.process, zeros)?;
        }
        if !sorted.same.is_empty() {
            out.same(reader.process, &sorted.same, &sorted.hashes)?;
        }
        Ok(lost)
    }

    /// Reads a batch into the buffer, one piece behind the other. Pieces that are gone (unmapped meanwhile) are left out.
    fn fill(&mut self, pid: i32, batch: &[Job]) -> (Vec<Job>, Vec<Range>) {
        let pieces: Vec<Range> = batch.iter().map(|job| job.range).collect();
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes()).sum();
        if matches!(sys::read_memory(pid, &pieces, &mut self.raw), Ok(got) if got as u64 == bytes) {
            return (batch.to_vec(), Vec::new());
        }
        let (mut readable, mut lost) = (Vec::new(), Vec::new());
        let mut at = 0;
        for job in batch {
            for page in job.range.chunks(PAGE_BYTES) {
                let Some(place) = self.raw.get_mut(at..at + PAGE_BYTES as usize) else { continue };
                if matches!(sys::read_memory(pid, &[page], place), Ok(got) if got == place.len()) {
                    add(&mut readable, Run { range: page, dest: job.dest });
                    at += PAGE_BYTES as usize;
                } else {
                    lost.push(page);
                }
            }
        }
        (readable, lost)
    }

    /// Leaves in the buffer only what must be sent as contents; how many bytes that is.
    fn sort(&mut self, reader: &Reader<'_>, jobs: &[Job]) -> (Sorted, usize) {
        let mut sorted = Sorted::default();
        let (mut from, mut kept) = (0, 0);
        for job in jobs {
            for range in job.range.chunks(PAGE_BYTES) {
                let run = Run { range, dest: job.dest };
                let page = &self.raw[from..from + PAGE_BYTES as usize];
                match verdict(reader, range.start, page) {
                    Verdict::Zero => add(&mut sorted.zeros, run),
                    Verdict::Sent => {}
                    Verdict::Known(hash) => {
                        add(&mut sorted.same, run);
                        sorted.hashes.extend_from_slice(&hash.to_le_bytes());
                    }
                    Verdict::Send => {
                        add(&mut sorted.pages, run);
                        if kept != from {
                            self.raw.copy_within(from..from + PAGE_BYTES as usize, kept);
                        }
                        kept += PAGE_BYTES as usize;
                    }
                }
                from += PAGE_BYTES as usize;
            }
        }
        (sorted, kept)
    }
}

enum Verdict {
    Send,
    Zero,
    /// It was sent just so.
    Sent,
    /// The receiver has it of an earlier visit.
    Known(u128),
}

fn verdict(reader: &Reader<'_>, address: u64, page: &[u8]) -> Verdict {
    let known = if reader.known.is_empty() { None } else { reader.known.get(&(reader.process, address)) };
    let zero = is_zero(page);
    if reader.hashes.is_none() && known.is_none() {
        return if zero { Verdict::Zero } else { Verdict::Send };
    }
    let hash = page_hash(page);
    if let Some(hashes) = reader.hashes
        && hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(address, hash) == Some(hash)
    {
        return Verdict::Sent;
    }
    match known {
        _ if zero => Verdict::Zero,
        Some(known) if *known == hash => Verdict::Known(hash),
        _ => Verdict::Send,
    }
}

fn add(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.range.end == run.range.start && last.dest == run.dest => last.range.end = run.range.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Dest;

    #[test]
    fn batches_hold_everything_in_order() {
        let jobs: Vec<Job> = (0..3000u64)
            .map(|n| {
                let start = n * 100 * PAGE_BYTES;
                Run { range: Range::new(start, start + (1 + n % 90) * PAGE_BYTES), dest: Dest::Store }
            })
            .collect();
        let all = batches(&jobs);
        assert!(
            all.iter().all(|batch| batch.len() <= sys::MAX_PIECES && batch.iter().map(|job| job.range.bytes()).sum::<u64>() <= BATCH_BYTES)
        );
        let mut merged: Vec<Job> = Vec::new();
        all.into_iter().flatten().for_each(|job| add(&mut merged, job));
        assert_eq!(merged, jobs);
    }
}
