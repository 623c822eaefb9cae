//! What will come of the regions of a waiting restore, told from the final images before it goes on.
//!
//! CRIU (with our patch) does the same checks and fails; asking first keeps a restore that cannot succeed from being started, and says what it
//! will cost: mappings that cannot be moved are copied page by page.

use super::PAGE_BYTES;
use super::messages::{Mm, Vma};
use super::pagemap::{INHERIT, PREMEM, PageMap};
use crate::waiting::Region;

const REGULAR: u32 = 1 << 0;
const ANON_PRIVATE: u32 = 1 << 9;
const SHADOW_STACK: u32 = 1 << 15;
const GUARD: u32 = 1 << 16;
const UNSUPPORTED: u32 = 1 << 31;

const MAP_PRIVATE: u32 = 0x2;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
const MAP_LOCKED: u32 = 0x2000;
const MAP_NORESERVE: u32 = 0x4000;
const MAP_HUGETLB: u32 = 0x4_0000;

/// Whether somebody else than CRIU can supply all pages of a mapping: plain private anonymous memory. The same rule as
/// `mosix_plain_anon` in our patch.
pub fn plain_anon(vma: &Vma) -> bool {
    vma.status & (REGULAR | ANON_PRIVATE) == REGULAR | ANON_PRIVATE
        && vma.status & (SHADOW_STACK | UNSUPPORTED) == 0
        && vma.flags & (MAP_PRIVATE | MAP_ANONYMOUS) == MAP_PRIVATE | MAP_ANONYMOUS
        && vma.flags & (MAP_GROWSDOWN | MAP_LOCKED | MAP_HUGETLB) == 0
}

/// What the restore is going to do with the supplied pages of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pages in mappings whose memory is moved: costs nothing.
    pub moved_pages: u64,
    /// Pages that are copied, about 1 us each.
    pub copied_pages: u64,
    /// Pages taken from the parent process.
    pub inherited_pages: u64,
    /// Mappings (first address, first address after) that overlap a region and are copied.
    pub copied_mappings: Vec<(u64, u64)>,
}

/// Looks at the images of process `pid`, and its parent's mappings if it has one in the tree, with the regions that were asked for.
///
/// # Errors
/// A page is said to be in a region and is in none, or is in no mapping, or is said to be the parent's who has no such mapping: the restore
/// would fail.
pub fn plan(pid: i32, mm: &Mm, parent: Option<&Mm>, map: &PageMap, regions: &[Region]) -> Result<Plan, String> {
    let regions: Vec<&Region> = regions.iter().filter(|region| region.pid == pid).collect();
    let mut plan = Plan::default();
    for vma in mappings(mm).filter(|vma| regions.iter().any(|region| overlaps(region, vma)) && !moves(vma, &regions)) {
        plan.copied_mappings.push((vma.start, vma.end));
    }
    for run in map.runs.iter().filter(|run| run.flags & (PREMEM | INHERIT) != 0) {
        let mut at = run.start;
        while at < run.end() {
            let vma = mapping_at(mm, at).ok_or_else(|| format!("process {pid}: page {at:#x} was supplied, but nothing is mapped there"))?;
            let end = run.end().min(vma.end);
            let pages = (end - at) / PAGE_BYTES;
            if run.flags & INHERIT != 0 {
                let same = |theirs: &Vma| (theirs.start, theirs.end) == (vma.start, vma.end);
                if parent.and_then(|parent| mapping_at(parent, at)).is_none_or(|theirs| !same(theirs)) {
                    return Err(format!("process {pid}: page {at:#x} should equal its parent's, which has no such mapping"));
                }
                plan.inherited_pages += pages;
            } else if moves(vma, &regions) {
                plan.moved_pages += pages;
            } else {
                covered(at, end, &regions).map_err(|page| format!("process {pid}: page {page:#x} was supplied, but no region is there"))?;
                plan.copied_pages += pages;
            }
            at = end;
        }
    }
    Ok(plan)
}

