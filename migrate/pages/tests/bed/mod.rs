//! Test bed: victims, a receiving process with windows, the way from one to the other, and the comparison page by page.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mosix_pages::range::{PAGE_BYTES, Range, RangeMap};
use mosix_pages::vma::{self, Class};
use mosix_pages::window::{Dest, Window};
use mosix_pages::{Arrived, Final, Limits, Outlet, OutletOptions, Place, Room, Sink, SinkError, Source, check_map};

/// Longest wait for anything that a test expects to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running test program.
pub(crate) struct Victim {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Victim {
    pub(crate) fn start(words: &[&str]) -> Victim {
        Victim::start_as(None, words).expect("the test program starts")
    }

    /// As another user.
    pub(crate) fn start_as(uid: Option<u32>, words: &[&str]) -> io::Result<Victim> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pages-victim"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
        }
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Ok(Victim { child, input, output })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn say(&mut self, text: &str) {
        writeln!(self.input.as_mut().unwrap(), "{text}").unwrap();
    }

    pub(crate) fn stop(&self) {
        stop(self.pid());
    }

    pub(crate) fn go_on(&self) {
        signal(self.pid(), "CONT");
    }

    /// Ends its input and waits: what it said last, and whether it ended well.
    pub(crate) fn end(mut self) -> (String, bool) {
        drop(self.input.take());
        let mut rest = String::new();
        io::Read::read_to_string(&mut self.output, &mut rest).unwrap();
        (rest, self.child.wait().unwrap().success())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: i32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

/// SIGSTOP, and wait until every thread stands still.
pub(crate) fn stop(pid: i32) {
    signal(pid, "STOP");
    let until = Instant::now() + PATIENCE;
    let stopped = || {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T') || rest.starts_with('Z'))
        })
    };
    while !stopped() {
        assert!(Instant::now() < until, "{pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// No trace of having been followed: no descriptor, no registered mapping, no protected page.
pub(crate) fn assert_untouched(pid: i32) {
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap_or_default();
        assert!(!target.to_string_lossy().contains("userfaultfd"), "a userfaultfd was left");
    }
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    assert!(
        smaps.lines().filter(|line| line.starts_with("VmFlags")).all(|line| !line.split(' ').any(|flag| flag == "uw")),
        "a mapping is registered"
    );
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    for vma in vma::read_maps(pid).unwrap() {
        let mut entries = vec![0; vma.range.pages() as usize * 8];
        if entries.len() < 1 << 24 && pagemap.read_exact_at(&mut entries, vma.range.start / PAGE_BYTES * 8).is_ok() {
            assert!(entries.as_chunks::<8>().0.iter().all(|entry| u64::from_ne_bytes(*entry) >> 57 & 1 == 0), "a page is protected");
        }
    }
}

/// What the destination made.
#[derive(Default)]
struct Made {
    stores: HashMap<u16, File>,
    segments: HashMap<u32, File>,
}

/// A destination: windows in another process, stores and segments in unlinked files.
pub(crate) struct Destination {
    host: Mutex<Victim>,
    made: Mutex<Made>,
    /// Refuse windows whose number this divides (0: none).
    refuse: u32,
}

impl Destination {
    fn new(refuse: u32) -> Arc<Destination> {
        Arc::new(Destination { host: Mutex::new(Victim::start(&["host"])), made: Mutex::default(), refuse })
    }
}

struct Shared(Arc<Destination>);

impl Place for Shared {
    fn add_window(&self, _: u16, window: &Window) -> io::Result<Option<Room>> {
        if self.0.refuse > 0 && window.id.is_multiple_of(self.0.refuse) {
            return Ok(None);
        }
        let mut host = self.0.host.lock().unwrap();
        host.say(&format!("{} 1", window.range.bytes()));
        let address = host.line().parse().unwrap();
        Ok((address != 0).then_some(Room { pid: host.pid(), address }))
    }

    fn add_store(&self, process: u16) -> io::Result<File> {
        // 2^47 is more than most file systems take: a tmpfs
        let file = tempfile::tempfile_in("/dev/shm")?;
        self.0.made.lock().unwrap().stores.insert(process, file.try_clone()?);
        Ok(file)
    }

    fn add_segment(&self, id: u32, bytes: u64) -> io::Result<File> {
        let mut made = self.0.made.lock().unwrap();
        let file = made.segments.entry(id).or_insert_with(|| tempfile::tempfile_in("/dev/shm").unwrap());
        file.set_len(bytes)?;
        file.try_clone()
    }
}

/// A source joined to a sink by sockets.
pub(crate) struct Move {
    pub(crate) out: Outlet<UnixStream>,
    sink: Arc<Sink>,
    threads: Vec<std::thread::JoinHandle<Result<(), SinkError>>>,
    destination: Arc<Destination>,
}

impl Move {
    pub(crate) fn new(streams: usize, options: &OutletOptions, refuse: u32) -> Move {
        let destination = Destination::new(refuse);
        let sink = Arc::new(Sink::new(Box::new(Shared(destination.clone())), Limits::default()));
        let (near, far): (Vec<_>, Vec<_>) = (0..streams).map(|_| UnixStream::pair().unwrap()).unzip();
        let take = |link| {
            let sink = sink.clone();
            std::thread::spawn(move || sink.run(io::BufReader::with_capacity(1 << 18, link)))
        };
        let threads = far.into_iter().map(take).collect();
        Move { out: Outlet::new(near, options).unwrap(), sink, threads, destination }
    }

    /// Ends the streams and returns what has arrived.
    pub(crate) fn arrive(self, mut source: Source) -> (Vec<Arrived>, Delivered) {
        let Move { mut out, sink, threads, destination } = self;
        source.end(&mut out).unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        drop(source);
        (sink.finish().unwrap(), Delivered(destination))
    }

    /// The streams end however they do.
    pub(crate) fn give_up(self) -> Vec<Result<(), SinkError>> {
        drop(self.out);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// The destination after a move.
pub(crate) struct Delivered(Arc<Destination>);

impl Delivered {
    fn page(&self, arrived: &Arrived, address: u64, dest: Dest) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES as usize];
        match dest {
            Dest::Window(id) => {
                let (window, room) = arrived.windows.iter().find(|(window, _)| window.id == id).unwrap();
                read_process(room.pid, room.address + (address - window.range.start), &mut page).unwrap();
            }
            _ => {
                let made = self.0.made.lock().unwrap();
                let file = &made.stores[&arrived.process];
                let got = file.read_at(&mut page, address).unwrap(); // shorter at the end of the file: zeros
                page[got..].fill(0);
            }
        }
        page
    }

    /// Compares every page of a stopped process with what has arrived. Returns how many pages there were.
    pub(crate) fn compare(&self, pid: i32, arrived: &Arrived) -> u64 {
        let vmas = vma::read_smaps(pid).unwrap();
        check_map(arrived, &vmas).unwrap();
        let mut places: RangeMap<Dest> = RangeMap::default();
        arrived.pages.iter().for_each(|run| places.insert(run.range, run.dest));
        let mut compared = 0;
        for vma in vmas {
            if !matches!(vma.class(), Class::Anonymous | Class::Private | Class::Vdso) {
                continue;
            }
            let file = if vma.inode != 0 { File::open(format!("/proc/{pid}/map_files/{}", vma.range)).ok() } else { None };
            for (piece, dest) in places.pieces(vma.range) {
                compared += self.compare_piece(pid, arrived, piece, dest, file.as_ref().map(|file| (file, vma.offset, vma.range)));
            }
        }
        compared
    }

    fn compare_piece(&self, pid: i32, arrived: &Arrived, piece: Range, dest: Option<Dest>, file: Option<(&File, u64, Range)>) -> u64 {
        let mut pages = 0;
        for page in piece.chunks(PAGE_BYTES) {
            let mut source = vec![0; PAGE_BYTES as usize];
            if read_process(pid, page.start, &mut source).is_err() {
                assert_eq!(dest, None, "a page that cannot be read is listed"); // beyond the end of a file
                continue;
            }
            let wanted = match (dest, file) {
                (Some(dest), _) => self.page(arrived, page.start, dest),
                (None, None) => vec![0; PAGE_BYTES as usize],
                (None, Some((file, offset, range))) => {
                    let mut page_of_file = vec![0; PAGE_BYTES as usize];
                    let got = file.read_at(&mut page_of_file, offset + (page.start - range.start)).unwrap();
                    page_of_file[got..].fill(0);
                    page_of_file
                }
            };
            assert!(source == wanted, "page {page} of {pid} at {dest:?} differs");
            pages += 1;
        }
        pages
    }

    /// Compares the segments with what the processes share.
    pub(crate) fn compare_segments(&self, pid: i32, last: &Final) -> u64 {
        let made = self.0.made.lock().unwrap();
        let vmas = vma::read_maps(pid).unwrap();
        for segment in &last.segments {
            let vma = vmas.iter().find(|vma| (&vma.device, vma.inode) == (&segment.key.0, segment.key.1)).unwrap();
            let original = File::open(format!("/proc/{pid}/map_files/{}", vma.range)).unwrap();
            let (mut one, mut other) = (Vec::new(), Vec::new());
            io::Read::read_to_end(&mut &original, &mut one).unwrap();
            io::Seek::rewind(&mut &made.segments[&segment.id]).unwrap();
            io::Read::read_to_end(&mut &made.segments[&segment.id], &mut other).unwrap();
            assert!(one == other && !one.is_empty(), "segment {segment:?} differs");
        }
        last.segments.len() as u64
    }
}

/// All of it reads as zeros.
pub(crate) fn is_zero(pid: i32, range: Range) -> bool {
    let mut bytes = vec![1; range.bytes() as usize];
    read_process(pid, range.start, &mut bytes).unwrap();
    bytes.iter().all(|byte| *byte == 0)
}

/// Reads memory through `/proc/PID/mem`: another way than the one that is tested.
fn read_process(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(buffer, address)
}
