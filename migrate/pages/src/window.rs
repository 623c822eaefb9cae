//! Where pages go: windows of address space, or the store. Pure.
//!
//! Anonymous memory goes to *windows*: ranges of the program's addresses that exist, as memory, in a waiting process at the
//! destination. The restored program takes each of its mappings out of the window that covers it. Everything else goes to the
//! *store*, a sparse file in which a page lies at its address.
//!
//! A mapping is taken from a window only as a whole. Mappings merge, split, grow and move while they are copied, so a window is
//! not made for a mapping but for a stretch of addresses: it reaches over whole gaps between what is not anonymous, and beyond
//! the outermost mappings, where new ones will be put. It ends where mappings differ in MAP_NORESERVE, which never merge.

use crate::range::{PAGE_BYTES, Range};
use crate::vma::{Class, Vma};

/// Most windows of a process.
pub const MAX_WINDOWS: usize = 4096;
/// Longest window; what is longer (the shadow memory of sanitizers) is nearly empty and goes to the store.
pub const MAX_WINDOW_BYTES: u64 = 4 << 40;
/// Start of a window where there is room: then huge pages can move as a whole.
const ALIGNMENT: u64 = 2 << 20;
/// Room kept free below a stack, for it to grow.
const STACK_ROOM_BYTES: u64 = 64 << 20;

/// A stretch of the program's addresses that waits for it at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its number, unique within the process, from 1 on.
    pub id: u32,
    /// The addresses.
    pub range: Range,
    /// Mapped with MAP_NORESERVE, as the mappings it is for.
    pub no_reserve: bool,
}

/// Where a page goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dest {
    /// The store file of its process, at its address.
    Store,
    /// The window with this number.
    Window(u32),
    /// The shared segment with this number; its "address" is the offset in it.
    Segment(u32),
}

/// What [`choose`] goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Groups of mappings smaller than this get no window: the store will do.
    pub min_bytes: u64,
    /// A window reaches at least this far beyond its outermost mappings, room permitting.
    pub min_slack_bytes: u64,
    /// And at most this far. Between the two it is half the size of the mappings.
    pub max_slack_bytes: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { min_bytes: 64 << 10, min_slack_bytes: 64 << 20, max_slack_bytes: 1 << 30 }
    }
}

/// Where the pages of a mapping go. `None`: not ours to send, or shared memory. `windows` must be sorted by address.
///
/// Source and destination both use this rule.
pub fn destination(vma: &Vma, windows: &[Window]) -> Option<Dest> {
    match vma.class() {
        Class::Private | Class::Vdso => Some(Dest::Store),
        Class::Anonymous => {
            let behind = windows.partition_point(|window| window.range.end <= vma.range.start);
            let no_reserve = vma.flags.unwrap_or_default().no_reserve;
            let fits = |window: &&Window| window.range.contains(vma.range) && window.no_reserve == no_reserve;
            Some(windows.get(behind).filter(fits).map_or(Dest::Store, |window| Dest::Window(window.id)))
        }
        Class::SharedMemory | Class::Unreadable | Class::NotOurs => None,
    }
}

/// A group of mappings that share a window.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    range: Range,
    bytes: u64,
    no_reserve: bool,
    /// It may reach from here to there.
    room: Range,
}

impl Cluster {
    fn slack(&self, shape: &Shape) -> u64 {
        (self.bytes / 2).clamp(shape.min_slack_bytes, shape.max_slack_bytes.max(shape.min_slack_bytes)) / PAGE_BYTES * PAGE_BYTES
    }
}

/// New windows for the mappings that have none yet. `vmas` and `existing` must be sorted by address, `vmas` with flags.
///
/// Existing windows stay as they are, and no new one overlaps them or anything that is not anonymous.
pub fn choose(vmas: &[Vma], existing: &[Window], shape: &Shape) -> Vec<Window> {
    let barriers = barriers(vmas, existing);
    let clusters = clusters(vmas, existing, &barriers, shape);
    let mut id = existing.iter().map(|window| window.id).max().unwrap_or(0);
    let room = MAX_WINDOWS.saturating_sub(existing.len());
    let mut chosen = Vec::new();
    for (index, cluster) in clusters.iter().enumerate() {
        if cluster.bytes < shape.min_bytes || cluster.range.bytes() > MAX_WINDOW_BYTES / 2 || chosen.len() == room {
            continue;
        }
        let before = index.checked_sub(1).and_then(|i| clusters.get(i)).map(|other| other.range.end);
        let behind = clusters.get(index + 1).map(|other| other.range.start);
        id += 1;
        chosen.push(Window { id, range: stretched(cluster, before, behind, vmas, shape), no_reserve: cluster.no_reserve });
    }
    chosen
}

