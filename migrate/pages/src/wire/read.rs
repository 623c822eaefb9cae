//! The receiving end of one stream. It believes nothing: every number is checked before it is used.

use std::io::{self, Read};

use super::codec::Codec;
use super::{HEAD_BYTES, Kind, MAGIC, MAX_RAW_BYTES, MAX_RUNS, MAX_STREAMS, Run, VERSION};
use crate::range::PAGE_BYTES;
use crate::window::{Dest, Window};

/// A stream cannot be read on. The move must be given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The link failed or ended in the middle.
    #[error("the page stream broke: {0}")]
    Io(#[from] io::Error),
    /// Not one of our streams.
    #[error("this is no page stream")]
    Magic,
    /// A sender of another version.
    #[error("the sender speaks version {0} of the page stream, this receiver {VERSION}")]
    Version(u16),
    /// A number that no sender writes.
    #[error("the page stream is damaged: {0}")]
    Invalid(&'static str),
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A process joins.
    Process(u16),
    /// A process has ended.
    Gone(u16),
    /// A window is to be made.
    Window(u16, Window),
    /// Contents, of all runs one behind the other.
    Pages(u16, &'a [Run], &'a [u8]),
    /// Zero pages.
    Zeros(u16, &'a [Run]),
    /// Pages known of an earlier visit: 16 bytes of hash each.
    Same(u16, &'a [Run], &'a [u8]),
    /// This round ends.
    Round(u32),
    /// A part of the list of all pages.
    Present(u16, &'a [Run]),
    /// That list is complete, with so many pages.
    Complete(u16, u64),
    /// A shared segment: number and bytes.
    Segment(u32, u64),
    /// The move is given up.
    Cancel,
    /// The stream ends.
    End,
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    input: R,
    /// Which stream it is.
    pub stream: u16,
    /// Of how many.
    pub streams: u16,
    runs: Vec<Run>,
    payload: Vec<u8>,
    raw: Vec<u8>,
}

struct Head {
    kind: Kind,
    codec: u8,
    process: u16,
    runs: usize,
    payload: usize,
    raw: usize,
}

impl<R: Read> FrameReader<R> {
    /// Reads the preface.
    ///
    /// # Errors
    /// It is not one of ours, or of another version.
    pub fn begin(mut input: R) -> Result<FrameReader<R>, WireError> {
        let mut preface = [0; HEAD_BYTES];
        input.read_exact(&mut preface)?;
        let [magic @ .., v0, v1, s0, s1, n0, n1, _, _] = preface;
        if magic != MAGIC {
            return Err(WireError::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let (stream, streams) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([n0, n1]));
        if stream >= streams || streams > MAX_STREAMS {
            return Err(WireError::Invalid("its number is out of range"));
        }
        Ok(FrameReader { input, stream, streams, runs: Vec::new(), payload: Vec::new(), raw: Vec::new() })
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// The link failed, or something in it is out of bounds; nothing of the frame may be used.
    pub fn next_frame(&mut self) -> Result<Frame<'_>, WireError> {
        let head = self.head()?;
        self.read_body(&head)?;
        let Head { kind, codec, process, .. } = head;
        let plain = |frame| if head.runs == 0 && head.payload == 0 { Ok(frame) } else { Err(WireError::Invalid("a mark with a body")) };
        match kind {
            Kind::Process => plain(Frame::Process(process)),
            Kind::Gone => plain(Frame::Gone(process)),
            Kind::Round => plain(Frame::Round(head.raw as u32)),
            Kind::Cancel => plain(Frame::Cancel),
            Kind::End => plain(Frame::End),
            Kind::Window => match self.runs.as_slice() {
                [Run { range, dest: Dest::Window(id) }] if codec <= 1 => {
                    Ok(Frame::Window(process, Window { id: *id, range: *range, no_reserve: codec == 1 }))
                }
                _ => Err(WireError::Invalid("not a window")),
            },
            Kind::Segment => match self.runs.as_slice() {
                [Run { range, dest: Dest::Segment(id) }] if range.start == 0 => Ok(Frame::Segment(*id, range.end)),
                _ => Err(WireError::Invalid("not a segment")),
            },
            Kind::Pages => {
                let codec = Codec::from_wire(codec).ok_or(WireError::Invalid("an unknown codec"))?;
                self.unpack(codec, head.raw)?;
                Ok(Frame::Pages(process, &self.runs, &self.raw))
            }
            Kind::Zeros => Ok(Frame::Zeros(process, &self.runs)),
            Kind::Same if self.payload.len() as u64 == pages(&self.runs) * 16 => Ok(Frame::Same(process, &self.runs, &self.payload)),
            Kind::Same => Err(WireError::Invalid("hashes and pages differ in number")),
            Kind::Present => Ok(Frame::Present(process, &self.runs)),
            Kind::Complete => match self.payload.as_array::<8>() {
                Some(count) => Ok(Frame::Complete(process, u64::from_le_bytes(*count))),
                None => Err(WireError::Invalid("no count of pages")),
            },
        }
    }

    fn head(&mut self) -> Result<Head, WireError> {
        let mut head = [0; HEAD_BYTES];
        self.input.read_exact(&mut head)?;
        let [kind, codec, p0, p1, r0, r1, r2, r3, b0, b1, b2, b3, w0, w1, w2, w3] = head;
        let kind = Kind::from_wire(kind).ok_or(WireError::Invalid("an unknown kind of frame"))?;
        let number = |bytes| u32::from_le_bytes(bytes) as usize;
        let (runs, body, raw) = (number([r0, r1, r2, r3]), number([b0, b1, b2, b3]), number([w0, w1, w2, w3]));
        if runs > MAX_RUNS {
            return Err(WireError::Invalid("too many runs"));
        }
        let payload = body.checked_sub(runs * HEAD_BYTES).ok_or(WireError::Invalid("a body shorter than its runs"))?;
        if payload > MAX_RAW_BYTES || (kind != Kind::Round && raw > MAX_RAW_BYTES) {
            return Err(WireError::Invalid("too long a frame"));
        }
        Ok(Head { kind, codec, process: u16::from_le_bytes([p0, p1]), runs, payload, raw })
    }

    fn read_body(&mut self, head: &Head) -> Result<(), WireError> {
        self.runs.clear();
        let mut bytes = vec![0; head.runs * HEAD_BYTES];
        self.input.read_exact(&mut bytes)?;
        for run in bytes.as_chunks::<HEAD_BYTES>().0 {
            self.runs.push(Run::from_wire(run).ok_or(WireError::Invalid("not a range of user addresses"))?);
        }
        self.payload.resize(head.payload, 0);
        self.input.read_exact(&mut self.payload)?;
        Ok(())
    }

    fn unpack(&mut self, codec: Codec, raw: usize) -> Result<(), WireError> {
        if raw as u64 != pages(&self.runs) * PAGE_BYTES {
            return Err(WireError::Invalid("contents and pages differ in number"));
        }
        if codec == Codec::Plain {
            if self.payload.len() != raw {
                return Err(WireError::Invalid("contents and pages differ in number"));
            }
            std::mem::swap(&mut self.raw, &mut self.payload);
            return Ok(());
        }
        self.raw.resize(raw, 0);
        codec.unpack(&self.payload, &mut self.raw).map_err(|_| WireError::Invalid("contents that cannot be unpacked"))
    }
}

/// At most `MAX_RUNS` times 2^32: no overflow.
fn pages(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.range.pages()).sum()
}
