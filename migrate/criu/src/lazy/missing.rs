//! Which pages of a process are not there yet, and where in its store each of them is. Pure bookkeeping.
//!
//! At first address and place in the store are the same; mremap(2) and the like change that.

use std::collections::BTreeMap;

/// Missing memory in a row: `length_bytes` at `start`, to be read at `source` in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) length_bytes: u64,
    pub(super) source: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.start + self.length_bytes
    }

    /// The part inside a range that overlaps it.
    fn cut(&self, start: u64, end: u64) -> Self {
        let (start, end) = (start.max(self.start), end.min(self.end()));
        Self { start, length_bytes: end - start, source: self.source + (start - self.start) }
    }
}

/// All that is missing, by address.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing(BTreeMap<u64, Piece>);

impl Missing {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds what was not missing.
    pub(super) fn insert(&mut self, piece: Piece) {
        drop(self.take(piece.start, piece.end()));
        self.0.insert(piece.start, piece);
    }

    /// The missing memory from this address on, if the address itself is missing.
    pub(super) fn at(&self, address: u64) -> Option<Piece> {
        let (_, piece) = self.0.range(..=address).next_back()?;
        (address < piece.end()).then(|| piece.cut(address, piece.end()))
    }

    /// The first missing memory at this address or above, else the first of all.
    pub(super) fn next(&self, address: u64) -> Option<Piece> {
        self.at(address).or_else(|| self.0.range(address..).next().or_else(|| self.0.first_key_value()).map(|(_, piece)| *piece))
    }

    /// Takes a range out: it is there now, or will never be asked for.
    pub(super) fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        while let Some(piece) = self.0.range(..end).next_back().map(|(_, piece)| *piece).filter(|piece| piece.end() > start) {
            self.0.remove(&piece.start);
            if piece.start < start {
                self.0.insert(piece.start, piece.cut(piece.start, start));
            }
            if end < piece.end() {
                self.0.insert(end, piece.cut(end, piece.end()));
            }
            taken.push(piece.cut(start, end));
        }
        taken
    }

    /// What is missing at `from` is missing at `to` from now on.
    pub(super) fn moved(&mut self, from: u64, to: u64, length_bytes: u64) {
        let pieces = self.take(from, from.saturating_add(length_bytes));
        drop(self.take(to, to.saturating_add(length_bytes)));
        for piece in pieces {
            self.insert(Piece { start: to.saturating_add(piece.start - from), ..piece });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Take(u64, u64),
        Move(u64, u64, u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0_u64..64, 1_u64..20).prop_map(|(start, length)| Change::Take(start, length)),
            (0_u64..64, 0_u64..64, 1_u64..20).prop_map(|(from, to, length)| Change::Move(from, to, length)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_table_of_single_addresses(
            at_first in prop::collection::vec((0_u64..60, 1_u64..20), 1..6),
            changes in prop::collection::vec(change(), 0..12),
        ) {
            let mut missing = Missing::default();
            let mut table = BTreeMap::new();
            for (start, length) in at_first {
                missing.insert(Piece { start, length_bytes: length, source: start });
                table.extend((start..start + length).map(|address| (address, address)));
            }
            for change in changes {
                match change {
                    Change::Take(start, length) => {
                        let taken = missing.take(start, start + length);
                        let count = (start..start + length).filter(|address| table.remove(address).is_some()).count() as u64;
                        prop_assert_eq!(taken.iter().map(|piece| piece.length_bytes).sum::<u64>(), count);
                    }
                    Change::Move(from, to, length) => {
                        missing.moved(from, to, length);
                        let moving: Vec<_> = (0..length).map(|at| table.remove(&(from + at))).collect();
                        for (at, source) in (0..).zip(moving) {
                            table.remove(&(to + at));
                            table.extend(source.map(|source| (to + at, source)));
                        }
                    }
                }
                for address in 0..100 {
                    prop_assert_eq!(missing.at(address).map(|piece| piece.source), table.get(&address).copied(), "{}", address);
                }
                prop_assert_eq!(missing.is_empty(), table.is_empty());
                prop_assert_eq!(missing.next(30).map(|piece| piece.start), table.range(30..).next().or(table.first_key_value()).map(|(at, _)| *at));
            }
        }
    }
}
