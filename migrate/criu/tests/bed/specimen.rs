//! The program that is moved: threads that write, memory of every kind, and every page of it checked on request.
//!
//! It is the test binary itself, started with `MOSIX_SPECIMEN`. It holds no descriptor: requests are files that appear (`FILE.N`), answers are lines
//! appended to `FILE`. A page of the large area holds its index, a version and words made of both, so that a page from the wrong place, of the
//! wrong time, or half of one is seen.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Words of a page that are looked at: every 32nd.
const STRIDE: usize = 32;

/// Set to the answer file in the process that is to be the program.
pub const VARIABLE: &str = "MOSIX_SPECIMEN";

struct Area(&'static mut [u64]);

impl Area {
    fn map(bytes: usize, protection: i32, flags: i32) -> Self {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        // SAFETY: the mapping has this size, is never unmapped, and this is the only reference.
        Self(unsafe { std::slice::from_raw_parts_mut(at.cast(), bytes / 8) })
    }

    fn writable(pages: usize, flags: i32) -> Self {
        Self::map(pages * PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags)
    }

    fn page(&mut self, index: usize) -> &mut [u64] {
        &mut self.0[index * PAGE_WORDS..(index + 1) * PAGE_WORDS]
    }

    fn write(&mut self, index: usize, version: u64) {
        let words = self.page(index);
        for at in (0..PAGE_WORDS).step_by(STRIDE) {
            words[at] = word(index, version, at);
        }
        words[1] = version;
    }

    fn check(&mut self, index: usize, what: &str) -> Result<u64, String> {
        let words = self.page(index);
        let version = words[1];
        match (0..PAGE_WORDS).step_by(STRIDE).find(|at| words[*at] != word(index, version, *at)) {
            Some(at) => Err(format!("{what} page {index} word {at}: {:#x}, version {version}", words[at])),
            None => Ok(version),
        }
    }

    fn is_zero(&mut self, index: usize, what: &str) -> Result<(), String> {
        let clean = self.page(index).iter().all(|word| *word == 0);
        if clean { Ok(()) } else { Err(format!("{what} page {index} is not zero")) }
    }

    fn protect(&mut self, protection: i32) {
        // SAFETY: the range is this mapping's; nobody reads it while it is protected.
        let done = unsafe { libc::mprotect(self.0.as_mut_ptr().cast(), self.0.len() * 8, protection) };
        assert_eq!(done, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    fn advise(&mut self, index: usize, advice: i32) {
        // SAFETY: one page of this mapping, whose content is not needed any more.
        let done = unsafe { libc::madvise(self.page(index).as_mut_ptr().cast(), PAGE_BYTES, advice) };
        assert_eq!(done, 0, "madvise: {}", std::io::Error::last_os_error());
    }
}

fn word(index: usize, version: u64, at: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (at as u64) << 48
}

const HOLES: usize = 96;
const SPARSE: usize = 16384;
const SPARSE_STEP: usize = 64;
const SMALL: usize = 16;
/// Every page of the large area with this step is changed in the forked child.
pub const CHILD_STEP: usize = 16;
const CHILD_VERSION: u64 = 1 << 40;

struct Specimen {
    large: Mutex<Area>,
    rest: Mutex<Rest>,
}

struct Rest {
    holes: Area,
    sparse: Area,
    hidden: Area,
    locked: Area,
    code: Area,
    heap: Vec<u64>,
}

impl Specimen {
    fn new(large_pages: usize) -> Self {
        let mut large = Area::writable(large_pages, 0);
        (0..large_pages).for_each(|index| large.write(index, 1));
        let mut holes = Area::writable(HOLES, 0);
        (0..HOLES).for_each(|index| holes.write(index, 2));
        (0..HOLES).step_by(3).for_each(|index| holes.advise(index, libc::MADV_DONTNEED));
        let mut sparse = Area::writable(SPARSE, libc::MAP_NORESERVE);
        (0..SPARSE).step_by(SPARSE_STEP).for_each(|index| sparse.write(index, 3));
        let mut hidden = Area::writable(SMALL, 0);
        (0..SMALL).for_each(|index| hidden.write(index, 4));
        hidden.protect(libc::PROT_NONE);
        let mut locked = Area::writable(SMALL, libc::MAP_LOCKED);
        (0..SMALL).for_each(|index| locked.write(index, 5));
        let mut code = Area::map(PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, 0);
        // mov eax, 0x00c0ffee; ret
        code.0[0] = u64::from_le_bytes([0xb8, 0xee, 0xff, 0xc0, 0, 0xc3, 0, 0]);
        let heap = (0..100_000).map(|at| at * 3).collect();
        Self { large: Mutex::new(large), rest: Mutex::new(Rest { holes, sparse, hidden, locked, code, heap }) }
    }

    fn check(&self, child: bool) -> Result<(), String> {
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        for index in 0..large.0.len() / PAGE_WORDS {
            let version = large.check(index, "large")?;
            if (version >= CHILD_VERSION) != (child && index % CHILD_STEP == 0) {
                return Err(format!("large page {index} is of the other process: version {version}"));
            }
        }
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).check()
    }
}

impl Rest {
    fn check(&mut self) -> Result<(), String> {
        for index in 0..HOLES {
            if index % 3 == 0 { self.holes.is_zero(index, "hole")? } else { drop(self.holes.check(index, "holes")?) }
        }
        for index in 0..SPARSE {
            if index % SPARSE_STEP == 0 {
                drop(self.sparse.check(index, "sparse")?)
            } else if index % 7 == 0 {
                self.sparse.is_zero(index, "sparse")?
            }
        }
        self.hidden.protect(libc::PROT_READ);
        let hidden = (0..SMALL).try_for_each(|index| self.hidden.check(index, "hidden").map(drop));
        self.hidden.protect(libc::PROT_NONE);
        hidden?;
        (0..SMALL).try_for_each(|index| self.locked.check(index, "locked").map(drop))?;
        // SAFETY: the page is executable and holds the function written there.
        let answer = unsafe { std::mem::transmute::<*const u64, extern "C" fn() -> u32>(self.code.0.as_ptr())() };
        if answer != 0xc0_ffee {
            return Err(format!("the generated code answered {answer:#x}"));
        }
        match self.heap.iter().zip(0_u64..).find(|(value, at)| **value != at * 3) {
            Some((value, at)) => Err(format!("heap word {at}: {value:#x}")),
            None => Ok(()),
        }
    }
}

/// The program; returns only where it is not wanted.
pub fn run_if_asked() {
    let Some(answers) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let specimen = Arc::new(Specimen::new(number("MOSIX_SPECIMEN_MIB") << 8));
    if number("MOSIX_SPECIMEN_TREE") > 0 {
        // SAFETY: the child uses only its copy of the memory; glibc keeps its allocator usable across fork.
        if unsafe { libc::fork() } == 0 {
            let mut large = specimen.large.lock().unwrap_or_else(PoisonError::into_inner);
            (0..large.0.len() / PAGE_WORDS).step_by(CHILD_STEP).for_each(|index| large.write(index, CHILD_VERSION));
            drop(large);
            serve(&answers.with_extension("child"), &specimen, true);
        }
    }
    for seed in 1..3 {
        let specimen = Arc::clone(&specimen);
        std::thread::spawn(move || scribble(&specimen, seed));
    }
    serve(&answers, &specimen, false)
}

/// About 4 MB/s of writes from each thread.
fn scribble(specimen: &Specimen, seed: u64) {
    let mut at = seed;
    for version in 10.. {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
        let mut large = specimen.large.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = large.0.len() / PAGE_WORDS;
        large.write((at >> 33) as usize % pages, version);
        drop(large);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn serve(answers: &Path, specimen: &Specimen, child: bool) -> ! {
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    let mut number = 0;
    loop {
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
        if answers.with_extension(format!("{}{number}", if child { "child" } else { "" })).exists() {
            let found = specimen.check(child);
            let text = found.map_or_else(|what| format!("bad {what}"), |()| "ok".to_owned());
            let line = format!("{number} {} {text}\n", gap.as_micros());
            let mut file = std::fs::File::options().create(true).append(true).open(answers).expect("the answer file opens");
            file.write_all(line.as_bytes()).expect("the answer is written");
            number += 1;
            (last, gap) = (Instant::now(), Duration::ZERO);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
