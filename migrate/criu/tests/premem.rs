//! Skeleton dump and waiting restore with a patched CRIU: every page arrives, aborts leave nothing and the original runs on.
//!
//! Needs root and a CRIU with our patches (`MOSIX_CRIU`, `.tools/bin/criu`); says `skipped: why` otherwise. `MOSIX_CRIU_MEASURE=MIB,RUNS` prints times.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod bed;

use std::time::{Duration, Instant};

use bed::memory::{self, Filled};
use bed::{DEADLINE, Subject, alive, no_child_left, patched, specimen};
use mosix_criu::images::file::{Image, Kind};
use mosix_criu::images::messages::Mm;
use mosix_criu::images::pagemap::{PARENT, PREMEM, PageMap, Run};
use mosix_criu::images::{parent, verify};
use mosix_criu::{
    Criu, DumpOptions, DumpRequest, Region, Reply, RestoreOptions, RestoreRequest, Skeleton, Stage, TrustedRange, WaitingRestore,
    copy_smaps, write_trusted,
};

/// Not a test: the program that the tests move.
#[test]
fn specimen_program() {
    specimen::run_if_asked();
}

/// One move on this machine: from `subject` into a waiting restore.
struct Move<'a> {
    criu: &'a Criu,
    subject: &'a mut Subject,
    waiting: WaitingRestore,
    filled: Vec<Filled>,
    stores: Vec<std::path::PathBuf>,
    images: std::path::PathBuf,
    kerndat: std::path::PathBuf,
}

#[derive(Debug, Default)]
struct Times {
    frozen: Duration,
    restored: Duration,
    gap: Duration,
}

impl<'a> Move<'a> {
    fn prepare(criu: &'a Criu, subject: &'a mut Subject) -> Self {
        let images = subject.folder("images");
        let stores = parent::write(&subject.folder("parent"), &subject.pids(), parent::Contents::Store).unwrap();
        let kerndat = subject.dir.path().join("kerndat");
        mosix_criu::kerndat::prepare(criu, &kerndat).unwrap();
        let request = RestoreRequest { images_dir: &images, inherit: &[], terminal: None, shell_job: false };
        let options = RestoreOptions { kerndat: Some(&kerndat), no_breakpoints: true, ..RestoreOptions::default() };
        let waiting = criu.prepare_restore(&request, &options, DEADLINE).unwrap();
        let mut filled = Vec::new();
        for pid in subject.pids() {
            let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
            filled.extend(memory::add_all(&waiting, &memory::regions(pid, &smaps)));
        }
        // As pre-copy would, while the original runs; contents that change meanwhile are overwritten later.
        memory::fill(waiting.pid(), &filled);
        Self { criu, subject, waiting, filled, stores, images, kerndat }
    }

    /// Dumps a skeleton and completes the images while CRIU holds the original; vetoes if `veto`. Returns the time frozen without our own copying.
    fn dump(&self, veto: Option<Stage>) -> Result<Duration, mosix_criu::CriuError> {
        let (smaps_dir, trust) = (self.subject.folder("smaps"), self.subject.dir.path().join("trust"));
        let options = DumpOptions {
            skeleton: Some(Skeleton::Patched { shared: true }),
            trust: Some(&trust),
            smaps: Some(&smaps_dir),
            kerndat: Some(&self.kerndat),
            no_breakpoints: true,
            ..DumpOptions::default()
        };
        let request = DumpRequest { pid: self.subject.pid, images_dir: &self.images, external: &[], shell_job: false };
        let (mut frozen_at, mut frozen) = (Instant::now(), Duration::ZERO);
        self.criu.dump_with(&request, &options, DEADLINE, &mut |stage| {
            match stage {
                Stage::PreDump => {
                    for pid in self.subject.pids() {
                        copy_smaps(&smaps_dir, pid).unwrap();
                    }
                    write_trusted(&trust, &self.trusted()).unwrap();
                }
                Stage::QueryExtFiles => frozen_at = Instant::now(),
                Stage::PostDump => {
                    frozen = frozen_at.elapsed();
                    self.complete();
                }
                _ => {}
            }
            if veto == Some(stage) { Reply::Veto("the test says no".into()) } else { Reply::Continue }
        })?;
        Ok(frozen)
    }

