//! The sending end of one stream.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use super::codec::{Choice, Codec};
use super::rate::Limit;
use super::{HEAD_BYTES, Kind, MAGIC, MAX_RAW_BYTES, MAX_RUNS, Run, VERSION};
use crate::range::Range;
use crate::window::{Dest, Window};

/// What went over one stream, or all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Contents before packing.
    pub raw_bytes: u64,
    /// Pages with contents.
    pub pages: u64,
    /// Pages sent as "zero".
    pub zero_pages: u64,
    /// Pages the receiver had already.
    pub same_pages: u64,
    /// Time spent packing, microseconds.
    pub packing_us: u64,
    /// Time spent writing, microseconds.
    pub writing_us: u64,
    /// Frames packed by LZ4.
    pub lz4_frames: u64,
    /// Frames packed by Zstandard.
    pub zstd_frames: u64,
}

impl Counters {
    /// What came on top since `before`.
    #[must_use]
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            wire_bytes: self.wire_bytes.saturating_sub(before.wire_bytes),
            raw_bytes: self.raw_bytes.saturating_sub(before.raw_bytes),
            pages: self.pages.saturating_sub(before.pages),
            zero_pages: self.zero_pages.saturating_sub(before.zero_pages),
            same_pages: self.same_pages.saturating_sub(before.same_pages),
            packing_us: self.packing_us.saturating_sub(before.packing_us),
            writing_us: self.writing_us.saturating_sub(before.writing_us),
            lz4_frames: self.lz4_frames.saturating_sub(before.lz4_frames),
            zstd_frames: self.zstd_frames.saturating_sub(before.zstd_frames),
        }
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.wire_bytes += other.wire_bytes;
        self.raw_bytes += other.raw_bytes;
        self.pages += other.pages;
        self.zero_pages += other.zero_pages;
        self.same_pages += other.same_pages;
        self.packing_us += other.packing_us;
        self.writing_us += other.writing_us;
        self.lz4_frames += other.lz4_frames;
        self.zstd_frames += other.zstd_frames;
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    out: W,
    choice: Choice,
    limit: Option<Arc<Limit>>,
    packed: Vec<u8>,
    head: Vec<u8>,
    counters: Counters,
}

impl<W: Write> FrameWriter<W> {
    /// Begins stream number `stream` of `streams`.
    ///
    /// # Errors
    /// From writing.
    pub fn begin(mut out: W, stream: u16, streams: u16, codec: Option<Codec>, limit: Option<Arc<Limit>>) -> io::Result<FrameWriter<W>> {
        let mut preface = MAGIC.to_vec();
        for number in [VERSION, stream, streams, 0] {
            preface.extend_from_slice(&number.to_le_bytes());
        }
        out.write_all(&preface)?;
        let counters = Counters { wire_bytes: preface.len() as u64, ..Counters::default() };
        Ok(FrameWriter { out, choice: Choice::new(codec), limit, packed: Vec::new(), head: Vec::new(), counters })
    }

    /// Sends contents: `raw` holds the pages of `runs` one behind the other. At most [`MAX_RUNS`] and [`MAX_RAW_BYTES`].
    ///
    /// # Errors
    /// From writing; the stream cannot be used any more.
    pub fn pages(&mut self, process: u16, runs: &[Run], raw: &[u8]) -> io::Result<()> {
        let codec = self.choice.pick();
        let started = Instant::now();
        let mut packed = std::mem::take(&mut self.packed);
        let smaller = codec.pack(raw, &mut packed);
        let packing = started.elapsed();
        let (used, payload) = if smaller { (codec, packed.as_slice()) } else { (Codec::Plain, raw) };
        let before = self.counters.writing_us;
        let result = self.frame(Kind::Pages, used as u8, process, runs, payload, raw.len());
        let writing = std::time::Duration::from_micros(self.counters.writing_us - before);
        self.choice.observe(codec, raw.len(), payload.len(), packing, writing);
        self.counters.packing_us += packing.as_micros() as u64;
        self.counters.raw_bytes += raw.len() as u64;
        self.counters.pages += pages(runs);
        self.counters.lz4_frames += u64::from(used == Codec::Lz4);
        self.counters.zstd_frames += u64::from(used == Codec::Zstd);
        self.packed = packed;
        result
    }

