//! What must be where: a map from page numbers (address / page size) to contents, and for each page what was done to it last.

use std::collections::BTreeMap;
use std::fmt;

use crate::churn::pages::{PAGE_WORDS, word};

/// Operations on a page that are remembered.
const REMEMBERED: usize = 8;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Mapped anew, as the neighbour of others or alone.
    Map,
    /// Written as a whole.
    Write,
    /// MADV_DONTNEED.
    Drop,
    /// MADV_FREE.
    Free,
    /// mprotect.
    Protect,
    /// mremap to another place.
    Move,
    /// mremap to another place with more pages.
    Grow,
    /// brk.
    Break,
    /// MADV_HUGEPAGE or MADV_NOHUGEPAGE.
    Huge,
    /// Found to be zero after MADV_FREE.
    SeenFreed,
}

/// What a process may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Read, write and execute.
    Code,
}

impl Access {
    /// Can be checked.
    pub fn reads(self) -> bool {
        self != Self::None
    }

    /// Can be written.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Code)
    }
}

/// The text of a page: all words of it follow from this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Which page; it keeps its number wherever it is moved.
    pub number: u64,
    /// How often it was written.
    pub version: u32,
    /// It begins with code that returns [`Content::result`].
    pub code: bool,
}

impl Content {
    /// What its code returns.
    pub fn result(self) -> u32 {
        word(self.number, self.version, 0) as u32
    }

    /// Word `index` of the page.
    pub fn word(self, index: usize) -> u64 {
        if self.code && index == 0 { code(self.result()) } else { word(self.number, self.version, index) }
    }

    /// All words.
    pub fn words(self) -> [u64; PAGE_WORDS] {
        std::array::from_fn(|index| self.word(index))
    }
}

/// `mov eax, RESULT; ret; nop; nop`. Called on x86-64 only; elsewhere it is a word like any other.
fn code(result: u32) -> u64 {
    let [a, b, c, d] = result.to_le_bytes();
    u64::from_le_bytes([0xb8, a, b, c, d, 0xc3, 0x90, 0x90])
}

/// What a page must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Zeros.
    Zero,
    /// This.
    Content(Content),
    /// This or zeros: the kernel may take it at any time.
    ContentOrZero(Content),
    /// It was wrong and has been reported; anything, until it is written again.
    Reported,
}

/// One page.
#[derive(Debug, Clone)]
pub struct Page {
    /// What it must hold.
    pub expect: Expect,
    /// What may be done with it.
    pub access: Access,
    history: [Option<(u64, Op)>; REMEMBERED],
}

impl Page {
    /// A page that was just made.
    pub fn new(access: Access, step: u64, op: Op) -> Self {
        let mut page = Self { expect: Expect::Zero, access, history: [None; REMEMBERED] };
        page.note(step, op);
        page
    }

    /// Remembers what was done to it. No memory is allocated: a forked child does this, too.
    pub fn note(&mut self, step: u64, op: Op) {
        self.history.rotate_right(1);
        if let Some(newest) = self.history.first_mut() {
            *newest = Some((step, op));
        }
    }

    /// Dropped by MADV_DONTNEED.
    pub fn drop_content(&mut self) {
        self.expect = Expect::Zero;
    }

    /// Given up by MADV_FREE.
    pub fn free_content(&mut self) {
        if let Expect::Content(content) = self.expect {
            self.expect = Expect::ContentOrZero(content);
        }
    }

