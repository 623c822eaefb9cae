//! Measures what following a program costs: scans, copying, the program's slow-down, bytes sent for bytes written.
//!
//! `cargo build --release -p mosix-pages --bins --examples && target/release/examples/measure [MIB] [RUNS] [scan|copy|writer]`
//!
//! Each figure is "min / median / max" of RUNS runs. Memory goes to a sink in this process, which puts it into its own store (a tmpfs)
//! or throws it away.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mosix_pages::track::is_supported;
use mosix_pages::window::Window;
use mosix_pages::wire::codec::Codec;
use mosix_pages::{Limits, Options, Outlet, OutletOptions, Place, Room, Sink, Source, TrackKind};

struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    fn start(mib: usize, pages_per_s: u64, thp: bool) -> Writer {
        let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("pages-victim");
        let words = ["write".to_owned(), mib.to_string(), pages_per_s.to_string(), if thp { "thp" } else { "4k" }.to_owned()];
        let mut child =
            Command::new(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("build the bins, too");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        assert_eq!(lines.recv().unwrap(), "ready");
        Writer { child, lines }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Pages written so far.
    fn written(&self) -> u64 {
        while self.lines.try_recv().is_ok() {}
        self.lines.recv().unwrap().parse().unwrap()
    }

    /// Pages written per second during `work`.
    fn rate(&self, work: impl FnOnce()) -> f64 {
        let (before, started) = (self.written(), Instant::now());
        work();
        let after = self.written();
        (after - before) as f64 / started.elapsed().as_secs_f64()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stores;

impl Place for Stores {
    fn add_window(&self, _: u16, _: &Window) -> io::Result<Option<Room>> {
        Ok(None)
    }

    fn add_store(&self, _: u16) -> io::Result<File> {
        tempfile::tempfile_in("/dev/shm")
    }

    fn add_segment(&self, _: u32, _: u64) -> io::Result<File> {
        tempfile::tempfile_in("/dev/shm")
    }
}

fn spread(name: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    println!("{name:56} {min:9.2} / {median:9.2} / {max:9.2} {unit}");
    io::stdout().flush().unwrap();
}

fn away() -> Outlet<io::Sink> {
    Outlet::new(vec![io::sink()], &OutletOptions { codec: Some(Codec::Plain), ..OutletOptions::default() }).unwrap()
}

fn source(writer: &Writer, kind: TrackKind) -> Source {
    Source::start(&[writer.pid()], Options { track: Some(kind), ..Options::default() }).unwrap()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Scans of a process that writes 2560 pages/s (10 MiB/s), per GiB.
fn scans(mib: usize, runs: usize, kind: TrackKind, thp: bool) {
    let per_gib = 1024.0 / mib as f64;
    let label = format!("{kind:?} {}", if thp { "THP" } else { "4K" });
    let [mut first, mut later, mut last, mut copy, mut stop] = [const { Vec::new() }; 5];
    for _ in 0..runs {
        let writer = Writer::start(mib, 2560, thp);
        let started = Instant::now();
        let mut source = source(&writer, kind);
        stop.push(ms(started.elapsed()));
        let mut out = away();
        let figures = source.round(&mut out).unwrap();
        first.push(ms(figures.scan) * per_gib);
        copy.push(figures.changed_bytes as f64 / figures.send.as_secs_f64() / 1e9);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(50));
            later.push(ms(source.round(&mut out).unwrap().scan) * per_gib);
        }
        let kill = |name: &str| drop(Command::new("kill").args([name, &writer.pid().to_string()]).status());
        kill("-STOP");
        std::thread::sleep(Duration::from_millis(20));
        last.push(ms(source.freeze_round(&mut out).unwrap().figures.scan) * per_gib);
        kill("-CONT");
    }
    spread(&format!("{label}: start (whole call)"), "ms", stop);
    spread(&format!("{label}: first scan, with smaps"), "ms/GiB", first);
    spread(&format!("{label}: later scans"), "ms/GiB", later);
    spread(&format!("{label}: last scan, frozen"), "ms/GiB", last);
    spread(&format!("{label}: reading pages, thrown away"), "GB/s", copy);
}

/// All of it to a store over sockets.
fn throughput(mib: usize, runs: usize, streams: usize, codec: Option<Codec>) {
    let (mut rates, mut packed) = (Vec::new(), 0);
    for _ in 0..runs {
        let writer = Writer::start(mib, 1, false);
        let mut source = source(&writer, TrackKind::WriteProtect);
        let (near, far): (Vec<_>, Vec<_>) = (0..streams).map(|_| UnixStream::pair().unwrap()).unzip();
        let sink = Sink::new(Box::new(Stores), Limits::default());
        std::thread::scope(|scope| {
            far.into_iter().for_each(|link| drop(scope.spawn(|| sink.run(BufReader::with_capacity(1 << 18, link)).unwrap())));
            let mut out = Outlet::new(near, &OutletOptions { codec, ..OutletOptions::default() }).unwrap();
            let started = Instant::now();
            let figures = source.round(&mut out).unwrap();
            source.end(&mut out).unwrap();
            rates.push(figures.changed_bytes as f64 / started.elapsed().as_secs_f64() / 1e9);
            packed = figures.sent.lz4_frames + figures.sent.zstd_frames;
        });
    }
    let codec = codec.map_or("adaptive".to_owned(), |codec| format!("{codec:?}"));
    spread(&format!("first round to a store, {streams} stream(s), {codec} ({packed} frames packed)"), "GB/s", rates);
}

/// A writer as fast as memory, alone and followed by rounds that each start 100 ms after the last one's end; paired.
fn slow_down(mib: usize, runs: usize, thp: bool) {
    let writer = Writer::start(mib, 0, thp);
    let [mut first, mut steady] = [const { Vec::new() }; 2];
    for _ in 0..runs {
        let alone = writer.rate(|| std::thread::sleep(Duration::from_secs(1)));
        let mut source = source(&writer, TrackKind::WriteProtect);
        let mut out = away();
        let with_first = writer.rate(|| {
            source.round(&mut out).unwrap();
        });
        let with = writer.rate(|| {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(100));
                source.round(&mut out).unwrap();
            }
        });
        drop(source);
        first.push((1.0 - with_first / alone) * 100.0);
        steady.push((1.0 - with / alone) * 100.0);
    }
    let kind = if thp { "THP" } else { "4K" };
    spread(&format!("writer at full speed, {kind}: slower in the first round"), "%", first);
    spread(&format!("writer at full speed, {kind}: slower in later rounds"), "%", steady);
}

