//! Memory with a known content.
//!
//! Word `i` of page `p` at version `v` is a pseudo-random function of the three: no two pages are alike and none is compressible, an old
//! copy of a page is told from the new one, and checking needs four bytes a page besides the memory itself.

/// Bytes of a page; also right, if less sharp, where the kernel's are larger.
pub const PAGE_BYTES: usize = 4096;
/// Words of a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / size_of::<u64>();
/// Pages of a MiB.
pub const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES as u64;

/// The finaliser of splitmix64: every bit of the input reaches every bit of the output.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What word `index` of a page must hold.
pub fn word(page: u64, version: u32, index: usize) -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let start = mix((page << 32) ^ u64::from(version)) ^ STEP;
    mix(start.wrapping_add(STEP.wrapping_mul(index as u64 + 1)))
}

/// A small generator of page numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Different seeds give different sequences.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5bf0_3635))
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) % (bound.max(1) as u64)) as usize
    }
}

/// What a check of pages found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages looked at.
    pub pages: u64,
    /// Pages with at least one wrong word.
    pub bad: u64,
    /// Number of the first of them.
    pub first_bad: Option<u64>,
}

impl Checked {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { pages: self.pages + other.pages, bad: self.bad + other.bad, first_bad: self.first_bad.or(other.first_bad) }
    }
}

/// The pages of one writer.
#[derive(Debug)]
pub struct Stripe {
    first: u64,
    words: Vec<u64>,
    versions: Vec<u32>,
}

impl Stripe {
    /// Makes and writes the pages `first..first + count`, at version 0.
    pub fn new(first: u64, count: usize) -> Self {
        let mut stripe = Self { first, words: vec![0; count * PAGE_WORDS], versions: vec![0; count] };
        for (index, page) in stripe.words.chunks_exact_mut(PAGE_WORDS).enumerate() {
            fill(page, first + index as u64, 0);
        }
        stripe
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Writes page `index` (counted from the stripe's first) anew, at its next version. Nothing happens if there is none.
    pub fn rewrite(&mut self, index: usize) {
        let page = self.words.chunks_exact_mut(PAGE_WORDS).nth(index);
        if let (Some(page), Some(version)) = (page, self.versions.get_mut(index)) {
            *version = version.wrapping_add(1);
            fill(page, self.first + index as u64, *version);
        }
    }

    /// Checks at most `count` pages from `from` on.
    pub fn check(&self, from: usize, count: usize) -> Checked {
        let words = self.words.get(from.saturating_mul(PAGE_WORDS)..).unwrap_or_default();
        let versions = self.versions.get(from..).unwrap_or_default();
        let pages = words.chunks_exact(PAGE_WORDS).zip(versions).take(count).enumerate();
        let mut checked = Checked::default();
        for (index, (page, version)) in pages {
            let number = self.first + (from + index) as u64;
            checked.pages += 1;
            if !is_right(page, number, *version) {
                checked.bad += 1;
                checked.first_bad = checked.first_bad.or(Some(number));
            }
        }
        checked
    }
}

fn fill(page: &mut [u64], number: u64, version: u32) {
    page.iter_mut().enumerate().for_each(|(index, place)| *place = word(number, version, index));
}

fn is_right(page: &[u64], number: u64, version: u32) -> bool {
    page.iter().enumerate().all(|(index, found)| *found == word(number, version, index))
}

/// Splits `pages` among `stripes` writers as evenly as possible: (first page, number of pages) of each.
pub fn split(pages: u64, stripes: u32) -> Vec<(u64, usize)> {
    let stripes = u64::from(stripes.max(1));
    let bound = |index: u64| pages * index / stripes;
    (0..stripes).map(|index| (bound(index), (bound(index + 1) - bound(index)) as usize)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_depends_on_page_version_and_place() {
        let base = word(7, 3, 11);
        assert_eq!(base, word(7, 3, 11));
        for other in [word(8, 3, 11), word(7, 4, 11), word(7, 3, 12), word(3, 7, 11), word(0, 0, 0)] {
            assert_ne!(base, other);
        }
        // Neighbours are not just shifted copies of one another.
        assert!((0..PAGE_WORDS - 1).all(|index| word(1, 0, index) != word(2, 0, index + 1)));
    }

    #[test]
    fn a_fresh_and_a_rewritten_stripe_are_right() {
        let mut stripe = Stripe::new(100, 5);
        assert_eq!(stripe.check(0, usize::MAX), Checked { pages: 5, bad: 0, first_bad: None });
        stripe.rewrite(2);
        stripe.rewrite(2);
        stripe.rewrite(99);
        assert_eq!(stripe.versions, [0, 0, 2, 0, 0]);
        assert_eq!(stripe.check(0, usize::MAX).bad, 0);
        assert_eq!(stripe.check(3, 100).pages, 2, "a slice ends with the stripe");
    }

    #[test]
    fn every_kind_of_damage_is_seen() {
        let damages: [fn(&mut Stripe); 4] = [
            |stripe| stripe.words[PAGE_WORDS + 17] ^= 1,
            // The page of an earlier time.
            |stripe| fill(&mut stripe.words[PAGE_WORDS..2 * PAGE_WORDS], 11, 0),
            // Another page's content.
            |stripe| stripe.words.copy_within(0..PAGE_WORDS, PAGE_WORDS),
            |stripe| stripe.words[PAGE_WORDS..2 * PAGE_WORDS].fill(0),
        ];
        for (number, damage) in damages.iter().enumerate() {
            let mut stripe = Stripe::new(10, 3);
            stripe.rewrite(1);
            damage(&mut stripe);
            assert_eq!(stripe.check(0, 3), Checked { pages: 3, bad: 1, first_bad: Some(11) }, "damage {number}");
        }
    }

    #[test]
    fn checks_add_up() {
        let one = Checked { pages: 2, bad: 0, first_bad: None };
        let two = Checked { pages: 3, bad: 1, first_bad: Some(4) };
        assert_eq!(one.and(two), Checked { pages: 5, bad: 1, first_bad: Some(4) });
    }

    #[test]
    fn stripes_cover_all_pages_once() {
        for (pages, stripes) in [(1024, 1), (1024, 32), (1000, 7), (3, 5), (0, 2), (5, 0)] {
            let parts = split(pages, stripes);
            assert_eq!(parts.len(), stripes.max(1) as usize);
            let mut next = 0;
            for (first, count) in parts {
                assert_eq!(first, next);
                next += count as u64;
            }
            assert_eq!(next, pages);
        }
    }

    #[test]
    fn random_pages_stay_in_bounds_and_reach_all() {
        let mut random = Random::new(1);
        let mut seen = [false; 8];
        (0..200).for_each(|_| seen[random.below(8)] = true);
        assert_eq!(seen, [true; 8]);
        assert_eq!(random.below(0), 0);
    }
}