    /// Compares; `Err` is the index of the first wrong word and what it should be. A page that may be either is settled if it is gone.
    pub fn compare(&mut self, found: &[u64; PAGE_WORDS], step: u64) -> Result<(), Wrong> {
        let is_zero = || found.iter().all(|word| *word == 0);
        match self.expect {
            Expect::Reported => Ok(()),
            Expect::Zero => match found.iter().position(|word| *word != 0) {
                Some(index) => Err(Wrong { index, expected: 0 }),
                None => Ok(()),
            },
            Expect::ContentOrZero(_) if is_zero() => {
                self.expect = Expect::Zero;
                self.note(step, Op::SeenFreed);
                Ok(())
            }
            Expect::Content(content) | Expect::ContentOrZero(content) => {
                match found.iter().enumerate().find(|(index, word)| **word != content.word(*index)) {
                    Some((index, _)) => Err(Wrong { index, expected: content.word(index) }),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The first wrong word of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// Its index in the page.
    pub index: usize,
    /// What it should be.
    pub expected: u64,
}

impl fmt::Display for Page {
    /// Access, expectation, and what was done, newest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, must be {:?}; done, newest first:", self.access, self.expect)?;
        for (step, op) in self.history.iter().flatten() {
            write!(f, " {op:?}@{step}")?;
        }
        Ok(())
    }
}

/// All pages.
#[derive(Debug, Default)]
pub struct Model {
    /// By page number.
    pub pages: BTreeMap<usize, Page>,
}

impl Model {
    /// The pages of a run: the first mapped one at or after `from` and those that follow it without a gap, as long as they are `like` it;
    /// at most `most`, and below `end`. Count 0 if there is none.
    pub fn run(&self, from: usize, end: usize, most: usize, like: impl Fn(&Page, &Page) -> bool) -> (usize, usize) {
        let Some((first, page)) = self.pages.range(from..end).next() else { return (from, 0) };
        let same = self
            .pages
            .range(*first..end)
            .take(most)
            .enumerate()
            .take_while(|(index, (number, other))| **number == first + index && like(page, other));
        (*first, same.count())
    }

    /// Nothing is mapped there.
    pub fn is_free(&self, first: usize, count: usize) -> bool {
        self.pages.range(first..first.saturating_add(count)).next().is_none()
    }

    /// Does something to each page of a run, and remembers it.
    pub fn each(&mut self, first: usize, count: usize, step: u64, op: Op, mut change: impl FnMut(&mut Page)) {
        for (_, page) in self.pages.range_mut(first..first + count) {
            change(page);
            page.note(step, op);
        }
    }

    /// New pages.
    pub fn map(&mut self, first: usize, count: usize, access: Access, step: u64, op: Op) {
        for number in first..first + count {
            self.pages.insert(number, Page::new(access, step, op));
        }
    }

    /// Pages that are no more.
    pub fn unmap(&mut self, first: usize, count: usize) {
        for number in first..first + count {
            self.pages.remove(&number);
        }
    }

    /// Pages that are elsewhere now, contents and all.
    pub fn shift(&mut self, from: usize, count: usize, to: usize, step: u64, op: Op) {
        let moved: Vec<Page> = (from..from + count).filter_map(|number| self.pages.remove(&number)).collect();
        for (number, mut page) in (to..).zip(moved) {
            page.note(step, op);
            self.pages.insert(number, page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Content = Content { number: 3, version: 1, code: false };

    fn page(expect: Expect) -> Page {
        Page { expect, ..Page::new(Access::Write, 0, Op::Map) }
    }

    #[test]
    fn each_expectation_takes_what_it_must_and_no_more() {
        let (zeros, text) = ([0; PAGE_WORDS], CONTENT.words());
        let old = Content { version: 0, ..CONTENT }.words();
        let mut torn = text;
        torn[511] = 0;
        for (expect, good, bad) in [
            (Expect::Zero, vec![zeros], vec![text, old, torn]),
            (Expect::Content(CONTENT), vec![text], vec![zeros, old, torn]),
            (Expect::ContentOrZero(CONTENT), vec![text, zeros], vec![old, torn]),
            (Expect::Reported, vec![zeros, text, old], vec![]),
        ] {
            for found in good {
                assert_eq!(page(expect).compare(&found, 1), Ok(()), "{expect:?}");
            }
            for found in bad {
                assert!(page(expect).compare(&found, 1).is_err(), "{expect:?}");
            }
        }
    }

    #[test]
    fn what_was_once_seen_gone_must_stay_gone() {
        let mut page = page(Expect::Content(CONTENT));
        page.free_content();
        assert_eq!(page.compare(&CONTENT.words(), 5), Ok(()));
        assert_eq!(page.compare(&[0; PAGE_WORDS], 6), Ok(()));
        assert_eq!(page.compare(&CONTENT.words(), 7), Err(Wrong { index: 0, expected: 0 }));
        assert!(page.to_string().contains("SeenFreed@6 Map@0"), "{page}");
    }

    #[test]
    fn code_is_the_first_word_only() {
        let code = Content { code: true, ..CONTENT };
        assert_eq!(code.words()[1..], CONTENT.words()[1..]);
        assert_eq!(code.words()[0].to_le_bytes()[0], 0xb8);
        assert_eq!((code.words()[0] >> 8) as u32, code.result());
    }

    #[test]
    fn runs_end_at_gaps_differences_and_bounds() {
        let mut model = Model::default();
        model.map(10, 5, Access::Write, 0, Op::Map);
        model.map(15, 2, Access::Read, 0, Op::Map);
        model.map(20, 2, Access::Read, 0, Op::Map);
        assert_eq!(model.run(0, 100, 99, |_, _| true), (10, 7));
        assert_eq!(model.run(12, 100, 99, |one, other| one.access == other.access), (12, 3));
        assert_eq!(model.run(17, 100, 99, |_, _| true), (20, 2));
        assert_eq!(model.run(0, 12, 99, |_, _| true), (10, 2));
        assert_eq!(model.run(0, 100, 3, |_, _| true), (10, 3));
        assert_eq!(model.run(22, 100, 9, |_, _| true).1, 0);
        assert!(model.is_free(17, 3) && !model.is_free(17, 4));
    }

    #[test]
    fn moved_pages_keep_their_content_and_their_past() {
        let mut model = Model::default();
        model.map(1, 2, Access::Write, 0, Op::Map);
        model.each(2, 1, 1, Op::Write, |page| page.expect = Expect::Content(CONTENT));
        model.shift(1, 2, 50, 2, Op::Move);
        assert!(model.is_free(1, 2));
        assert_eq!(model.pages[&51].expect, Expect::Content(CONTENT));
        assert!(model.pages[&51].to_string().ends_with("Move@2 Write@1 Map@0"));
        model.unmap(50, 2);
        assert!(model.pages.is_empty());
    }
}
