//! The parent folder of a skeleton: a constant page map that claims every address, and a store for what is behind it.
//!
//! A skeleton says of each page "in the parent". The parent's page map covers the whole address space, and its pages file is sparse with
//! offset = address: whoever supplies a page writes it there, in any order and as often as it changes. At the source of an unpatched CRIU
//! the same folder with an empty file serves to make it leave the pages out. research: skeleton-dump, section 2.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};

use super::ImageError;
use super::file::{Builder, Kind};
use super::messages::Inventory;
use super::pagemap::{ADDRESS_SPACE_BYTES, PRESENT, PageMap, Run};

/// Pages of one entry of the parent's page map.
const PART_PAGES: u64 = 1 << 31;

/// What CRIU finds behind the page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Nothing: at the source, where it is never read.
    None,
    /// A sparse file of the size of the address space, to be filled: at the destination. Only a tmpfs holds such a file.
    Store,
}

/// Writes the folder `dir` (which must exist) for the processes `pids`. Returns the store of each, in the same order.
///
/// # Errors
/// From the file system, e.g. if it does not hold so large a sparse file.
pub fn write(dir: &Path, pids: &[i32], contents: Contents) -> Result<Vec<PathBuf>, ImageError> {
    inventory(dir)?;
    let mut stores = Vec::with_capacity(pids.len());
    for (pages_id, pid) in (1..).zip(pids) {
        PageMap { pages_id, runs: everything() }.write(&dir.join(format!("pagemap-{pid}.img")))?;
        let path = dir.join(format!("pages-{pages_id}.img"));
        let io = |source| ImageError::Io { path: path.clone(), source };
        let file = File::create(&path).map_err(io)?;
        if contents == Contents::Store {
            file.set_len(ADDRESS_SPACE_BYTES).map_err(io)?;
        }
        stores.push(path);
    }
    Ok(stores)
}

/// The address space, in parts because CRIU 4.1.1 has 32 bits for the number of pages of one.
fn everything() -> Vec<Run> {
    let part_bytes = PART_PAGES * super::PAGE_BYTES;
    (0..ADDRESS_SPACE_BYTES / part_bytes).map(|part| Run { start: part * part_bytes, pages: PART_PAGES, flags: PRESENT }).collect()
}

/// CRIU takes a process that started after its parent images for another with the same pid: the time in them is now.
fn inventory(dir: &Path) -> Result<(), ImageError> {
    let path = dir.join("inventory.img");
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| ImageError::Io { path: path.clone(), source: errno.into() })?;
    let microseconds = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000;
    let mut builder = Builder::new(Kind::Inventory);
    builder.add(&Inventory {
        img_version: 2,
        fdinfo_per_id: Some(true),
        ns_per_id: Some(true),
        dump_uptime: Some(u64::try_from(microseconds).unwrap_or_default()),
        pre_dump_mode: Some(1),
        ..Inventory::default()
    });
    builder.write(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_map_claims_everything() {
        let dir = tempfile::tempdir().unwrap();
        let stores = write(dir.path(), &[5, 7], Contents::None).unwrap();
        assert_eq!(stores, [dir.path().join("pages-1.img"), dir.path().join("pages-2.img")]);
        let map = PageMap::read(&dir.path().join("pagemap-7.img")).unwrap();
        assert_eq!((map.pages_id, map.runs[0].start, map.runs.last().unwrap().end()), (2, 0, ADDRESS_SPACE_BYTES));
        assert!(map.runs.windows(2).all(|pair| pair[0].end() == pair[1].start));
        assert!(map.runs.iter().all(|run| run.flags == PRESENT && run.pages < 1 << 32));
    }
}
