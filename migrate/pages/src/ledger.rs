//! The source's memory of what was delivered where. Pure.
//!
//! The rule: a page that was delivered to a place counts only as long as its mapping still belongs to that place. When mappings
//! merge, split or change their flags, the place of addresses can change; every such piece is sent again in full. Without this
//! rule a piece that goes from its window to the store and back again would be restored as it was long ago, or as zeros.

use crate::range::{Range, RangeMap, RangeSet};
use crate::track::{Area, Backing};
use crate::vma::{Class, Vma};
use crate::window::{Dest, Window, destination};

/// What was delivered of one process.
#[derive(Debug, Default)]
pub struct Ledger {
    delivered: RangeMap<Dest>,
    /// Pages that a tracker has reported in pieces which still count.
    reported: RangeSet,
}

/// An area to be looked at, and where its pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What the tracker is asked.
    pub area: Area,
    /// Where the pages go.
    pub dest: Dest,
}

/// What is to be looked at in a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All areas, in order.
    pub areas: Vec<Planned>,
    /// Bytes of mappings whose place changed, so that they are sent again.
    pub moved_bytes: u64,
}

impl Ledger {
    /// Plans a round over the present mappings (sorted, as `windows`), and counts it as delivered: whatever of it does not get
    /// to the other side must be [forgotten](Ledger::forget).
    pub fn plan(&mut self, vmas: &[Vma], windows: &[Window]) -> Plan {
        let mut plan = Plan::default();
        for vma in vmas.iter().filter(|vma| vma.class() != Class::Vdso) {
            let Some(dest) = destination(vma, windows) else { continue };
            let backing = if vma.inode == 0 { Backing::Nothing } else { Backing::File };
            for (range, before) in self.delivered.pieces(vma.range) {
                let whole = before != Some(dest);
                plan.moved_bytes += if whole && before.is_some() { range.bytes() } else { 0 };
                match plan.areas.last_mut() {
                    Some(Planned { area, dest: last })
                        if area.range.end == range.start && area.range.start >= vma.range.start && area.whole == whole && *last == dest =>
                    {
                        area.range.end = range.end;
                    }
                    _ => plan.areas.push(Planned { area: Area { range, backing, whole }, dest }),
                }
            }
        }
        self.delivered = RangeMap::default();
        plan.areas.iter().for_each(|planned| self.delivered.insert(planned.area.range, planned.dest));
        let mut reported = RangeSet::default();
        for planned in plan.areas.iter().filter(|planned| !planned.area.whole) {
            self.reported.inside(planned.area.range).for_each(|range| reported.add(range));
        }
        self.reported = reported;
        plan
    }

    /// Pages that the tracker has reported, and that therefore count as unchanged from now on.
    pub fn report(&mut self, ranges: &[Range]) {
        ranges.iter().for_each(|range| self.reported.add(*range));
    }

    /// These did not get to the other side: they are sent in full next time.
    pub fn forget(&mut self, range: Range) {
        self.delivered.remove(range);
        self.reported.remove(range);
    }

    /// Nothing counts any more, for instance because the tracker was lost.
    pub fn clear(&mut self) {
        *self = Ledger::default();
    }

    /// The place of every address of the last plan that was not forgotten since.
    pub fn places(&self) -> &RangeMap<Dest> {
        &self.delivered
    }

    /// Everything the tracker has reported that still counts.
    pub fn reported(&self) -> &RangeSet {
        &self.reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vma::Flags;

    fn anonymous(start: u64, end: u64) -> Vma {
        Vma {
            range: Range::new(start, end),
            read: true,
            write: true,
            exec: false,
            shared: false,
            offset: 0,
            device: "00:00".into(),
            inode: 0,
            name: String::new(),
            flags: Some(Flags::default()),
        }
    }

    fn wholes(plan: &Plan) -> Vec<(u64, u64, Dest, bool)> {
        plan.areas.iter().map(|p| (p.area.range.start, p.area.range.end, p.dest, p.area.whole)).collect()
    }

    #[test]
    fn what_changes_its_place_is_sent_in_full() {
        let windows = [Window { id: 1, range: Range::new(0x10000, 0x20000), no_reserve: false }];
        let mut ledger = Ledger::default();
        let inside = anonymous(0x10000, 0x12000);
        let in_window = Dest::Window(1);
        assert_eq!(wholes(&ledger.plan(std::slice::from_ref(&inside), &windows)), [(0x10000, 0x12000, in_window, true)]);
        ledger.report(&[Range::new(0x10000, 0x11000)]);
        assert_eq!(wholes(&ledger.plan(std::slice::from_ref(&inside), &windows)), [(0x10000, 0x12000, in_window, false)]);
        assert_eq!(ledger.reported().bytes(), 0x1000);
        // it merges with what lies outside of the window, and comes back
        let merged = ledger.plan(&[anonymous(0xe000, 0x12000)], &windows);
        assert_eq!(wholes(&merged), [(0xe000, 0x12000, Dest::Store, true)]);
        assert_eq!((merged.moved_bytes, ledger.reported().bytes()), (0x2000, 0));
        let back = ledger.plan(&[anonymous(0xe000, 0x10000), inside.clone()], &windows);
        assert_eq!(wholes(&back), [(0xe000, 0x10000, Dest::Store, false), (0x10000, 0x12000, in_window, true)]);
        // growth within the window: only the new part
        let grown = ledger.plan(&[anonymous(0x10000, 0x14000)], &windows);
        assert_eq!(wholes(&grown), [(0x10000, 0x12000, in_window, false), (0x12000, 0x14000, in_window, true)]);
        // unmapped in one round, there again in the next
        ledger.plan(&[], &windows);
        assert_eq!(wholes(&ledger.plan(std::slice::from_ref(&inside), &windows)), [(0x10000, 0x12000, in_window, true)]);
        ledger.forget(Range::new(0x11000, 0x12000));
        let rest = [(0x10000, 0x11000, in_window, false), (0x11000, 0x12000, in_window, true)];
        assert_eq!(wholes(&ledger.plan(&[inside], &windows)), rest);
    }
}
