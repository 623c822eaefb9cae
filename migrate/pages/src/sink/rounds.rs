//! The order of rounds across streams: a barrier that can fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often a waiting stream looks whether others still bring anything.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Rounds {
    state: Mutex<State>,
    changed: Condvar,
    frames: AtomicU64,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Rounds each stream has ended; `None`: the stream is not there yet.
    ended: Vec<Option<u32>>,
    failed: bool,
}

impl Rounds {
    pub(super) fn new(patience: Duration) -> Rounds {
        Rounds { state: Mutex::default(), changed: Condvar::new(), frames: AtomicU64::new(0), patience }
    }

    /// A stream begins. `false`: it is there already, or speaks of another number of streams.
    pub(super) fn join(&self, stream: u16, streams: u16) -> bool {
        let mut state = self.lock();
        if state.ended.is_empty() {
            state.ended.resize(streams.into(), None);
        }
        let fits = state.ended.len() == usize::from(streams);
        match state.ended.get_mut(usize::from(stream)) {
            Some(ended @ None) if fits => *ended = Some(0),
            _ => return false,
        }
        true
    }

    /// Some stream has brought something.
    pub(super) fn progress(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream ends its round `number` (from 0, one after the other) and waits for the others to do so. `false`: give up.
    pub(super) fn arrive(&self, stream: u16, number: u32) -> bool {
        let mut state = self.lock();
        match state.ended.get_mut(usize::from(stream)) {
            Some(Some(ended)) if *ended == number => *ended += 1,
            _ => return false,
        }
        self.changed.notify_all();
        let (mut seen, mut since) = (self.frames.load(Ordering::Relaxed), Instant::now());
        loop {
            if state.failed {
                return false;
            }
            if state.ended.iter().all(|ended| ended.is_some_and(|ended| ended > number)) {
                return true;
            }
            let frames = self.frames.load(Ordering::Relaxed);
            if frames != seen {
                (seen, since) = (frames, Instant::now());
            } else if since.elapsed() > self.patience {
                return false;
            }
            state = match self.changed.wait_timeout(state, LOOK) {
                Ok((state, _)) => state,
                Err(_) => return false,
            };
        }
    }

    /// Nobody need wait any more.
    pub(super) fn fail(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
