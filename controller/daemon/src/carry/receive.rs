//! The receiving end: pages into the waiting CRIU, files into the image folder, and the check that nothing is missing.
//!
//! Runs on a thread of its own. What must be made on the way (windows in the waiting CRIU) is asked of the guest's task by [`Windows`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mosix_criu::Region;
use mosix_criu::images::file::{Image, Kind};
use mosix_criu::images::messages::Mm;
use mosix_criu::images::pagemap::{INHERIT, PARENT, PREMEM, PageMap, Place as PagePlace, Run};
use mosix_criu::images::{parent, verify};
use mosix_guest::Carried;
use mosix_pages::window::{Dest, Window};
use mosix_pages::{Arrived, Limits, Place, Room, Sink};
use mosix_wire::blocking::BlockingStream;

use super::{Form, PARENT_LINK, STORE_DIR, files};

/// For an answer of the waiting CRIU.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's task is to have a window made in the waiting CRIU; its address goes to `answer`.
pub(crate) struct WindowOrder {
    pub(crate) region: Region,
    pub(crate) answer: SyncSender<Result<u64, String>>,
}

/// Has windows made, and remembers which.
pub(crate) struct Windows {
    /// The process in the images.
    pub(crate) pid: i32,
    /// The waiting CRIU, as this daemon sees it.
    pub(crate) waiting_pid: i32,
    pub(crate) order: Box<dyn Fn(WindowOrder) -> bool + Send + Sync>,
    pub(crate) store: PathBuf,
    /// All that were announced, and whether there was room.
    pub(crate) seen: Arc<Mutex<Vec<(Region, bool)>>>,
}

impl Windows {
    fn note(&self, region: Region, made: bool) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((region, made));
    }
}

impl Place for Windows {
    fn add_window(&self, process: u16, window: &Window) -> io::Result<Option<Room>> {
        if process != 0 {
            return Err(io::Error::other("only one process was offered"));
        }
        let region = Region {
            pid: self.pid,
            start: window.range.start,
            length_bytes: window.range.bytes(),
            no_reserve: window.no_reserve,
            copy_only: false,
        };
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        if !(self.order)(WindowOrder { region, answer }) {
            return Err(io::Error::other("the guest's agent has gone"));
        }
        match answered.recv_timeout(PATIENCE) {
            Ok(Ok(address)) => {
                self.note(region, true);
                Ok(Some(Room { pid: self.waiting_pid, address }))
            }
            // No room for it: its pages go to the store.
            Ok(Err(why)) => {
                tracing::debug!("a window was refused: {why}");
                self.note(region, false);
                Ok(None)
            }
            Err(_) => Err(io::Error::other("the waiting CRIU does not answer")),
        }
    }

    fn add_store(&self, process: u16) -> io::Result<File> {
        if process != 0 {
            return Err(io::Error::other("only one process was offered"));
        }
        OpenOptions::new().read(true).write(true).open(&self.store)
    }

    fn add_segment(&self, _id: u32, _bytes: u64) -> io::Result<File> {
        Err(io::Error::other("shared memory was not offered"))
    }
}

/// Makes what CRIU will look for beside the images in `dir`: the store of process `pid`. Returns its file.
pub(crate) fn make_store(dir: &Path, pid: i32) -> Result<PathBuf> {
    let store_dir = dir.join(STORE_DIR);
    std::fs::create_dir(&store_dir).with_context(|| format!("cannot make {}", store_dir.display()))?;
    let stores = parent::write(&store_dir, &[pid], parent::Contents::Store)?;
    symlink(STORE_DIR, dir.join(PARENT_LINK)).context("cannot link the store")?;
    stores.into_iter().next().context("no store was made")
}

