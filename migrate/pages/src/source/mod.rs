//! The source: follows the memory of running processes and sends it, round by round.
//!
//! ```text
//! start ── round ── round ── … ── freeze_round ── after_dump ── drop
//!          while they run          while they stand still
//! ```
//!
//! A *round* of a process: read its mappings; announce windows for what has none; plan (module `ledger`); ask the tracker what
//! changed; read and send it; forget what could not be read, so that it is sent in full next time. New mappings, and processes
//! that join with [`Source::follow`], count as changed. The *freeze round* also sends the list of all pages with contents.
//!
//! Nothing here stops, freezes or harms a process. Dropping the source at any time undoes everything; it takes the kernel 60 to
//! 110 ms per GiB to take the write protection off, so drop it after the thaw.

mod batch;
mod member;
mod outlet;
mod segment;

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

pub use batch::Known;
use member::Member;
pub use outlet::{Outlet, OutletOptions};
use segment::Segments;

use crate::track::{Kind, Take};
use crate::window::Shape;
use crate::wire::{Counters, Kind as Mark, Run};

/// Most processes of a move: their numbers have 16 bits, and no group is so large.
pub const MAX_PROCESSES: usize = 1024;

/// How a source works.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The way of tracking; `None`: the best that works.
    pub track: Option<Kind>,
    /// Who gets userfaultfds; `None`: this process does.
    pub take: Option<Take>,
    /// Of what shape windows are.
    pub shape: Shape,
    /// Pages the receiver has of an earlier visit.
    pub known: Known,
}

/// Why pages could not be followed or sent.
///
/// Effect on state: the processes are as before. After an error of a round the move should be given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The process has ended, or another one has its number now.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// One process too many.
    #[error("more than {MAX_PROCESSES} processes cannot move together")]
    TooMany,
    /// It cannot be followed.
    #[error("process {pid}: {doing}: {source}")]
    Process {
        /// The process.
        pid: i32,
        /// What was to be done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Shared memory cannot be read.
    #[error("shared memory {name}: {source}")]
    Shared {
        /// Its name in `/proc/PID/maps`.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The link to the receiver failed.
    #[error("sending pages: {0}")]
    Link(#[source] io::Error),
}

/// Figures of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundFigures {
    /// Memory that may have changed, bytes. If contents decide, that is all there is.
    pub changed_bytes: u64,
    /// Part of it that had been sent before, but to another place.
    pub moved_bytes: u64,
    /// Pages that vanished while they were read.
    pub lost_pages: u64,
    /// What went over the streams.
    pub sent: Counters,
    /// Reading mappings and finding changes.
    pub scan: Duration,
    /// Reading pages and sending them.
    pub send: Duration,
    /// All of it.
    pub total: Duration,
    /// The freeze had to read `smaps` (13 ms/GiB), because a mapping was new.
    pub slow_maps: bool,
}

impl RoundFigures {
    /// What [`crate::precopy`] wants to know.
    pub fn as_round(&self) -> crate::precopy::Round {
        // not `changed_bytes`: if contents decide, that is everything
        let pages = self.sent.pages + self.sent.zero_pages + self.sent.same_pages;
        crate::precopy::Round { bytes: pages * crate::range::PAGE_BYTES, duration: self.total }
    }
}

/// A process at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalProcess {
    /// Its pid as given.
    pub pid: i32,
    /// Its number in the move.
    pub process: u16,
    /// All its pages with contents, in order, and where they went. For CRIU's `pagemap-PID.img`.
    pub pages: Vec<Run>,
}

/// A shared segment of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalSegment {
    /// Its number in the move.
    pub id: u32,
    /// Device and inode as in `/proc/PID/maps`.
    pub key: (String, u64),
    /// Its length.
    pub bytes: u64,
}

/// What the freeze round found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Final {
    /// Every process that is left.
    pub processes: Vec<FinalProcess>,
    /// Every shared segment.
    pub segments: Vec<FinalSegment>,
    /// Figures.
    pub figures: RoundFigures,
}

/// Follows the memory of a group of processes.
#[derive(Debug)]
pub struct Source {
    options: Options,
    members: Vec<Member>,
    segments: Segments,
    next_process: u16,
    /// Number of the next round's end on the wire.
    next_mark: u32,
    gone: Vec<u16>,
}

impl Source {
    /// Starts to follow processes. Each is stopped for about 100 us.
    ///
    /// # Errors
    /// The first process that cannot be followed. All are as before.
    pub fn start(pids: &[i32], options: Options) -> Result<Source, SourceError> {
        let mut source =
            Source { options, members: Vec::new(), segments: Segments::default(), next_process: 0, next_mark: 0, gone: Vec::new() };
        source.follow(pids)?;
        Ok(source)
    }

    /// Sets which processes belong to the group now. New ones are sent in full in the next round.
    ///
    /// # Errors
    /// The first process that cannot be followed; the group is as before then, but for those that have ended.
    pub fn follow(&mut self, pids: &[i32]) -> Result<(), SourceError> {
        let (stay, gone): (Vec<Member>, Vec<Member>) =
            std::mem::take(&mut self.members).into_iter().partition(|m| pids.contains(&m.pid) && m.is_alive());
        self.members = stay;
        self.gone.extend(gone.iter().filter(|member| member.announced).map(|member| member.process));
        let mut new = Vec::new();
        for pid in pids.iter().filter(|pid| self.members.iter().all(|member| member.pid != **pid)) {
            if self.members.len() + new.len() >= MAX_PROCESSES || self.next_process == u16::MAX {
                return Err(SourceError::TooMany);
            }
            new.push(Member::start(*pid, self.next_process, self.options.track, self.options.take)?);
            self.next_process += 1;
        }
        self.members.extend(new);
        Ok(())
    }

