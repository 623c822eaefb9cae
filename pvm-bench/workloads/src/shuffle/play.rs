//! One operation after the other, on the memory and on the model, and the comparison of both.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::args::Args;
use super::memory::{Advice, Memory};
use super::model::{Access, Content, Expect, Model, Op, Page};
use crate::churn::pages::{PAGE_BYTES, PAGES_PER_MIB, Random};

/// Longest run of pages that one operation changes.
const MAX_RUN: usize = 48;
/// Free places that are tried before an operation is left out.
const TRIES: usize = 8;
/// Untouched pages of the sparse memory that a check looks at.
const UNTOUCHED: usize = 16;

/// What was found since it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages compared.
    pub checked: u64,
    /// Pages that were wrong, and children that said so.
    pub bad: u64,
    /// The first of them: where, what, and what was done to it.
    pub first_bad: Option<String>,
    /// Bytes written.
    pub written_bytes: u64,
}

/// The player.
#[derive(Debug)]
pub struct Play {
    pub(super) model: Model,
    pub(super) memory: Memory,
    random: Random,
    pub(super) step: u64,
    pub(super) last_fork: u64,
    pub(super) next_number: u64,
    target_pages: usize,
    pub(super) child_life: Duration,
    pub(super) children: Vec<Pid>,
    tally: Tally,
}

