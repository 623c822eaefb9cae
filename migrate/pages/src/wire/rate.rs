//! A limit on bytes per second, shared by all streams of a move.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes that may go at once after a pause: this much time's worth.
const BURST: Duration = Duration::from_millis(20);

/// When the next bytes may go. Pure: the time since some start comes from the caller.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s: u64,
    /// Until when the bytes granted so far keep the line busy.
    busy_until: Duration,
}

impl Pacer {
    /// A limit; at least 1 byte/s.
    pub fn new(bytes_per_s: u64) -> Pacer {
        Pacer { bytes_per_s: bytes_per_s.max(1), busy_until: Duration::ZERO }
    }

    /// Books `bytes` and tells how long to wait before they are sent.
    pub fn book(&mut self, now: Duration, bytes: u64) -> Duration {
        let start = self.busy_until.max(now.saturating_sub(BURST));
        let took = Duration::from_secs_f64((bytes as f64 / self.bytes_per_s as f64).min(1e6));
        self.busy_until = start.saturating_add(took);
        start.saturating_sub(now)
    }
}

/// A [`Pacer`] on the machine's clock, for several threads.
#[derive(Debug)]
pub struct Limit {
    pacer: Mutex<Pacer>,
    started: Instant,
}

impl Limit {
    /// A limit for all who share it.
    pub fn new(bytes_per_s: u64) -> Limit {
        Limit { pacer: Mutex::new(Pacer::new(bytes_per_s)), started: Instant::now() }
    }

    /// Returns when `bytes` may be sent.
    pub fn wait(&self, bytes: u64) {
        let pause = match self.pacer.lock() {
            Ok(mut pacer) => pacer.book(self.started.elapsed(), bytes),
            Err(_) => Duration::ZERO,
        };
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Over any stretch of time no more than the rate and one burst is let through, and waiting never gets out of hand.
        #[test]
        fn keeps_the_rate(sizes in prop::collection::vec(1..1_000_000u64, 1..100), pauses in prop::collection::vec(0..50_000u64, 100)) {
            let rate = 10_000_000;
            let mut pacer = Pacer::new(rate);
            let mut now = Duration::from_secs(5);
            let started = now;
            let mut sent = 0;
            for (size, pause) in sizes.into_iter().zip(pauses) {
                now += Duration::from_micros(pause);
                now += pacer.book(now, size);
                let allowed = (now - started + BURST).as_secs_f64() * rate as f64 + 1.0;
                prop_assert!(sent as f64 <= allowed, "{sent} in {:?}", now - started);
                sent += size;
            }
        }
    }
}