    /// The windows that were announced for a process, in order of address; none for one that is not followed.
    pub fn windows(&self, pid: i32) -> &[crate::window::Window] {
        self.members.iter().find(|member| member.pid == pid).map_or(&[], Member::windows)
    }

    /// How each process is tracked.
    pub fn kinds(&self) -> HashMap<i32, Kind> {
        self.members.iter().map(|member| (member.pid, member.kind())).collect()
    }

    /// Sends what changed since the last round; the first one sends everything. The processes may run.
    ///
    /// # Errors
    /// The move should be given up.
    pub fn round<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<RoundFigures, SourceError> {
        let started = Instant::now();
        let before = out.counters();
        let mut figures = RoundFigures::default();
        let mut announced = self.announce_members(out)?;
        let mut work = Vec::new();
        for member in &mut self.members {
            announced |= member.look(&self.options.shape, out)?;
            work.push(member.changes(&mut figures)?);
        }
        announced |= self.segments.look(&self.members, out)?;
        figures.scan = started.elapsed();
        if announced {
            self.mark(out)?; // what was announced must be there before another stream names it
        }
        for (member, jobs) in self.members.iter_mut().zip(work) {
            let lost = out.send(&member.reader(&self.options.known), &jobs)?;
            figures.lost_pages += member.forget(&lost);
        }
        figures.changed_bytes += self.segments.send(out, false)?;
        self.mark(out)?;
        self.close(figures, out, before, started)
    }

    /// Sends the last changes and the list of all pages. All processes must stand still, from before this call until the end
    /// of the move.
    ///
    /// # Errors
    /// The move must be given up.
    pub fn freeze_round<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<Final, SourceError> {
        let started = Instant::now();
        let before = out.counters();
        let mut figures = RoundFigures::default();
        if self.announce_members(out)? {
            self.mark(out)?;
        }
        for member in &mut self.members {
            let scan = Instant::now();
            figures.slow_maps |= member.look_frozen()?;
            let jobs = member.last_changes(&mut figures)?;
            figures.scan += scan.elapsed();
            let unreadable = out.send(&member.reader(&self.options.known), &jobs)?;
            member.drop_unreadable(&unreadable)?;
        }
        if self.segments.look(&self.members, out)? {
            self.mark(out)?;
        }
        figures.changed_bytes += self.segments.send(out, true)?;
        self.list(out)?;
        self.finish(figures, out, before, started)
    }

    /// Looks once more at what goes to the store and at all code, after CRIU has worked in the frozen processes: it changes a page of code and
    /// puts it back, so that this page is the process's own from then on, and may have been read in between. Sends the list of all pages anew.
    ///
    /// # Errors
    /// The move must be given up.
    pub fn after_dump<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<Final, SourceError> {
        let started = Instant::now();
        let before = out.counters();
        let mut figures = RoundFigures::default();
        for member in &mut self.members {
            let jobs = member.changes_by_dump(&mut figures)?;
            let unreadable = out.send(&member.reader(&self.options.known), &jobs)?;
            member.drop_unreadable(&unreadable)?;
        }
        self.list(out)?;
        self.finish(figures, out, before, started)
    }

    /// Tells the receiver that nothing more comes, on all streams.
    ///
    /// # Errors
    /// From the link.
    pub fn end<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<(), SourceError> {
        out.mark_all(Mark::End, 0).map_err(SourceError::Link)
    }

    /// Tells the receiver that the move is given up. Then drop the source.
    ///
    /// # Errors
    /// From the link; the receiver will notice anyway.
    pub fn cancel<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<(), SourceError> {
        out.mark_all(Mark::Cancel, 0).map_err(SourceError::Link)
    }

    fn announce_members<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<bool, SourceError> {
        let mut any = false;
        for process in self.gone.drain(..) {
            out.first().mark(Mark::Gone, process, 0).map_err(SourceError::Link)?;
            any = true;
        }
        for member in self.members.iter_mut().filter(|member| !member.announced) {
            out.first().mark(Mark::Process, member.process, 0).map_err(SourceError::Link)?;
            member.announced = true;
            any = true;
        }
        Ok(any)
    }

    fn list<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<(), SourceError> {
        self.members.iter().try_for_each(|member| out.first().presence(member.process, member.pages())).map_err(SourceError::Link)?;
        self.mark(out)
    }

    fn mark<W: Write + Send>(&mut self, out: &mut Outlet<W>) -> Result<(), SourceError> {
        let number = self.next_mark;
        self.next_mark += 1;
        out.mark_all(Mark::Round, number).map_err(SourceError::Link)
    }

    fn close<W: Write + Send>(
        &self,
        mut figures: RoundFigures,
        out: &Outlet<W>,
        before: Counters,
        started: Instant,
    ) -> Result<RoundFigures, SourceError> {
        figures.sent = out.counters().since(&before);
        figures.total = started.elapsed();
        figures.send = figures.total.saturating_sub(figures.scan);
        Ok(figures)
    }

    fn finish<W: Write + Send>(
        &self,
        figures: RoundFigures,
        out: &Outlet<W>,
        before: Counters,
        started: Instant,
    ) -> Result<Final, SourceError> {
        let figures = self.close(figures, out, before, started)?;
        let of = |member: &Member| FinalProcess { pid: member.pid, process: member.process, pages: member.pages().to_vec() };
        Ok(Final { processes: self.members.iter().map(of).collect(), segments: self.segments.all(), figures })
    }
}
