//! The program that is moved: threads that write, memory of every kind, and every page of it checked on request.
//!
//! It is the test binary itself, started with `MOSIX_SPECIMEN`. It holds no descriptor: requests are files that appear (`FILE.N`), answers are lines
//! appended to `FILE`; `FILE.unrest` asks for changes of the mappings and a fork. A page of the large area holds its index, a version and words made of both, so that a page from the wrong place, of the
//! wrong time, or half of one is seen.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

impl Area {
    /// Moves the mapping to another address.
    fn relocate(&mut self) {
        let bytes = self.0.len() * 8;
        let place = Self::map(bytes, libc::PROT_NONE, 0).0.as_mut_ptr();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: moves this mapping over the one made for it just now, which nothing refers to.
        let at = unsafe { libc::mremap(self.0.as_mut_ptr().cast(), bytes, bytes, flags, place.cast::<libc::c_void>()) };
        assert_ne!(at, libc::MAP_FAILED, "mremap: {}", std::io::Error::last_os_error());
        // SAFETY: as in `map`; the old slice is replaced and not used any more.
        self.0 = unsafe { std::slice::from_raw_parts_mut(at.cast(), bytes / 8) };
    }

    fn protect_page(&mut self, index: usize, protection: i32) {
        // SAFETY: one page of this mapping, which stays readable.
        let done = unsafe { libc::mprotect(self.page(index).as_mut_ptr().cast(), PAGE_BYTES, protection) };
        assert_eq!(done, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    /// Maps fresh memory in place of the pages from this one on.
    fn renew(&mut self, from: usize) {
        let rest = &mut self.0[from * PAGE_WORDS..];
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: replaces a part of this mapping, whose content is not needed any more.
        let at = unsafe { libc::mmap(rest.as_mut_ptr().cast(), rest.len() * 8, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    }
}

fn word(index: usize, version: u64, at: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (at as u64) << 48
}

const HOLES: usize = 96;
const SPARSE: usize = 16384;
const SPARSE_STEP: usize = 64;
/// Pages of the hidden area, and of the locked one.
pub const SMALL: usize = 16;
/// Pages of the area that [`Specimen::unrest`] is about.
const MOVING: usize = 4096;
/// Every page of the large area with this step is changed in the forked child.
pub const CHILD_STEP: usize = 16;
const CHILD_VERSION: u64 = 1 << 40;

struct Specimen {
    large: Mutex<Large>,
    rest: Mutex<Rest>,
}

/// The large area, and what each of its pages must hold: a page that is whole but old is seen.
struct Large {
    area: Area,
    versions: Vec<u64>,
}

impl Large {
    fn write(&mut self, index: usize, version: u64) {
        self.area.write(index, version);
        self.versions[index] = version;
    }
}

struct Rest {
    holes: Area,
    sparse: Area,
    hidden: Area,
    locked: Area,
    code: Area,
    heap: Vec<u64>,
    moving: Area,
    unrest: bool,
}

impl Specimen {
    fn new(large_pages: usize) -> Self {
        let mut large = Large { area: Area::writable(large_pages, 0), versions: vec![0; large_pages] };
        (0..large_pages).for_each(|index| large.write(index, 1));
        let mut moving = Area::writable(MOVING, 0);
        (0..MOVING).for_each(|index| moving.write(index, 6));
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
        let code = Area::map(PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, 0);
        // mov eax, 0x00c0ffee; ret
        code.0[0] = u64::from_le_bytes([0xb8, 0xee, 0xff, 0xc0, 0, 0xc3, 0, 0]);
        let heap = (0..100_000).map(|at| at * 3).collect();
        Self { large: Mutex::new(large), rest: Mutex::new(Rest { holes, sparse, hidden, locked, code, heap, moving, unrest: false }) }
    }

    fn lock(&self) -> (MutexGuard<'_, Large>, MutexGuard<'_, Rest>) {
        (self.large.lock().unwrap_or_else(PoisonError::into_inner), self.rest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, child: bool) -> Result<(), String> {
        let (mut large, mut rest) = self.lock();
        check_all(&mut large, &mut rest, child)
    }

    /// Everything that a program can do to its mappings, and then a fork whose child looks at all memory and says so in a file of its own.
    fn unrest(&self, answers: &Path) {
        let (mut large, mut rest) = self.lock();
        rest.unsettle();
        // SAFETY: the child uses only its copy of the memory, whose locks this thread holds; glibc keeps its allocator usable across fork.
        if unsafe { libc::fork() } == 0 {
            let found = check_all(&mut large, &mut rest, false).map_or_else(|what| format!("bad {what}"), |()| "ok".to_owned());
            let done = std::fs::write(answers.with_extension("forked"), format!("0 0 {found}\n"));
            // SAFETY: ends this process, whose other threads do not exist.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
    }
}

fn check_all(large: &mut Large, rest: &mut Rest, child: bool) -> Result<(), String> {
    for index in 0..large.versions.len() {
        let version = large.area.check(index, "large")?;
        if version != large.versions[index] {
            return Err(format!("large page {index} has version {version} instead of {}", large.versions[index]));
        }
        if (version >= CHILD_VERSION) != (child && index % CHILD_STEP == 0) {
            return Err(format!("large page {index} is of the other process: version {version}"));
        }
    }
    rest.check()
}

impl Rest {
    /// Moves the area, drops pages of its first quarter, splits its second by access rights, maps its last anew.
    fn unsettle(&mut self) {
        self.moving.relocate();
        (0..MOVING / 4).step_by(5).for_each(|index| self.moving.advise(index, libc::MADV_DONTNEED));
        (MOVING / 4..MOVING / 2).step_by(7).for_each(|index| self.moving.protect_page(index, libc::PROT_READ));
        self.moving.renew(MOVING / 4 * 3);
        self.unrest = true;
    }

    fn check_moving(&mut self) -> Result<(), String> {
        for index in 0..MOVING {
            let dropped = index < MOVING / 4 && index % 5 == 0 || index >= MOVING / 4 * 3;
            if self.unrest && dropped {
                self.moving.is_zero(index, "moving")?;
            } else {
                self.moving.check(index, "moving")?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        for index in 0..HOLES {
            if index % 3 == 0 { self.holes.is_zero(index, "hole")? } else { self.holes.check(index, "holes").map(drop)? }
        }
        for index in 0..SPARSE {
            if index % SPARSE_STEP == 0 {
                self.sparse.check(index, "sparse").map(drop)?;
            } else if index % 7 == 0 {
                self.sparse.is_zero(index, "sparse")?
            }
        }
        self.hidden.protect(libc::PROT_READ);
        let hidden = (0..SMALL).try_for_each(|index| self.hidden.check(index, "hidden").map(drop));
        self.hidden.protect(libc::PROT_NONE);
        hidden?;
        (0..SMALL).try_for_each(|index| self.locked.check(index, "locked").map(drop))?;
        self.check_moving()?;
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
            (0..large.versions.len()).step_by(CHILD_STEP).for_each(|index| large.write(index, CHILD_VERSION));
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
        let pages = large.versions.len();
        large.write((at >> 33) as usize % pages, version);
        drop(large);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn serve(answers: &Path, specimen: &Specimen, child: bool) -> ! {
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    let mut number = 0;
    let unrest = answers.with_extension("unrest");
    loop {
        if !child && unrest.exists() {
            specimen.unrest(answers);
            std::fs::remove_file(&unrest).expect("the request is answered");
        }
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
