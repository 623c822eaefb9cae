//! One process of the group.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;

use super::batch::{Job, Known, Reader};
use super::{Outlet, RoundFigures, SourceError};
use crate::ledger::{Ledger, Plan};
use crate::pagemap::Pagemap;
use crate::range::{Range, RangeMap};
use crate::track::{self, Found, Kind, Take, Tracker};
use crate::vma::{self, Class, Vma};
use crate::window::{Dest, Shape, Window, choose};
use crate::wire::Run;

/// How often tracking is started anew in a process that changes its program.
const MAX_RESTARTS: u32 = 3;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) pid: i32,
    pub(super) process: u16,
    pub(super) announced: bool,
    /// Start time: tells it from a later process of the same number.
    born: u64,
    forced: Option<Kind>,
    take: Option<Take>,
    tracker: Box<dyn Tracker>,
    restarts: u32,
    ledger: Ledger,
    windows: Vec<Window>,
    vmas: Vec<Vma>,
    /// `VmLck` when their flags were read.
    locked_kib: u64,
    plan: Plan,
    /// Hashes of what was sent, if that is how changes are found.
    hashes: Option<Mutex<BTreeMap<u64, u128>>>,
    vdso_sent: Option<Range>,
    /// In the end: all pages with contents, in order.
    present: Vec<Run>,
}

