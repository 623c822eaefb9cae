//! Skeleton dump and restore with an unpatched CRIU: the program starts before its pages are in, and every page arrives.
//!
//! Needs root and an unpatched CRIU (`MOSIX_CRIU_PLAIN`, `.tools/bin/criu-plain`); says `skipped: why` otherwise. `MOSIX_CRIU_MEASURE=MIB,RUNS` prints
//! times.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod bed;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bed::{DEADLINE, Subject, memory, no_child_left, specimen};
use mosix_criu::images::file::{Image, Kind};
use mosix_criu::images::messages::Mm;
use mosix_criu::images::pagemap::{LAZY, PARENT, PRESENT, PageMap};
use mosix_criu::images::parent;
use mosix_criu::lazy::{self, LazyError, LazyProcess, Report};
use mosix_criu::{Criu, DumpOptions, DumpRequest, Reply, RestoreOptions, RestoreRequest, Skeleton, Stage};

/// Not a test: the program that the tests move.
#[test]
fn specimen_program() {
    specimen::run_if_asked();
}

fn plain() -> Option<Criu> {
    let criu = bed::plain()?;
    if criu.kernel_features(DEADLINE).unwrap().lazy_pages == Some(true) {
        return Some(criu);
    }
    println!("skipped: no userfaultfd with events");
    None
}

/// A program that is dumped, with images and stores ready.
struct Dumped {
    images: PathBuf,
    processes: Vec<LazyProcess>,
    frozen: Duration,
}

/// Dumps a skeleton, copies all pages to the stores while CRIU holds the original, and ends it.
fn dump(criu: &Criu, subject: &mut Subject, big_pages: u64) -> Dumped {
    let (images, kerndat) = (subject.folder("images"), subject.folder("kerndat"));
    parent::write(&subject.folder("claimed"), &subject.pids(), parent::Contents::None).unwrap();
    mosix_criu::kerndat::prepare_plain(criu, &kerndat).unwrap();
    let stores = parent::write(&subject.folder("store"), &subject.pids(), parent::Contents::Store).unwrap();
    let skeleton = Skeleton::Plain { parent: "../claimed", kerndat_dir: &kerndat };
    let options = DumpOptions { skeleton: Some(skeleton), ..DumpOptions::default() };
    let request = DumpRequest { pid: subject.pid, images_dir: &images, external: &[], shell_job: false };
    let (mut since, mut frozen) = (Instant::now(), Duration::ZERO);
    criu.dump_with(&request, &options, DEADLINE, &mut |stage| {
        match stage {
            Stage::QueryExtFiles => since = Instant::now(),
            Stage::PostDump => {
                frozen = since.elapsed();
                subject.pids().iter().zip(&stores).for_each(|(pid, store)| copy_pages(&images, *pid, store));
            }
            _ => {}
        }
        Reply::Continue
    })
    .unwrap();
    subject.kill();
    std::fs::remove_file(images.join("parent")).unwrap();
    std::os::unix::fs::symlink("../store", images.join("parent")).unwrap();
    let mark = |(pid, store): (&i32, &PathBuf)| LazyProcess { pid: *pid, store: store.clone(), runs: mark(&images, *pid, big_pages) };
    let processes = subject.pids().iter().zip(&stores).map(mark).collect();
    Dumped { images, processes, frozen }
}

fn copy_pages(images: &Path, pid: i32, store: &Path) {
    let map = PageMap::read(&images.join(format!("pagemap-{pid}.img"))).unwrap();
    // Without our patch CRIU dumps what the program cannot access.
    assert_eq!(map.count(PRESENT), specimen::SMALL as u64, "only the hidden area was dumped");
    memory::store(pid, map.runs.iter().filter(|run| run.flags == PARENT).copied(), store);
}

fn mark(images: &Path, pid: i32, big_pages: u64) -> Vec<mosix_criu::images::pagemap::Run> {
    let path = images.join(format!("pagemap-{pid}.img"));
    let mut map = PageMap::read(&path).unwrap();
    let mm: Mm = Image::open(&images.join(format!("mm-{pid}.img")), Kind::Mm).unwrap().only().unwrap();
    let runs = lazy::mark(&mut map, &mm, big_pages);
    assert!(map.count(LAZY) > 0 && map.count(PARENT) > 0);
    map.write(&path).unwrap();
    runs
}

