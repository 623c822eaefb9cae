//! Page maps: which pages a process has, and where each comes from.
//!
//! Of memory that CRIU was told to trust us with (see [`crate::DumpOptions::trust`]) its page map says nothing: [`PageMap::merge`] adds what we
//! know. A page that we supplied is marked as such one by one, so it is found wherever it was put, whatever became of its mapping.

use std::path::Path;

use super::file::{Builder, Image, Kind};
use super::messages::{Pagemap, PagemapHead};
use super::{ImageError, PAGE_BYTES};

/// In the parent images.
pub const PARENT: u32 = 1 << 0;
/// Comes later, through userfaultfd.
pub const LAZY: u32 = 1 << 1;
/// In the pages file of these images.
pub const PRESENT: u32 = 1 << 2;
/// Our patch: in a region of the waiting restore. Only beside [`PARENT`].
pub const PREMEM: u32 = 1 << 8;
/// Our patch: equal to the page of the parent process. Only beside [`PARENT`].
pub const INHERIT: u32 = 1 << 9;

/// End of the address space of user programs.
pub const ADDRESS_SPACE_BYTES: u64 = 1 << 47;

/// Where we put a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Into the parent images: the store (see [`super::parent`]).
    Store,
    /// Into a region of the waiting restore.
    Region,
    /// Nowhere: it equals the page at the same address of the parent process, whose mapping has the same bounds.
    ParentProcess,
}

impl Place {
    fn flags(self) -> u32 {
        match self {
            Self::Store => PARENT,
            Self::Region => PARENT | PREMEM,
            Self::ParentProcess => PARENT | INHERIT,
        }
    }
}

/// Pages in a row that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Constants of this module.
    pub flags: u32,
}

impl Run {
    /// Pages that we put somewhere.
    pub fn placed(start: u64, pages: u64, place: Place) -> Self {
        Self { start, pages, flags: place.flags() }
    }

    /// First address after it.
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE_BYTES
    }

    fn cut(&self, start: u64, end: u64) -> Self {
        Self { start, pages: (end - start) / PAGE_BYTES, flags: self.flags }
    }
}

/// A page map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMap {
    /// Number of the pages file.
    pub pages_id: u32,
    /// In order of address, without overlap.
    pub runs: Vec<Run>,
}

impl PageMap {
    /// Reads `pagemap-PID.img`.
    ///
    /// # Errors
    /// It is malformed, or not in order.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let mut image = Image::open(path, Kind::Pagemap)?;
        let head: PagemapHead = image.record()?.ok_or_else(|| image.malformed("no head".into()))?;
        let mut runs = Vec::new();
        while let Some(entry) = image.record::<Pagemap>()? {
            let old_flags = if entry.in_parent == Some(true) { PARENT } else { PRESENT };
            let pages = entry.nr_pages.unwrap_or_else(|| entry.compat_nr_pages.into());
            runs.push(Run { start: entry.vaddr, pages, flags: entry.flags.unwrap_or(old_flags) });
        }
        check_order(&runs).map_err(|what| image.malformed(what))?;
        Ok(Self { pages_id: head.pages_id, runs })
    }

    /// Writes `pagemap-PID.img`.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(&self, path: &Path) -> Result<(), ImageError> {
        let mut builder = Builder::new(Kind::Pagemap);
        builder.add(&PagemapHead { pages_id: self.pages_id });
        for run in &self.runs {
            builder.add(&Pagemap {
                vaddr: run.start,
                compat_nr_pages: u32::try_from(run.pages).unwrap_or(u32::MAX),
                in_parent: None,
                flags: Some(run.flags),
                nr_pages: Some(run.pages),
            });
        }
        builder.write(path)
    }

    /// Adds what we know to CRIU's map.
    ///
    /// * What CRIU dumped itself stays.
    /// * Pages that CRIU says are in the parent are where `ours` says.
    /// * Pages that CRIU does not list are added only inside `trusted` (first address, first address after): elsewhere CRIU has looked and
    ///   they do not exist any more.
    ///
    /// # Errors
    /// `ours` is not in order, or has pages outside of the address space. The map is unchanged.
    pub fn merge(&mut self, ours: &[Run], trusted: &[(u64, u64)]) -> Result<(), String> {
        check_order(ours)?;
        let mut trusted = trusted.to_vec();
        trusted.sort_unstable();
        let mut merged = Vec::with_capacity(self.runs.len() + ours.len());
        for_each_piece(&self.runs, ours, |start, end, theirs, our| {
            let chosen = match (theirs, our) {
                (Some(theirs), Some(our)) if theirs.flags & PARENT != 0 => Some(our),
                (Some(theirs), _) => Some(theirs),
                (None, our) => our,
            };
            let Some(run) = chosen.map(|run| run.cut(start, end)) else { return };
            if theirs.is_some() { push(&mut merged, run) } else { push_inside(&mut merged, run, &trusted) }
        });
        self.runs = merged;
        Ok(())
    }

    /// Pages of `ours` (in order) take the place of those that are in the map; others of `ours` are ignored.
    pub(crate) fn replace(&mut self, ours: &[Run]) {
        let mut replaced = Vec::with_capacity(self.runs.len() + ours.len());
        for_each_piece(&self.runs, ours, |start, end, theirs, our| {
            if let Some(theirs) = theirs {
                push(&mut replaced, our.unwrap_or(theirs).cut(start, end));
            }
        });
        self.runs = replaced;
    }

    /// Pages with this flag.
    pub fn count(&self, flag: u32) -> u64 {
        self.runs.iter().filter(|run| run.flags & flag != 0).map(|run| run.pages).sum()
    }
}

