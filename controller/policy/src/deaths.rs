//! Who is gone. News of it travels ahead of all other news, so that nobody sends a process to a dead node.
//!
//! Whoever finds a node gone gives the news the priority `floor(2 ln n)`; each carrier passes it on in as many messages,
//! one less each time it was sent: it reaches all in a number of periods that grows with the logarithm of `n`. (The rule is
//! that of MOSIX's own information daemon.) A death is remembered until it is stale, and is undone by any newer record.

use crate::record::{Death, MAX_DEATHS, NodeId};

/// Most deaths that are remembered; beyond them the oldest is forgotten. Its node then merely ages out.
const MAX_REMEMBERED: usize = 64;

#[derive(Debug, Clone)]
struct Remembered {
    death: Death,
    heard_at_s: f64,
}

/// The deaths that a node remembers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deaths {
    known: Vec<Remembered>,
}

/// Priority of fresh news in a cluster of `nodes`.
pub(crate) fn priority(nodes: usize) -> u8 {
    (2.0 * (nodes.max(2) as f64).ln()) as u8
}

impl Deaths {
    /// Takes in news. False if it was known.
    pub(crate) fn enter(&mut self, death: Death, now_s: f64) -> bool {
        if let Some(old) = self.known.iter_mut().find(|r| r.death.node == death.node) {
            if old.death.version() >= death.version() {
                // The same news on another way: how often it is still passed on does not grow, or it would never fade.
                return false;
            }
            *old = Remembered { death, heard_at_s: now_s };
            return true;
        }
        if self.known.len() >= MAX_REMEMBERED {
            self.known.remove(0);
        }
        self.known.push(Remembered { death, heard_at_s: now_s });
        true
    }

    /// Whether records of `node` up to `version` are obsolete.
    pub(crate) fn ends(&self, node: NodeId, version: (u32, u32)) -> bool {
        self.known.iter().any(|r| r.death.node == node && r.death.version() >= version)
    }

    /// Whether `node` counts as gone.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.known.iter().any(|r| r.death.node == node)
    }

    /// A newer record of it came.
    pub(crate) fn refute(&mut self, node: NodeId) {
        if !self.known.is_empty() {
            self.known.retain(|r| r.death.node != node);
        }
    }

    /// Forgets what is older than `limit_s`.
    pub(crate) fn expire(&mut self, now_s: f64, limit_s: f64) {
        if !self.known.is_empty() {
            self.known.retain(|r| now_s - r.heard_at_s <= limit_s);
        }
    }

    /// What goes into the next message: the most urgent. Counts them as sent once more.
    pub(crate) fn send(&mut self) -> Vec<Death> {
        let mut urgent: Vec<&mut Remembered> = self.known.iter_mut().filter(|r| r.death.priority > 0).collect();
        urgent.sort_by(|a, b| b.death.priority.cmp(&a.death.priority).then(a.death.node.cmp(&b.death.node)));
        let sent = urgent.into_iter().take(MAX_DEATHS).map(|r| {
            r.death.priority -= 1;
            r.death
        });
        sent.collect()
    }
}