    fn trusted(&self) -> Vec<TrustedRange> {
        self.filled
            .iter()
            .map(|Filled { region: r, .. }| TrustedRange { pid: r.pid, start: r.start, end: r.start + r.length_bytes })
            .collect()
    }

    /// The last copy, our page lists, and the store for what is in no region.
    fn complete(&self) {
        let ours = memory::fill(self.waiting.pid(), &self.filled);
        let _ = std::os::unix::fs::symlink("../parent", self.images.join("parent"));
        let regions: Vec<Region> = self.filled.iter().map(|filled| filled.region).collect();
        for (pid, store) in self.subject.pids().into_iter().zip(&self.stores) {
            let path = self.images.join(format!("pagemap-{pid}.img"));
            let mut map = PageMap::read(&path).unwrap();
            let ranges: Vec<(u64, u64)> = self.trusted().iter().filter(|t| t.pid == pid).map(|t| (t.start, t.end)).collect();
            let inside = |run: &&Run| ranges.iter().any(|(start, end)| *start <= run.start && run.start < *end);
            // Page lists are in order of the regions, which were taken from smaps; parent and child have the same addresses.
            let mut mine: Vec<Run> = if self.subject.child.is_none() { ours.clone() } else { self.listed(pid) };
            mine.retain(|run| inside(&run));
            map.merge(&mine, &ranges).unwrap();
            map.write(&path).unwrap();
            memory::store(pid, map.runs.iter().filter(|run| run.flags & (PARENT | PREMEM) == PARENT).copied(), store);
            let mm: Mm = Image::open(&self.images.join(format!("mm-{pid}.img")), Kind::Mm).unwrap().only().unwrap();
            let plan = verify::plan(pid, &mm, None, &map, &regions).unwrap();
            // A forked child does not inherit locks.
            let locked = pid == self.subject.pid;
            assert!(plan.moved_pages > 0 && (plan.copied_pages > 0) == locked, "{plan:?}: the locked area is copied, the rest moved");
        }
    }

    fn listed(&self, pid: i32) -> Vec<Run> {
        let regions = self.filled.iter().map(|filled| filled.region).filter(|region| region.pid == pid);
        let place = mosix_criu::images::pagemap::Place::Region;
        regions.flat_map(|r| memory::existing(pid, r.start, r.start + r.length_bytes, place)).collect()
    }

    fn go(self, veto: Option<Stage>) -> Result<Duration, mosix_criu::CriuError> {
        self.subject.kill();
        let start = Instant::now();
        let mut restored = Duration::ZERO;
        let pid = self.waiting.go(DEADLINE, &mut |stage| {
            if stage == Stage::PostRestore {
                restored = start.elapsed();
            }
            if veto == Some(stage) { Reply::Veto("the test says no".into()) } else { Reply::Continue }
        })?;
        assert_eq!(pid, self.subject.pid);
        Ok(restored)
    }
}

fn whole_move(criu: &Criu, mib: usize, tree: bool) -> Times {
    let mut subject = Subject::start(mib, tree);
    let one = Move::prepare(criu, &mut subject);
    let frozen = one.dump(None).unwrap();
    let restored = one.go(None).unwrap();
    let gap = subject.verify();
    subject.verify();
    Times { frozen, restored, gap }
}

#[test]
fn every_page_arrives() {
    let Some(criu) = patched() else { return };
    whole_move(&criu, 8, false);
    whole_move(&criu, 256, false);
}