/// Bytes sent for bytes written, random pages at some rate, ten rounds 100 ms apart.
fn sent_for_written(mib: usize, runs: usize, pages_per_s: u64, thp: bool) {
    let mut ratios = Vec::new();
    for _ in 0..runs {
        let writer = Writer::start(mib, pages_per_s, thp);
        let mut source = source(&writer, TrackKind::WriteProtect);
        let mut out = away();
        source.round(&mut out).unwrap();
        let (before, mut sent) = (writer.written(), 0);
        for _ in 0..10 {
            sent += source.round(&mut out).unwrap().sent.wire_bytes;
            std::thread::sleep(Duration::from_millis(100));
        }
        ratios.push(sent as f64 / ((writer.written() - before) * 4096) as f64);
    }
    let kind = if thp { "THP" } else { "4K" };
    spread(&format!("sent for written, {} MiB/s, {kind}", pages_per_s / 256), "x", ratios);
}

fn main() {
    let number = |at: usize, default: usize| std::env::args().nth(at).and_then(|word| word.parse().ok()).unwrap_or(default);
    let (mib, runs) = (number(1, 1024), number(2, 5));
    let part = std::env::args().nth(3).unwrap_or_default();
    let wanted = |name: &str| part.is_empty() || part == name;
    println!("{mib} MiB, {runs} runs: min / median / max");
    for kind in [TrackKind::WriteProtect, TrackKind::SoftDirty, TrackKind::Content] {
        if !wanted("scan") {
            break;
        }
        if is_supported(kind) {
            scans(mib, runs, kind, false);
            scans(mib, runs, kind, true);
        } else {
            println!("skipped: this kernel has no {kind}");
        }
    }
    for streams in [1, 2].into_iter().filter(|_| wanted("copy")) {
        throughput(mib, runs, streams, Some(Codec::Plain));
        throughput(mib, runs, streams, None);
    }
    for thp in [false, true].into_iter().filter(|_| wanted("writer")) {
        slow_down(mib, runs, thp);
        sent_for_written(mib, runs, 12_800, thp);
    }
}
