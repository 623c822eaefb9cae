//! Decisions and what follows from them, until a transfer starts: exactly the daemon's steps.
//!
//! One question at a time: while a target has not answered, nothing else is decided. An answer that does not come is asked for again once;
//! then the target counts as gone. The target reserves before it answers, and gives a reservation up when its lease ends.

use mosix_policy::{Candidate, Case, Local, NodeId, Own, Partner, Request, Rule, Stance, Terms, Verdict, admit, decide, lag, swap_back};

use crate::event::{Answer, Ask, Event, Letter};
use crate::node::{Asking, NodeIx};
use crate::process::{Place, ProcIx};
use crate::spec::Handshake;
use crate::world::World;

/// Periods after which an answer is overdue.
const ANSWER_PERIODS: f64 = 1.0;
const MAX_TRIES: u32 = 2;
/// Share of pre-copying that counts as cost: what it takes from the CPU.
const PRECOPY_COST: f64 = 0.3;

impl World {
    /// A trigger of decisions at a node.
    pub(crate) fn decide(&mut self, at: NodeIx) {
        let node = &self.nodes[at];
        if self.scenario.policy.fixed || node.asking.is_some() || !node.up || node.running == 0 {
            return;
        }
        self.touch(at);
        if self.params.rotation {
            let figures = self.figures(at);
            self.nodes[at].fair = lag::fair_rate(&self.params, &figures, &self.nodes[at].window, self.now_s);
        }
        let (now_s, period_s) = (self.now_s, self.params.period_s);
        self.nodes[at].refused.retain(|(_, at_s)| now_s - at_s < period_s);
        let tried: Vec<NodeId> = self.nodes[at].refused.iter().map(|r| r.0).collect();
        let local = self.local(at);
        let outcome = if self.records_cases {
            let case = Case::decide(&self.params, &local, &self.nodes[at].window, now_s, &mut self.rng, &tried);
            let outcome = case.outcome.clone();
            if outcome.action.is_some() {
                self.cases.push(case);
            }
            outcome
        } else {
            decide(&self.params, &local, &self.nodes[at].window, now_s, &mut self.rng, &tried)
        };
        self.metrics.decisions += 1;
        if let Some(action) = outcome.action {
            self.ask(at, &local, &action);
        }
    }

    /// What the policy is told of a node.
    fn local(&self, at: NodeIx) -> Local {
        let node = &self.nodes[at];
        let awake = node.processes.iter().filter(|p| !self.processes[**p].asleep);
        let candidates = awake.map(|p| self.candidate(at, *p)).collect();
        let (incoming, outgoing) = (node.ledger.incoming(), node.ledger.outgoing());
        Local { figures: self.figures(at), incoming, outgoing, stance: node.stance, candidates }
    }

    fn candidate(&self, at: NodeIx, ix: ProcIx) -> Candidate {
        let (node, p) = (&self.nodes[at], &self.processes[ix]);
        let policy = &self.scenario.policy;
        let done_s = p.done_s() + if p.asleep { 0.0 } else { (node.got_s - p.v_mark) / p.drag };
        let partner = p.partner.filter(|_| !policy.ignore_ties).and_then(|(other, apart)| {
            let there = self.processes.get(other)?.node()?;
            Some(Partner { node: NodeId(there as u32), apart })
        });
        Candidate {
            key: ix as u64,
            cpu_age_s: done_s,
            wall_age_s: self.now_s - p.born_s,
            resident_s: self.now_s - p.arrived_s,
            memory_bytes: p.memory_bytes,
            home: NodeId(p.home as u32),
            kappa: if policy.ignore_ties { 0.0 } else { p.kappa },
            cost_s: if policy.ignore_cost { 0.0 } else { self.cost_s(ix) },
            in_flight: p.in_flight,
            pinned: p.pinned,
            needs: p.needs,
            lag_s: p.lag_s + node.lag_s - p.l_mark,
            restless: self.params.restless(p.restless, self.now_s - p.moved_s),
            partners: partner.into_iter().collect(),
        }
    }

    /// What moving a process costs it on a free network.
    fn cost_s(&self, ix: ProcIx) -> f64 {
        let (precopy_s, freeze_s) = self.transfer_times_s(ix);
        freeze_s + PRECOPY_COST * precopy_s
    }

