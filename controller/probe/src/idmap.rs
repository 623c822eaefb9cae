//! Maps by thread or process id.
//!
//! Looking up each thread in each sample is a good part of what a sample costs, and the standard hash defends against
//! keys that an adversary chooses. Ids are handed out by the kernel one after the other: a multiplication spreads them.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map by thread or process id.
pub(crate) type IdMap<V> = HashMap<u32, V, BuildHasherDefault<IdHasher>>;

/// A map gives memory back when it uses less than this part of what it has.
const SHRINK_BELOW: usize = 4;

/// Keeps the entries that `keep` says, and gives back memory that is not needed any more.
pub(crate) fn prune<V>(map: &mut IdMap<V>, mut keep: impl FnMut(&V) -> bool) {
    map.retain(|_, value| keep(value));
    if map.len().saturating_mul(SHRINK_BELOW) < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

/// Multiplies by 2^64 / golden ratio: sequential ids differ in the high bits as well as in the low ones.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_collide() {
        let mut map = IdMap::default();
        (0..100_000).for_each(|id| assert!(map.insert(id, id).is_none()));
        prune(&mut map, |id| *id < 10);
        assert!(map.len() == 10 && map.capacity() < 100);
    }
}