/// Guard ranges are listed after the mappings and overlap them.
pub(crate) fn mappings(mm: &Mm) -> impl Iterator<Item = &Vma> {
    mm.vmas.iter().filter(|vma| vma.status & GUARD == 0)
}

fn mapping_at(mm: &Mm, address: u64) -> Option<&Vma> {
    let count = mm.vmas.iter().position(|vma| vma.status & GUARD != 0).unwrap_or(mm.vmas.len());
    let vmas = mm.vmas.get(..count).unwrap_or_default();
    let at = vmas.partition_point(|vma| vma.end <= address);
    vmas.get(at).filter(|vma| vma.start <= address)
}

fn overlaps(region: &Region, vma: &Vma) -> bool {
    region.start < vma.end && vma.start < region.start + region.length_bytes
}

fn moves(vma: &Vma, regions: &[&Region]) -> bool {
    let whole = |region: &&&Region| region.start <= vma.start && vma.end <= region.start + region.length_bytes;
    let no_reserve = vma.flags & MAP_NORESERVE != 0;
    plain_anon(vma) && regions.iter().find(whole).is_some_and(|region| region.no_reserve == no_reserve && !region.copy_only)
}

/// Whether regions hold all of a range; else the first page that is in none.
fn covered(start: u64, end: u64, regions: &[&Region]) -> Result<(), u64> {
    let mut at = start;
    while at < end {
        match regions.iter().find(|region| region.start <= at && at < region.start + region.length_bytes) {
            Some(region) => at = region.start + region.length_bytes,
            None => return Err(at),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::pagemap::{Place, Run};

    fn vma(start: u64, end: u64, flags: u32) -> Vma {
        let status = REGULAR | ANON_PRIVATE;
        Vma { start, end, flags: MAP_PRIVATE | MAP_ANONYMOUS | flags, status, fd: -1, ..Vma::default() }
    }

    fn region(start: u64, length_bytes: u64) -> Region {
        Region { pid: 9, start, length_bytes, no_reserve: false, copy_only: false }
    }

    #[test]
    fn mappings_that_cannot_be_moved_are_copied() {
        let vmas =
            vec![vma(0x1000, 0x4000, 0), vma(0x5000, 0x7000, MAP_LOCKED), vma(0x8000, 0x9000, MAP_NORESERVE), vma(0x9000, 0xc000, 0)];
        let mm = Mm { vmas, ..Mm::default() };
        let map = PageMap {
            pages_id: 1,
            runs: vec![Run::placed(0x1000, 3, Place::Region), Run::placed(0x5000, 1, Place::Region), Run::placed(0x8000, 3, Place::Region)],
        };
        let found = plan(9, &mm, None, &map, &[region(0, 0xb000)]).unwrap();
        assert_eq!((found.moved_pages, found.copied_pages), (3, 4));
        assert_eq!(found.copied_mappings, [(0x5000, 0x7000), (0x8000, 0x9000), (0x9000, 0xc000)]);
        assert!(plan(9, &mm, None, &map, &[region(0, 0x9000)]).unwrap_err().contains("0x9000"), "a page outside of the region");
        assert!(plan(9, &mm, None, &map, &[]).is_err());
    }

    #[test]
    fn pages_without_a_mapping_or_a_parent_are_errors() {
        let mm = Mm { vmas: vec![vma(0x1000, 0x4000, 0)], ..Mm::default() };
        let beyond = PageMap { pages_id: 1, runs: vec![Run::placed(0x3000, 2, Place::Region)] };
        assert!(plan(9, &mm, None, &beyond, &[region(0, 0x9000)]).unwrap_err().contains("nothing is mapped"));
        let inherited = PageMap { pages_id: 1, runs: vec![Run::placed(0x3000, 1, Place::ParentProcess)] };
        assert!(plan(9, &mm, None, &inherited, &[]).is_err());
        assert_eq!(plan(9, &mm, Some(&mm), &inherited, &[]).unwrap().inherited_pages, 1);
        let grown = Mm { vmas: vec![vma(0x1000, 0x5000, 0)], ..Mm::default() };
        assert!(plan(9, &mm, Some(&grown), &inherited, &[]).is_err());
    }
}