#[derive(Debug)]
struct Times {
    frozen: Duration,
    /// From the start of CRIU to the word that the program runs.
    running: Duration,
    /// From the start of CRIU until all pages were in.
    complete: Duration,
    report: Report,
}

fn restore(criu: &Criu, subject: &Subject, dumped: &Dumped) -> Times {
    restore_after(criu, subject, dumped, None)
}

/// With a wait for the decision to go on, which is used to fill.
fn restore_after(criu: &Criu, subject: &Subject, dumped: &Dumped, wait: Option<Duration>) -> Times {
    let filling = lazy::serve(&dumped.images, dumped.processes.clone(), DEADLINE).unwrap();
    let request = RestoreRequest { images_dir: &dumped.images, inherit: &[], terminal: None, shell_job: false };
    let options = RestoreOptions { lazy_pages: true, ..RestoreOptions::default() };
    let (start, mut running) = (Instant::now(), Duration::ZERO);
    let pid = criu.restore_with(&request, &options, DEADLINE, &mut |stage| {
        match (stage, wait) {
            (Stage::PostRestore, Some(wait)) => {
                filling.begin().unwrap();
                std::thread::sleep(wait);
            }
            (Stage::PostResume, _) => running = start.elapsed(),
            _ => {}
        }
        Reply::Continue
    });
    assert_eq!(pid.unwrap(), subject.pid);
    let report = filling.join().unwrap();
    let complete = start.elapsed();
    assert_eq!(report.vanished_pages, 0, "{report:?}");
    Times { frozen: dumped.frozen, running, complete, report }
}

fn lazy_pages(dumped: &Dumped) -> u64 {
    dumped.processes.iter().flat_map(|process| &process.runs).map(|run| run.pages).sum()
}

fn whole_move(criu: &Criu, mib: usize, tree: bool, big_pages: u64) -> Times {
    let mut subject = Subject::start(mib, tree);
    let dumped = dump(criu, &mut subject, big_pages);
    let times = restore(criu, &subject, &dumped);
    assert_eq!(times.report.copied_pages, lazy_pages(&dumped), "{:?}", times.report);
    subject.verify();
    subject.verify();
    times
}

#[test]
fn every_page_arrives() {
    let Some(criu) = plain() else { return };
    whole_move(&criu, 8, false, lazy::BIG_PAGES);
    whole_move(&criu, 256, false, lazy::BIG_PAGES);
    // Small mappings come later, too: generated code, pages without access rights, the heap.
    whole_move(&criu, 8, false, 1);
}

#[test]
fn a_tree_arrives() {
    let Some(criu) = plain() else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    whole_move(&criu, 16, true, lazy::BIG_PAGES);
    whole_move(&criu, 16, true, 1);
}

#[test]
fn mappings_change_and_a_child_is_forked_while_pages_are_missing() {
    let Some(criu) = plain() else { return };
    for big_pages in [lazy::BIG_PAGES, 1] {
        let mut subject = Subject::start(384, false);
        // Not before it is restored: it is asked when it cannot run.
        let dumped = dump(&criu, &mut subject, big_pages);
        subject.ask_for_unrest();
        let times = restore(&criu, &subject, &dumped);
        subject.verify();
        subject.verify_forked();
        subject.verify();
        assert_eq!(times.report.forks, 1, "the child was forked in time: {:?}", times.report);
        assert!(times.report.faults > 0, "{:?}", times.report);
    }
}

#[test]
fn the_wait_for_the_decision_is_used() {
    let Some(criu) = plain() else { return };
    for (mib, tree, wait_ms) in [(64, false, 3), (64, false, 500), (16, true, 500)] {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let mut subject = Subject::start(mib, tree);
        let dumped = dump(&criu, &mut subject, 1);
        let times = restore_after(&criu, &subject, &dumped, Some(Duration::from_millis(wait_ms)));
        assert_eq!(times.report.copied_pages, lazy_pages(&dumped), "{:?}", times.report);
        subject.verify();
    }
}

