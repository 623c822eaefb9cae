//! The destination: takes page streams and puts every page where it belongs.
//!
//! One [`Sink`] serves all streams of a move, each in a thread of its own that calls [`Sink::run`]. What must be made (windows,
//! store files, segments) is asked of the caller through [`Place`], when the stream announces it. A window may be refused: its
//! pages then go to the store, and the source need not know.
//!
//! The sink remembers where it put each page last. In the end the source names all pages with contents and their places, and
//! [`Sink::finish`] answers only if every one of them has arrived at just that place. [`check_map`] then compares that with the
//! mappings of the program as the restorer will make them. Both fail closed, before the program is told to go.
//!
//! Nothing that comes in is believed: places must have been announced, pages must lie within them, sums are bounded
//! by [`Limits`].

mod check;
mod room;
mod rounds;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

pub use check::{Mismatch, check_map};
use room::{Received, Target};
use rounds::Rounds;

use crate::range::{PAGE_BYTES, Range};
use crate::window::{Dest, MAX_WINDOWS, Window};
use crate::wire::{Frame, FrameReader, Run, WireError, page_hash};

/// Most runs in the list of all pages of one process: 64 MiB of memory here, 16 GiB of pages without two neighbours there.
const MAX_PRESENT: usize = 1 << 22;

/// Memory of a waiting process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The process, as this one sees it.
    pub pid: i32,
    /// Where in it the window begins. It must be writable for all its length.
    pub address: u64,
}

/// Makes what a stream announces. Called from the thread of stream 0.
pub trait Place: Send + Sync {
    /// Makes a window. `None`: there is no room for it; its pages go to the store.
    ///
    /// # Errors
    /// Any error ends the move.
    fn add_window(&self, process: u16, window: &Window) -> io::Result<Option<Room>>;

    /// The store of a process that joins: a file, best sparse on a tmpfs, in which each page is put at the offset that is its address.
    ///
    /// # Errors
    /// Any error ends the move.
    fn add_store(&self, process: u16) -> io::Result<File>;

    /// The file of a shared segment. Called again with the same number if it has changed its size.
    ///
    /// # Errors
    /// Any error ends the move.
    fn add_segment(&self, id: u32, bytes: u64) -> io::Result<File>;

    /// Fills `page` from what an earlier visit left, if that is still there. The hash is checked by the sink.
    ///
    /// # Errors
    /// Any error ends the move.
    fn earlier(&self, _process: u16, _address: u64, _hash: u128, _page: &mut [u8]) -> io::Result<bool> {
        Ok(false)
    }

    /// A process has ended at the source; what was made for it is not needed any more.
    fn gone(&self, _process: u16) {}
}

/// Bounds on what a source can make this node do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most processes of a move.
    pub processes: usize,
    /// Most memory of all pages together, bytes.
    pub memory_bytes: u64,
    /// Longest window, bytes.
    pub window_bytes: u64,
    /// Most shared segments.
    pub segments: usize,
    /// Longest time in which no stream brings anything while some wait for the others.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { processes: 1024, memory_bytes: 1 << 40, window_bytes: 1 << 45, segments: 4096, patience: Duration::from_secs(30) }
    }
}

/// A stream could not be taken. The move must be given up: other streams of it end with [`SinkError::OtherStream`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The stream itself.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The source names what it did not announce, or more than is allowed.
    #[error("the source of the move breaks the rules: {0}")]
    Rules(&'static str),
    /// The source has given up.
    #[error("the source has given up the move")]
    Cancelled,
    /// Another stream of the move failed, or the source is silent.
    #[error("another page stream of the move has failed or stays away")]
    OtherStream,
    /// A page that an earlier visit should have left is not there any more.
    #[error("a page of an earlier visit is missing or has changed; the move must be repeated without it")]
    Earlier,
    /// Pages cannot be put in their place.
    #[error("{doing}: {source}")]
    Placing {
        /// What was to be done.
        doing: &'static str,
        /// What the kernel or the caller's [`Place`] said.
        source: io::Error,
    },
    /// What arrived is not all.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// A process whose pages have all arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Its number in the move.
    pub process: u16,
    /// Its windows, sorted by address, with the memory they are.
    pub windows: Vec<(Window, Room)>,
    /// All pages with contents, in order, and where they are now.
    pub pages: Vec<Run>,
    /// What was put somewhere and must not be seen by the program any more: it is zero or a file's page now.
    pub stale: Vec<Run>,
}

