use proptest::prelude::*;

use super::*;
use crate::vma::Flags;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Anonymous { no_reserve: bool },
    Unreadable,
    File,
    Stack,
    Locked,
}

fn vma(start: u64, bytes: u64, what: What) -> Vma {
    let mut flags = Flags::default();
    match what {
        What::Anonymous { no_reserve } => flags.no_reserve = no_reserve,
        What::Stack => flags.grows_down = true,
        What::Locked => flags.locked = true,
        _ => {}
    }
    Vma {
        range: Range::new(start, start + bytes),
        read: what != What::Unreadable,
        write: true,
        exec: false,
        shared: false,
        offset: 0,
        device: if what == What::File { "08:01".into() } else { "00:00".into() },
        inode: u64::from(what == What::File),
        name: if what == What::File { "/lib/x".into() } else { String::new() },
        flags: Some(flags),
    }
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        5 => any::<bool>().prop_map(|no_reserve| What::Anonymous { no_reserve }),
        1 => Just(What::Unreadable),
        2 => Just(What::File),
        1 => Just(What::Stack),
        1 => Just(What::Locked),
    ]
}

/// Mappings with gaps of very different sizes.
fn layout() -> impl Strategy<Value = Vec<Vma>> {
    let gap = prop_oneof![Just(0), 1..64u64, (1..1000u64).prop_map(|n| n * 256), (1..100u64).prop_map(|n| n << 20)];
    prop::collection::vec((gap, 1..20_000u64, what()), 1..30).prop_map(|parts| {
        let mut next = 0x1_0000;
        let mut vmas = Vec::new();
        for (gap, pages, what) in parts {
            next += gap * PAGE_BYTES;
            vmas.push(vma(next, pages * PAGE_BYTES, what));
            next += pages * PAGE_BYTES;
        }
        vmas
    })
}

fn sorted(mut windows: Vec<Window>) -> Vec<Window> {
    windows.sort_by_key(|window| window.range);
    windows
}

fn is_apart(windows: &[Window], vmas: &[Vma]) -> bool {
    let apart = windows.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start);
    let kept = vmas.iter().filter(|vma| !matches!(vma.class(), Class::Anonymous | Class::Unreadable));
    apart && kept.into_iter().all(|vma| windows.iter().all(|window| window.range.overlap(vma.range).is_none()))
}

proptest! {
    /// Windows lie apart from one another and from everything that is not anonymous; every big mapping has one, of its kind.
    #[test]
    fn windows_cover_and_stay_apart(vmas in layout()) {
        let shape = Shape::default();
        let windows = choose(&vmas, &[], &shape);
        prop_assert!(is_apart(&windows, &vmas));
        prop_assert!(windows.iter().all(|window| Range::checked(window.range.start, window.range.end).is_some()));
        for vma in vmas.iter().filter(|vma| vma.class() == Class::Anonymous && vma.range.bytes() >= shape.min_bytes) {
            let below_stack = vmas.iter().any(|other| other.flags.unwrap().grows_down
                && Range::new(other.range.start.saturating_sub(STACK_ROOM_BYTES), other.range.end).overlap(vma.range).is_some());
            prop_assert!(below_stack || matches!(destination(vma, &windows), Some(Dest::Window(_))), "{} has none", vma.range);
        }
    }

    /// Whatever becomes of the mappings, new windows leave the old ones alone.
    #[test]
    fn later_windows_stay_apart(before in layout(), after in layout()) {
        let old = choose(&before, &[], &Shape::default());
        let new = choose(&after, &old, &Shape::default());
        let ids: std::collections::HashSet<u32> = old.iter().chain(&new).map(|window| window.id).collect();
        prop_assert_eq!(ids.len(), old.len() + new.len());
        prop_assert!(is_apart(&new, &after));
        let all = sorted(old.iter().chain(&new).copied().collect());
        prop_assert!(all.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }

    /// A mapping of one kind that grows, is cut, or merges with its neighbour over a free gap stays where it was.
    #[test]
    fn merging_and_splitting_changes_nothing(pages in 16..4096u64, gap in 1..4096u64, more in 16..4096u64, cut in 1..15u64) {
        let kind = What::Anonymous { no_reserve: false };
        let file = vma(0x1000, 0x1000, What::File);
        let start = 1 << 30;
        let first = vma(start, pages * PAGE_BYTES, kind);
        let second = vma(first.range.end + gap * PAGE_BYTES, more * PAGE_BYTES, kind);
        let end = second.range.end;
        let windows = choose(&[file, first.clone(), second.clone()], &[], &Shape::default());
        let place = destination(&first, &windows);
        prop_assert!(matches!(place, Some(Dest::Window(_))));
        let merged = vma(start, end - start, kind);
        let part = vma(start + cut * PAGE_BYTES, PAGE_BYTES, kind);
        let grown = vma(start - 8 * MIB, end - start + 16 * MIB, kind);
        for other in [second, merged, part, grown] {
            prop_assert_eq!(destination(&other, &windows), place);
        }
    }
}

#[test]
fn kinds_that_never_merge_get_windows_of_their_own() {
    let (plain, lazy) = (What::Anonymous { no_reserve: false }, What::Anonymous { no_reserve: true });
    let vmas = [vma(1 << 30, MIB, plain), vma((1 << 30) + MIB, MIB, lazy), vma((1 << 30) + 2 * MIB, 2 * MIB, plain)];
    let windows = choose(&vmas, &[], &Shape::default());
    assert_eq!(windows.len(), 3);
    for (vma, window) in vmas.iter().zip(&windows) {
        assert_eq!(destination(vma, &windows), Some(Dest::Window(window.id)));
    }
    assert_eq!(windows[0].range.end, vmas[1].range.start);
}

#[test]
fn a_reservation_that_costs_nothing_is_covered_as_a_whole() {
    let heap = vma(1 << 32, 16 * MIB, What::Anonymous { no_reserve: true });
    let rest = vma(heap.range.end, 16 << 30, What::Unreadable);
    let windows = choose(&[heap.clone(), rest.clone()], &[], &Shape::default());
    assert_eq!(windows.len(), 1);
    assert!(windows[0].range.contains(rest.range));
    let all = vma(1 << 32, heap.range.bytes() + rest.range.bytes(), What::Anonymous { no_reserve: true });
    assert_eq!(destination(&all, &windows), Some(Dest::Window(1)));
}

#[test]
fn what_is_not_anonymous_goes_to_the_store() {
    let all = [vma(1 << 30, MIB, What::File), vma(1 << 31, MIB, What::Stack), vma(1 << 32, MIB, What::Locked)];
    let windows = [Window { id: 1, range: Range::new(0, 1 << 40), no_reserve: false }];
    assert!(choose(&all, &[], &Shape::default()).is_empty());
    assert!(all.iter().all(|vma| destination(vma, &windows) == Some(Dest::Store)));
    assert_eq!(destination(&vma(1 << 30, MIB, What::Unreadable), &windows), None);
}
