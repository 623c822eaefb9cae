//! Jobs that come, and the load of others.

use mosix_policy::{Features, NodeId, Request, Terms, Verdict, admit, place_process};
use rand::Rng;

use crate::chances::Chance;
use crate::event::{Event, Letter, Placed, Placing};
use crate::node::NodeIx;
use crate::process::{Place, ProcIx, Process};
use crate::spec::Born;
use crate::world::{Job, World};

const MB: f64 = 1e6;
/// A program's own reservation at the node that is asked to start it; ids of moves count up from 0.
const PLACING: u64 = 1 << 63;
/// Nobody: the job of a background process.
const NO_JOB: usize = usize::MAX;

impl World {
    pub(crate) fn next_arrival_s(&mut self, rate_per_s: f64) -> f64 {
        Chance::Exponential { exponential: 1.0 / rate_per_s }.draw(&mut self.fate)
    }

    /// A job of a group that arrives at random, or all of a group at once.
    pub(crate) fn birth(&mut self, group: usize) {
        let scenario = self.scenario.clone();
        let spec = &scenario.jobs[group];
        if spec.rate_per_s <= 0.0 {
            for i in 0..spec.count {
                self.create(group, i);
            }
            self.groups_open -= 1;
            return;
        }
        let so_far = self.metrics.births_of(group);
        let is_over = (spec.count > 0 && so_far >= spec.count) || (spec.until_s > 0.0 && self.now_s > scenario.warmup_s + spec.until_s);
        if is_over {
            self.groups_open -= 1;
            return;
        }
        self.create(group, so_far);
        let at_s = self.now_s + self.next_arrival_s(spec.rate_per_s);
        self.queue.push(at_s, Event::Birth { group });
    }

    fn create(&mut self, group: usize, number: usize) {
        let scenario = self.scenario.clone();
        let spec = &scenario.jobs[group];
        self.metrics.born(group, self.now_s);
        let count = spec.processes.draw(&mut self.fate).round().max(1.0) as usize;
        let work_s = spec.work_s.draw(&mut self.fate) / count as f64;
        let job = self.jobs.len();
        self.jobs.push(Job { born_s: self.now_s, work_s, left: count as u32, lost: false, ended_s: None });
        for part in 0..count {
            let memory_bytes = (spec.memory_mb.draw(&mut self.fate) * MB) as u64;
            let home = self.birthplace(spec.born, spec.skip_nodes, spec.on_nodes, number + part);
            let ix = self.processes.len();
            let partner = match spec.apart > 0.0 {
                // The first of a pair waits for the second.
                true => Some((if number.is_multiple_of(2) { ix + 1 } else { ix - 1 }, spec.apart)),
                false => None,
            };
            let dirty_bytes = (memory_bytes as f64 * spec.dirty) as u64;
            let mut process = self.sleeper(home, job, memory_bytes);
            (process.work_s, process.left_s) = (work_s, work_s);
            (process.dirty_bytes, process.kappa, process.needs, process.partner) = (dirty_bytes, spec.kappa, Features(spec.needs), partner);
            (process.asleep, process.pinned) = (false, false);
            self.processes.push(process);
            self.alive += 1;
            if scenario.policy.place_at_birth && !scenario.policy.fixed { self.place(ix) } else { self.start(ix, home) }
        }
    }

    fn sleeper(&self, home: NodeIx, job: usize, memory_bytes: u64) -> Process {
        Process {
            place: Place::Unborn,
            home,
            job,
            born_s: self.now_s,
            arrived_s: self.now_s,
            work_s: 0.0,
            left_s: 0.0,
            memory_bytes,
            dirty_bytes: 0,
            kappa: 0.0,
            needs: Features(0),
            partner: None,
            drag: 1.0,
            lag_s: 0.0,
            restless: 0.0,
            moved_s: self.now_s,
            moves: 0,
            in_flight: false,
            pinned: true,
            asleep: true,
            background: None,
            v_mark: 0.0,
            l_mark: 0.0,
        }
    }

    fn birthplace(&mut self, born: Born, skip: usize, on: usize, number: usize) -> NodeIx {
        let rest = self.nodes.len() - skip.min(self.nodes.len() - 1);
        let among = if on == 0 { rest } else { on.min(rest) };
        let first = skip.min(self.nodes.len() - 1);
        let at = match born {
            Born::First => first,
            Born::RoundRobin => first + number % among,
            Born::Random => first + self.fate.random_range(0..among),
        };
        // A user whose own node is down works at the next.
        (0..self.nodes.len()).map(|i| (at + i) % self.nodes.len()).find(|n| self.nodes[*n].up).unwrap_or(at)
    }

    /// A process begins to run.
    pub(crate) fn start(&mut self, ix: ProcIx, at: NodeIx) {
        self.touch(at);
        let p = &mut self.processes[ix];
        p.place = Place::At(at);
        p.arrived_s = self.now_s;
        self.nodes[at].enter(ix, p);
        self.redrag(ix);
        self.redrag_partner(ix);
        self.changed(at);
    }