/// The receiving end of a move.
pub struct Sink {
    place: Box<dyn Place>,
    limits: Limits,
    processes: RwLock<HashMap<u16, Arc<Process>>>,
    segments: RwLock<HashMap<u32, (Arc<File>, u64)>>,
    memory: Mutex<u64>,
    rounds: Rounds,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Process {
    store: File,
    windows: RwLock<HashMap<u32, (Window, Option<Room>)>>,
    received: Mutex<Received>,
}

impl Sink {
    /// A sink for one move.
    pub fn new(place: Box<dyn Place>, limits: Limits) -> Sink {
        let rounds = Rounds::new(limits.patience);
        Sink { place, limits, processes: RwLock::default(), segments: RwLock::default(), memory: Mutex::new(0), rounds }
    }

    /// Takes one stream to its end.
    ///
    /// # Errors
    /// Why the move must be given up.
    pub fn run(&self, stream: impl Read) -> Result<(), SinkError> {
        let result = FrameReader::begin(stream).map_err(SinkError::from).and_then(|reader| self.frames(reader));
        if result.is_err() {
            self.rounds.fail();
        }
        result
    }

    fn frames(&self, mut reader: FrameReader<impl Read>) -> Result<(), SinkError> {
        let stream = reader.stream;
        if !self.rounds.join(stream, reader.streams) {
            return Err(SinkError::Rules("a stream that is there already"));
        }
        let first = stream == 0;
        loop {
            let frame = reader.next_frame()?;
            self.rounds.progress();
            match frame {
                Frame::Pages(process, runs, raw) => self.put(process, runs, Some(raw))?,
                Frame::Zeros(process, runs) => self.put(process, runs, None)?,
                Frame::Same(process, runs, hashes) => self.put_earlier(process, runs, hashes)?,
                Frame::Round(number) => {
                    if !self.rounds.arrive(stream, number) {
                        return Err(SinkError::OtherStream);
                    }
                }
                Frame::Cancel => return Err(SinkError::Cancelled),
                Frame::End => return Ok(()),
                _ if !first => return Err(SinkError::Rules("an announcement on a stream that is for pages only")),
                Frame::Process(process) => self.add_process(process)?,
                Frame::Window(process, window) => self.add_window(process, window)?,
                Frame::Segment(id, bytes) => self.add_segment(id, bytes)?,
                Frame::Present(process, runs) => self.process(process)?.add_present(runs)?,
                Frame::Complete(process, pages) => lock(&self.process(process)?.received).complete(pages)?,
                Frame::Gone(process) => {
                    self.process(process)?;
                    write(&self.processes).remove(&process);
                    self.place.gone(process);
                }
            }
        }
    }

    fn process(&self, process: u16) -> Result<Arc<Process>, SinkError> {
        read(&self.processes).get(&process).cloned().ok_or(SinkError::Rules("an unknown process"))
    }

    fn add_process(&self, process: u16) -> Result<(), SinkError> {
        if self.process(process).is_ok() || read(&self.processes).len() >= self.limits.processes {
            return Err(SinkError::Rules("a process that is there already, or one too many"));
        }
        let store = self.place.add_store(process).map_err(placing("making a store"))?;
        let made = Process { store, windows: RwLock::default(), received: Mutex::default() };
        write(&self.processes).insert(process, Arc::new(made));
        Ok(())
    }

    fn add_window(&self, process: u16, window: Window) -> Result<(), SinkError> {
        let owner = self.process(process)?;
        let mut windows = write(&owner.windows);
        let overlaps = windows.values().any(|(other, _)| other.id == window.id || other.range.overlap(window.range).is_some());
        if overlaps || windows.len() >= MAX_WINDOWS || window.range.bytes() > self.limits.window_bytes {
            return Err(SinkError::Rules("a window that overlaps another, is too long, or one too many"));
        }
        let room = self.place.add_window(process, &window).map_err(placing("making a window"))?;
        windows.insert(window.id, (window, room));
        Ok(())
    }

    fn add_segment(&self, id: u32, bytes: u64) -> Result<(), SinkError> {
        let mut segments = write(&self.segments);
        let others: u64 = segments.iter().filter(|(other, _)| **other != id).map(|(_, (_, bytes))| bytes).sum();
        let too_many = segments.len() >= self.limits.segments && !segments.contains_key(&id);
        if too_many || others.saturating_add(bytes) > self.limits.memory_bytes {
            return Err(SinkError::Rules("a segment that is too long, or one too many"));
        }
        let file = self.place.add_segment(id, bytes).map_err(placing("making a segment"))?;
        segments.insert(id, (Arc::new(file), bytes));
        Ok(())
    }

    /// Puts contents, or zeros, in their places.
    fn put(&self, process: u16, runs: &[Run], contents: Option<&[u8]>) -> Result<(), SinkError> {
        let mut rest = contents;
        for run in runs {
            let part = match rest.map(|rest| rest.split_at_checked(run.range.bytes() as usize)) {
                Some(Some((part, behind))) => {
                    rest = Some(behind);
                    Some(part)
                }
                Some(None) => return Err(SinkError::Rules("fewer contents than pages")),
                None => None,
            };
            self.put_run(process, run, part)?;
        }
        Ok(())
    }

