//! Real programs, followed while they change their memory in every way; then every page is compared.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use mosix_pages::range::RangeSet;
use mosix_pages::track::is_supported;
use mosix_pages::vma::{Class, Vma, read_smaps};
use mosix_pages::wire::codec::Codec;
use mosix_pages::{Final, Options, OutletOptions, SinkError, Source, TrackKind};

mod bed;
use bed::{Move, Victim, assert_untouched};

fn options(kind: TrackKind) -> Option<Options> {
    if !is_supported(kind) {
        eprintln!("skipped: this kernel has no {kind}");
        return None;
    }
    Some(Options { track: Some(kind), ..Options::default() })
}

/// Follows `churn` for many rounds, stops it, compares; lets it go on, and it must still be right.
fn churn(kind: TrackKind, mib: &str, threads: &str, rounds: u32, streams: usize, outlet: &OutletOptions, refuse: u32) {
    let Some(options) = options(kind) else { return };
    let mut victim = Victim::start(&["churn", mib, threads]);
    assert_eq!(victim.line(), "ready");
    let mut source = Source::start(&[victim.pid()], options).unwrap();
    assert_eq!(source.kinds()[&victim.pid()], kind);
    let mut way = Move::new(streams, outlet, refuse);
    let mut first = 0;
    for round in 0..rounds {
        let figures = source.round(&mut way.out).unwrap();
        first = if round == 0 { figures.sent.raw_bytes } else { first };
        std::thread::sleep(Duration::from_millis(u64::from(round % 4) * 5));
    }
    victim.stop();
    let last = source.freeze_round(&mut way.out).unwrap();
    assert!(last.figures.sent.raw_bytes < first, "the last round sends less than the first: {} of {first}", last.figures.sent.raw_bytes);
    let again = source.after_dump(&mut way.out).unwrap();
    assert_same(victim.pid(), &last, &again);
    let (arrived, delivered) = way.arrive(source);
    let compared = delivered.compare(victim.pid(), &arrived[0]);
    assert!(compared > 16_000, "{compared} pages");
    assert_untouched(victim.pid());
    victim.go_on();
    std::thread::sleep(Duration::from_millis(50));
    let (said, good) = victim.end();
    assert!(good, "{said}");
}

/// Two lists of pages of a stopped process. They may differ only in pages that the kernel itself takes (MADV_FREE) or gives (huge pages): zeros.
fn assert_same(pid: i32, one: &Final, other: &Final) {
    let pages = |list: &Final| list.processes[0].pages.iter().map(|run| run.range).collect::<RangeSet>();
    let (one, other) = (pages(one), pages(other));
    let only = |these: &RangeSet, those: &RangeSet| these.iter().flat_map(|(range, ())| those.outside(range)).collect::<Vec<_>>();
    for range in only(&one, &other).into_iter().chain(only(&other, &one)) {
        assert!(bed::is_zero(pid, range), "{range} was found only once");
    }
}

#[test]
fn churn_by_write_protection() {
    churn(TrackKind::WriteProtect, "64", "1", 40, 1, &OutletOptions::default(), 0);
}

#[test]
fn churn_by_write_protection_with_threads_and_streams() {
    churn(TrackKind::WriteProtect, "96", "6", 25, 3, &OutletOptions::default(), 0);
}

#[test]
fn churn_with_refused_windows_and_packing() {
    churn(TrackKind::WriteProtect, "64", "3", 4, 2, &OutletOptions { codec: Some(Codec::Lz4), ..OutletOptions::default() }, 2);
    churn(TrackKind::WriteProtect, "64", "2", 3, 2, &OutletOptions { codec: Some(Codec::Zstd), ..OutletOptions::default() }, 1);
}

#[test]
fn churn_by_contents() {
    churn(TrackKind::Content, "64", "2", 10, 2, &OutletOptions::default(), 0);
}

#[test]
fn churn_by_soft_dirty() {
    churn(TrackKind::SoftDirty, "64", "2", 20, 1, &OutletOptions::default(), 0);
}

