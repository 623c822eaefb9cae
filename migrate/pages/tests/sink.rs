//! What a sink does with a source that breaks the rules, and with streams that do not keep in step.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{self, Cursor};
use std::time::Duration;

use mosix_pages::range::{PAGE_BYTES, Range};
use mosix_pages::window::{Dest, Window};
use mosix_pages::wire::{FrameWriter, Kind, Run};
use mosix_pages::{Limits, Mismatch, Place, Room, Sink, SinkError};

/// Stores only; windows are memory of this process.
struct Here(std::sync::Mutex<Vec<Vec<u8>>>);

impl Place for Here {
    fn add_window(&self, _: u16, window: &Window) -> io::Result<Option<Room>> {
        let memory = vec![7u8; window.range.bytes() as usize];
        let room = Room { pid: std::process::id() as i32, address: memory.as_ptr() as u64 };
        self.0.lock().unwrap().push(memory);
        Ok(Some(room))
    }

    fn add_store(&self, _: u16) -> io::Result<File> {
        tempfile::tempfile_in("/dev/shm")
    }

    fn add_segment(&self, _: u32, bytes: u64) -> io::Result<File> {
        let file = tempfile::tempfile_in("/dev/shm")?;
        file.set_len(bytes)?;
        Ok(file)
    }
}

fn sink(limits: Limits) -> Sink {
    Sink::new(Box::new(Here(Default::default())), limits)
}

fn run(start: u64, pages: u64, dest: Dest) -> Run {
    Run { range: Range::new(start, start + pages * PAGE_BYTES), dest }
}

type Out = FrameWriter<Vec<u8>>;

fn stream(number: u16, streams: u16, write: impl FnOnce(&mut Out) -> io::Result<()>) -> Cursor<Vec<u8>> {
    let mut out = FrameWriter::begin(Vec::new(), number, streams, None, None).unwrap();
    write(&mut out).unwrap();
    out.mark(Kind::End, 0, 0).unwrap();
    Cursor::new(out.into_inner())
}

fn one(limits: Limits, write: impl FnOnce(&mut Out) -> io::Result<()>) -> (Sink, Result<(), SinkError>) {
    let sink = sink(limits);
    let result = sink.run(stream(0, 1, write));
    (sink, result)
}

const WINDOW: Window = Window { id: 1, range: Range::new(0x10000, 0x20000), no_reserve: false };
const PAGE: [u8; PAGE_BYTES as usize] = [9; PAGE_BYTES as usize];

fn begin(out: &mut Out) -> io::Result<()> {
    out.mark(Kind::Process, 0, 0)?;
    out.window(0, &WINDOW)
}