    fn put_run(&self, process: u16, run: &Run, contents: Option<&[u8]>) -> Result<(), SinkError> {
        if let Dest::Segment(id) = run.dest {
            let found = read(&self.segments).get(&id).cloned();
            let (file, bytes) = found.ok_or(SinkError::Rules("an unknown segment"))?;
            if run.range.end > bytes {
                return Err(SinkError::Rules("pages beyond the end of a segment"));
            }
            return put_in_file(&file, run.range, contents).map_err(placing("writing to a segment"));
        }
        let owner = self.process(process)?;
        let (dest, target) = owner.target(run)?;
        let zeros: Vec<Range> = {
            let mut received = lock(&owner.received);
            // zeros need writing only over what was put there before
            let zeros = if contents.is_none() { received.touched(dest, run.range) } else { Vec::new() };
            let more = received.note(dest, run.range, contents.is_some());
            let mut memory = lock(&self.memory);
            *memory += more;
            if *memory > self.limits.memory_bytes {
                return Err(SinkError::Rules("more memory than this node allows"));
            }
            zeros
        };
        match contents {
            Some(bytes) => {
                target.write(run.range, bytes).map(|()| target.make_huge(run.range, |half| lock(&owner.received).has_all(dest, half)))
            }
            None => zeros.into_iter().try_for_each(|range| target.zero(range)),
        }
        .map_err(placing("writing pages"))
    }

    fn put_earlier(&self, process: u16, runs: &[Run], hashes: &[u8]) -> Result<(), SinkError> {
        let mut page = vec![0; PAGE_BYTES as usize];
        let pages = runs.iter().flat_map(|run| run.range.chunks(PAGE_BYTES).map(|range| Run { range, dest: run.dest }));
        for (run, hash) in pages.zip(hashes.as_chunks::<16>().0) {
            let hash = u128::from_le_bytes(*hash);
            let there = self.place.earlier(process, run.range.start, hash, &mut page).map_err(placing("reading an earlier page"))?;
            if !there || page_hash(&page) != hash {
                return Err(SinkError::Earlier);
            }
            self.put_run(process, &run, Some(&page))?;
        }
        Ok(())
    }

    /// What has arrived, once all streams have ended: every process that is left, in order of its number.
    ///
    /// # Errors
    /// [`SinkError::Mismatch`] if anything the source named is missing or elsewhere; nothing may be started then.
    pub fn finish(&self) -> Result<Vec<Arrived>, SinkError> {
        let mut all = Vec::new();
        for (process, owner) in read(&self.processes).iter() {
            let windows = read(&owner.windows);
            let mut placed: Vec<(Window, Room)> = windows.values().filter_map(|(window, room)| room.map(|room| (*window, room))).collect();
            placed.sort_by_key(|(window, _)| window.range);
            let (pages, stale) = lock(&owner.received).finish(*process)?;
            all.push(Arrived { process: *process, windows: placed, pages, stale });
        }
        all.sort_by_key(|arrived| arrived.process);
        Ok(all)
    }
}

impl Process {
    /// Where a run really goes: to the store if its window was refused.
    fn target(&self, run: &Run) -> Result<(Dest, Target<'_>), SinkError> {
        let Dest::Window(id) = run.dest else { return Ok((Dest::Store, Target::Store(&self.store))) };
        match read(&self.windows).get(&id) {
            None => Err(SinkError::Rules("an unknown window")),
            Some((window, _)) if !window.range.contains(run.range) => Err(SinkError::Rules("pages outside of their window")),
            Some((_, None)) => Ok((Dest::Store, Target::Store(&self.store))),
            Some((window, Some(room))) => Ok((run.dest, Target::Memory { room: *room, window: window.range })),
        }
    }

    fn add_present(&self, runs: &[Run]) -> Result<(), SinkError> {
        let mut real = Vec::with_capacity(runs.len());
        for run in runs {
            let (dest, _) = self.target(run)?;
            real.push(Run { dest, ..*run });
        }
        lock(&self.received).add_present(&real, MAX_PRESENT)
    }
}

fn put_in_file(file: &File, range: Range, contents: Option<&[u8]>) -> io::Result<()> {
    match contents {
        Some(bytes) => file.write_all_at(bytes, range.start),
        None => Target::Store(file).zero(range),
    }
}

fn placing(doing: &'static str) -> impl FnOnce(io::Error) -> SinkError {
    move |source| SinkError::Placing { doing, source }
}

/// A lock whose holder panicked: the data are still whole for our purposes, since every answer is checked in the end.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