#[test]
fn a_tree_arrives() {
    let Some(criu) = patched() else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    whole_move(&criu, 16, true);
}

#[test]
fn aborts_leave_nothing_and_the_original_runs_on() {
    let Some(criu) = patched() else { return };
    let mut subject = Subject::start(4, false);
    for veto in [Stage::PreDump, Stage::QueryExtFiles, Stage::PostDump] {
        let one = Move::prepare(&criu, &mut subject);
        let worker = one.waiting.pid();
        assert!(one.dump(Some(veto)).is_err(), "{veto:?}");
        drop(one);
        assert!(!alive(worker), "{veto:?}");
        subject.verify();
        std::fs::remove_dir_all(subject.folder("images")).unwrap();
        std::fs::remove_dir_all(subject.folder("parent")).unwrap();
    }
    // After a complete dump, but no word to go: as if nothing had been.
    let one = Move::prepare(&criu, &mut subject);
    one.dump(None).unwrap();
    drop(one);
    subject.verify();
    // A veto when everything is restored.
    std::fs::remove_dir_all(subject.folder("images")).unwrap();
    std::fs::remove_dir_all(subject.folder("parent")).unwrap();
    let one = Move::prepare(&criu, &mut subject);
    one.dump(None).unwrap();
    let error = one.go(Some(Stage::PostRestore)).unwrap_err();
    assert!(error.to_string().contains("the test says no"), "{error}");
    bed::ends(subject.pid);
    no_child_left();
}

#[test]
fn bad_orders_are_refused_and_the_restore_goes_on_waiting() {
    let Some(criu) = patched() else { return };
    let dir = tempfile::tempdir_in(bed::tmpfs()).unwrap();
    let request = RestoreRequest { images_dir: dir.path(), inherit: &[], terminal: None, shell_job: false };
    let waiting = criu.prepare_restore(&request, &RestoreOptions::default(), DEADLINE).unwrap();
    let good = Region { pid: 5, start: 0x1000_0000, length_bytes: 8 << 20, no_reserve: false, copy_only: false };
    let address = waiting.add_region(&good).unwrap();
    assert_eq!(address % (2 << 20), good.start % (2 << 20), "alike in page tables");
    let bad = [
        Region { start: good.start + 1, ..good },
        Region { start: good.start + 4096, ..good },
        Region { length_bytes: 0, start: 0x9000_0000, ..good },
        Region { pid: 0, ..good },
        Region { start: 1 << 47, ..good },
        Region { start: 4096, length_bytes: u64::MAX - 8191, ..good },
    ];
    for region in bad {
        assert!(waiting.add_region(&region).is_err(), "{region:?}");
    }
    waiting.add_region(&Region { pid: 6, ..good }).unwrap();
    assert!(waiting.collapse(5, good.start, 16 << 20).is_err());
    waiting.collapse(5, good.start, good.length_bytes).unwrap();
    let error = waiting.go(DEADLINE, &mut |_| Reply::Continue).unwrap_err();
    assert!(error.to_string().contains("empty-image"), "no images: {error}");
}

#[test]
fn times() {
    let Ok(wanted) = std::env::var("MOSIX_CRIU_MEASURE") else { return };
    let Some(criu) = patched() else { return };
    let (mib, runs) = wanted.split_once(',').unwrap();
    let mut all: Vec<Times> = (0..runs.parse().unwrap()).map(|_| whole_move(&criu, mib.parse().unwrap(), false)).collect();
    let mut show = |name: &str, key: fn(&Times) -> Duration| {
        all.sort_by_key(key);
        println!("{mib} MiB {name}: min {:?} median {:?} max {:?}", key(&all[0]), key(&all[all.len() / 2]), key(&all[all.len() - 1]));
    };
    show("frozen in dump", |times| times.frozen);
    show("go to post-restore", |times| times.restored);
    // Includes our own copying while the program is stopped.
    show("longest gap seen by the program", |times| times.gap);
}
