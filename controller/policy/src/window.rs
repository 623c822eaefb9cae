//! What a node knows of the others: a small window of the newest records, without anybody in charge.
//!
//! Each period a node sends [`Window::compose`]d news to one random member ([`pick_peer`]); the receiver
//! [`Window::merge`]s it. The newest `(incarnation, seq)` of a node wins. When more than L nodes are known, the oldest
//! goes, except that the L/2 least loaded of the fresh entries stay: this finds the last idle nodes of a thousand in 30
//! periods instead of 200, for the same traffic. When a process ends, the own record goes to [`Window::hint_targets`].
//! A node that does not answer is [`Window::died`]; the news travels ahead of all other.
//!
//! Everything is bounded: entries, deaths, the records read of a message, and the messages read in a period.

use std::cmp::Ordering;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::deaths::{self, Deaths};
use crate::params::Params;
use crate::predict::{Figures, cpu_load, time_per_work};
use crate::record::{Death, MAX_DEATHS, Message, NodeId, Record};

/// A window's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// What a node may be taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Heard of lately.
    Alive,
    /// Not heard of for longer than news of a living node takes ([`Params::suspect_s`]): it gets no processes.
    Suspect,
    /// Somebody found it gone.
    Dead,
    /// Not in the window.
    Unknown,
}

/// Records that a node makes in a period, at most as a rule: for gossip, hints and answers.
const RECORDS_A_PERIOD: u32 = 4;

/// What an entry is ranked by.
#[derive(Debug, Clone, Copy)]
struct Key {
    measured_at_s: f64,
    /// Committed processes for each unit of CPU speed.
    load: f64,
    /// Seconds per second of work with one process more.
    time: f64,
}

impl Key {
    fn of(heard: &Heard) -> Self {
        let figures = heard.record.figures();
        let time = time_per_work(&figures.with_one_more(0), 0.0);
        Self { measured_at_s: heard.measured_at_s, load: cpu_load(&figures), time }
    }

    fn age_s(&self, now_s: f64) -> f64 {
        (now_s - self.measured_at_s).max(0.0)
    }
}

/// The newest that this node has heard of up to L others. Never holds its own node.
#[derive(Debug, Clone)]
pub struct Window {
    own: NodeId,
    /// In no order. `nodes` and `keys` have what searches and rankings read, in the same places: a window is read much more
    /// often than an entry of it is used, and all windows of a large simulated cluster do not fit the CPU's caches.
    entries: Vec<Heard>,
    nodes: Vec<NodeId>,
    keys: Vec<Key>,
    deaths: Deaths,
    /// When the present period of the message quota began, and how many were read in it.
    quota: (f64, u32),
    /// No entry is older than this.
    oldest_s: f64,
}

impl Window {
    /// An empty window of node `own`.
    pub fn new(own: NodeId) -> Self {
        Self {
            own,
            nodes: Vec::new(),
            keys: Vec::new(),
            entries: Vec::new(),
            deaths: Deaths::default(),
            quota: (f64::NEG_INFINITY, 0),
            oldest_s: f64::INFINITY,
        }
    }

    /// A window as it was: for replaying a decision.
    pub fn restore(own: NodeId, mut entries: Vec<Heard>) -> Self {
        entries.retain(|h| h.record.node != own);
        entries.sort_by_key(|h| h.record.node);
        entries.dedup_by_key(|h| h.record.node);
        let oldest_s = entries.iter().map(|h| h.measured_at_s).fold(f64::INFINITY, f64::min);
        let nodes = entries.iter().map(|h| h.record.node).collect();
        let keys = entries.iter().map(Key::of).collect();
        Self { entries, nodes, keys, oldest_s, ..Self::new(own) }
    }

    /// All entries, by node, stale ones included until the next merge.
    pub fn entries(&self) -> impl Iterator<Item = &Heard> {
        let mut sorted: Vec<&Heard> = self.entries.iter().collect();
        sorted.sort_unstable_by_key(|h| h.record.node);
        sorted.into_iter()
    }

