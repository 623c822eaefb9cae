//! Committed counts: what runs here, plus what was accepted, minus what is leaving.
//!
//! A process that is being moved counts at its destination from the moment of acceptance and no more at its source. The
//! base is what the probe measured last ([`Ledger::sample`]); on top come the differences that this sample cannot know:
//!
//! | event | call | counted until |
//! |---|---|---|
//! | accepted by us | [`Ledger::reserve`] | arrival, abort, or the lease runs out ([`Ledger::expire`]) |
//! | it runs here | [`Ledger::arrive`] | a sample taken after that shows it |
//! | a program starts here | [`Ledger::born`] | the same |
//! | accepted by another node | [`Ledger::leave`] | it is gone, or abort |
//! | it runs there | [`Ledger::gone`] | a sample taken after that no longer shows it |
//!
//! Every call may be repeated without harm: each id counts once. Counts never become negative.

use std::collections::BTreeMap;

/// Most differences that a ledger keeps. More are refused; with `max_in` and `max_out` there are never nearly as many.
pub const MAX_ENTRIES: usize = 4096;

/// Key of [`Ledger::born`] entries: they have no reservation.
const BORN: u32 = u32::MAX;

/// What [`Ledger::reserve`] and [`Ledger::leave`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// Counted now.
    New,
    /// It was counted already; for a reservation the lease is renewed.
    Again,
    /// It already arrived (or is gone): nothing changed.
    Done,
    /// [`MAX_ENTRIES`] are reached: nothing changed.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Accepted by us; given up when the lease ends.
    Reserved { until_s: f64 },
    /// Runs here since then.
    Arrived { at_s: f64 },
    /// Accepted by another node.
    Leaving,
    /// Runs elsewhere since then.
    Gone { at_s: f64 },
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    memory_bytes: u64,
    state: State,
}

/// Who gave a reservation its id, and that id.
type Key = (u32, u64);

/// The committed counts of one node. Ids of reservations are unique for each peer: pass the sender's node number with them.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    running: u16,
    used_bytes: u64,
    entries: BTreeMap<Key, Entry>,
    births: u64,
}

impl Ledger {
    /// One in which nothing runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// The probe's newest figures: processes here that want a CPU, and used memory, as of `taken_at_s`. Drops the
    /// differences that it shows by itself. A process that is being moved away must be in it, frozen or not, until it
    /// is gone: the ledger subtracts it.
    pub fn sample(&mut self, running: u16, used_bytes: u64, taken_at_s: f64) {
        self.running = running;
        self.used_bytes = used_bytes;
        self.entries.retain(|_, e| match e.state {
            State::Arrived { at_s } | State::Gone { at_s } => at_s >= taken_at_s,
            State::Reserved { .. } | State::Leaving => true,
        });
    }

    /// Counts a process that `from` may send, until `until_s`.
    pub fn reserve(&mut self, from: u32, id: u64, memory_bytes: u64, until_s: f64) -> Reserved {
        self.enter((from, id), Entry { memory_bytes, state: State::Reserved { until_s } })
    }

    /// Whether a reservation or an arrival of that id is counted: the question is a repeat.
    pub fn holds(&self, from: u32, id: u64) -> bool {
        matches!(self.entries.get(&(from, id)).map(|e| e.state), Some(State::Reserved { .. } | State::Arrived { .. }))
    }

    /// It runs here. False if there is no such reservation (its lease ran out): it must then not be let in.
    pub fn arrive(&mut self, from: u32, id: u64, now_s: f64) -> bool {
        match self.entries.get_mut(&(from, id)).map(|e| &mut e.state) {
            Some(state @ State::Reserved { .. }) => {
                *state = State::Arrived { at_s: now_s };
                true
            }
            Some(State::Arrived { .. }) => true,
            _ => false,
        }
    }

    /// A program was started here: it counts from now on, though no sample has seen it.
    pub fn born(&mut self, now_s: f64) -> Reserved {
        self.births = self.births.wrapping_add(1);
        self.enter((BORN, self.births), Entry { memory_bytes: 0, state: State::Arrived { at_s: now_s } })
    }

    /// Stops counting a process that `own` node's move `id` is taking away: the target has accepted it.
    pub fn leave(&mut self, own: u32, id: u64, memory_bytes: u64) -> Reserved {
        self.enter((own, id), Entry { memory_bytes, state: State::Leaving })
    }

    /// It runs elsewhere now. False if no such move is known.
    pub fn gone(&mut self, own: u32, id: u64, now_s: f64) -> bool {
        match self.entries.get_mut(&(own, id)).map(|e| &mut e.state) {
            Some(state @ State::Leaving) => {
                *state = State::Gone { at_s: now_s };
                true
            }
            Some(State::Gone { .. }) => true,
            _ => false,
        }
    }

    /// The move was given up, by either side: forgets a reservation or a departure. False if there is none (any more);
    /// what has arrived or is gone stays.
    pub fn abort(&mut self, node: u32, id: u64) -> bool {
        let key = (node, id);
        let open = matches!(self.entries.get(&key).map(|e| e.state), Some(State::Reserved { .. } | State::Leaving));
        if open {
            self.entries.remove(&key);
        }
        open
    }

    /// Gives up reservations whose lease has ended. Returns their senders and ids.
    pub fn expire(&mut self, now_s: f64) -> Vec<(u32, u64)> {
        let mut ended = Vec::new();
        self.entries.retain(|key, e| {
            let over = matches!(e.state, State::Reserved { until_s } if now_s >= until_s);
            if over {
                ended.push(*key);
            }
            !over
        });
        ended
    }

    /// Committed processes.
    pub fn committed(&self) -> u16 {
        let (more, fewer) = self.sums(|_| 1);
        clamp_u16(u64::from(self.running).saturating_add(more).saturating_sub(fewer))
    }

    /// Committed memory, in bytes.
    pub fn memory_used_bytes(&self) -> u64 {
        let (more, less) = self.sums(|e| e.memory_bytes);
        self.used_bytes.saturating_add(more).saturating_sub(less)
    }

    /// Reservations that have not arrived.
    pub fn incoming(&self) -> u16 {
        self.count(|s| matches!(s, State::Reserved { .. }))
    }

    /// Processes that are leaving.
    pub fn outgoing(&self) -> u16 {
        self.count(|s| matches!(s, State::Leaving))
    }

    fn enter(&mut self, key: Key, entry: Entry) -> Reserved {
        let full = self.entries.len() >= MAX_ENTRIES;
        match (self.entries.get_mut(&key), entry.state) {
            (None, _) if full => Reserved::Full,
            (None, _) => {
                self.entries.insert(key, entry);
                Reserved::New
            }
            (Some(old), State::Reserved { until_s }) if matches!(old.state, State::Reserved { .. }) => {
                old.state = State::Reserved { until_s };
                Reserved::Again
            }
            (Some(old), State::Leaving) if matches!(old.state, State::Leaving) => Reserved::Again,
            (Some(_), _) => Reserved::Done,
        }
    }

    /// What the entries add, and what they take away.
    fn sums(&self, amount: impl Fn(&Entry) -> u64) -> (u64, u64) {
        self.entries.values().fold((0, 0), |(more, fewer), e| match e.state {
            State::Reserved { .. } | State::Arrived { .. } => (amount(e).saturating_add(more), fewer),
            State::Leaving | State::Gone { .. } => (more, amount(e).saturating_add(fewer)),
        })
    }

    fn count(&self, wanted: impl Fn(&State) -> bool) -> u16 {
        clamp_u16(self.entries.values().filter(|e| wanted(&e.state)).count() as u64)
    }
}

fn clamp_u16(count: u64) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
