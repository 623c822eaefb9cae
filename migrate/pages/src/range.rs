//! Page-aligned address ranges, and maps from them. Pure.

use std::collections::BTreeMap;

/// Bytes of a page. x86_64 only, as the rest of the migration.
pub const PAGE_BYTES: u64 = 4096;
/// First address that is not a user's: no range reaches beyond it (47 bits, as CRIU's images also assume).
pub const ADDRESS_END: u64 = 1 << 47;

/// Addresses from `start` up to, not including, `end`; both on page boundaries. Empty if they are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
}

impl Range {
    /// A range as it is. Use [`Range::checked`] for numbers from elsewhere.
    pub const fn new(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    /// A range, if it is aligned, not empty and within user addresses.
    pub fn checked(start: u64, end: u64) -> Option<Range> {
        let aligned = start.is_multiple_of(PAGE_BYTES) && end.is_multiple_of(PAGE_BYTES);
        (aligned && start < end && end <= ADDRESS_END).then_some(Range { start, end })
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Length in pages.
    pub const fn pages(self) -> u64 {
        self.bytes() / PAGE_BYTES
    }

    /// There is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// What both have in common, if anything.
    pub fn overlap(self, other: Range) -> Option<Range> {
        let common = Range { start: self.start.max(other.start), end: self.end.min(other.end) };
        (!common.is_empty()).then_some(common)
    }

    /// `other` lies in it as a whole.
    pub const fn contains(self, other: Range) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Cut into pieces of at most `bytes`.
    pub fn chunks(self, bytes: u64) -> impl Iterator<Item = Range> {
        let step = bytes.max(PAGE_BYTES) as usize;
        (self.start..self.end).step_by(step).map(move |start| Range { start, end: self.end.min(start + step as u64) })
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

/// Which value each address has, if any. Neighbours of equal value are one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeMap<T> {
    /// By start: end and value.
    entries: BTreeMap<u64, (u64, T)>,
}

/// A set of addresses.
pub type RangeSet = RangeMap<()>;

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        RangeMap { entries: BTreeMap::new() }
    }
}

impl<T: Copy + Eq> RangeMap<T> {
    /// Gives all of `range` this value, whatever it had.
    pub fn insert(&mut self, range: Range, value: T) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        let mut merged = range;
        if let Some((start, (end, before))) = self.entries.range(..range.start).next_back()
            && *end == range.start
            && *before == value
        {
            merged.start = *start;
        }
        if let Some((end, behind)) = self.entries.get(&range.end).copied()
            && behind == value
        {
            merged.end = end;
            self.entries.remove(&range.end);
        }
        self.entries.insert(merged.start, (merged.end, value));
    }

    /// Takes the value from all of `range`.
    pub fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let first = self.entries.range(..range.start).next_back().map(|(start, (end, value))| (*start, *end, *value));
        if let Some((start, end, value)) = first
            && end > range.start
        {
            self.entries.insert(start, (range.start, value));
            if end > range.end {
                self.entries.insert(range.end, (end, value));
                return;
            }
        }
        while let Some((start, (end, value))) = self.entries.range(range.start..range.end).next().map(|(s, e)| (*s, *e)) {
            self.entries.remove(&start);
            if end > range.end {
                self.entries.insert(range.end, (end, value));
            }
        }
    }

    /// All entries that overlap `range`, clipped to it, in order.
    pub fn within(&self, range: Range) -> impl Iterator<Item = (Range, T)> + '_ {
        let before = self.entries.range(..range.start).next_back().filter(|(_, (end, _))| *end > range.start).map(|(start, _)| *start);
        let from = before.unwrap_or(range.start);
        let upto = range.end.max(from);
        self.entries
            .range(from..upto)
            .filter_map(move |(start, (end, value))| Range::new(*start, *end).overlap(range).map(|piece| (piece, *value)))
    }

    /// All of `range` in pieces, those without a value included.
    pub fn pieces(&self, range: Range) -> Vec<(Range, Option<T>)> {
        let mut pieces = Vec::new();
        let mut next = range.start;
        for (piece, value) in self.within(range) {
            if next < piece.start {
                pieces.push((Range::new(next, piece.start), None));
            }
            pieces.push((piece, Some(value)));
            next = piece.end;
        }
        if next < range.end {
            pieces.push((Range::new(next, range.end), None));
        }
        pieces
    }

    /// All of `range` has this one value.
    pub fn covers(&self, range: Range, value: T) -> bool {
        self.within(range).next().is_some_and(|(piece, found)| piece == range && found == value)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range, T)> + '_ {
        self.entries.iter().map(|(start, (end, value))| (Range::new(*start, *end), *value))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// It holds nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sum of all lengths.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(range, _)| range.bytes()).sum()
    }
}

impl RangeSet {
    /// Adds a range.
    pub fn add(&mut self, range: Range) {
        self.insert(range, ());
    }

    /// The parts of `range` that are in it.
    pub fn inside(&self, range: Range) -> impl Iterator<Item = Range> + '_ {
        self.within(range).map(|(piece, ())| piece)
    }

    /// The parts of `range` that are not in it.
    pub fn outside(&self, range: Range) -> impl Iterator<Item = Range> {
        self.pieces(range).into_iter().filter(|(_, value)| value.is_none()).map(|(piece, _)| piece)
    }
}

impl FromIterator<Range> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|range| set.add(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 40;

    fn range() -> impl Strategy<Value = Range> {
        (0..PAGES, 1..12u64).prop_map(|(from, count)| Range::new(from * PAGE_BYTES, (from + count).min(PAGES) * PAGE_BYTES))
    }

    fn pages(range: Range) -> impl Iterator<Item = usize> {
        (range.start / PAGE_BYTES..range.end / PAGE_BYTES).map(|page| page as usize)
    }

    proptest! {
        /// The map does what an array of one value a page does.
        #[test]
        fn like_an_array(steps in prop::collection::vec((range(), prop::option::of(0..3u8)), 0..40), query in range()) {
            let mut map = RangeMap::default();
            let mut model = [None; PAGES as usize];
            for (range, value) in steps {
                match value {
                    Some(value) => map.insert(range, value),
                    None => map.remove(range),
                }
                pages(range).for_each(|page| model[page] = value);
            }
            let mut seen = [None; PAGES as usize];
            for (range, value) in map.iter() {
                pages(range).for_each(|page| { assert_eq!(seen[page], None); seen[page] = Some(value) });
            }
            prop_assert_eq!(seen, model);
            let entries: Vec<_> = map.iter().collect();
            prop_assert!(entries.windows(2).all(|pair| pair[0].0.end < pair[1].0.start || pair[0].1 != pair[1].1), "neighbours are merged");
            let mut next = query.start;
            for (piece, value) in map.pieces(query) {
                prop_assert_eq!(piece.start, next);
                next = piece.end;
                prop_assert!(pages(piece).all(|page| model[page] == value));
            }
            prop_assert_eq!(next, query.end);
            for value in 0..3 {
                prop_assert_eq!(map.covers(query, value), pages(query).all(|page| model[page] == Some(value)));
            }
        }
    }

    #[test]
    fn only_sane_numbers_become_ranges() {
        assert!(Range::checked(0x1000, 0x3000).is_some());
        for (start, end) in
            [(0x1001, 0x3000), (0x1000, 0x3001), (0x3000, 0x3000), (0x3000, 0x1000), (0, u64::MAX), (0, ADDRESS_END + PAGE_BYTES)]
        {
            assert!(Range::checked(start, end).is_none());
        }
    }
}