impl Play {
    /// Nothing is mapped yet but the sparse memory.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new(args: &Args) -> io::Result<Self> {
        let target_pages = (args.mib * PAGES_PER_MIB) as usize;
        Ok(Self {
            model: Model::default(),
            memory: Memory::new(target_pages * 2)?,
            random: Random::new(args.seed),
            step: 0,
            last_fork: 0,
            next_number: 0,
            target_pages,
            child_life: Duration::from_millis(args.child_ms),
            children: Vec::new(),
            tally: Tally::default(),
        })
    }

    /// Maps and writes about as much as there will be.
    ///
    /// # Errors
    /// From the kernel.
    pub fn fill(&mut self) -> io::Result<()> {
        while self.model.pages.len() < self.target_pages {
            self.map()?;
            self.write()?;
        }
        Ok(())
    }

    /// Operations so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// What was found since the last time.
    pub fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// One operation.
    ///
    /// # Errors
    /// If the kernel refuses what it must not refuse.
    pub fn step(&mut self) -> io::Result<()> {
        self.step += 1;
        match self.random.below(1000) {
            0..400 => self.write(),
            400..480 => self.advise(Advice::DontNeed, Op::Drop, Page::drop_content),
            480..560 => self.advise(Advice::Free, Op::Free, Page::free_content),
            560..640 => self.protect(),
            640..760 if self.model.pages.len() < self.target_pages => self.map(),
            640..760 => self.unmap(),
            760..840 => self.remap(0),
            840..880 => self.remap(1 + self.step as usize % MAX_RUN),
            880..920 => self.heap(),
            920..970 => self.sparse(),
            970..998 => self.huge(),
            _ => self.fork(),
        }?;
        self.reap(false)
    }

    fn content(&mut self, access: Access) -> Content {
        self.next_number += 1;
        Content { number: self.next_number, version: (self.step & 0xffff) as u32, code: access == Access::Code }
    }

    /// A run of mapped pages, in the window or the heap; count 0 if there is none.
    fn run(&mut self, like: impl Fn(&Page, &Page) -> bool) -> (usize, usize) {
        let (first, end) = if self.random.below(8) == 0 { self.memory.heap() } else { self.memory.window() };
        let from = first + self.random.below(end - first);
        let most = 1 + self.random.below(MAX_RUN);
        self.model.run(from, end, most, like)
    }

    /// A place in the window for so many pages: half of the time right behind others, so that mappings merge.
    fn hole(&mut self, count: usize) -> Option<usize> {
        let (first, end) = self.memory.window();
        for _ in 0..TRIES {
            let mut at = first + self.random.below(end - first);
            if self.random.below(2) == 0 {
                let (start, length) = self.model.run(at, end, usize::MAX, |_, _| true);
                at = start + length;
            }
            if at + count <= end && self.model.is_free(at, count) {
                return Some(at);
            }
        }
        None
    }

    fn write(&mut self) -> io::Result<()> {
        let (first, count) = self.run(|one, other| one.access.writes() && other.access.writes());
        for number in first..first + count {
            self.check(number)?;
            self.write_page(number)?;
        }
        Ok(())
    }

    fn write_page(&mut self, number: usize) -> io::Result<()> {
        let Some(access) = self.model.pages.get(&number).map(|page| page.access).filter(|access| access.writes()) else { return Ok(()) };
        let content = self.content(access);
        self.memory.write(number, &content.words())?;
        self.tally.written_bytes += PAGE_BYTES as u64;
        let step = self.step;
        self.model.each(number, 1, step, Op::Write, |page| page.expect = Expect::Content(content));
        Ok(())
    }

    fn advise(&mut self, advice: Advice, op: Op, change: impl FnMut(&mut Page)) -> io::Result<()> {
        let (first, count) = self.run(|_, _| true);
        if count == 0 {
            return Ok(());
        }
        self.check_run(first, count)?;
        self.memory.advise(first, count, advice)?;
        self.model.each(first, count, self.step, op, change);
        Ok(())
    }

    fn protect(&mut self) -> io::Result<()> {
        const ACCESSES: [Access; 6] = [Access::Write, Access::Write, Access::Write, Access::Read, Access::Code, Access::None];
        let access = ACCESSES.get(self.random.below(ACCESSES.len())).copied().unwrap_or(Access::Write);
        let (first, count) = self.run(|_, _| true);
        if count == 0 {
            return Ok(());
        }
        self.memory.protect(first, count, access)?;
        self.model.each(first, count, self.step, Op::Protect, |page| page.access = access);
        self.check_run(first, count)
    }

    fn map(&mut self) -> io::Result<()> {
        let access = if self.random.below(8) == 0 { Access::Code } else { Access::Write };
        let count = 1 + self.random.below(MAX_RUN);
        let Some(first) = self.hole(count) else { return Ok(()) };
        self.memory.map(first, count, access)?;
        self.model.map(first, count, access, self.step, Op::Map);
        Ok(())
    }

    fn unmap(&mut self) -> io::Result<()> {
        let (start, end) = self.memory.window();
        let from = start + self.random.below(end - start);
        let (first, count) = self.model.run(from, end, MAX_RUN, |_, _| true);
        if count == 0 {
            return Ok(());
        }
        self.check_run(first, count)?;
        self.memory.unmap(first, count)?;
        self.model.unmap(first, count);
        Ok(())
    }

    /// Moves pages of the window, and adds some.
    fn remap(&mut self, added: usize) -> io::Result<()> {
        let (start, end) = self.memory.window();
        let from = start + self.random.below(end - start);
        let most = 1 + self.random.below(MAX_RUN);
        let (first, count) = self.model.run(from, end, most, |one, other| one.access == other.access);
        let access = self.model.pages.get(&first).map(|page| page.access);
        let (Some(access), Some(to)) = (access.filter(|_| count > 0), self.hole(count + added)) else { return Ok(()) };
        match self.memory.remap(first, count, to, count + added) {
            // More than one mapping, which this kernel does not move at once, or makes no larger: nothing happened.
            Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => return Ok(()),
            other => other?,
        }
        let op = if added == 0 { Op::Move } else { Op::Grow };
        self.model.shift(first, count, to, self.step, op);
        self.model.map(to + count, added, access, self.step, op);
        self.check_run(to, count + added)
    }

    fn heap(&mut self) -> io::Result<()> {
        let count = 1 + self.random.below(MAX_RUN);
        if self.random.below(5) < 3 {
            if self.memory.grow_heap(count)? {
                self.model.map(self.memory.heap().1 - count, count, Access::Write, self.step, Op::Break);
            }
        } else if self.memory.shrink_heap(count)? {
            self.model.unmap(self.memory.heap().1, count);
        }
        Ok(())
    }

    /// Touches pages of memory of which most is never touched, or drops some.
    fn sparse(&mut self) -> io::Result<()> {
        let (first, end) = Memory::sparse();
        let number = first + self.random.below(end - first);
        if self.random.below(4) > 0 {
            self.model.pages.entry(number).or_insert_with(|| Page::new(Access::Write, 0, Op::Map));
            self.check(number)?;
            return self.write_page(number);
        }
        let count = MAX_RUN.min(end - number);
        self.memory.advise(number, count, Advice::DontNeed)?;
        // They are pages that were never touched again.
        self.model.unmap(number, count);
        Ok(())
    }

    fn huge(&mut self) -> io::Result<()> {
        let advice = if self.random.below(2) == 0 { Advice::Huge } else { Advice::NoHuge };
        let (first, count) = self.run(|_, _| true);
        if count == 0 {
            return Ok(());
        }
        match self.memory.advise(first, count, advice) {
            // A kernel without huge pages.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(()),
            other => other?,
        }
        self.model.each(first, count, self.step, Op::Huge, |_| {});
        Ok(())
    }

    pub(super) fn note_bad(&mut self, what: String) {
        self.tally.bad += 1;
        self.tally.first_bad.get_or_insert(what);
    }

    fn check_run(&mut self, first: usize, count: usize) -> io::Result<()> {
        (first..first + count).try_for_each(|number| self.check(number))
    }

    /// Compares one page, if it is there and readable, and calls its code.
    fn check(&mut self, number: usize) -> io::Result<()> {
        let Some(page) = self.model.pages.get_mut(&number).filter(|page| page.access.reads()) else { return Ok(()) };
        self.tally.checked += 1;
        let words = self.memory.read(number)?;
        let trouble = match page.compare(&words, self.step) {
            Err(wrong) => {
                let found = words.get(wrong.index).copied().unwrap_or_default();
                Some(format!("word {} is {found:#x} instead of {:#x}", wrong.index, wrong.expected))
            }
            Ok(()) => match page.expect {
                Expect::Content(content) if content.code && page.access == Access::Code => {
                    let result = self.memory.call(number)?;
                    result.filter(|result| *result != content.result()).map(|result| format!("its code returned {result:#x}"))
                }
                _ => None,
            },
        };
        if let Some(trouble) = trouble {
            let page_words = page.to_string();
            page.expect = Expect::Reported;
            let (address, step, fork) = (number * PAGE_BYTES, self.step, self.last_fork);
            self.note_bad(format!("{address:#x} at step {step} (last fork at {fork}): {trouble}; {page_words}"));
        }
        Ok(())
    }

    /// Compares everything; pages that nobody may read are made readable for a moment.
    ///
    /// # Errors
    /// From the kernel.
    pub fn check_all(&mut self) -> io::Result<()> {
        let numbers: Vec<(usize, Access)> = self.model.pages.iter().map(|(number, page)| (*number, page.access)).collect();
        for (number, access) in numbers {
            if access.reads() {
                self.check(number)?;
                continue;
            }
            self.memory.protect(number, 1, Access::Read)?;
            self.set_access(number, Access::Read);
            self.check(number)?;
            self.set_access(number, access);
            self.memory.protect(number, 1, access)?;
        }
        self.check_untouched()
    }

    fn set_access(&mut self, number: usize, access: Access) {
        if let Some(page) = self.model.pages.get_mut(&number) {
            page.access = access;
        }
    }

    fn check_untouched(&mut self) -> io::Result<()> {
        let (first, end) = Memory::sparse();
        // Not from `random`: how often somebody asks must not change what is played.
        let mut random = Random::new(self.step);
        for _ in 0..UNTOUCHED {
            let number = first + random.below(end - first);
            if self.model.pages.contains_key(&number) {
                continue;
            }
            self.tally.checked += 1;
            if self.memory.read(number)?.iter().any(|word| *word != 0) {
                self.note_bad(format!("{:#x}: a page that was never written, or dropped, is not zero", number * PAGE_BYTES));
            }
        }
        Ok(())
    }
}
