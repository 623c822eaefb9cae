//! Threads that write to their stacks: they descend some frames, each with a page of known words, rest there, and check on the way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::model::Content;
use crate::churn::pages::{PAGE_WORDS, Random};

/// Deepest descent, frames.
const MAX_DEPTH: usize = 120;
/// Rest at the bottom.
const REST: Duration = Duration::from_millis(2);

/// What the threads found, all together.
#[derive(Debug, Default)]
pub struct Found {
    /// Pages checked.
    pub checked: AtomicU64,
    /// Pages with a wrong word.
    pub bad: AtomicU64,
}

/// Starts so many threads, which never end.
pub fn start(threads: u32, seed: u64) -> Arc<Found> {
    let found = Arc::new(Found::default());
    for number in 0..threads {
        let found = found.clone();
        let mut random = Random::new(seed ^ (u64::from(number) << 32));
        std::thread::spawn(move || {
            let mut version = 0;
            loop {
                let depth = 1 + random.below(MAX_DEPTH);
                descend(depth, Content { number: u64::from(number) << 20, version, code: false }, &found);
                version += 1;
            }
        });
    }
    found
}

#[inline(never)]
fn descend(depth: usize, content: Content, found: &Found) {
    let content = Content { number: content.number + 1, ..content };
    // Through `black_box`, so that the words really are on the stack and are really read back.
    let page: [u64; PAGE_WORDS] = std::hint::black_box(content.words());
    if depth > 1 {
        descend(depth - 1, content, found)
    } else {
        std::thread::sleep(REST)
    }
    let right = std::hint::black_box(&page).iter().enumerate().all(|(index, word)| *word == content.word(index));
    found.checked.fetch_add(1, Ordering::Relaxed);
    if !right {
        found.bad.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_checked() {
        let found = Found::default();
        descend(7, Content { number: 0, version: 3, code: false }, &found);
        assert_eq!((found.checked.into_inner(), found.bad.into_inner()), (7, 0));
    }
}
