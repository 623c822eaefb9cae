//! The check of arrived pages against the final mappings: what fits passes, and every kind of misfit is seen.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mosix_pages::range::{PAGE_BYTES, Range};
use mosix_pages::vma::{Flags, Vma};
use mosix_pages::window::{Dest, Shape, choose, destination};
use mosix_pages::wire::Run;
use mosix_pages::{Arrived, Mismatch, Room, check_map};
use proptest::prelude::*;

fn vma(start: u64, pages: u64, file: bool, no_reserve: bool) -> Vma {
    Vma {
        range: Range::new(start, start + pages * PAGE_BYTES),
        read: true,
        write: true,
        exec: false,
        shared: false,
        offset: 0,
        device: if file { "08:01".into() } else { "00:00".into() },
        inode: u64::from(file),
        name: if file { "/lib/x".into() } else { String::new() },
        flags: Some(Flags { no_reserve, ..Flags::default() }),
    }
}

/// Mappings, and pages in each of them where they belong.
fn moved() -> impl Strategy<Value = (Vec<Vma>, Arrived)> {
    let part = (prop_oneof![Just(0), 1..50u64, 10_000..100_000u64], 16..2000u64, prop::bool::weighted(0.3), any::<bool>(), 0..16u64);
    prop::collection::vec(part, 1..20).prop_map(|parts| {
        let (mut next, mut vmas, mut firsts) = (1 << 20, Vec::new(), Vec::new());
        for (gap, pages, file, no_reserve, first) in parts {
            next += gap * PAGE_BYTES;
            vmas.push(vma(next, pages, file, no_reserve));
            firsts.push(first);
            next += pages * PAGE_BYTES;
        }
        let mut windows = choose(&vmas, &[], &Shape::default());
        windows.sort_by_key(|window| window.range);
        let pages = vmas.iter().zip(firsts).map(|(vma, first)| {
            let start = vma.range.start + first * PAGE_BYTES;
            Run { range: Range::new(start, vma.range.end), dest: destination(vma, &windows).unwrap() }
        });
        let pages = pages.collect();
        let windows = windows.into_iter().map(|window| (window, Room { pid: 1, address: 0 })).collect();
        (vmas, Arrived { process: 0, windows, pages, stale: Vec::new() })
    })
}

proptest! {
    #[test]
    fn what_fits_passes_and_what_does_not_is_seen((vmas, arrived) in moved(), which in any::<prop::sample::Index>()) {
        prop_assert_eq!(check_map(&arrived, &vmas), Ok(()));
        let which = which.index(vmas.len());
        let is_elsewhere = |result| matches!(result, Err(Mismatch::Elsewhere { .. }));

        // a page in another place
        let mut other = arrived.clone();
        other.pages[which].dest = if other.pages[which].dest == Dest::Store { Dest::Window(1) } else { Dest::Store };
        prop_assert!(is_elsewhere(check_map(&other, &vmas)));

        // a mapping that is gone, or starts later
        let mut fewer = vmas.clone();
        fewer.remove(which);
        prop_assert!(matches!(check_map(&arrived, &fewer), Err(Mismatch::NoMapping { .. })), "gone");
        let mut shorter = vmas.clone();
        shorter[which].range.end -= PAGE_BYTES;
        prop_assert!(matches!(check_map(&arrived, &shorter), Err(Mismatch::NoMapping { .. })), "shorter");

        // flags that changed after the pages were sent
        if let Dest::Window(id) = arrived.pages[which].dest {
            for change in [|flags: &mut Flags| flags.locked = true, |flags: &mut Flags| flags.grows_down = true, |flags: &mut Flags| flags.no_reserve ^= true, |flags: &mut Flags| flags.huge_tlb = true] {
                let mut changed = vmas.clone();
                change(changed[which].flags.as_mut().unwrap());
                prop_assert!(is_elsewhere(check_map(&arrived, &changed)));
            }
            // protection that the restorer treats otherwise
            let mut closed = vmas.clone();
            closed[which].read = false;
            prop_assert!(is_elsewhere(check_map(&arrived, &closed)));
            // a window that was not made
            let mut without = arrived.clone();
            without.windows.retain(|(window, _)| window.id != id);
            prop_assert!(is_elsewhere(check_map(&without, &vmas)));
        }
    }
}