    fn ask(&mut self, at: NodeIx, local: &Local, action: &mosix_policy::Move) {
        let process = action.key as ProcIx;
        let Some(candidate) = local.candidates.iter().find(|c| c.key == action.key) else { return };
        let target = action.target.0 as usize;
        self.next_id += 1;
        let id = self.next_id;
        let (precopy_s, freeze_s) = self.transfer_times_s(process);
        let ask = Ask { request: Request::automatic(id, local, candidate, action), expected_s: precopy_s + freeze_s };
        if self.scenario.policy.handshake != Handshake::Full {
            if self.scenario.policy.handshake == Handshake::Bump {
                self.nodes[at].window.bump(action.target, candidate.memory_bytes);
            }
            return self.go(at, target, id, process, action.rule);
        }
        let letter = ask.clone();
        self.nodes[at].asking = Some(Asking { id, process, target, letter, rule: action.rule, tries: 1 });
        self.send(at, target, Letter::Ask(Box::new(ask)));
        self.queue.push(self.now_s + ANSWER_PERIODS * self.params.period_s, Event::AnswerDue { node: at, id });
    }

    pub(crate) fn own(&mut self, at: NodeIx) -> Own {
        let (lag_mean_s, lag_min_s) = if self.params.rotation { self.lags(at) } else { (0.0, 0.0) };
        let node = &self.nodes[at];
        Own {
            figures: self.figures(at),
            incoming: node.ledger.incoming(),
            accepts_guests: node.stance == Stance::Open,
            features: node.features,
            lag_mean_s,
            lag_min_s,
        }
    }

    /// A target is asked.
    pub(crate) fn asked(&mut self, from: NodeIx, at: NodeIx, ask: Ask) {
        self.touch(at);
        self.nodes[at].ledger.expire(self.now_s);
        let (sender, id) = (from as u32, ask.request.id);
        let again = self.nodes[at].ledger.holds(sender, id);
        let accepted = again || {
            let own = self.own(at);
            admit(&self.params, &own, &ask.request) == Verdict::Accept
        };
        if accepted && !again {
            let until_s = self.now_s + self.params.lease_s(ask.expected_s);
            self.nodes[at].ledger.reserve(sender, id, ask.request.memory_bytes, until_s);
            self.note_peak(at);
        } else if !accepted {
            self.metrics.refused += 1;
        }
        let record = self.record(at);
        self.send(at, from, Letter::Answer(Box::new(Answer { id, accepted, record })));
        let exchange = matches!(ask.request.terms, Terms::Exchange { .. });
        if accepted && !again && exchange && self.nodes[at].asking.is_none() {
            let local = self.local(at);
            if let Some(action) = swap_back(&self.params, &local, NodeId(sender)) {
                self.ask(at, &local, &action);
            }
        }
    }

    /// A target has answered.
    pub(crate) fn answered(&mut self, at: NodeIx, from: NodeIx, answer: Answer) {
        let Answer { id, accepted, record } = answer;
        self.nodes[at].window.learn(&self.params, record, self.now_s);
        let asked = self.nodes[at].asking.take_if(|a| a.id == id);
        let Some(asking) = asked else {
            // Too late, or twice: if the transfer is not under way the reservation is void.
            let under_way = self.transfers.iter().flatten().any(|t| t.id == id);
            if accepted && !under_way {
                self.send(at, from, Letter::Withdraw { id });
            }
            return;
        };
        if !accepted {
            self.nodes[at].refused.push((NodeId(from as u32), self.now_s));
        } else if self.processes[asking.process].place == Place::At(at) && !self.processes[asking.process].in_flight {
            self.go(at, from, id, asking.process, asking.rule);
        } else {
            self.send(at, from, Letter::Withdraw { id });
        }
        self.decide(at);
    }

    /// No answer yet.
    pub(crate) fn answer_due(&mut self, at: NodeIx, id: u64) {
        let Some(asking) = self.nodes[at].asking.as_mut().filter(|a| a.id == id) else { return };
        let target = asking.target;
        if asking.tries < MAX_TRIES {
            asking.tries += 1;
            let letter = Letter::Ask(Box::new(asking.letter.clone()));
            self.send(at, target, letter);
            self.queue.push(self.now_s + ANSWER_PERIODS * self.params.period_s, Event::AnswerDue { node: at, id });
            return;
        }
        self.nodes[at].asking = None;
        self.send(at, target, Letter::Withdraw { id });
        let nodes = self.members.len();
        self.nodes[at].window.died(&self.params, NodeId(target as u32), nodes, self.now_s);
        self.decide(at);
    }

    /// The target has reserved: the transfer starts.
    fn go(&mut self, at: NodeIx, to: NodeIx, id: u64, process: ProcIx, rule: Rule) {
        let memory_bytes = self.processes[process].memory_bytes;
        self.nodes[at].ledger.leave(at as u32, id, memory_bytes);
        self.start_transfer(at, to, id, process, rule);
    }
}
