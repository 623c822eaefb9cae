//! Programs for the tests of `mosix-pages`: one whose memory changes in every way there is and that knows what it must hold,
//! a plain writer, a tree with shared memory, and a process that waits with room for windows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod churn;
mod memory;

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memory::Mapping;

/// Set when standard input ends.
static ENDING: AtomicBool = AtomicBool::new(false);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).unwrap_or(1);
    match words.first().map(String::as_str) {
        Some("churn") => churn_program(number(1), number(2)),
        Some("write") => write_program(number(1), number(2), words.get(3).is_some_and(|word| word == "thp")),
        Some("tree") => tree_program(number(1)),
        Some("sleep") => sleep_program(),
        Some("script") => script_program(number(1)),
        Some("become") => become_program(number(1)),
        Some("host") => host_program(),
        _ => std::process::exit(2),
    }
}

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

fn end_with_input() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().lines().last();
        ENDING.store(true, Ordering::Relaxed);
    });
}

/// `churn MIB THREADS`: until its input ends; then all memory is checked. Exit status 0: all right.
fn churn_program(mib: usize, threads: usize) {
    end_with_input();
    let filled = std::sync::Arc::new(std::sync::Barrier::new(threads + 1));
    let start = |seed: usize| {
        let filled = filled.clone();
        std::thread::spawn(move || churn::work(seed as u64, mib / threads, &filled, &ENDING))
    };
    let workers: Vec<_> = (0..threads).map(start).collect();
    filled.wait();
    say("ready");
    let bad: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    say(&format!("bad {bad}"));
    std::process::exit(i32::from(bad > 0));
}

/// `write MIB PAGES_PER_S [thp]`: fills memory, then writes pages at random (0: as fast as it can, one after the other) and says each 100 ms how many.
fn write_program(mib: usize, pages_per_s: usize, thp: bool) {
    end_with_input();
    let memory = Mapping::new(mib << 20, thp);
    (0..memory.pages()).for_each(|page| memory.fill(page, page as u64 + 1));
    say("ready");
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (started, mut random, mut version) = (Instant::now(), memory::Random(1), 1u64 << 40);
            while !ENDING.load(Ordering::Relaxed) {
                let due = started.elapsed().as_micros() as u64 * pages_per_s as u64 / 1_000_000;
                let done = written.load(Ordering::Relaxed);
                if pages_per_s > 0 && done >= due {
                    std::thread::sleep(Duration::from_micros(500));
                    continue;
                }
                let page = if pages_per_s == 0 { done as usize % memory.pages() } else { random.below(memory.pages()) };
                version += 1;
                memory.fill(page, version);
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        while !ENDING.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            say(&written.load(Ordering::Relaxed).to_string());
        }
    });
}

/// `tree CHILDREN`: children that churn, and memory shared by all, anonymous and memfd.
fn tree_program(children: usize) {
    let shared = [Mapping::shared(4 << 20), Mapping::memfd(2 << 20)];
    let mut pids = Vec::new();
    for child in 0..children {
        match memory::fork() {
            0 => {
                let mut random = memory::Random(child as u64 + 77);
                let own = Mapping::new(8 << 20, false);
                loop {
                    let version = random.next();
                    shared.iter().for_each(|mapping| mapping.fill(random.below(mapping.pages() / 2), version));
                    own.fill(random.below(own.pages()), version);
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            pid => pids.push(pid),
        }
    }
    let own = Mapping::new(8 << 20, false);
    (0..own.pages()).for_each(|page| own.fill(page, page as u64));
    say(&pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let _ = std::io::stdin().lock().lines().last();
    pids.into_iter().for_each(memory::kill_and_wait);
}

/// Waits in calls that must go on after a stop, and tells what they returned.
fn sleep_program() {
    let sleeper = std::thread::spawn(|| {
        let started = Instant::now();
        let slept = memory::nanosleep(Duration::from_millis(1500));
        (slept, started.elapsed() >= Duration::from_millis(1500))
    });
    say("ready");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line); // the main thread sits in read(2)
    let (slept, long_enough) = sleeper.join().unwrap();
    say(&format!("read {} {:?} slept {slept} {long_enough}", read.is_ok(), line.trim()));
}

/// `script MIB`: does to its pages what the lines say, `WHAT FIRST_PAGE PAGES`, and says `ok` after each.
fn script_program(mib: usize) {
    let memory = Mapping::new(mib << 20, false);
    (0..memory.pages()).for_each(|page| memory.fill(page, page as u64 + 1));
    say("ok");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let [first, pages] = [1, 2].map(|at: usize| words[at].parse::<usize>().unwrap());
        match words[0] {
            "drop" => memory.advise(first, pages, libc::MADV_DONTNEED),
            "fill" => (first..first + pages).for_each(|page| memory.fill(page, 0xabcd_ef01 + page as u64)),
            "lock" => assert!(memory.lock(first, pages, true)),
            "unlock" => assert!(memory.lock(first, pages, false)),
            "close" => assert!(memory.protect(first, pages, libc::PROT_NONE)),
            "open" => memory.leave_open(),
            _ => std::process::exit(2),
        }
        say("ok");
    }
}

/// `become MIB`: at a word from its input it executes `write`, with the same pid.
fn become_program(mib: usize) {
    let memory = Mapping::new(mib << 20, false);
    (0..memory.pages()).for_each(|page| memory.fill(page, 7));
    say("old");
    let mut byte = [0];
    while byte[0] != b'\n' {
        std::io::Read::read_exact(&mut std::io::stdin(), &mut byte).unwrap();
    }
    let error =
        std::os::unix::process::CommandExt::exec(std::process::Command::new("/proc/self/exe").args(["write", &mib.to_string(), "500"]));
    panic!("{error}");
}

/// Takes `BYTES NORESERVE` lines and answers each with the address of new memory.
fn host_program() {
    let mut all = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ').map(|word| word.parse::<usize>().unwrap());
        let (bytes, no_reserve) = (words.next().unwrap(), words.next().unwrap() == 1);
        match Mapping::try_new(bytes, no_reserve) {
            Some(mapping) => {
                say(&mapping.address().to_string());
                all.push(mapping);
            }
            None => say("0"),
        }
    }
}