/// Takes everything, to the end. `windows` is `None` if the offer was for images with memory.
///
/// # Errors
/// The copy cannot be completed, in words; the original can go on.
pub(crate) fn receive(mut stream: BlockingStream, dir: &Path, windows: Option<Windows>, limit_bytes: u64) -> Result<Carried> {
    let form: Form = mosix_guest::receive(&mut stream).context("the body broke off")?;
    let Some(windows) = windows.filter(|_| form.pages) else {
        if form.pages {
            bail!("pages came that were not agreed on");
        }
        return files::receive(&mut stream, dir, limit_bytes);
    };
    let (pid, seen) = (windows.pid, windows.seen.clone());
    let limits = Limits { processes: 1, memory_bytes: limit_bytes, segments: 0, ..Limits::default() };
    let sink = Sink::new(Box::new(windows), limits);
    sink.run(&mut stream)?;
    let carried = files::receive(&mut stream, dir, limit_bytes)?;
    let arrived = sink.finish()?;
    let [arrived] = arrived.as_slice() else { bail!("the memory of {} processes came, and one was offered", arrived.len()) };
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    complete_images(dir, pid, arrived, &seen)?;
    Ok(carried)
}

/// Tells CRIU where each page is, and makes sure that each is somewhere.
fn complete_images(dir: &Path, pid: i32, arrived: &Arrived, seen: &[(Region, bool)]) -> Result<()> {
    let path = dir.join(format!("pagemap-{pid}.img"));
    let mut map = PageMap::read(&path)?;
    let ours: Vec<Run> = arrived.pages.iter().map(placed).collect::<Result<_>>()?;
    // The source trusts all windows that it announced; pages of those that were refused are in the store.
    let trusted: Vec<(u64, u64)> = seen.iter().map(|(region, _)| (region.start, region.start + region.length_bytes)).collect();
    let regions: Vec<Region> = seen.iter().filter(|(_, made)| *made).map(|(region, _)| *region).collect();
    map.merge(&ours, &trusted).map_err(anyhow::Error::msg)?;
    if let Some(page) = first_missing(&map, &ours) {
        bail!("the page at {page:#x} of process {pid} was not supplied");
    }
    let mm: Mm = Image::open(&dir.join(format!("mm-{pid}.img")), Kind::Mm)?.only()?;
    let plan = verify::plan(pid, &mm, None, &map, &regions).map_err(anyhow::Error::msg)?;
    tracing::debug!(pid, moved = plan.moved_pages, copied = plan.copied_pages, "pages are in place");
    Ok(map.write(&path)?)
}

fn placed(run: &mosix_pages::wire::Run) -> Result<Run> {
    let place = match run.dest {
        Dest::Store => PagePlace::Store,
        Dest::Window(_) => PagePlace::Region,
        Dest::Segment(_) => bail!("a page of shared memory in the list of private pages"),
    };
    Ok(Run::placed(run.range.start, run.range.pages(), place))
}

/// The first page that CRIU would take from the store although nobody put it there. Both lists are in order.
fn first_missing(map: &PageMap, ours: &[Run]) -> Option<u64> {
    let stored = |run: &&Run| run.flags & PARENT != 0 && run.flags & (PREMEM | INHERIT) == 0;
    let mut supplied = ours.iter().filter(stored).peekable();
    for run in map.runs.iter().filter(stored) {
        let mut at = run.start;
        while at < run.end() {
            while supplied.next_if(|have| have.end() <= at).is_some() {}
            match supplied.peek() {
                Some(have) if have.start <= at => at = have.end(),
                _ => return Some(at),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_nobody_supplied_is_found() {
        let store = |start, pages| Run::placed(start, pages, PagePlace::Store);
        let map = |runs: &[Run]| PageMap { pages_id: 1, runs: runs.to_vec() };
        assert_eq!(first_missing(&map(&[store(0x1000, 4)]), &[store(0x1000, 1), store(0x2000, 3)]), None);
        assert_eq!(first_missing(&map(&[store(0x1000, 4)]), &[store(0x1000, 1), store(0x3000, 2)]), Some(0x2000));
        assert_eq!(first_missing(&map(&[store(0x1000, 4)]), &[]), Some(0x1000));
        let region = Run::placed(0x1000, 4, PagePlace::Region);
        assert_eq!(first_missing(&map(&[region]), &[]), None, "CRIU itself checks regions");
    }
}
