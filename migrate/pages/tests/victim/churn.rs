//! One thread's memory, changed in every way there is, with the knowledge of what each page must hold.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::memory::{self, Mapping, PAGE, Random};

const MAX_BLOCKS: usize = 40;

/// What a page holds.
#[derive(Clone, Copy)]
enum Holds {
    Zeros,
    Seed(u64),
    /// MADV_FREE: this, or zeros.
    Either(u64),
}

struct Block {
    memory: Mapping,
    pages: Vec<Holds>,
}

impl Block {
    fn new(pages: usize, thp: bool) -> Block {
        Block { memory: Mapping::new(pages * PAGE, thp), pages: vec![Holds::Zeros; pages] }
    }

    fn write(&mut self, page: usize, seed: u64) {
        self.memory.fill(page, seed);
        self.pages[page] = Holds::Seed(seed);
    }

    fn bad(&self) -> usize {
        let wrong = |(page, holds): (usize, &Holds)| match *holds {
            Holds::Zeros => !self.memory.holds(page, 0),
            Holds::Seed(seed) => !self.memory.holds(page, seed),
            Holds::Either(seed) => !self.memory.holds(page, seed) && !self.memory.holds(page, 0),
        };
        self.pages.iter().enumerate().filter(|page| wrong(*page)).count()
    }
}

/// Works until `ending`, then checks everything: the number of bad pages.
pub(crate) fn work(seed: u64, mib: usize, filled: &Barrier, ending: &AtomicBool) -> usize {
    let mut random = Random(seed);
    let mut base = Block::new(mib * 256, false);
    (0..base.pages.len()).for_each(|page| base.write(page, page as u64 | 1));
    filled.wait();
    let mut blocks = vec![base];
    let mut bad = 0;
    let mut steps = 0u64;
    while !ending.load(Ordering::Relaxed) {
        bad += step(&mut random, &mut blocks, seed == 0);
        steps += 1;
        if steps.is_multiple_of(16) {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    bad + blocks.iter().map(Block::bad).sum::<usize>()
}

fn step(random: &mut Random, blocks: &mut Vec<Block>, first: bool) -> usize {
    let which = random.below(blocks.len());
    let seed = random.next() | 1;
    let from = random.below(blocks[which].pages.len());
    let count = 1 + random.below((blocks[which].pages.len() - from).min(64));
    match random.below(100) {
        0..8 if blocks.len() < MAX_BLOCKS => {
            let thp = random.below(8) == 0;
            let mut block = Block::new(if thp { 1024 } else { 1 + random.below(200) }, thp);
            (0..block.pages.len()).filter(|page| page % 3 > 0).for_each(|page| block.write(page, seed + 2 * page as u64));
            blocks.push(block);
        }
        8..14 if which > 0 => drop(blocks.swap_remove(which)),
        14..20 if which > 0 => resize(random, &mut blocks[which]),
        20..26 => {
            // now and then so much that whole page tables are freed
            let (from, count) = if seed % 8 == 1 { (from / 512 * 512, 1024) } else { (from, count) };
            let count = count.min(blocks[which].pages.len() - from);
            blocks[which].memory.advise(from, count, libc::MADV_DONTNEED);
            blocks[which].pages[from..from + count].fill(Holds::Zeros);
        }
        26..30 => free(&mut blocks[which], from, count, seed),
        30..36 => return close_for_a_while(&mut blocks[which], from, count, seed),
        36..37 => return fork_and_write(blocks),
        37..39 => {
            let code = Mapping::new(PAGE, false);
            return usize::from(code.run_code(seed as u32) != seed as u32);
        }
        39..41 if first => move_break(random),
        41..50 => return usize::from(matches!(blocks[which].pages[from], Holds::Zeros) && !blocks[which].memory.holds(from, 0)),
        _ => blocks[which].write(from, seed),
    }
    0
}

fn resize(random: &mut Random, block: &mut Block) {
    let pages = 1 + random.below(block.pages.len() * 2);
    if block.memory.resize(pages * PAGE) {
        block.pages.resize(pages, Holds::Zeros);
    }
}

fn free(block: &mut Block, from: usize, count: usize, seed: u64) {
    block.memory.advise(from, count, libc::MADV_FREE);
    for page in from..from + count {
        block.pages[page] = match block.pages[page] {
            Holds::Seed(old) | Holds::Either(old) => Holds::Either(old),
            Holds::Zeros => Holds::Zeros,
        };
    }
    block.write(from, seed);
}

/// Without access, or only for reading, and back again, at different times.
fn close_for_a_while(block: &mut Block, from: usize, count: usize, seed: u64) -> usize {
    let protection = if seed.is_multiple_of(3) { libc::PROT_READ } else { libc::PROT_NONE };
    if block.memory.protect(from, count, protection) {
        if seed % 5 < 3 {
            std::thread::sleep(Duration::from_micros(seed % 4000));
        }
        block.memory.leave_open();
    }
    block.write(from, seed);
    0
}

/// The child writes to pages shared by COW and looks at its own copy; ours must stay as it is.
fn fork_and_write(blocks: &mut [Block]) -> usize {
    match memory::fork() {
        0 => {
            for block in blocks.iter_mut() {
                for page in (0..block.pages.len()).step_by(5) {
                    block.write(page, 99);
                }
            }
            let bad: usize = blocks.iter().map(Block::bad).sum();
            memory::exit_now(i32::from(bad > 0));
        }
        pid => usize::from(memory::wait_for(pid) != 0),
    }
}

fn move_break(random: &mut Random) {
    let bytes = (1 + random.below(64)) * PAGE;
    if let Some(start) = memory::move_break(bytes as isize) {
        // shrunk again if nobody else has moved it meanwhile
        if memory::move_break(0) == Some(start + bytes) && random.below(2) == 0 {
            memory::move_break(-(bytes as isize));
        }
    }
}
