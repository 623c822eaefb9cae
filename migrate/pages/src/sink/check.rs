//! Are the pages where the restorer will look for them? Pure.

use super::Arrived;
use crate::range::Range;
use crate::vma::Vma;
use crate::window::{Dest, Window, destination};

/// Pages and mappings do not fit together. The move must be given up; the original can go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The source did not say which pages there are.
    #[error("process {process}: the list of its pages is not complete")]
    NoList {
        /// Its number in the move.
        process: u16,
    },
    /// A page with contents is not where it should be.
    #[error("process {process}: pages {range} have not arrived at {dest:?}")]
    NotArrived {
        /// Its number in the move.
        process: u16,
        /// The first such pages.
        range: Range,
        /// Where they should be.
        dest: Dest,
    },
    /// A page with contents that belongs to no mapping.
    #[error("process {process}: pages {range} belong to no mapping")]
    NoMapping {
        /// Its number in the move.
        process: u16,
        /// The pages.
        range: Range,
    },
    /// The restorer would look for pages elsewhere than they are.
    #[error("process {process}: pages {range} are at {found:?}, but will be looked for at {wanted:?}")]
    Elsewhere {
        /// Its number in the move.
        process: u16,
        /// The pages.
        range: Range,
        /// Where they are.
        found: Dest,
        /// Where its mapping says; `None`: nowhere, they are not ours to carry.
        wanted: Option<Dest>,
    },
}

/// Checks what has arrived against the final mappings, with flags, in order of address, as the restorer will make them.
///
/// # Errors
/// The first thing that does not fit. Nothing may be started then.
pub fn check_map(arrived: &Arrived, vmas: &[Vma]) -> Result<(), Mismatch> {
    let windows: Vec<Window> = arrived.windows.iter().map(|(window, _)| *window).collect();
    let process = arrived.process;
    for run in &arrived.pages {
        let mut next = run.range.start;
        let first = vmas.partition_point(|vma| vma.range.end <= next);
        for vma in vmas.get(first..).unwrap_or_default() {
            if next >= run.range.end {
                break;
            }
            if vma.range.start > next {
                return Err(Mismatch::NoMapping { process, range: Range::new(next, vma.range.start.min(run.range.end)) });
            }
            let part = Range::new(next, vma.range.end.min(run.range.end));
            let wanted = destination(vma, &windows);
            if wanted != Some(run.dest) {
                return Err(Mismatch::Elsewhere { process, range: part, found: run.dest, wanted });
            }
            next = part.end;
        }
        if next < run.range.end {
            return Err(Mismatch::NoMapping { process, range: Range::new(next, run.range.end) });
        }
    }
    Ok(())
}