impl Member {
    pub(super) fn start(pid: i32, process: u16, forced: Option<Kind>, take: Option<Take>) -> Result<Member, SourceError> {
        let born = born(pid).ok_or(SourceError::Gone { pid })?;
        let tracker = track::start(pid, forced, take).map_err(failed(pid, "cannot be tracked"))?;
        let hashes = (tracker.kind() == Kind::Content).then(Mutex::default);
        Ok(Member {
            pid,
            process,
            announced: false,
            born,
            forced,
            take,
            tracker,
            restarts: 0,
            ledger: Ledger::default(),
            windows: Vec::new(),
            vmas: Vec::new(),
            locked_kib: 0,
            plan: Plan::default(),
            hashes,
            vdso_sent: None,
            present: Vec::new(),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.tracker.kind()
    }

    pub(super) fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    pub(super) fn is_alive(&self) -> bool {
        born(self.pid) == Some(self.born)
    }

    /// Reads the mappings and announces windows for those that have none. Tells whether there were any.
    pub(super) fn look<W: Write + Send>(&mut self, shape: &Shape, out: &mut Outlet<W>) -> Result<bool, SourceError> {
        self.check_alive()?;
        if self.tracker.is_blind() && self.restarts < MAX_RESTARTS {
            self.restarts += 1;
            self.tracker = track::start(self.pid, self.forced, self.take).map_err(failed(self.pid, "cannot be tracked any more"))?;
            self.hashes = (self.tracker.kind() == Kind::Content).then(Mutex::default);
            self.ledger.clear();
            self.vmas.clear(); // another program: nothing is known of its flags
        }
        self.read_mappings()?;
        let new = choose(&self.vmas, &self.windows, shape);
        new.iter().try_for_each(|window| out.first().window(self.process, window)).map_err(SourceError::Link)?;
        self.windows.extend_from_slice(&new);
        self.windows.sort_by_key(|window| window.range);
        Ok(!new.is_empty())
    }

    /// Reads the mappings of the stopped process. `true`: it needed the dear way.
    pub(super) fn look_frozen(&mut self) -> Result<bool, SourceError> {
        self.check_alive()?;
        self.read_mappings()
    }

    /// Reads the mappings the cheap way, if all flags are known from before; else the dear way (`true`).
    fn read_mappings(&mut self) -> Result<bool, SourceError> {
        // before the mappings: what is locked in between shows as a difference the next time
        let locked = vma::locked_kib(self.pid).map_err(failed(self.pid, "reading its status"))?;
        let mut vmas = vma::read_maps(self.pid).map_err(failed(self.pid, "reading its mappings"))?;
        let known = locked == self.locked_kib && vma::with_known_flags(&mut vmas, &self.vmas);
        if !known {
            self.locked_kib = locked;
            vmas = vma::read_smaps(self.pid).map_err(failed(self.pid, "reading its mappings"))?;
        }
        self.vmas = vmas;
        Ok(!known)
    }

    /// What is to be sent in a round.
    pub(super) fn changes(&mut self, figures: &mut RoundFigures) -> Result<Vec<Job>, SourceError> {
        self.make_plan(figures);
        let areas: Vec<_> = self.plan.areas.iter().map(|planned| planned.area).collect();
        let ranges = self.tracker.round(&areas).map_err(failed(self.pid, "finding changed pages"))?;
        self.ledger.report(&ranges);
        figures.changed_bytes += ranges.iter().map(|range| range.bytes()).sum::<u64>();
        let mut jobs = self.vdso();
        let places = self.ledger.places();
        jobs.extend(ranges.into_iter().flat_map(|range| places.within(range)).map(|(range, dest)| Run { range, dest }));
        Ok(jobs)
    }

    /// What is to be sent in the freeze, and which pages there are.
    pub(super) fn last_changes(&mut self, figures: &mut RoundFigures) -> Result<Vec<Job>, SourceError> {
        self.make_plan(figures);
        let areas: Vec<_> = self.plan.areas.iter().map(|planned| planned.area).collect();
        let found = self.tracker.last(&areas, self.ledger.reported()).map_err(failed(self.pid, "finding changed pages"))?;
        let mut jobs = self.vdso();
        self.present.clear();
        jobs.extend(self.take(found, figures));
        Ok(jobs)
    }

    /// Once more what goes to the store, and all code: CRIU writes a system call into the first code it finds, even into code in a window, and puts
    /// back what was there. The last look may have come in between.
    pub(super) fn changes_by_dump(&mut self, figures: &mut RoundFigures) -> Result<Vec<Job>, SourceError> {
        self.check_alive()?;
        let is_code = |range: Range| self.vmas.iter().any(|vma| vma.exec && vma.range.overlap(range).is_some());
        let again = self.plan.areas.iter().filter(|planned| planned.dest == Dest::Store || is_code(planned.area.range));
        let areas: Vec<_> = again.map(|planned| planned.area).collect();
        let found = self.tracker.last(&areas, self.ledger.reported()).map_err(failed(self.pid, "finding changed pages"))?;
        let mut present: RangeMap<Dest> = RangeMap::default();
        self.present.iter().for_each(|run| present.insert(run.range, run.dest));
        areas.iter().map(|area| area.range).chain(self.vdso_sent).for_each(|range| present.remove(range));
        self.present = present.iter().map(|(range, dest)| Run { range, dest }).collect();
        Ok(self.take(found, figures))
    }

    /// Adds what was found, and the vdso, to the list of all pages; what of it is to be sent.
    fn take(&mut self, found: Vec<Found>, figures: &mut RoundFigures) -> Vec<Job> {
        let places = self.ledger.places();
        let mut jobs = Vec::new();
        for Found { range, changed } in found {
            let runs = places.within(range).map(|(range, dest)| Run { range, dest });
            let before = self.present.len();
            self.present.extend(runs);
            if changed {
                jobs.extend_from_slice(self.present.get(before..).unwrap_or_default());
            }
        }
        figures.changed_bytes += jobs.iter().map(|job| job.range.bytes()).sum::<u64>();
        self.present.extend(self.vdso_sent.map(|range| Run { range, dest: Dest::Store }));
        self.present = joined(std::mem::take(&mut self.present));
        joined(jobs)
    }

    fn make_plan(&mut self, figures: &mut RoundFigures) {
        self.plan = self.ledger.plan(&self.vmas, &self.windows);
        figures.moved_bytes += self.plan.moved_bytes;
        if let Some(hashes) = &mut self.hashes {
            let hashes = hashes.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            let known = self.plan.areas.iter().filter(|planned| !planned.area.whole);
            let mut kept = BTreeMap::new();
            known.for_each(|planned| {
                let range = planned.area.range;
                kept.extend(hashes.range(range.start..range.end).map(|(address, hash)| (*address, *hash)));
            });
            *hashes = kept;
        }
    }

    /// The vdso never changes: it is sent once, and again if it was moved.
    fn vdso(&mut self) -> Vec<Job> {
        let vdso = self.vmas.iter().find(|vma| vma.class() == Class::Vdso).map(|vma| vma.range);
        let new = vdso.filter(|_| vdso != self.vdso_sent);
        self.vdso_sent = vdso;
        new.into_iter().map(|range| Run { range, dest: Dest::Store }).collect()
    }

    pub(super) fn reader<'a>(&'a self, known: &'a Known) -> Reader<'a> {
        Reader { pid: self.pid, process: self.process, hashes: self.hashes.as_ref(), known }
    }

    /// Takes back what could not be read; how many pages.
    pub(super) fn forget(&mut self, lost: &[Range]) -> u64 {
        for range in lost {
            self.ledger.forget(*range);
            if self.vdso_sent.is_some_and(|vdso| vdso.overlap(*range).is_some()) {
                self.vdso_sent = None;
            }
        }
        lost.iter().map(|range| range.pages()).sum()
    }

    /// Pages of the stopped process that could not be read have no contents (guard pages, which older kernels do not tell from swapped ones), or this is an error.
    pub(super) fn drop_unreadable(&mut self, unreadable: &[Range]) -> Result<(), SourceError> {
        if unreadable.is_empty() {
            return Ok(());
        }
        let pagemap = Pagemap::open(self.pid).map_err(failed(self.pid, "opening its page map"))?;
        let mut present: RangeMap<Dest> = RangeMap::default();
        self.present.iter().for_each(|run| present.insert(run.range, run.dest));
        for range in unreadable {
            let mut there = false;
            pagemap.entries(*range, &mut |_, entry| there |= entry.present()).map_err(failed(self.pid, "reading its page map"))?;
            if there {
                return Err(failed(self.pid, "reading its memory")(io::ErrorKind::UnexpectedEof.into()));
            }
            present.remove(*range);
        }
        self.present = present.iter().map(|(range, dest)| Run { range, dest }).collect();
        Ok(())
    }

    pub(super) fn pages(&self) -> &[Run] {
        &self.present
    }

    fn check_alive(&self) -> Result<(), SourceError> {
        if self.is_alive() { Ok(()) } else { Err(SourceError::Gone { pid: self.pid }) }
    }
}

/// In order of address, neighbours as one.
fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| run.range);
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.range.end == run.range.start && last.dest == run.dest => last.range.end = run.range.end,
            _ => joined.push(run),
        }
    }
    joined
}

/// When a process was started, in clock ticks. `None`: it has ended.
fn born(pid: i32) -> Option<u64> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

fn failed(pid: i32, doing: &'static str) -> impl FnOnce(io::Error) -> SourceError {
    move |source| SourceError::Process { pid, doing, source }
}
