//! What a node knows of the others: a small window of the newest records, without anybody in charge.
//!
//! Each period a node sends [`Window::compose`]d news to one random member ([`pick_peer`]); the receiver
//! [`Window::merge`]s it. The newest `(incarnation, seq)` of a node wins. When more than L nodes are known, the oldest
//! goes, except that the L/2 least loaded of the fresh entries stay: this finds the last idle nodes of a thousand in 30
//! periods instead of 200, for the same traffic. When a process ends, the own record goes to [`Window::hint_targets`].

use std::cmp::Ordering;
use std::collections::BTreeMap;

use rand::Rng;

use crate::params::Params;
use crate::predict::{Figures, cpu_load};
use crate::record::{Message, NodeId, Record};

/// A window's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// As received; its `age_ms` is that of arrival. Use [`Heard::age_s`].
    pub record: Record,
    /// When it was measured, on this node's clock.
    measured_at_s: f64,
}

impl Heard {
    /// Seconds since it was measured at its node.
    pub fn age_s(&self, now_s: f64) -> f64 {
        (now_s - self.measured_at_s).max(0.0)
    }
}

/// The newest that this node has heard of up to L others. Never holds its own node.
#[derive(Debug, Clone)]
pub struct Window {
    own: NodeId,
    entries: BTreeMap<NodeId, Heard>,
}

impl Window {
    /// An empty window of node `own`.
    pub fn new(own: NodeId) -> Self {
        Self { own, entries: BTreeMap::new() }
    }

    /// All entries, by node, stale ones included until the next merge.
    pub fn entries(&self) -> impl Iterator<Item = &Heard> {
        self.entries.values()
    }

    /// What was last heard of `node`.
    pub fn get(&self, node: NodeId) -> Option<&Heard> {
        self.entries.get(&node)
    }

    /// The figures of all nodes that may take part in decisions: not stale. By node.
    pub fn known(&self, params: &Params, now_s: f64) -> impl Iterator<Item = Figures> {
        let limit_s = params.stale_s();
        self.entries.values().filter(move |h| h.age_s(now_s) <= limit_s).map(|h| h.record.figures())
    }

    /// Takes in a message. Returns how many records were news. Records of the own node, impossible ones, stale ones and
    /// those beyond [`Params::max_records`] are ignored; of two of a node the newer version stays.
    pub fn merge(&mut self, params: &Params, message: Message, now_s: f64) -> usize {
        let mut news = 0;
        for record in message.records.into_iter().take(params.max_records) {
            news += usize::from(self.merge_one(params, record, now_s));
        }
        self.shrink(params, now_s);
        news
    }

    fn merge_one(&mut self, params: &Params, record: Record, now_s: f64) -> bool {
        let age_s = f64::from(record.age_ms) / 1000.0;
        if record.node == self.own || !record.is_sane() || age_s > params.stale_s() {
            return false;
        }
        if self.entries.get(&record.node).is_some_and(|old| old.record.version() >= record.version()) {
            return false;
        }
        self.entries.insert(record.node, Heard { record, measured_at_s: now_s - age_s });
        true
    }