    /// What was last heard of `node`.
    pub fn get(&self, node: NodeId) -> Option<&Heard> {
        self.entries.get(self.position(node)?)
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| *n == node)
    }

    fn remove(&mut self, at: usize) {
        if at < self.entries.len() {
            self.entries.swap_remove(at);
            self.nodes.swap_remove(at);
            self.keys.swap_remove(at);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Heard) -> bool) {
        self.entries.retain(keep);
        self.nodes.clear();
        self.nodes.extend(self.entries.iter().map(|h| h.record.node));
        self.keys.clear();
        self.keys.extend(self.entries.iter().map(Key::of));
    }

    /// The figures of all nodes that may take part in decisions: not stale. In no order.
    pub fn known(&self, params: &Params, now_s: f64) -> impl Iterator<Item = Figures> {
        self.usable(params, now_s).map(|h| h.record.figures())
    }

    /// The entries that may take part in decisions: not stale. In no order.
    pub fn usable(&self, params: &Params, now_s: f64) -> impl Iterator<Item = &Heard> {
        self.usable_with_times(params, now_s).map(|(heard, _)| heard)
    }

    /// The same, with the time per work of a process that is added there.
    pub(crate) fn usable_with_times(&self, params: &Params, now_s: f64) -> impl Iterator<Item = (&Heard, f64)> {
        let limit_s = params.stale_s();
        let known = self.keys.iter().zip(&self.entries).filter(move |(key, _)| key.age_s(now_s) <= limit_s);
        known.map(|(key, heard)| (heard, key.time))
    }

    /// Entries, stale ones included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The usable nodes and their time with one process more, best read for all of them at once.
    pub(crate) fn times(&self, params: &Params, now_s: f64) -> impl Iterator<Item = (NodeId, f64)> {
        let limit_s = params.stale_s();
        let known = self.keys.iter().zip(&self.nodes).filter(move |(key, _)| key.age_s(now_s) <= limit_s);
        known.map(|(key, node)| (*node, key.time))
    }

    /// What `node` may be taken for, in a cluster of `nodes`.
    pub fn standing(&self, params: &Params, node: NodeId, nodes: usize, now_s: f64) -> Standing {
        match self.get(node) {
            _ if self.deaths.contains(node) => Standing::Dead,
            None => Standing::Unknown,
            Some(heard) if heard.age_s(now_s) > params.suspect_s(nodes) => Standing::Suspect,
            Some(_) => Standing::Alive,
        }
    }

    /// Takes in a message. Returns how many records were news. Records of the own node, impossible ones, stale ones, those
    /// of dead nodes and those beyond [`Params::max_records`] are ignored, messages beyond [`Params::max_messages`] a
    /// period too; of two of a node the newer version stays.
    pub fn merge(&mut self, params: &Params, message: Message, now_s: f64) -> usize {
        if !self.within_quota(params, now_s) {
            return 0;
        }
        self.deaths.expire(now_s, params.stale_s());
        let mut news = 0;
        for death in message.deaths.into_iter().take(MAX_DEATHS) {
            news += usize::from(self.learn_death(death, now_s));
        }
        for record in message.records.into_iter().take(params.max_records) {
            news += usize::from(self.merge_one(params, record, now_s));
        }
        self.shrink(params, now_s);
        news
    }

    /// Takes in a record that came with an answer: without quota, since this node asked.
    pub fn learn(&mut self, params: &Params, record: Record, now_s: f64) -> bool {
        let news = self.merge_one(params, record, now_s);
        self.shrink(params, now_s);
        news
    }

    fn within_quota(&mut self, params: &Params, now_s: f64) -> bool {
        if now_s - self.quota.0 >= params.period_s || now_s < self.quota.0 {
            self.quota = (now_s, 0);
        }
        self.quota.1 = self.quota.1.saturating_add(1);
        self.quota.1 <= params.max_messages
    }

    fn merge_one(&mut self, params: &Params, record: Record, now_s: f64) -> bool {
        let age_s = f64::from(record.age_ms) / 1000.0;
        if record.node == self.own || !record.is_sane() || age_s > params.stale_s() {
            return false;
        }
        if self.deaths.ends(record.node, record.version()) {
            return false;
        }
        let (node, version, measured_at_s) = (record.node, record.version(), now_s - age_s);
        let heard = Heard { record, measured_at_s };
        let key = Key::of(&heard);
        match self.position(node) {
            Some(at) => {
                let (Some(old), Some(old_key)) = (self.entries.get_mut(at), self.keys.get_mut(at)) else { return false };
                if old.record.version() >= version {
                    return false;
                }
                (*old, *old_key) = (heard, key);
            }
            None => {
                self.entries.push(heard);
                self.nodes.push(node);
                self.keys.push(key);
            }
        }
        self.deaths.refute(node);
        self.oldest_s = self.oldest_s.min(measured_at_s);
        true
    }

    /// `node` left, or did not answer when it was called: forgets it and tells the others first thing. It comes back with its next
    /// life, or if it was only slow with the next record that cannot have been under way. Does nothing for a node of which nothing is
    /// known: there is nothing to call back.
    pub fn died(&mut self, params: &Params, node: NodeId, nodes: usize, now_s: f64) {
        let Some(heard) = self.get(node) else { return };
        let (incarnation, seq) = heard.record.version();
        // Others may hold newer records of it than this node, and must not take them for a sign of life.
        let periods = (heard.age_s(now_s) / params.period_s).ceil() as u32;
        let seq = seq.saturating_add(RECORDS_A_PERIOD.saturating_mul(periods.saturating_add(1)));
        self.learn_death(Death { node, incarnation, seq, priority: deaths::priority(nodes) }, now_s);
    }

    fn learn_death(&mut self, death: Death, now_s: f64) -> bool {
        if death.node == self.own {
            // The next own record is newer, and tells them better.
            return false;
        }
        if let Some(at) = self.position(death.node) {
            if self.entries.get(at).is_some_and(|h| h.record.version() > death.version()) {
                return false;
            }
            self.remove(at);
        }
        self.deaths.enter(death, now_s)
    }

    /// Forgets the stale, then drops the oldest until L are left, sparing the least loaded fresh ones.
    fn shrink(&mut self, params: &Params, now_s: f64) {
        let limit_s = params.stale_s();
        if now_s - self.oldest_s > limit_s {
            self.retain(|h| h.age_s(now_s) <= limit_s);
            self.oldest_s = self.keys.iter().map(|k| k.measured_at_s).fold(f64::INFINITY, f64::min);
        }
        let Some(surplus) = self.entries.len().checked_sub(params.window_len).filter(|&s| s > 0) else { return };
        let mut goes = vec![true; self.entries.len()];
        for at in self.least_loaded(params, now_s, params.window_len / 2) {
            if let Some(flag) = goes.get_mut(at) {
                *flag = false;
            }
        }
        let may_go = self.keys.iter().zip(&self.nodes).enumerate().zip(&goes).filter(|(_, goes)| **goes);
        let mut victims: Vec<(f64, NodeId, usize)> = Vec::with_capacity(self.keys.len());
        victims.extend(may_go.map(|((at, (key, node)), _)| (key.age_s(now_s), *node, at)));
        keep_first(&mut victims, surplus, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        // From the end, so that the places of those still to go do not change.
        victims.sort_unstable_by_key(|v| std::cmp::Reverse(v.2));
        for (_, _, at) in victims {
            self.remove(at);
        }
    }

    /// Places of the `count` least loaded fresh entries; of equally loaded ones the newest heard.
    fn least_loaded(&self, params: &Params, now_s: f64, count: usize) -> Vec<usize> {
        let limit_s = params.fresh_s();
        let is_fresh = self.keys.iter().enumerate().filter(|(_, key)| key.age_s(now_s) <= limit_s);
        let mut fresh: Vec<(f64, f64, usize)> = Vec::with_capacity(self.keys.len());
        fresh.extend(is_fresh.map(|(at, key)| (key.load, key.age_s(now_s), at)));
        keep_first(&mut fresh, count, |a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        fresh.into_iter().map(|f| f.2).collect()
    }

    /// The message of this period: `own`, the P - 1 newest entries, the least loaded fresh ones, and the most urgent deaths.
    /// Ties are broken at random, so that all of many equally idle nodes are spoken of.
    pub fn compose(&mut self, params: &Params, own: Record, now_s: f64, rng: &mut impl Rng) -> Message {
        // If not all fits, a third is for the least loaded.
        let room = params.max_records.saturating_sub(1);
        let share = if params.least_len == 0 { room } else { room * 2 / 3 };
        let newest_len = params.message_len.saturating_sub(1).min(share);
        let least_len = params.least_len.min(room - newest_len);

        let dice: u64 = rng.random();
        let stale_s = params.stale_s();
        let usable = self.keys.iter().enumerate().filter(|(_, key)| key.age_s(now_s) <= stale_s);
        let mut order: Vec<(f64, u64, usize)> = Vec::with_capacity(self.keys.len());
        order.extend(usable.map(|(at, key)| (key.age_s(now_s), shuffle(dice, at), at)));
        let by_key = |a: &(f64, u64, usize), b: &(f64, u64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let mut chosen: Vec<usize> = first_of(&mut order, newest_len, by_key).iter().map(|o| o.2).collect();
        if least_len > 0 {
            let fresh_s = params.fresh_s();
            order.retain(|o| o.0 <= fresh_s);
            for o in &mut order {
                o.0 = self.keys.get(o.2).map_or(f64::INFINITY, |key| key.load);
            }
            chosen.extend(first_of(&mut order, least_len, by_key).iter().map(|o| o.2));
        }
        chosen.sort_unstable_by_key(|at| self.nodes.get(*at).copied());
        chosen.dedup();
        let mut records = Vec::with_capacity(chosen.len() + 1);
        records.push(own);
        let picked = chosen.into_iter().filter_map(|at| self.entries.get(at));
        records.extend(picked.map(|h| Record { age_ms: to_ms(h.age_s(now_s)), ..h.record.clone() }));
        Message { records, deaths: self.deaths.send() }
    }

    /// To whom news of a freed CPU should go at once: the `count` most loaded known nodes, most loaded first.
    pub fn hint_targets(&self, params: &Params, now_s: f64, count: usize) -> Vec<NodeId> {
        let limit_s = params.stale_s();
        let usable = self.keys.iter().zip(&self.nodes).filter(|(key, _)| key.age_s(now_s) <= limit_s);
        let mut known: Vec<(f64, f64, NodeId)> = usable.map(|(key, node)| (key.load, key.age_s(now_s), *node)).collect();
        // Of equally loaded ones the newest heard: not all idle nodes should tell the same.
        let order = |a: &(f64, f64, NodeId), b: &(f64, f64, NodeId)| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2));
        keep_first(&mut known, count, order);
        known.sort_unstable_by(order);
        known.into_iter().map(|k| k.2).collect()
    }

    /// Counts one more process at `node` until its next record comes: after a process was sent or started there without
    /// an answer that carries a record. (A record in an answer already counts it: merge that instead.)
    pub fn bump(&mut self, node: NodeId, memory_bytes: u64) {
        let Some(at) = self.position(node) else { return };
        if let (Some(heard), Some(key)) = (self.entries.get_mut(at), self.keys.get_mut(at)) {
            heard.record.committed = heard.record.committed.saturating_add(1);
            heard.record.memory_free_bytes = heard.record.memory_free_bytes.saturating_sub(memory_bytes);
            *key = Key::of(heard);
        }
    }

    /// Forgets a node that left or does not answer. It comes back with its next record of a newer version.
    pub fn forget(&mut self, node: NodeId) {
        self.retain(|h| h.record.node != node);
    }

    /// Forgets all who are not in `members`.
    pub fn retain_members(&mut self, members: &[NodeId]) {
        self.retain(|h| members.contains(&h.record.node));
    }

    /// Whom to send this period's message to: a random member that is not known to be dead; once in a while, so that on average
    /// one node of the cluster does it in a period, any member, so that a dead one that came back is noticed. `None` for
    /// a node alone.
    pub fn pick_living(&self, members: &[NodeId], rng: &mut impl Rng) -> Option<NodeId> {
        let peer = pick_peer(members, self.own, rng)?;
        if !self.deaths.contains(peer) || rng.random_range(0..members.len().max(5)) == 0 {
            return Some(peer);
        }
        // A few tries find a living one unless nearly all are dead.
        (0..8).filter_map(|_| pick_peer(members, self.own, rng)).find(|p| !self.deaths.contains(*p)).or(Some(peer))
    }
}