/// Rounds and steps in turn, then the comparison. The steps are those of the program `script`.
fn scripted(kind: TrackKind, steps: &[&str]) {
    let Some(options) = options(kind) else { return };
    let mut victim = Victim::start(&["script", "64"]);
    assert_eq!(victim.line(), "ok");
    let mut source = Source::start(&[victim.pid()], options).unwrap();
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    source.round(&mut way.out).unwrap();
    for step in steps {
        if *step == "round" {
            source.round(&mut way.out).unwrap();
        } else {
            victim.say(step);
            assert_eq!(victim.line(), "ok");
        }
    }
    victim.stop();
    source.freeze_round(&mut way.out).unwrap();
    let (arrived, delivered) = way.arrive(source);
    assert!(delivered.compare(victim.pid(), &arrived[0]) > 10_000, "{steps:?}");
}

/// Each of them, in each way of tracking, once with rounds in between and once without.
fn scripts(steps: &[&str]) {
    let with_rounds: Vec<&str> = steps.iter().flat_map(|step| [*step, "round"]).collect();
    for kind in [TrackKind::WriteProtect, TrackKind::SoftDirty, TrackKind::Content] {
        scripted(kind, steps);
        scripted(kind, &with_rounds);
        scripted(kind, with_rounds.get(..with_rounds.len() - 1).unwrap());
    }
}

#[test]
fn whole_page_tables_that_are_freed_are_seen() {
    scripts(&["drop 4096 8192"]);
    scripts(&["drop 4096 8192", "fill 6000 1"]);
}

#[test]
fn pages_whose_place_changes_are_sent_again() {
    scripts(&["lock 1000 3000", "fill 1500 10", "unlock 1000 3000"]);
    scripts(&["lock 1000 3000", "fill 1500 10", "unlock 1000 1500", "fill 2400 300"]);
}

#[test]
fn pages_that_cannot_be_read_for_a_while_are_not_lost() {
    scripts(&["fill 100 50", "close 90 200", "open 0 0"]);
    scripts(&["close 90 200"]);
    scripts(&["close 90 200", "open 0 0", "fill 100 50", "drop 120 10"]);
}

#[test]
fn a_process_of_another_user() {
    let mut victim = match Victim::start_as(Some(65534), &["churn", "64", "2"]) {
        Ok(victim) => victim,
        Err(error) => return eprintln!("skipped: cannot start a program as another user: {error}"),
    };
    assert_eq!(victim.line(), "ready");
    let mut source = Source::start(&[victim.pid()], Options::default()).unwrap();
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    for _ in 0..3 {
        source.round(&mut way.out).unwrap();
    }
    victim.stop();
    source.freeze_round(&mut way.out).unwrap();
    let (arrived, delivered) = way.arrive(source);
    assert!(delivered.compare(victim.pid(), &arrived[0]) > 16_000);
    assert_untouched(victim.pid());
}

#[test]
fn a_program_that_becomes_another_is_followed_anew() {
    let mut victim = Victim::start(&["become", "64"]);
    assert_eq!(victim.line(), "old");
    let mut source = Source::start(&[victim.pid()], Options::default()).unwrap();
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    source.round(&mut way.out).unwrap();
    source.round(&mut way.out).unwrap();
    victim.say("now");
    assert_eq!(victim.line(), "ready");
    for _ in 0..4 {
        source.round(&mut way.out).unwrap();
    }
    victim.stop();
    let last = source.freeze_round(&mut way.out).unwrap();
    assert!(last.figures.changed_bytes < 32 << 20, "it is tracked again: {}", last.figures.changed_bytes);
    let (arrived, delivered) = way.arrive(source);
    assert!(delivered.compare(victim.pid(), &arrived[0]) > 16_000);
}

#[test]
fn without_any_round_before() {
    let mut victim = Victim::start(&["churn", "64", "2"]);
    assert_eq!(victim.line(), "ready");
    let mut source = Source::start(&[victim.pid()], Options::default()).unwrap();
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    victim.stop();
    source.freeze_round(&mut way.out).unwrap();
    let (arrived, delivered) = way.arrive(source);
    assert!(delivered.compare(victim.pid(), &arrived[0]) > 16_000);
}

