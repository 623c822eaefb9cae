//! Which pages come later. Pure.

use crate::images::messages::{Mm, Vma};
use crate::images::pagemap::{LAZY, PARENT, PageMap, Run};
use crate::images::{PAGE_BYTES, verify};

/// Mappings with fewer pages are restored by CRIU before the start: that costs about 1 us a page, and later each of them might have to be waited for.
pub const BIG_PAGES: u64 = 256;

/// Marks the pages of big plain anonymous mappings as lazy, if they are in the parent images. `big_pages` is the least number of such pages that makes
/// a mapping big, e.g. [`BIG_PAGES`]. Returns the marked runs, for [`super::LazyProcess`]; the caller writes the map.
///
/// Pages that CRIU has dumped itself (of mappings without access rights) or that are in a region are restored as before.
pub fn mark(map: &mut PageMap, mm: &Mm, big_pages: u64) -> Vec<Run> {
    let stored: Vec<Run> = map.runs.iter().filter(|run| run.flags == PARENT).copied().collect();
    let mut marked = Vec::new();
    for vma in verify::mappings(mm).filter(|vma| can_come_later(vma)) {
        let inside = parts(&stored, vma);
        if inside.iter().map(|run| run.pages).sum::<u64>() >= big_pages.max(1) {
            marked.extend(inside.into_iter().map(|run| Run { flags: LAZY, ..run }));
        }
    }
    marked.sort_unstable_by_key(|run| run.start);
    // CRIU itself calls pages lazy that it has dumped. Nobody is going to supply those.
    for run in &mut map.runs {
        run.flags &= !LAZY;
    }
    map.replace(&marked);
    marked
}

/// CRIU reads the kernel's own mappings (status bits of vsyscall, vdso, vvar) and rings of asynchronous I/O before the start.
fn can_come_later(vma: &Vma) -> bool {
    const SPECIAL: u32 = 1 << 2 | 1 << 3 | 1 << 12 | 1 << 13;
    verify::plain_anon(vma) && vma.status & SPECIAL == 0
}

/// The parts of the runs (in order) that are in the mapping.
fn parts(runs: &[Run], vma: &Vma) -> Vec<Run> {
    let from = runs.partition_point(|run| run.end() <= vma.start);
    let overlapping = runs.iter().skip(from).take_while(|run| run.start < vma.end);
    overlapping
        .map(|run| {
            let (start, end) = (run.start.max(vma.start), run.end().min(vma.end));
            Run { start, pages: (end - start) / PAGE_BYTES, flags: run.flags }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::pagemap::{PREMEM, PRESENT};

    fn vma(first_page: u64, pages: u64, flags: u32) -> Vma {
        // Regular, private anonymous; MAP_PRIVATE | MAP_ANONYMOUS.
        let status = 1 | 1 << 9;
        Vma {
            start: first_page * PAGE_BYTES,
            end: (first_page + pages) * PAGE_BYTES,
            flags: 0x22 | flags,
            status,
            fd: -1,
            ..Vma::default()
        }
    }

    fn run(first_page: u64, pages: u64, flags: u32) -> Run {
        Run { start: first_page * PAGE_BYTES, pages, flags }
    }

    #[test]
    fn big_mappings_are_lazy_and_the_rest_stays() {
        let (locked, stack) = (0x2000, 0x100);
        let mut vdso = vma(50, 10, 0);
        vdso.status |= 1 << 3;
        let vmas = vec![vma(0, 10, 0), vma(10, 4, 0), vma(14, 10, locked), vma(24, 10, stack), vma(40, 10, 0), vdso];
        let mm = Mm { vmas, ..Mm::default() };
        // One run over three mappings, and one mapping with pages of all kinds.
        let runs =
            vec![run(2, 30, PARENT), run(40, 5, PARENT), run(45, 1, PRESENT | LAZY), run(46, 1, PARENT | PREMEM), run(48, 12, PARENT)];
        let mut map = PageMap { pages_id: 1, runs };
        let marked = mark(&mut map, &mm, 6);
        assert_eq!(marked, [run(2, 8, LAZY), run(40, 5, LAZY), run(48, 2, LAZY)]);
        let expected = [
            run(2, 8, LAZY),
            run(10, 22, PARENT),
            run(40, 5, LAZY),
            run(45, 1, PRESENT),
            run(46, 1, PARENT | PREMEM),
            run(48, 2, LAZY),
            run(50, 10, PARENT),
        ];
        assert_eq!(map.runs, expected);
    }
}