/// A uniformly random member but `own`; `None` for a node alone. Does not look through `members` unless `own` is drawn.
pub fn pick_peer(members: &[NodeId], own: NodeId, rng: &mut impl Rng) -> Option<NodeId> {
    // Drawing again is uniform; after so many misses the list can hold little else, so search it.
    for _ in 0..8 {
        let drawn = members.get(rng.random_range(0..members.len().max(1)))?;
        if *drawn != own {
            return Some(*drawn);
        }
    }
    let others: Vec<NodeId> = members.iter().copied().filter(|m| *m != own).collect();
    others.get(rng.random_range(0..others.len().max(1))).copied()
}

/// The first `count` in that order, in any order among themselves.
fn first_of<T>(all: &mut [T], count: usize, order: impl FnMut(&T, &T) -> Ordering) -> &[T] {
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, order);
    }
    &all[..count.min(all.len())]
}

fn keep_first<T>(all: &mut Vec<T>, count: usize, order: impl FnMut(&T, &T) -> Ordering) {
    first_of(all, count, order);
    all.truncate(count);
}

/// A random order of numbers, from one draw (the finaliser of SplitMix64).
pub(crate) fn shuffle(dice: u64, at: usize) -> u64 {
    let mut z = dice ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn to_ms(age_s: f64) -> u32 {
    // Saturates, and ages are never negative.
    (age_s * 1000.0).round() as u32
}
