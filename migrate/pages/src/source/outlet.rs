//! The streams of a move at their sending end.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::SourceError;
use super::batch::{BATCH_BYTES, Buffers, Job, Reader, batches};
use crate::range::Range;
use crate::wire::codec::Codec;
use crate::wire::rate::Limit;
use crate::wire::{Counters, FrameWriter, Kind, MAX_STREAMS};

/// With less than this, one stream is as fast as several.
const WORTH_SPLITTING_BYTES: u64 = 16 * BATCH_BYTES;

/// How streams are used.
#[derive(Debug, Clone, Copy, Default)]
pub struct OutletOptions {
    /// Always pack so; `None`: measure, and take what is fastest.
    pub codec: Option<Codec>,
    /// Most bytes per second, over all streams.
    pub limit_bytes_per_s: Option<u64>,
}

/// Several links to one receiver.
#[derive(Debug)]
pub struct Outlet<W> {
    streams: Vec<FrameWriter<W>>,
    buffers: Vec<Buffers>,
}

impl<W: Write + Send> Outlet<W> {
    /// Begins a stream on each link.
    ///
    /// # Errors
    /// From writing; no link, or more than [`MAX_STREAMS`].
    pub fn new(links: Vec<W>, options: &OutletOptions) -> io::Result<Outlet<W>> {
        let count = u16::try_from(links.len()).ok().filter(|count| (1..=MAX_STREAMS).contains(count)).ok_or(io::ErrorKind::InvalidInput)?;
        let limit = options.limit_bytes_per_s.map(|rate| Arc::new(Limit::new(rate)));
        let streams = links.into_iter().zip(0..);
        let streams = streams.map(|(link, number)| FrameWriter::begin(link, number, count, options.codec, limit.clone()));
        Ok(Outlet { streams: streams.collect::<io::Result<_>>()?, buffers: (0..count).map(|_| Buffers::default()).collect() })
    }

    /// What went over all streams so far.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.streams.iter().for_each(|stream| sum += stream.counters());
        sum
    }

    /// The links themselves.
    pub fn into_links(self) -> Vec<W> {
        self.streams.into_iter().map(FrameWriter::into_inner).collect()
    }

    /// Stream 0, for announcements.
    pub(super) fn first(&mut self) -> &mut FrameWriter<W> {
        &mut self.streams[0] // there is one: checked when it was made
    }

    /// The same mark on all streams, and flush.
    pub(super) fn mark_all(&mut self, kind: Kind, number: u32) -> io::Result<()> {
        self.streams.iter_mut().try_for_each(|stream| {
            stream.mark(kind, 0, number)?;
            stream.flush()
        })
    }

    /// Sends pages, over all streams if it is worth it. Returns what could not be read.
    pub(super) fn send(&mut self, reader: &Reader<'_>, jobs: &[Job]) -> Result<Vec<Range>, SourceError> {
        let bytes: u64 = jobs.iter().map(|job| job.range.bytes()).sum();
        let batches = batches(jobs);
        let threads = if bytes < WORTH_SPLITTING_BYTES { 1 } else { self.streams.len() };
        let next = AtomicUsize::new(0);
        let work = |(stream, buffers): (&mut FrameWriter<W>, &mut Buffers)| -> io::Result<Vec<Range>> {
            let mut lost = Vec::new();
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                lost.extend(buffers.send(reader, batch, stream)?);
            }
            Ok(lost)
        };
        let mut ends = self.streams.iter_mut().zip(&mut self.buffers).take(threads);
        let first = ends.next();
        let results: Vec<io::Result<Vec<Range>>> = std::thread::scope(|scope| {
            let others: Vec<_> = ends.map(|end| scope.spawn(|| work(end))).collect();
            let own = first.map(work).into_iter();
            let panicked = |_| Err(io::Error::other("a sending thread panicked"));
            own.chain(others.into_iter().map(|other| other.join().unwrap_or_else(panicked))).collect()
        });
        let mut lost = Vec::new();
        for result in results {
            lost.extend(result.map_err(SourceError::Link)?);
        }
        Ok(lost)
    }
}