    /// Says that pages are zero.
    ///
    /// # Errors
    /// From writing.
    pub fn zeros(&mut self, process: u16, runs: &[Run]) -> io::Result<()> {
        self.counters.zero_pages += pages(runs);
        self.frame(Kind::Zeros, 0, process, runs, &[], 0)
    }

    /// Says that the receiver has pages already, with these hashes, one a page.
    ///
    /// # Errors
    /// From writing.
    pub fn same(&mut self, process: u16, runs: &[Run], hashes: &[u8]) -> io::Result<()> {
        self.counters.same_pages += pages(runs);
        self.frame(Kind::Same, 0, process, runs, hashes, hashes.len())
    }

    /// Announces a window.
    ///
    /// # Errors
    /// From writing.
    pub fn window(&mut self, process: u16, window: &Window) -> io::Result<()> {
        let run = Run { range: window.range, dest: Dest::Window(window.id) };
        self.frame(Kind::Window, u8::from(window.no_reserve), process, &[run], &[], 0)
    }

    /// Announces a shared segment of `bytes` (whole pages).
    ///
    /// # Errors
    /// From writing.
    pub fn segment(&mut self, id: u32, bytes: u64) -> io::Result<()> {
        self.frame(Kind::Segment, 0, 0, &[Run { range: Range::new(0, bytes), dest: Dest::Segment(id) }], &[], 0)
    }

    /// Sends the whole list of a process's pages, in as many frames as it needs.
    ///
    /// # Errors
    /// From writing.
    pub fn presence(&mut self, process: u16, runs: &[Run]) -> io::Result<()> {
        for part in runs.chunks(MAX_RUNS) {
            self.frame(Kind::Present, 0, process, part, &[], 0)?;
        }
        self.frame(Kind::Complete, 0, process, &[], &pages(runs).to_le_bytes(), 8)
    }

    /// A frame without runs and payload: process, gone, round (with its number), cancel, end.
    ///
    /// # Errors
    /// From writing.
    pub fn mark(&mut self, kind: Kind, process: u16, number: u32) -> io::Result<()> {
        self.frame(kind, 0, process, &[], &[], number as usize)
    }

    /// Hands everything to the link.
    ///
    /// # Errors
    /// From flushing.
    pub fn flush(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let result = self.out.flush();
        self.counters.writing_us += started.elapsed().as_micros() as u64;
        result
    }

    /// What went over this stream so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The link itself.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn frame(&mut self, kind: Kind, codec: u8, process: u16, runs: &[Run], payload: &[u8], raw_bytes: usize) -> io::Result<()> {
        let body = runs.len() * HEAD_BYTES + payload.len();
        if runs.len() > MAX_RUNS || payload.len() > MAX_RAW_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than a frame can hold"));
        }
        self.head.clear();
        self.head.extend_from_slice(&[kind as u8, codec]);
        self.head.extend_from_slice(&process.to_le_bytes());
        for number in [runs.len(), body, raw_bytes] {
            self.head.extend_from_slice(&(number as u32).to_le_bytes());
        }
        runs.iter().for_each(|run| self.head.extend_from_slice(&run.to_wire()));
        let bytes = (self.head.len() + payload.len()) as u64;
        if let Some(limit) = &self.limit {
            limit.wait(bytes);
        }
        let started = Instant::now();
        self.out.write_all(&self.head)?;
        self.out.write_all(payload)?;
        self.counters.writing_us += started.elapsed().as_micros() as u64;
        self.counters.wire_bytes += bytes;
        Ok(())
    }
}

fn pages(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.range.pages()).sum()
}
