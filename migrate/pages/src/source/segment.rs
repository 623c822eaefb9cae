//! Shared memory of the group: anonymous, memfd, System V, POSIX.
//!
//! A segment is known by the device and inode of its object, whoever maps it, and is sent once. What changed is found by
//! contents: page tables cannot tell, because a process may map, write and unmap between two looks, or write to a descriptor.
//! So the freeze reads all of it, 0.2 to 0.4 s per GiB; only what differs is sent. It is read through
//! `/proc/PID/map_files`, which works for unlinked objects too and needs CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::member::Member;
use super::{FinalSegment, Outlet, SourceError};
use crate::range::{PAGE_BYTES, Range};
use crate::vma::{Class, Vma};
use crate::window::Dest;
use crate::wire::{FrameWriter, Run, is_zero, page_hash};

/// Contents read and sent at once.
const CHUNK_BYTES: u64 = 256 << 10;
/// Most segments of a group.
const MAX_SEGMENTS: usize = 4096;

type Key = (String, u64);

#[derive(Debug, Default)]
pub(super) struct Segments {
    all: BTreeMap<Key, Segment>,
    next_id: u32,
}

#[derive(Debug)]
struct Segment {
    id: u32,
    name: String,
    file: File,
    bytes: u64,
    /// By offset: hash of what was sent, if it was not zero.
    sent: BTreeMap<u64, u128>,
}

impl Segments {
    /// Finds and announces segments. Tells whether there were new ones.
    pub(super) fn look<W: Write + Send>(&mut self, members: &[Member], out: &mut Outlet<W>) -> Result<bool, SourceError> {
        let mut any = false;
        let mut seen = BTreeSet::new();
        for member in members {
            for vma in member.vmas().iter().filter(|vma| vma.class() == Class::SharedMemory) {
                let key = (vma.device.clone(), vma.inode);
                if !seen.insert(key.clone()) {
                    continue;
                }
                if !self.all.contains_key(&key) {
                    let segment = Segment::open(self.next_id, member.pid, vma).map_err(failed(&vma.name))?;
                    if self.all.len() >= MAX_SEGMENTS {
                        return Err(failed(&vma.name)(io::Error::other("more than 4096 segments")));
                    }
                    self.next_id += 1;
                    self.all.insert(key.clone(), segment);
                }
                if let Some(segment) = self.all.get_mut(&key) {
                    any |= segment.announce(out)?;
                }
            }
        }
        self.all.retain(|key, _| seen.contains(key));
        Ok(any)
    }

    /// Sends what changed; how many bytes that was. `last`: everything must be readable.
    pub(super) fn send<W: Write + Send>(&mut self, out: &mut Outlet<W>, last: bool) -> Result<u64, SourceError> {
        let mut bytes = 0;
        for segment in self.all.values_mut() {
            bytes += segment.send(out.first(), last)?;
        }
        Ok(bytes)
    }

    pub(super) fn all(&self) -> Vec<FinalSegment> {
        let of = |(key, segment): (&Key, &Segment)| FinalSegment { id: segment.id, key: key.clone(), bytes: segment.bytes };
        self.all.iter().map(of).collect()
    }
}

impl Segment {
    fn open(id: u32, pid: i32, vma: &Vma) -> io::Result<Segment> {
        let file = File::open(format!("/proc/{pid}/map_files/{}", vma.range))?;
        Ok(Segment { id, name: vma.name.clone(), file, bytes: 0, sent: BTreeMap::new() })
    }

    fn announce<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<bool, SourceError> {
        let bytes = self.file.metadata().map_err(failed(&self.name))?.len().next_multiple_of(PAGE_BYTES);
        let new = bytes != self.bytes && bytes > 0;
        if new {
            out.first().segment(self.id, bytes).map_err(SourceError::Link)?;
            self.sent.split_off(&bytes); // cut off: zero if it grows again
        }
        self.bytes = bytes;
        Ok(new)
    }

    fn send<W: Write>(&mut self, out: &mut FrameWriter<W>, last: bool) -> Result<u64, SourceError> {
        let mut before = std::mem::take(&mut self.sent);
        let mut raw = vec![0; CHUNK_BYTES as usize];
        let (mut changed, mut at) = (0, 0);
        while let Some(data) = self.data_after(at).map_err(failed(&self.name))? {
            at = data.end;
            for chunk in data.chunks(CHUNK_BYTES) {
                match self.read(chunk, &mut raw) {
                    Ok(()) => changed += self.send_chunk(chunk, &mut raw, &mut before, out)?,
                    // it became shorter meanwhile: the next round sees that
                    Err(error) if !last && error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => return Err(failed(&self.name)(error)),
                }
            }
        }
        // what had contents and has none any more
        let end = self.bytes;
        let emptied = before.into_keys().filter(|at| *at < end).map(|at| self.run(at)).collect::<Vec<_>>();
        for runs in emptied.chunks(crate::wire::MAX_RUNS) {
            out.zeros(0, runs).map_err(SourceError::Link)?;
        }
        Ok(changed)
    }

    fn run(&self, at: u64) -> Run {
        Run { range: Range::new(at, at + PAGE_BYTES), dest: Dest::Segment(self.id) }
    }

    /// Sends the changed pages of a chunk. What is in `sent` afterwards is left out of `before`.
    fn send_chunk<W: Write>(
        &mut self,
        chunk: Range,
        raw: &mut [u8],
        before: &mut BTreeMap<u64, u128>,
        out: &mut FrameWriter<W>,
    ) -> Result<u64, SourceError> {
        let (mut runs, mut kept) = (Vec::new(), 0);
        for (index, page) in chunk.chunks(PAGE_BYTES).enumerate() {
            let from = index * PAGE_BYTES as usize;
            let bytes = &raw[from..from + PAGE_BYTES as usize];
            if is_zero(bytes) {
                continue; // stays in `before`, if it was something else
            }
            let hash = page_hash(bytes);
            self.sent.insert(page.start, hash);
            if before.remove(&page.start) != Some(hash) {
                runs.push(self.run(page.start));
                raw.copy_within(from..from + PAGE_BYTES as usize, kept);
                kept += PAGE_BYTES as usize;
            }
        }
        if !runs.is_empty() {
            out.pages(0, &runs, &raw[..kept]).map_err(SourceError::Link)?;
        }
        Ok(kept as u64)
    }

    fn read(&self, chunk: Range, raw: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(&mut raw[..chunk.bytes() as usize], chunk.start)
    }

    /// The next stretch that is not a hole.
    fn data_after(&self, at: u64) -> io::Result<Option<Range>> {
        let Some(start) = seek(&self.file, at, libc::SEEK_DATA)? else { return Ok(None) };
        let end = seek(&self.file, start, libc::SEEK_HOLE)?.unwrap_or(self.bytes);
        let range = Range::new(start / PAGE_BYTES * PAGE_BYTES, end.next_multiple_of(PAGE_BYTES).min(self.bytes));
        Ok((!range.is_empty()).then_some(range))
    }
}

/// `lseek`; `None` behind the last data.
fn seek(file: &File, at: u64, whence: i32) -> io::Result<Option<u64>> {
    let found = crate::sys::seek(file.as_raw_fd(), at as i64, whence);
    match found {
        Ok(found) => Ok(Some(found as u64)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(name: &str) -> impl FnOnce(io::Error) -> SourceError {
    let name = name.to_owned();
    move |source| SourceError::Shared { name, source }
}
