//! Ticks and messages.

use mosix_policy::Message;
use rand::Rng;

use crate::event::{Event, Letter};
use crate::node::NodeIx;
use crate::world::World;

/// One message in so many is encoded to see how long it is.
const MEASURED: u64 = 64;
/// Bytes around a gossip message: sender, nonce and seal.
const SEAL_BYTES: f64 = 28.0;
/// Bytes of a question or an answer, with the record that it carries.
const ASK_BYTES: f64 = 140.0;

impl World {
    pub(crate) fn tick(&mut self, at: NodeIx, life: u32) {
        if !self.nodes[at].up || self.nodes[at].life != life {
            return;
        }
        let next_s = self.params.next_tick_s(&mut self.rng);
        self.queue.push(self.now_s + next_s, Event::Tick { node: at, life });
        self.touch(at);
        self.nodes[at].ledger.expire(self.now_s);
        if self.scenario.policy.fixed {
            return;
        }
        if let Some(peer) = self.nodes[at].window.pick_living(&self.members, &mut self.rng) {
            self.gossip(at, peer.0 as usize);
        }
        if self.nodes[at].ledger.committed() == 0 {
            self.ask_for_work(at);
        }
        self.decide(at);
    }

    /// A process has ended here: the most loaded should know at once.
    pub(crate) fn tell_of_exit(&mut self, at: NodeIx) {
        if !self.scenario.policy.fixed {
            self.hint(at, self.params.hints);
        }
    }

    /// An idle node tells the most loaded that it knows of, and anybody else: so does the news spread to those that it does not know of.
    fn ask_for_work(&mut self, at: NodeIx) {
        self.hint(at, self.params.idle_hints.min(1));
        for _ in 1..self.params.idle_hints {
            if let Some(peer) = self.nodes[at].window.pick_living(&self.members, &mut self.rng) {
                self.gossip(at, peer.0 as usize);
            }
        }
    }

    fn hint(&mut self, at: NodeIx, count: usize) {
        for busy in self.nodes[at].window.hint_targets(&self.params, self.now_s, count) {
            self.gossip(at, busy.0 as usize);
        }
    }

    fn gossip(&mut self, at: NodeIx, to: NodeIx) {
        let own = self.record(at);
        let message = self.nodes[at].window.compose(&self.params, own, self.now_s, &mut self.rng);
        self.send(at, to, Letter::Gossip(Box::new(message)));
    }

    /// Puts a letter on its way, or loses it, or doubles it.
    pub(crate) fn send(&mut self, from: NodeIx, to: NodeIx, letter: Letter) {
        self.meter(&letter);
        let (from, to) = (from as u32, to as u32);
        let network = &self.scenario.network;
        let (loss, duplicates, delay_ms) = (network.loss, network.duplicates, network.delay_ms);
        if loss > 0.0 && self.rng.random::<f64>() < loss {
            return;
        }
        if duplicates > 0.0 && self.rng.random::<f64>() < duplicates {
            let at_s = self.now_s + delay_ms.draw(&mut self.rng) / 1000.0;
            self.queue.push(at_s, Event::Deliver { from, to, letter: letter.clone() });
        }
        let at_s = self.now_s + delay_ms.draw(&mut self.rng) / 1000.0;
        self.queue.push(at_s, Event::Deliver { from, to, letter });
    }

    fn meter(&mut self, letter: &Letter) {
        let metrics = &mut self.metrics;
        metrics.letters += 1;
        match letter {
            Letter::Gossip(message) => {
                if metrics.gossip.is_multiple_of(MEASURED) {
                    metrics.measured_bytes += bytes_of(message);
                    metrics.measured += 1;
                }
                metrics.gossip += 1;
            }
            _ => metrics.ask_bytes += ASK_BYTES,
        }
    }

    pub(crate) fn deliver(&mut self, from: NodeIx, to: NodeIx, letter: Letter) {
        let cut = self.partitioned && self.nodes[from].side != self.nodes[to].side;
        if cut || !self.nodes[to].up {
            return;
        }
        match letter {
            Letter::Gossip(message) => {
                let news = self.nodes[to].window.merge(&self.params, *message, self.now_s);
                if news > 0 {
                    self.decide(to);
                }
            }
            Letter::Ask(ask) => self.asked(from, to, *ask),
            Letter::Answer(answer) => self.answered(to, from, *answer),
            Letter::Withdraw { id } => {
                self.nodes[to].ledger.abort(from as u32, id);
            }
            Letter::Place(placing) => self.asked_to_place(from, to, *placing),
            Letter::Placed(placed) => self.placed(to, placed.process, placed.accepted, Some(placed.record)),
        }
    }
}

fn bytes_of(message: &Message) -> f64 {
    SEAL_BYTES + postcard::to_stdvec(message).map_or(0.0, |bytes| bytes.len() as f64)
}
