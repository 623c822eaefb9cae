//! Packing of page contents, and the choice whether it pays.
//!
//! A frame costs the time to pack it plus the time to send what is left. Both are measured all the time, for each codec; the one
//! with the least time per byte is used. The others are tried again now and then, because links and contents change.

use std::io;
use std::time::Duration;

/// How a frame's contents are packed. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Plain = 0,
    /// LZ4 block.
    Lz4 = 1,
    /// Zstandard, level 1.
    Zstd = 2,
}

const ALL: [Codec; 3] = [Codec::Plain, Codec::Lz4, Codec::Zstd];
const ZSTD_LEVEL: i32 = 1;
/// Every so many frames another codec is tried.
const TRY_EVERY: u64 = 64;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Another codec must be better by this factor: switching back and forth gains nothing.
const BETTER: f64 = 0.95;

impl Codec {
    pub(super) fn from_wire(number: u8) -> Option<Codec> {
        ALL.get(usize::from(number)).copied()
    }

    /// Packs `raw` into `packed`. `false`: it did not get smaller, or could not be packed; send it plain.
    pub fn pack(self, raw: &[u8], packed: &mut Vec<u8>) -> bool {
        packed.clear();
        let done = match self {
            Codec::Plain => false,
            Codec::Lz4 => {
                packed.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                let size = lz4_flex::block::compress_into(raw, packed);
                size.is_ok_and(|size| {
                    packed.truncate(size);
                    true
                })
            }
            Codec::Zstd => {
                packed.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
                let size = zstd::bulk::compress_to_buffer(raw, packed, ZSTD_LEVEL);
                size.is_ok_and(|size| {
                    packed.truncate(size);
                    true
                })
            }
        };
        done && packed.len() < raw.len()
    }

    /// Unpacks to exactly `raw.len()` bytes.
    ///
    /// # Errors
    /// The bytes are not what this codec makes, or of another length.
    pub fn unpack(self, packed: &[u8], raw: &mut [u8]) -> io::Result<()> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let size = match self {
            Codec::Plain if packed.len() == raw.len() => {
                raw.copy_from_slice(packed);
                packed.len()
            }
            Codec::Plain => packed.len(),
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, raw).map_err(|error| invalid(error.to_string()))?,
            Codec::Zstd => zstd::bulk::decompress_to_buffer(packed, raw).map_err(|error| invalid(error.to_string()))?,
        };
        if size == raw.len() { Ok(()) } else { Err(invalid(format!("{size} bytes instead of {}", raw.len()))) }
    }
}

/// What is known of one codec.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Seconds to pack a byte.
    pack_s: f64,
    /// Bytes left of a byte.
    ratio: f64,
    known: bool,
}

/// Chooses the codec of the next frame from what the last ones took. Pure: times come from the caller.
#[derive(Debug, Clone)]
pub struct Choice {
    forced: Option<Codec>,
    seen: [Seen; 3],
    /// Seconds to send a byte.
    link_s: f64,
    frames: u64,
    current: Codec,
}

impl Choice {
    /// A choice that starts with plain; or always the same codec.
    pub fn new(forced: Option<Codec>) -> Choice {
        let plain = Seen { pack_s: 0.0, ratio: 1.0, known: true };
        let seen = [plain, Seen::default(), Seen::default()];
        Choice { forced, seen, link_s: 0.0, frames: 0, current: forced.unwrap_or(Codec::Plain) }
    }

    /// The codec for the next frame.
    pub fn pick(&mut self) -> Codec {
        if let Some(forced) = self.forced {
            return forced;
        }
        self.frames += 1;
        // the first frames learn; later ones look around once in a while
        let turn = if self.frames <= 3 { self.frames } else { self.frames / TRY_EVERY * u64::from(self.frames.is_multiple_of(TRY_EVERY)) };
        if turn > 0 {
            return ALL[(turn % 3) as usize];
        }
        let best = ALL.into_iter().filter(|codec| self.seen[*codec as usize].known).min_by(|a, b| self.cost(*a).total_cmp(&self.cost(*b)));
        if let Some(best) = best
            && self.cost(best) < self.cost(self.current) * BETTER
        {
            self.current = best;
        }
        self.current
    }

    /// Seconds to get a byte across.
    fn cost(&self, codec: Codec) -> f64 {
        let seen = self.seen[codec as usize];
        seen.pack_s + seen.ratio * self.link_s
    }

    /// Takes what a frame took: `raw` bytes became `packed` ones in `packing` and were written in `writing`.
    pub fn observe(&mut self, codec: Codec, raw: usize, packed: usize, packing: Duration, writing: Duration) {
        if raw == 0 || packed == 0 {
            return;
        }
        let mix = |old: f64, new: f64, known: bool| if known { old + (new - old) * NEWEST } else { new };
        let seen = &mut self.seen[codec as usize];
        seen.pack_s = if codec == Codec::Plain { 0.0 } else { mix(seen.pack_s, packing.as_secs_f64() / raw as f64, seen.known) };
        seen.ratio = mix(seen.ratio, packed as f64 / raw as f64, seen.known);
        seen.known = true;
        self.link_s = mix(self.link_s, writing.as_secs_f64() / packed as f64, self.link_s > 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 256 KiB: the codec used by most of the last 60 of 300, with packing speeds of 800 MB/s to half (LZ4), 400 MB/s to a third (zstd).
    fn settles_on(link_bytes_s: f64, compressible: bool) -> Codec {
        let mut choice = Choice::new(None);
        let mut counts = [0; 3];
        for frame in 0..300 {
            let codec = choice.pick();
            let (speed, ratio) = [(f64::INFINITY, 1.0), (8e8, 0.5), (4e8, 0.33)][codec as usize];
            let ratio = if compressible { ratio } else { 1.0 };
            let raw = 256 * 1024;
            let packed = (raw as f64 * ratio) as usize;
            let seconds = |bytes: usize, speed: f64| Duration::from_secs_f64(bytes as f64 / speed);
            choice.observe(codec, raw, packed, seconds(raw, speed), seconds(packed, link_bytes_s));
            counts[codec as usize] += usize::from(frame >= 240);
        }
        ALL.into_iter().max_by_key(|codec| counts[*codec as usize]).unwrap()
    }

    #[test]
    fn the_link_decides() {
        assert_eq!(settles_on(3e9, true), Codec::Plain);
        assert_eq!(settles_on(3e8, true), Codec::Lz4);
        assert_eq!(settles_on(1e7, true), Codec::Zstd);
        assert_eq!(settles_on(1e7, false), Codec::Plain);
    }

    #[test]
    fn contents_come_back() {
        let raw: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let (mut packed, mut back) = (Vec::new(), vec![0; raw.len()]);
            assert!(codec.pack(&raw, &mut packed) && packed.len() < raw.len());
            codec.unpack(&packed, &mut back).unwrap();
            assert_eq!(back, raw);
            assert!(codec.unpack(&packed, &mut vec![0; raw.len() - 1]).is_err());
            assert!(codec.unpack(&packed, &mut vec![0; raw.len() + 1]).is_err());
            assert!(codec.unpack(&raw[..1000], &mut back).is_err());
        }
    }
}
