use std::io::Cursor;

use proptest::prelude::*;

use super::codec::Codec;
use super::*;
use crate::window::Window;

fn run(start: u64, pages: u64, dest: Dest) -> Run {
    Run { range: Range::new(start, start + pages * PAGE_BYTES), dest }
}

fn contents(pages: usize) -> Vec<u8> {
    (0..pages * PAGE_BYTES as usize).map(|n| (n / 100 % 251) as u8).collect()
}

/// A stream with every kind of frame.
fn stream(codec: Option<Codec>) -> Vec<u8> {
    let mut out = FrameWriter::begin(Vec::new(), 0, 2, codec, None).unwrap();
    out.mark(Kind::Process, 3, 0).unwrap();
    out.window(3, &Window { id: 7, range: Range::new(0x10000, 0x90000), no_reserve: true }).unwrap();
    out.segment(5, 0x8000).unwrap();
    out.pages(3, &[run(0x10000, 2, Dest::Window(7)), run(0x40000, 1, Dest::Store)], &contents(3)).unwrap();
    out.zeros(3, &[run(0x1000, 3, Dest::Segment(5))]).unwrap();
    out.same(3, &[run(0x20000, 1, Dest::Window(7))], &page_hash(&contents(1)).to_le_bytes()).unwrap();
    out.mark(Kind::Round, 0, 1 << 30).unwrap();
    out.presence(3, &[run(0x10000, 4, Dest::Window(7))]).unwrap();
    out.mark(Kind::Gone, 3, 0).unwrap();
    out.mark(Kind::Cancel, 0, 0).unwrap();
    out.mark(Kind::End, 0, 0).unwrap();
    let counters = out.counters();
    assert_eq!((counters.pages, counters.zero_pages, counters.same_pages), (3, 3, 1));
    let bytes = out.into_inner();
    assert_eq!(counters.wire_bytes, bytes.len() as u64);
    bytes
}

/// Reads to the end or the first error; how many frames were good.
fn read_all(bytes: &[u8]) -> (usize, Option<WireError>) {
    let mut reader = match FrameReader::begin(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (0, Some(error)),
    };
    for count in 0.. {
        match reader.next_frame() {
            Ok(Frame::End) => return (count + 1, None),
            Ok(_) => {}
            Err(error) => return (count, Some(error)),
        }
    }
    unreachable!()
}

#[test]
fn what_is_written_is_read() {
    for codec in [None, Some(Codec::Lz4), Some(Codec::Zstd)] {
        let bytes = stream(codec);
        let mut reader = FrameReader::begin(Cursor::new(bytes)).unwrap();
        assert_eq!((reader.stream, reader.streams), (0, 2));
        assert_eq!(reader.next_frame().unwrap(), Frame::Process(3));
        assert_eq!(reader.next_frame().unwrap(), Frame::Window(3, Window { id: 7, range: Range::new(0x10000, 0x90000), no_reserve: true }));
        assert_eq!(reader.next_frame().unwrap(), Frame::Segment(5, 0x8000));
        let runs = [run(0x10000, 2, Dest::Window(7)), run(0x40000, 1, Dest::Store)];
        assert_eq!(reader.next_frame().unwrap(), Frame::Pages(3, &runs, &contents(3)));
        assert_eq!(reader.next_frame().unwrap(), Frame::Zeros(3, &[run(0x1000, 3, Dest::Segment(5))]));
        assert!(matches!(reader.next_frame().unwrap(), Frame::Same(3, _, hash) if hash == page_hash(&contents(1)).to_le_bytes()));
        assert_eq!(reader.next_frame().unwrap(), Frame::Round(1 << 30));
        assert_eq!(reader.next_frame().unwrap(), Frame::Present(3, &[run(0x10000, 4, Dest::Window(7))]));
        assert_eq!(reader.next_frame().unwrap(), Frame::Complete(3, 4));
        assert_eq!(reader.next_frame().unwrap(), Frame::Gone(3));
        assert_eq!(reader.next_frame().unwrap(), Frame::Cancel);
        assert_eq!(reader.next_frame().unwrap(), Frame::End);
    }
}

#[test]
fn other_versions_and_strangers_are_refused() {
    let good = stream(None);
    let mut other = good.clone();
    other[8] = 9;
    assert!(matches!(read_all(&other).1, Some(WireError::Version(9))));
    let mut stranger = good.clone();
    stranger[0] = b'X';
    assert!(matches!(read_all(&stranger).1, Some(WireError::Magic)));
    let mut number = good;
    number[10] = 2;
    assert!(matches!(read_all(&number).1, Some(WireError::Invalid(_))));
}

proptest! {
    /// A cut stream gives an error, never an answer.
    #[test]
    fn cuts_are_seen(part in 0.0..1.0f64) {
        let bytes = stream(None);
        let cut = &bytes[..(bytes.len() as f64 * part) as usize];
        prop_assert!(matches!(read_all(cut).1, Some(WireError::Io(_))));
    }

    /// Damaged or random bytes are read to an end or an error, with bounded memory.
    #[test]
    fn nothing_panics(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), packed in any::<bool>()) {
        let mut bytes = stream(packed.then_some(Codec::Lz4));
        for (place, value) in damage {
            let place = place.index(bytes.len() - 16) + 16;
            bytes[place] = value;
        }
        read_all(&bytes);
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 16..4096)) {
        let mut bytes = stream(None)[..16].to_vec();
        bytes.extend(noise);
        prop_assert!(read_all(&bytes).1.is_some());
    }
}

#[test]
fn zero_is_zero() {
    let mut page = vec![0u8; PAGE_BYTES as usize];
    assert!(is_zero(&page));
    for place in [0, 63, 64, 4095] {
        page[place] = 1;
        assert!(!is_zero(&page));
        page[place] = 0;
    }
}
