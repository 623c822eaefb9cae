//! How pages travel: version 1 of the stream.
//!
//! All numbers are little-endian. A move uses one or several streams in one direction; each begins with a preface and goes on
//! with frames.
//!
//! ```text
//! preface  "MOSIXPGS"  version u16  stream u16  streams u16  zero u16                               16 bytes
//! frame    kind u8  codec u8  process u16  runs u32  body_bytes u32  raw_bytes u32                  16 bytes
//!          then the body: `runs` runs, and the payload that fills the rest of `body_bytes`
//! run      start u64  pages u32  place u32                                                          16 bytes
//! place    0 the store | id of a window | 0x80000000 + id of a shared segment
//! ```
//!
//! | kind | process | runs | payload | says |
//! |---|---|---|---|---|
//! | 1 process | its number | - | - | a process joins; what follows may name it |
//! | 2 gone | its number | - | - | it has ended; forget it |
//! | 3 window | its number | 1: the range, `place` = its id; `codec` bit 0: MAP_NORESERVE | - | make this window |
//! | 4 pages | its number | ranges | contents, packed by `codec`, `raw_bytes` when unpacked | put them there |
//! | 5 zeros | its number | ranges | - | these pages are zero |
//! | 6 same | its number | ranges | 16 bytes a page: xxh3-128 of its contents | the receiver has them of an earlier visit |
//! | 7 round | 0 | - | - | the round with number `raw_bytes` ends on this stream |
//! | 8 present | its number | ranges | - | a part of the list of all pages with contents, in order |
//! | 9 complete | its number | - | u64 | the list is complete and has so many pages |
//! | 10 segment | 0 | 1: from 0 to its size, `place` = its id | - | a shared segment joins |
//! | 11 cancel | 0 | - | - | the move is given up; nothing was lost |
//! | 12 end | 0 | - | - | nothing follows on this stream |
//!
//! Order: frames of one stream take effect in order. Across streams only rounds are ordered: what stands behind a round's end
//! takes effect after everything before that round's end on *all* streams. So every stream carries every round's end. Frames 1,
//! 2, 3, 8, 9 and 10 come on stream 0 only, and what they announce may be used on other streams from the next round on.
//!
//! Bounds (the receiver ends the connection beyond): [`MAX_RUNS`] runs and [`MAX_RAW_BYTES`] of contents in a frame, packed or not.

pub mod codec;
pub mod rate;
mod read;
mod write;

pub use read::{Frame, FrameReader, WireError};
pub use write::{Counters, FrameWriter};

use crate::range::{PAGE_BYTES, Range};
use crate::window::Dest;

/// Version of the stream. The receiver takes no other.
pub const VERSION: u16 = 1;
/// First bytes of every stream.
pub const MAGIC: [u8; 8] = *b"MOSIXPGS";
/// Most runs of a frame.
pub const MAX_RUNS: usize = 4096;
/// Most contents of a frame, unpacked.
pub const MAX_RAW_BYTES: usize = 1 << 20;
/// Bytes of a frame's head, of the preface and of a run alike.
pub const HEAD_BYTES: usize = 16;
/// Most streams of a move.
pub const MAX_STREAMS: u16 = 64;

const SEGMENT_BIT: u32 = 1 << 31;

/// What a frame is. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A process joins.
    Process = 1,
    /// A process has ended.
    Gone = 2,
    /// A window is to be made.
    Window = 3,
    /// Contents of pages.
    Pages = 4,
    /// Pages that are zero.
    Zeros = 5,
    /// Pages the receiver has already.
    Same = 6,
    /// A round ends.
    Round = 7,
    /// A part of the list of all pages.
    Present = 8,
    /// That list is complete.
    Complete = 9,
    /// A shared segment joins.
    Segment = 10,
    /// The move is given up.
    Cancel = 11,
    /// The stream ends.
    End = 12,
}

impl Kind {
    fn from_wire(number: u8) -> Option<Kind> {
        use Kind::{Cancel, Complete, End, Gone, Pages, Present, Process, Round, Same, Segment, Window, Zeros};
        let all = [Process, Gone, Window, Pages, Zeros, Same, Round, Present, Complete, Segment, Cancel, End];
        all.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Pages that lie together, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The addresses.
    pub range: Range,
    /// The place.
    pub dest: Dest,
}

impl Run {
    fn to_wire(self) -> [u8; HEAD_BYTES] {
        let place = match self.dest {
            Dest::Store => 0,
            Dest::Window(id) => id,
            Dest::Segment(id) => id | SEGMENT_BIT,
        };
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.range.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.range.pages() as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&place.to_le_bytes());
        bytes
    }

    fn from_wire(bytes: &[u8; HEAD_BYTES]) -> Option<Run> {
        let [start @ .., _, _, _, _, _, _, _, _] = *bytes;
        let [.., a, b, c, d, e, f, g, h] = *bytes;
        let (start, pages) = (u64::from_le_bytes(start), u64::from(u32::from_le_bytes([a, b, c, d])));
        let place = u32::from_le_bytes([e, f, g, h]);
        let dest = match place {
            0 => Dest::Store,
            id if id & SEGMENT_BIT != 0 => Dest::Segment(id & !SEGMENT_BIT),
            id => Dest::Window(id),
        };
        Some(Run { range: Range::checked(start, start.checked_add(pages * PAGE_BYTES)?)?, dest })
    }
}

/// Hash of a page's contents, as kind 6 carries it. Not against attack: who can write the memory can find collisions, in their own memory.
pub fn page_hash(page: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(page)
}

/// All bytes are zero.
pub fn is_zero(page: &[u8]) -> bool {
    let (blocks, rest) = page.as_chunks::<64>();
    blocks.iter().all(|block| *block == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