#[test]
fn rules_are_enforced() {
    type Breach = (&'static str, fn(&mut Out) -> io::Result<()>);
    let breaches: [Breach; 11] = [
        ("unknown process", |out| out.pages(5, &[run(0x10000, 1, Dest::Store)], &PAGE)),
        ("unknown window", |out| out.pages(0, &[run(0x10000, 1, Dest::Window(2))], &PAGE)),
        ("below the window", |out| out.pages(0, &[run(0xf000, 1, Dest::Window(1))], &PAGE)),
        ("above the window", |out| out.zeros(0, &[run(0x1f000, 2, Dest::Window(1))])),
        ("unknown segment", |out| out.pages(0, &[run(0, 1, Dest::Segment(1))], &PAGE)),
        ("beyond the segment", |out| {
            out.segment(1, PAGE_BYTES)?;
            out.pages(0, &[run(PAGE_BYTES, 1, Dest::Segment(1))], &PAGE)
        }),
        ("process twice", |out| out.mark(Kind::Process, 0, 0)),
        ("window that overlaps", |out| out.window(0, &Window { id: 2, range: Range::new(0x1f000, 0x30000), no_reserve: false })),
        ("too long a window", |out| out.window(0, &Window { id: 2, range: Range::new(0x30000, 1 << 40), no_reserve: false })),
        ("too long a segment", |out| out.segment(1, 1 << 40)),
        ("too much memory", |out| (0..20).try_for_each(|n| out.pages(0, &[run(0x100_000 + n * PAGE_BYTES, 1, Dest::Store)], &PAGE))),
    ];
    let limits = Limits { memory_bytes: 16 * PAGE_BYTES, window_bytes: 1 << 20, ..Limits::default() };
    for (name, breach) in breaches {
        let (_, result) = one(limits, |out| begin(out).and_then(|()| breach(out)));
        assert!(matches!(result, Err(SinkError::Rules(_))), "{name}: {result:?}");
    }
    assert!(matches!(one(limits, |out| out.mark(Kind::Round, 0, 1)).1, Err(SinkError::OtherStream)), "a round out of turn");
}

#[test]
fn only_a_complete_and_true_list_is_good() {
    let here = [run(0x10000, 1, Dest::Window(1))];
    let send = |out: &mut Out| {
        begin(out).and_then(|()| out.pages(0, &[run(0x10000, 1, Dest::Window(1)), run(0x40000, 1, Dest::Store)], &[PAGE; 2].concat()))
    };
    let (sink, result) = one(Limits::default(), |out| send(out));
    result.unwrap();
    assert!(matches!(sink.finish(), Err(SinkError::Mismatch(Mismatch::NoList { process: 0 }))));
    let (sink, _) = one(Limits::default(), |out| send(out).and_then(|()| out.presence(0, &here)));
    let arrived = sink.finish().unwrap();
    assert_eq!((arrived[0].pages.as_slice(), arrived[0].stale.as_slice()), (&here[..], &[run(0x40000, 1, Dest::Store)][..]));
    for missing in [run(0x11000, 1, Dest::Window(1)), run(0x10000, 1, Dest::Store), run(0x40000, 2, Dest::Store)] {
        let (sink, _) = one(Limits::default(), |out| send(out).and_then(|()| out.presence(0, &[missing])));
        assert!(matches!(sink.finish(), Err(SinkError::Mismatch(Mismatch::NotArrived { .. }))), "{missing:?}");
    }
    // delivered elsewhere since: the old place does not count any more
    let (sink, _) = one(Limits::default(), |out| {
        send(out)?;
        out.pages(0, &[run(0x10000, 1, Dest::Store)], &PAGE)?;
        out.presence(0, &here)
    });
    assert!(matches!(sink.finish(), Err(SinkError::Mismatch(Mismatch::NotArrived { .. }))));
    let (_, result) = one(Limits::default(), |out| send(out).and_then(|()| out.presence(0, &[run(0x40000, 1, Dest::Store), here[0]])));
    assert!(matches!(result, Err(SinkError::Rules(_))), "a list out of order");
}

#[test]
fn zeros_overwrite_what_was_there() {
    let (sink, result) = one(Limits::default(), |out| {
        begin(out)?;
        out.pages(0, &[run(0x10000, 2, Dest::Window(1))], &[PAGE; 2].concat())?;
        // to the store and back to the window: what lies in the window is old
        out.pages(0, &[run(0x11000, 1, Dest::Store)], &PAGE)?;
        out.zeros(0, &[run(0x11000, 1, Dest::Window(1))])?;
        out.presence(0, &[run(0x10000, 2, Dest::Window(1))])
    });
    result.unwrap();
    let arrived = sink.finish().unwrap();
    let mut memory = vec![1; 2 * PAGE_BYTES as usize];
    let own = File::open("/proc/self/mem").unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&own, &mut memory, arrived[0].windows[0].1.address).unwrap();
    let (first, second) = memory.split_at(PAGE_BYTES as usize);
    assert!(first == PAGE && second.iter().all(|byte| *byte == 0));
}

#[test]
fn rounds_keep_streams_in_step() {
    // stream 1 writes the old contents in round 0; stream 0 the new ones in round 1: the new ones must win, in whatever order threads run
    for late in [0, 1] {
        let sink = sink(Limits::default());
        let old = stream(1, 2, |out| {
            out.mark(Kind::Round, 0, 0)?;
            out.pages(0, &[run(0x40000, 1, Dest::Store)], &PAGE)?;
            out.mark(Kind::Round, 0, 1)?;
            out.mark(Kind::Round, 0, 2)
        });
        let new = stream(0, 2, |out| {
            out.mark(Kind::Process, 0, 0)?;
            out.mark(Kind::Round, 0, 0)?;
            out.mark(Kind::Round, 0, 1)?;
            out.zeros(0, &[run(0x40000, 1, Dest::Store)])?;
            out.presence(0, &[run(0x40000, 1, Dest::Store)])?;
            out.mark(Kind::Round, 0, 2)
        });
        std::thread::scope(|scope| {
            for (number, input) in [new, old].into_iter().enumerate() {
                let sink = &sink;
                scope.spawn(move || {
                    if number == late {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    sink.run(input).unwrap();
                });
            }
        });
        assert_eq!(sink.finish().unwrap()[0].pages.len(), 1);
    }
}

#[test]
fn a_stream_that_stays_away_ends_the_move() {
    let sink = sink(Limits { patience: Duration::from_millis(200), ..Limits::default() });
    let alone = stream(0, 2, |out| out.mark(Kind::Round, 0, 0));
    assert!(matches!(sink.run(alone), Err(SinkError::OtherStream)));
}

#[test]
fn a_stream_that_breaks_ends_the_others() {
    let sink = sink(Limits::default());
    let waits = stream(0, 2, |out| out.mark(Kind::Round, 0, 0));
    let mut broken = stream(1, 2, |_| Ok(())).into_inner();
    broken.truncate(20);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sink.run(waits));
        assert!(matches!(sink.run(Cursor::new(broken)), Err(SinkError::Wire(_))));
        assert!(matches!(waiting.join().unwrap(), Err(SinkError::OtherStream)));
    });
}