#[test]
fn a_tree_with_shared_memory() {
    let mut victim = Victim::start(&["tree", "3"]);
    let children: Vec<i32> = victim.line().split(' ').map(|pid| pid.parse().unwrap()).collect();
    let all: Vec<i32> = std::iter::once(victim.pid()).chain(children.iter().copied()).collect();
    let mut source = Source::start(&all[..2], Options::default()).unwrap();
    let mut way = Move::new(2, &OutletOptions::default(), 0);
    for round in 0..12 {
        if round == 3 {
            source.follow(&all).unwrap(); // two join later
        }
        if round == 6 {
            source.follow(&all[..3]).unwrap(); // one leaves
        }
        source.round(&mut way.out).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    all.iter().for_each(|pid| bed::stop(*pid));
    let last = source.freeze_round(&mut way.out).unwrap();
    assert_eq!(last.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), all[..3]);
    let (arrived, delivered) = way.arrive(source);
    for (process, arrived) in last.processes.iter().zip(&arrived) {
        assert_eq!(process.process, arrived.process);
        assert!(delivered.compare(process.pid, arrived) > 2000);
        assert_untouched(process.pid);
    }
    assert_eq!(delivered.compare_segments(victim.pid(), &last), 2);
    all.iter().for_each(|pid| bed::signal(*pid, "CONT"));
    assert!(victim.end().1);
}

#[test]
fn cancelled_at_any_point() {
    for step in 0..4 {
        let mut victim = Victim::start(&["churn", "32", "2"]);
        assert_eq!(victim.line(), "ready");
        let mut source = Source::start(&[victim.pid()], Options::default()).unwrap();
        let mut way = Move::new(2, &OutletOptions::default(), 0);
        for _ in 0..step {
            source.round(&mut way.out).unwrap();
        }
        if step == 3 {
            victim.stop();
            source.freeze_round(&mut way.out).unwrap();
        }
        if step != 2 {
            source.cancel(&mut way.out).unwrap(); // else the streams just break
        }
        let ends = way.give_up();
        assert!(ends.iter().all(|end| matches!(end, Err(SinkError::Cancelled | SinkError::Wire(_) | SinkError::OtherStream))), "{ends:?}");
        drop(source);
        victim.stop();
        assert_untouched(victim.pid());
        victim.go_on();
        let (said, good) = victim.end();
        assert!(good, "{said}");
    }
}

#[test]
fn calls_that_wait_go_on_after_a_visit() {
    let mut victim = Victim::start(&["sleep"]);
    assert_eq!(victim.line(), "ready");
    for _ in 0..20 {
        drop(Source::start(&[victim.pid()], Options { track: Some(TrackKind::WriteProtect), ..Options::default() }).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    victim.say("hello");
    assert_eq!(victim.line(), "read true \"hello\" slept 0 true");
}

#[test]
fn a_stopped_process_can_be_followed_and_stays_stopped() {
    let mut victim = Victim::start(&["write", "16", "1000"]);
    assert_eq!(victim.line(), "ready");
    victim.stop();
    let mut source = Source::start(&[victim.pid()], Options::default()).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.pid())).unwrap();
    assert!(stat.contains(") T "), "{stat}");
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    source.round(&mut way.out).unwrap();
    source.freeze_round(&mut way.out).unwrap();
    let (arrived, delivered) = way.arrive(source);
    delivered.compare(victim.pid(), &arrived[0]);
    victim.go_on();
    assert!(victim.end().1);
}

#[test]
fn pages_of_an_earlier_visit_are_not_trusted() {
    let mut victim = Victim::start(&["write", "16", "1"]);
    assert_eq!(victim.line(), "ready");
    victim.stop();
    // the destination claims to have a page, but has not
    let is_big = |vma: &Vma| vma.class() == Class::Anonymous && vma.range.bytes() >= 16 << 20;
    let place = read_smaps(victim.pid()).unwrap().into_iter().find(is_big).unwrap().range.start + (8 << 20);
    let mut page = vec![0; 4096];
    let memory = std::fs::File::open(format!("/proc/{}/mem", victim.pid())).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut page, place).unwrap();
    let known = [((0, place), mosix_pages::wire::page_hash(&page))].into();
    let mut source = Source::start(&[victim.pid()], Options { known, ..Options::default() }).unwrap();
    let mut way = Move::new(1, &OutletOptions::default(), 0);
    let _ = source.round(&mut way.out); // the sink may already have hung up
    assert!(matches!(way.give_up()[0], Err(SinkError::Earlier)));
}