/// What no window may overlap, sorted.
fn barriers(vmas: &[Vma], existing: &[Window]) -> Vec<Range> {
    let mut barriers: Vec<Range> = existing.iter().map(|window| window.range).collect();
    for vma in vmas {
        let grows = vma.flags.unwrap_or_default().grows_down;
        if grows {
            barriers.push(Range::new(vma.range.start.saturating_sub(STACK_ROOM_BYTES), vma.range.end));
        } else if !(vma.class() == Class::Anonymous || vma.class() == Class::Unreadable && vma.is_anonymous()) {
            barriers.push(vma.range);
        }
    }
    barriers.sort();
    barriers
}

fn clusters(vmas: &[Vma], existing: &[Window], barriers: &[Range], shape: &Shape) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = Vec::new();
    let taken = |range: Range| existing.iter().any(|window| window.range.overlap(range).is_some());
    for vma in vmas.iter().filter(|vma| vma.class() == Class::Anonymous && !taken(vma.range)) {
        let Some(room) = room_around(vma.range, barriers) else { continue }; // in the room below a stack
        let no_reserve = vma.flags.unwrap_or_default().no_reserve;
        match clusters.last_mut() {
            Some(last)
                if last.room == room
                    && last.no_reserve == no_reserve
                    && vma.range.start - last.range.end <= 2 * last.slack(shape)
                    && !other_kind_between(vmas, last.range.end, vma.range.start, no_reserve) =>
            {
                last.range.end = vma.range.end;
                last.bytes += vma.range.bytes();
            }
            _ => clusters.push(Cluster { range: vma.range, bytes: vma.range.bytes(), no_reserve, room }),
        }
    }
    clusters
}

/// The free space around `range`, between barriers.
fn room_around(range: Range, barriers: &[Range]) -> Option<Range> {
    if barriers.iter().any(|barrier| barrier.overlap(range).is_some()) {
        return None;
    }
    let below = barriers.iter().filter(|barrier| barrier.end <= range.start).map(|barrier| barrier.end).max();
    let above = barriers.iter().filter(|barrier| barrier.start >= range.end).map(|barrier| barrier.start).min();
    Some(Range::new(below.unwrap_or(PAGE_BYTES), above.unwrap_or(crate::range::ADDRESS_END)))
}

fn other_kind_between(vmas: &[Vma], from: u64, to: u64, no_reserve: bool) -> bool {
    let first = vmas.partition_point(|vma| vma.range.end <= from);
    let between = vmas.get(first..).unwrap_or_default().iter().take_while(|vma| vma.range.start < to);
    between.filter(|vma| vma.class() == Class::Anonymous).any(|vma| vma.flags.unwrap_or_default().no_reserve != no_reserve)
}

/// The window of a cluster: with slack, bounded by its room and by half the way to the next cluster.
fn stretched(cluster: &Cluster, before: Option<u64>, behind: Option<u64>, vmas: &[Vma], shape: &Shape) -> Range {
    let slack = cluster.slack(shape);
    let whole = reserved_around(cluster, vmas);
    let middle = |low: u64, high: u64| low + (high - low) / 2 / PAGE_BYTES * PAGE_BYTES;
    let lowest = before.map_or(cluster.room.start, |end| middle(end, cluster.range.start).max(cluster.room.start));
    let highest = behind.map_or(cluster.room.end, |start| middle(cluster.range.end, start).min(cluster.room.end));
    let start = whole.start.min(cluster.range.start.saturating_sub(slack)).max(lowest);
    let end = whole.end.max(cluster.range.end.saturating_add(slack)).min(highest);
    let aligned = start / ALIGNMENT * ALIGNMENT;
    let start = if aligned >= lowest { aligned } else { start };
    if end - start <= MAX_WINDOW_BYTES { Range::new(start, end) } else { cluster.range }
}

/// A cluster with the unreadable reservations that touch it, if they cost nothing to reserve.
fn reserved_around(cluster: &Cluster, vmas: &[Vma]) -> Range {
    let mut range = cluster.range;
    if !cluster.no_reserve {
        return range;
    }
    let short = |vma: &&Vma| vma.range.bytes() <= MAX_WINDOW_BYTES / 8;
    let reservations = || vmas.iter().filter(|vma| vma.class() == Class::Unreadable && vma.is_anonymous()).filter(short);
    for vma in reservations() {
        if vma.range.start == range.end {
            range.end = vma.range.end;
        }
    }
    for vma in reservations().rev() {
        if vma.range.end == range.start {
            range.start = vma.range.start;
        }
    }
    range
}

#[cfg(test)]
mod tests;