    /// Forgets the stale, then drops the oldest until L are left, sparing the least loaded fresh ones.
    fn shrink(&mut self, params: &Params, now_s: f64) {
        let limit_s = params.stale_s();
        self.entries.retain(|_, h| h.age_s(now_s) <= limit_s);
        let Some(surplus) = self.entries.len().checked_sub(params.window_len).filter(|&s| s > 0) else { return };
        let kept = self.least_loaded(params, now_s, params.window_len / 2);
        let mut victims: Vec<_> =
            self.entries.values().filter(|h| !kept.contains(&h.record.node)).map(|h| (h.age_s(now_s), h.record.node)).collect();
        victims.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, node) in victims.into_iter().take(surplus) {
            self.entries.remove(&node);
        }
    }

    /// The `count` least loaded fresh nodes; of equally loaded ones the newest heard.
    fn least_loaded(&self, params: &Params, now_s: f64, count: usize) -> Vec<NodeId> {
        let limit_s = params.fresh_s();
        let mut fresh: Vec<_> = self.entries.values().filter(|h| h.age_s(now_s) <= limit_s).collect();
        fresh.sort_by(|a, b| by_load(a, b).then(a.age_s(now_s).total_cmp(&b.age_s(now_s))));
        fresh.into_iter().take(count).map(|h| h.record.node).collect()
    }

    /// The message of this period: `own`, the P - 1 newest entries, and the P/2 least loaded fresh ones.
    /// Ties are broken at random, so that all of many equally idle nodes are spoken of.
    pub fn compose(&self, params: &Params, own: Record, now_s: f64, rng: &mut impl Rng) -> Message {
        let mut order: Vec<_> = self.entries.values().map(|h| (rng.random::<u32>(), h)).collect();
        order.sort_by_key(|(shuffle, h)| (*shuffle, h.record.node));
        let mut order: Vec<_> = order.into_iter().map(|(_, h)| h).filter(|h| h.age_s(now_s) <= params.stale_s()).collect();

        // If not all fits, a third is for the least loaded.
        let room = params.max_records.saturating_sub(1);
        let newest_len = params.message_len.saturating_sub(1).min(room * 2 / 3);
        let least_len = (params.message_len / 2).min(room - newest_len);
        order.sort_by(|a, b| a.age_s(now_s).total_cmp(&b.age_s(now_s)));
        let mut chosen: BTreeMap<NodeId, &Heard> = order.iter().take(newest_len).map(|h| (h.record.node, *h)).collect();
        order.retain(|h| h.age_s(now_s) <= params.fresh_s());
        order.sort_by(|a, b| by_load(a, b));
        chosen.extend(order.iter().take(least_len).map(|h| (h.record.node, *h)));

        let mut records = vec![own];
        records.extend(chosen.values().map(|h| Record { age_ms: to_ms(h.age_s(now_s)), ..h.record.clone() }));
        Message { records }
    }

    /// To whom news of a freed CPU should go at once: the `count` most loaded known nodes, most loaded first.
    pub fn hint_targets(&self, params: &Params, now_s: f64, count: usize) -> Vec<NodeId> {
        let limit_s = params.stale_s();
        let mut known: Vec<_> = self.entries.values().filter(|h| h.age_s(now_s) <= limit_s).collect();
        known.sort_by(|a, b| by_load(b, a));
        known.into_iter().take(count).map(|h| h.record.node).collect()
    }

    /// Counts one more process at `node` until its next record comes: after a process was sent or started there without
    /// an answer that carries a record. (A record in an answer already counts it: merge that instead.)
    pub fn bump(&mut self, node: NodeId, memory_bytes: u64) {
        if let Some(heard) = self.entries.get_mut(&node) {
            heard.record.committed = heard.record.committed.saturating_add(1);
            heard.record.memory_free_bytes = heard.record.memory_free_bytes.saturating_sub(memory_bytes);
        }
    }

    /// Forgets a node that left or does not answer. It comes back with its next record of a newer version.
    pub fn forget(&mut self, node: NodeId) {
        self.entries.remove(&node);
    }

    /// Forgets all who are not in `members`.
    pub fn retain_members(&mut self, members: &[NodeId]) {
        self.entries.retain(|node, _| members.contains(node));
    }
}

/// A uniformly random member but `own`; `None` for a node alone.
pub fn pick_peer(members: &[NodeId], own: NodeId, rng: &mut impl Rng) -> Option<NodeId> {
    let others = members.iter().filter(|&&m| m != own);
    let count = others.clone().count();
    if count == 0 {
        return None;
    }
    others.copied().nth(rng.random_range(0..count))
}

fn by_load(a: &Heard, b: &Heard) -> Ordering {
    cpu_load(&a.record.figures()).total_cmp(&cpu_load(&b.record.figures()))
}

fn to_ms(age_s: f64) -> u32 {
    // Saturates, and ages are never negative.
    (age_s * 1000.0).round() as u32
}
