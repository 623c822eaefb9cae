//! The event queue: what happens next. Ties are served in the order in which they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use mosix_policy::{Message, Record, Request};

use crate::node::NodeIx;
use crate::process::ProcIx;

/// What travels between nodes.
#[derive(Debug, Clone)]
pub(crate) enum Letter {
    Gossip(Box<Message>),
    Ask(Box<Ask>),
    Answer(Box<Answer>),
    /// The move is off: the reservation may be given up.
    Withdraw {
        id: u64,
    },
    /// A program for a node that was asked whether it has a free CPU.
    Place(Box<Placing>),
    Placed(Box<Placed>),
}

#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) request: Request,
    /// Seconds that the transfer should take.
    pub(crate) expected_s: f64,
}

#[derive(Debug, Clone)]
pub(crate) struct Placing {
    pub(crate) process: ProcIx,
    pub(crate) request: Request,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) accepted: bool,
    pub(crate) record: Record,
}

#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) process: ProcIx,
    pub(crate) accepted: bool,
    pub(crate) record: Record,
}

/// Kept small: a hundred thousand of them wait in the queue.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Tick {
        node: NodeIx,
        life: u32,
    },
    Deliver {
        from: u32,
        to: u32,
        letter: Letter,
    },
    /// The next process of a node ends, unless something changed there since.
    Finish {
        node: NodeIx,
        version: u32,
    },
    Transfer {
        slot: usize,
        version: u32,
    },
    AnswerDue {
        node: NodeIx,
        id: u64,
    },
    PlacementDue {
        process: ProcIx,
    },
    Birth {
        group: usize,
    },
    Toggle {
        process: ProcIx,
    },
    Crash {
        node: NodeIx,
    },
    Rejoin {
        node: NodeIx,
    },
    Partition {
        begins: bool,
    },
    Owner {
        group: usize,
        back: bool,
    },
    Sample,
}

struct Entry {
    at_s: f64,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        other.at_s.total_cmp(&self.at_s).then(other.order.cmp(&self.order))
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Entry>,
    order: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at_s: f64, event: Event) {
        self.order += 1;
        self.heap.push(Entry { at_s, order: self.order, event });
    }

    pub(crate) fn pop(&mut self) -> Option<(f64, Event)> {
        self.heap.pop().map(|e| (e.at_s, e.event))
    }
}
