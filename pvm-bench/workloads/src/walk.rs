//! A memory-bound loop: it reads all of its memory again and again, a word of each cache line, and writes to one page in 64 of each round. Every
//! word is checked on the way. How far it came is noted with the time, so that one sees how much slower it became while it was being moved.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::churn::pages::{PAGE_WORDS, PAGES_PER_MIB};
use crate::report::{lock, ms, now};

/// Words from one cache line to the next.
const LINE_WORDS: usize = 8;
/// Of so many pages one is written in each round.
const WRITTEN_OF: u64 = 64;
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(2);
/// Samples kept; the newest win. Eight seconds.
const MAX_SAMPLES: usize = 4096;
/// Pages between two looks at the clock.
const LOOK_PAGES: u64 = 64;

/// What a walk shows.
#[derive(Debug, Default)]
pub struct Walk {
    samples: Mutex<VecDeque<(f64, f64)>>,
    bad_pages: AtomicU64,
    written_bytes: AtomicU64,
}

impl Walk {
    /// Walks for ever through so much memory.
    pub fn run(&self, mib: u64) -> ! {
        let pages = mib * PAGES_PER_MIB;
        let mut words = vec![0_u64; pages as usize * PAGE_WORDS];
        let (mut done, mut sampled) = (0_u64, Duration::ZERO);
        for round in 0.. {
            for (number, page) in (0_u64..).zip(words.chunks_exact_mut(PAGE_WORDS)) {
                self.visit(page, number, round);
                done += 1;
                if done % LOOK_PAGES == 0 && now().saturating_sub(sampled) >= SAMPLE {
                    sampled = now();
                    self.note(ms(sampled), done as f64);
                }
            }
        }
        unreachable!("rounds do not end");
    }

    fn visit(&self, page: &mut [u64], number: u64, round: u64) {
        let value = writes_before(number, round);
        if page.iter().step_by(LINE_WORDS).any(|word| *word != value) {
            self.bad_pages.fetch_add(1, Ordering::Relaxed);
        }
        if is_written(number, round) {
            page.iter_mut().step_by(LINE_WORDS).for_each(|word| *word = value + 1);
            self.written_bytes.fetch_add(4096, Ordering::Relaxed);
        }
    }

    fn note(&self, at_ms: f64, done: f64) {
        let mut samples = lock(&self.samples);
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back((at_ms, done));
    }

    /// Samples, wrong pages and bytes written since the last time.
    pub fn take(&self) -> (Vec<(f64, f64)>, u64, u64) {
        let samples = lock(&self.samples).drain(..).collect();
        (samples, self.bad_pages.swap(0, Ordering::Relaxed), self.written_bytes.swap(0, Ordering::Relaxed))
    }
}

fn is_written(page: u64, round: u64) -> bool {
    page % WRITTEN_OF == round % WRITTEN_OF
}

/// How often a page was written in the rounds before this one.
fn writes_before(page: u64, round: u64) -> u64 {
    let place = page % WRITTEN_OF;
    round / WRITTEN_OF + u64::from(round % WRITTEN_OF > place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_page_follows_from_the_round() {
        for page in [0, 1, 63, 64, 200] {
            let mut writes = 0;
            for round in 0..300 {
                assert_eq!(writes_before(page, round), writes, "page {page}, round {round}");
                writes += u64::from(is_written(page, round));
            }
        }
    }

    #[test]
    fn a_wrong_word_is_seen_and_the_right_ones_are_not() {
        let walk = Walk::default();
        let mut page = vec![0; PAGE_WORDS];
        for round in 0..130 {
            walk.visit(&mut page, 2, round);
        }
        assert_eq!(walk.take(), (Vec::new(), 0, 2 * 4096));
        page[LINE_WORDS] += 1;
        walk.visit(&mut page, 2, 130);
        assert_eq!(walk.take().1, 1);
    }
}