/// Calls `f` for each piece of the address space in which neither list changes.
fn for_each_piece<'a>(a: &'a [Run], b: &'a [Run], mut f: impl FnMut(u64, u64, Option<&'a Run>, Option<&'a Run>)) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut at = 0;
    loop {
        while a.next_if(|run| run.end() <= at).is_some() {}
        while b.next_if(|run| run.end() <= at).is_some() {}
        let inside = |run: Option<&&'a Run>| run.copied().filter(|run| run.start <= at);
        let edge = |run: Option<&&'a Run>| run.map(|run| if run.start > at { run.start } else { run.end() });
        let (here_a, here_b) = (inside(a.peek()), inside(b.peek()));
        let next = [edge(a.peek()), edge(b.peek())].into_iter().flatten().min();
        let Some(next) = next else { return };
        if here_a.is_some() || here_b.is_some() {
            f(at, next, here_a, here_b);
        }
        at = next;
    }
}

fn push_inside(runs: &mut Vec<Run>, run: Run, ranges: &[(u64, u64)]) {
    let from = ranges.partition_point(|(_, end)| *end <= run.start);
    for (start, end) in ranges.iter().skip(from).take_while(|(start, _)| *start < run.end()) {
        let (start, end) = ((*start).max(run.start), (*end).min(run.end()));
        if start < end {
            push(runs, run.cut(start, end));
        }
    }
}

/// Adds a run at the end, joined with the last if they are alike.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start && last.flags == run.flags => last.pages += run.pages,
        _ => runs.push(run),
    }
}

fn check_order(runs: &[Run]) -> Result<(), String> {
    let mut at = 0;
    for run in runs {
        let end = run.pages.checked_mul(PAGE_BYTES).and_then(|bytes| run.start.checked_add(bytes));
        let sound = run.start % PAGE_BYTES == 0 && run.pages > 0 && run.start >= at;
        match end.filter(|end| sound && *end <= ADDRESS_SPACE_BYTES) {
            Some(end) => at = end,
            None => return Err(format!("{} pages at {:#x} are out of order or out of bounds", run.pages, run.start)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(start_page: u64, pages: u64, flags: u32) -> Run {
        Run { start: start_page * PAGE_BYTES, pages, flags }
    }

    #[test]
    fn merging_follows_the_three_rules() {
        let mut map = PageMap { pages_id: 1, runs: vec![run(10, 4, PRESENT), run(20, 4, PARENT)] };
        let ours = [Run::placed(8 * 4096, 20, Place::Region), Run::placed(100 * 4096, 2, Place::ParentProcess)];
        map.merge(&ours, &[(24 * 4096, 26 * 4096), (100 * 4096, 200 * 4096)]).unwrap();
        let region = PARENT | PREMEM;
        assert_eq!(map.runs, [run(10, 4, PRESENT), run(20, 6, region), run(100, 2, PARENT | INHERIT)]);
    }

    #[test]
    fn disorder_is_an_error() {
        let mut map = PageMap { pages_id: 1, runs: vec![run(1, 1, PARENT)] };
        for bad in [vec![run(5, 2, PARENT), run(6, 1, PARENT)], vec![run(5, 0, PARENT)], vec![run(5, 1 << 40, PARENT)]] {
            assert!(map.merge(&bad, &[]).is_err());
        }
        assert!(map.merge(&[Run { start: 5, pages: 1, flags: 0 }], &[]).is_err());
        assert_eq!(map.runs, [run(1, 1, PARENT)]);
    }

    /// Lists of runs within 200 pages.
    fn runs(flags: &'static [u32]) -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec((0_u64..6, 1_u64..6, prop::sample::select(flags)), 0..20).prop_map(|parts| {
            let mut at = 0;
            parts
                .into_iter()
                .map(|(gap, pages, flags)| {
                    at += gap + pages;
                    run(at - pages, pages, flags)
                })
                .collect()
        })
    }

    fn flags_of(runs: &[Run], page: u64) -> Option<u32> {
        runs.iter().find(|run| run.start <= page * 4096 && page * 4096 < run.end()).map(|run| run.flags)
    }

    proptest! {
        #[test]
        fn merging_agrees_with_the_rules_page_by_page(
            theirs in runs(&[PRESENT, PARENT, PRESENT | LAZY]),
            ours in runs(&[PARENT, PARENT | PREMEM, PARENT | INHERIT]),
            trusted in prop::collection::vec((0_u64..200, 1_u64..20), 0..4),
        ) {
            let trusted: Vec<(u64, u64)> = trusted.into_iter().map(|(start, pages)| (start * 4096, (start + pages) * 4096)).collect();
            // Overlapping trusted ranges are joined by the caller.
            let mut sorted = trusted.clone();
            sorted.sort_unstable();
            prop_assume!(sorted.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            let mut map = PageMap { pages_id: 1, runs: theirs.clone() };
            map.merge(&ours, &trusted).unwrap();
            check_order(&map.runs).unwrap();
            for page in 0..260 {
                let (criu, we) = (flags_of(&theirs, page), flags_of(&ours, page));
                let is_trusted = trusted.iter().any(|(start, end)| *start <= page * 4096 && page * 4096 < *end);
                let expected = match (criu, we) {
                    (Some(criu), Some(we)) if criu & PARENT != 0 => Some(we),
                    (Some(criu), _) => Some(criu),
                    (None, we) => we.filter(|_| is_trusted),
                };
                prop_assert_eq!(flags_of(&map.runs, page), expected, "page {}", page);
            }
        }
    }
}