#[test]
fn a_veto_leaves_nothing() {
    let Some(criu) = plain() else { return };
    let mut subject = Subject::start(8, false);
    let dumped = dump(&criu, &mut subject, lazy::BIG_PAGES);
    let filling = lazy::serve(&dumped.images, dumped.processes.clone(), DEADLINE).unwrap();
    let request = RestoreRequest { images_dir: &dumped.images, inherit: &[], terminal: None, shell_job: false };
    let options = RestoreOptions { lazy_pages: true, ..RestoreOptions::default() };
    let error = criu.restore_with(&request, &options, DEADLINE, &mut |stage| {
        if stage != Stage::PostRestore {
            return Reply::Continue;
        }
        // Some pages are in when the answer comes.
        filling.begin().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        Reply::Veto("the test says no".into())
    });
    let error = error.unwrap_err();
    assert!(error.to_string().contains("the test says no"), "{error}");
    let unfinished = filling.join().unwrap_err();
    assert!(matches!(unfinished.error, LazyError::Abandoned), "{unfinished}");
    assert_eq!(unfinished.processes(), 0);
    bed::ends(subject.pid);
    no_child_left();
    // Nothing was given back from the store: it can be tried again.
    restore(&criu, &subject, &dumped);
    subject.verify();
}

#[test]
fn a_store_that_fails_leaves_a_program_that_waits_and_never_one_with_zeros() {
    let Some(criu) = plain() else { return };
    let mut subject = Subject::start(64, false);
    let mut dumped = dump(&criu, &mut subject, lazy::BIG_PAGES);
    // All that CRIU itself reads is there; what comes later is not.
    let empty = subject.dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    dumped.processes.iter_mut().for_each(|process| process.store = empty.clone());
    let filling = lazy::serve(&dumped.images, dumped.processes.clone(), DEADLINE).unwrap();
    let request = RestoreRequest { images_dir: &dumped.images, inherit: &[], terminal: None, shell_job: false };
    let options = RestoreOptions { lazy_pages: true, ..RestoreOptions::default() };
    let restored = criu.restore_with(&request, &options, DEADLINE, &mut |_| Reply::Continue);
    let unfinished = filling.join().unwrap_err();
    assert!(matches!(unfinished.error, LazyError::Io(_)), "{unfinished}");
    // A fault before CRIU's last word makes the restore fail instead.
    assert_eq!(unfinished.processes(), usize::from(restored.is_ok()), "{restored:?}");
    if restored.is_ok() {
        assert!(subject.stays_silent(Duration::from_millis(300)), "it cannot know its memory yet");
    }
    subject.kill();
    unfinished.close();
    no_child_left();
}

#[test]
fn who_gives_up_ends_the_server() {
    let dir = tempfile::tempdir().unwrap();
    drop(lazy::serve(dir.path(), Vec::new(), DEADLINE).unwrap());
    let filling = lazy::serve(dir.path(), Vec::new(), Duration::from_millis(20)).unwrap();
    assert!(matches!(filling.join().unwrap_err().error, LazyError::Deadline(_)));
    // A stranger instead of CRIU.
    let filling = lazy::serve(dir.path(), Vec::new(), DEADLINE).unwrap();
    let mut stranger = std::os::unix::net::UnixStream::connect(dir.path().join("lazy-pages.socket")).unwrap();
    std::io::Write::write_all(&mut stranger, &[1, 0, 0, 0, 7]).unwrap();
    assert!(matches!(filling.join().unwrap_err().error, LazyError::Io(_)));
}

#[test]
fn times() {
    let Ok(wanted) = std::env::var("MOSIX_CRIU_MEASURE") else { return };
    let Some(criu) = plain() else { return };
    let (mib, runs) = wanted.split_once(',').unwrap();
    let mut all: Vec<Times> = (0..runs.parse().unwrap()).map(|_| whole_move(&criu, mib.parse().unwrap(), false, lazy::BIG_PAGES)).collect();
    let mut show = |name: &str, key: fn(&Times) -> Duration| {
        all.sort_by_key(key);
        println!("{mib} MiB {name}: min {:?} median {:?} max {:?}", key(&all[0]), key(&all[all.len() / 2]), key(&all[all.len() - 1]));
    };
    show("frozen in dump", |times| times.frozen);
    show("restore to first instruction", |times| times.running);
    show("restore to all pages in", |times| times.complete);
    println!("{:?}", all[0].report);
}
