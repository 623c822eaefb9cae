//! Looking on: is the cluster balanced, and is everything where it should be?

use mosix_policy::{Figures, time_per_work};

use crate::event::Event;
use crate::process::Place;
use crate::transfer::Transfer;
use crate::world::World;

/// Looks in a period.
const SAMPLES_A_PERIOD: f64 = 10.0;

impl World {
    /// Whether no move would make any process faster, if everybody knew everything.
    pub(crate) fn look_whether_balanced(&mut self) {
        if self.metrics.births > 0 && self.groups_open == 0 && self.alive > 0 {
            let figures: Vec<Figures> = (0..self.nodes.len()).filter(|n| self.nodes[*n].up).map(|n| self.figures(n)).collect();
            let slowest = figures.iter().filter(|f| f.committed > 0).map(|f| time_per_work(f, 0.0)).fold(0.0, f64::max);
            let best = figures.iter().map(|f| time_per_work(&f.with_one_more(0), 0.0)).fold(f64::INFINITY, f64::min);
            if slowest - best <= self.params.margin {
                self.metrics.balanced_s = Some(self.now_s - self.metrics.last_birth_s);
                return;
            }
        }
        self.queue.push(self.now_s + self.params.period_s / SAMPLES_A_PERIOD, Event::Sample);
    }

    /// Each process at exactly one place, and all counts true.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let mut seen = vec![0_u32; self.processes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            let awake = node.processes.iter().filter(|p| !self.processes[**p].asleep).count();
            if awake != node.running as usize {
                return Err(format!("node {at} counts {} running of {awake}", node.running));
            }
            for &p in &node.processes {
                seen[p] += 1;
                if self.processes[p].place != Place::At(at) {
                    return Err(format!("process {p} is listed at node {at}, but is {:?}", self.processes[p].place));
                }
            }
            let frozen = |t: &&Transfer| t.from == at && matches!(self.processes[t.process].place, Place::Between { .. });
            let between = self.transfers.iter().flatten().filter(frozen).count();
            if between != node.frozen as usize {
                return Err(format!("node {at} holds {} frozen bodies of {between}", node.frozen));
            }
        }
        for t in self.transfers.iter().flatten() {
            seen[t.process] += u32::from(matches!(self.processes[t.process].place, Place::Between { .. }));
        }
        for (p, (process, seen)) in self.processes.iter().zip(&seen).enumerate() {
            let expected = u32::from(matches!(process.place, Place::At(_) | Place::Between { .. }));
            if *seen != expected {
                return Err(format!("process {p} is {:?}, but was found {seen} times", process.place));
            }
        }
        Ok(())
    }
}
