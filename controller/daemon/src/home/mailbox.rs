//! What the watcher's thread leaves for a deputy task. It never waits and never grows: standard signals merge and real-time
//! signals are limited, as in the kernel.

use std::sync::{Mutex, PoisonError};

use mosix_deputy::StubEvent;
use tokio::sync::Notify;

/// Real-time signals that may wait.
const MAX_EVENTS: usize = 1024;
/// First real-time signal of the kernel.
const FIRST_REAL_TIME: i32 = 32;

/// One deputy's mailbox.
#[derive(Default)]
pub(crate) struct Mailbox {
    events: Mutex<Vec<StubEvent>>,
    news: Notify,
}

impl Mailbox {
    /// Leaves an event; called on the watcher's thread.
    pub(crate) fn put(&self, event: StubEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let merges = |other: &StubEvent| match (&event, other) {
            (StubEvent::Signal { signo, .. }, StubEvent::Signal { signo: waiting, .. }) => signo == waiting && *signo < FIRST_REAL_TIME,
            _ => false,
        };
        let has_room = events.len() < MAX_EVENTS || matches!(event, StubEvent::Gone { .. });
        if has_room && !events.iter().any(merges) {
            events.push(event);
        }
        drop(events);
        self.news.notify_one();
    }

    /// Resolves when there may be something.
    pub(crate) async fn wait(&self) {
        self.news.notified().await;
    }

    /// All events, oldest first.
    pub(crate) fn take(&self) -> Vec<StubEvent> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(signo: i32) -> StubEvent {
        StubEvent::Signal { signo, code: 0, sender_pid: 1, sender_uid: 0, value: 0 }
    }

    #[test]
    fn standard_signals_merge_and_real_time_ones_queue_up_to_a_limit() {
        let mailbox = Mailbox::default();
        (0..10).for_each(|_| mailbox.put(signal(15)));
        assert_eq!(mailbox.take().len(), 1);
        (0..MAX_EVENTS + 10).for_each(|_| mailbox.put(signal(34)));
        mailbox.put(StubEvent::Gone { status: mosix_deputy::End::Exited(0) });
        assert_eq!(mailbox.take().len(), MAX_EVENTS + 1);
    }
}