    /// Where it is predicted to run fastest; if no free CPU is known of, nodes that nothing is known of are asked.
    fn place(&mut self, ix: ProcIx) {
        let home = self.processes[ix].home;
        let own = self.figures(home);
        let node = &mut self.nodes[home];
        let unknown = node.explorer.next(&self.params, &own, &node.window, &self.members, self.now_s, &mut self.rng);
        if let Some(target) = unknown {
            return self.ask_to_place(ix, home, target.0 as usize);
        }
        let p = &self.processes[ix];
        let newborn = mosix_policy::Newborn { memory_bytes: p.memory_bytes, needs: p.needs };
        let chosen = place_process(&self.params, &own, newborn, &mut self.nodes[home].window, self.now_s, &mut self.rng);
        let at = chosen.0 as usize;
        self.start(ix, if self.nodes[at].up { at } else { home });
        self.note_placed(home, at);
    }

    fn note_placed(&mut self, home: NodeIx, at: NodeIx) {
        if home != at {
            self.metrics.placed += 1;
            self.note_peak(at);
        }
    }

    fn ask_to_place(&mut self, ix: ProcIx, home: NodeIx, target: NodeIx) {
        let p = &self.processes[ix];
        let source = self.figures(home).with_one_more(p.memory_bytes);
        let request = Request {
            id: PLACING + ix as u64,
            source,
            home: NodeId(home as u32),
            memory_bytes: p.memory_bytes,
            kappa: 0.0,
            manual: false,
            needs: p.needs,
            apart_here: 0.0,
            apart_there: 0.0,
            terms: Terms::Faster,
        };
        self.send(home, target, Letter::Place(Box::new(Placing { process: ix, request })));
        self.queue.push(self.now_s + self.params.period_s, Event::PlacementDue { process: ix });
    }

    /// Nobody answered: somebody else is asked, or it starts at home.
    pub(crate) fn placement_due(&mut self, ix: ProcIx) {
        self.placed(self.processes[ix].home, ix, false, None);
    }

    pub(crate) fn asked_to_place(&mut self, from: NodeIx, at: NodeIx, placing: Placing) {
        let own = self.own(at);
        let free = own.figures.has_free_cpu();
        let accepted = free
            && self.processes[placing.process].place == Place::Unborn
            && admit(&self.params, &own, &placing.request) == Verdict::Accept;
        if accepted {
            self.start(placing.process, at);
            self.note_placed(from, at);
        }
        let record = self.record(at);
        self.send(at, from, Letter::Placed(Box::new(Placed { process: placing.process, accepted, record })));
    }

    pub(crate) fn placed(&mut self, home: NodeIx, ix: ProcIx, accepted: bool, record: Option<mosix_policy::Record>) {
        if let Some(record) = record {
            self.nodes[home].window.learn(&self.params, record, self.now_s);
        }
        if !accepted && self.processes[ix].place == Place::Unborn {
            if self.nodes[home].up { self.place(ix) } else { self.never_born(ix) }
        }
    }

    fn never_born(&mut self, ix: ProcIx) {
        self.processes[ix].place = Place::Lost;
        self.alive -= 1;
        self.jobs[self.processes[ix].job].lost = true;
    }

    pub(crate) fn start_background(&mut self) {
        let scenario = self.scenario.clone();
        for (group, spec) in scenario.background.iter().enumerate() {
            for _ in 0..spec.count {
                let at = self.fate.random_range(0..self.nodes.len());
                let ix = self.processes.len();
                let mut process = self.sleeper(at, NO_JOB, 1);
                process.background = Some(group);
                process.pinned = !spec.moves;
                self.processes.push(process);
                self.start(ix, at);
                // In the middle of a sleep or of a run, like any moment.
                let wait_s = spec.off_s.draw(&mut self.fate) * self.fate.random::<f64>();
                self.queue.push(scenario.warmup_s + wait_s, Event::Toggle { process: ix });
            }
        }
    }

    /// A background process goes to sleep, or wakes.
    pub(crate) fn toggle(&mut self, ix: ProcIx) {
        let Some(group) = self.processes[ix].background else { return };
        let scenario = self.scenario.clone();
        let spec = &scenario.background[group];
        let wakes = self.processes[ix].asleep;
        let next = if wakes { spec.on_s } else { spec.off_s };
        let at_s = self.now_s + next.draw(&mut self.fate).max(1e-3);
        self.queue.push(at_s, Event::Toggle { process: ix });
        let Some(at) = self.processes[ix].node() else {
            // On its way: it does so when it has arrived, next time.
            return;
        };
        self.touch(at);
        self.nodes[at].settle(&mut self.processes[ix]);
        self.processes[ix].asleep = !wakes;
        let node = &mut self.nodes[at];
        if wakes {
            node.running += 1;
        } else {
            node.running -= 1;
        }
        self.changed(at);
        if wakes { self.decide(at) } else { self.tell_of_exit(at) }
    }
}
