//! Placement at birth: where a program that is started through us should start.

use rand::Rng;

use crate::params::Params;
use crate::predict::{Figures, cpu_load, time_per_work};
use crate::record::NodeId;
use crate::window::Window;

/// The node where a new process is predicted to run fastest. This node wins ties: being away from home is never better.
/// Of other nodes that tie the least loaded is taken, then a random one.
///
/// If another node is chosen, this window counts one more process there until that node's next record, so that the
/// next placement sees it; if the own node is chosen, tell the [`crate::Ledger`] ([`crate::Ledger::born`]).
pub fn place(params: &Params, own: &Figures, window: &mut Window, now_s: f64, rng: &mut impl Rng) -> NodeId {
    let score = |node: &Figures| {
        let after = node.with_one_more(0);
        (time_per_work(&after, 0.0), cpu_load(&after))
    };
    let mut best = (score(own), own.node);
    let mut ties = 0_u32;
    for node in window.known(params, now_s).filter(|n| n.memory_within(params.memory_limit)) {
        let ((time, load), (best_time, best_load)) = (score(&node), best.0);
        let better = time < best_time - params.margin;
        let equal = !better && time < best_time + params.margin && best.1 != own.node;
        if better || (equal && load < best_load - params.margin) {
            ties = 1;
            best = ((time, load), node.node);
        } else if equal && load < best_load + params.margin {
            ties += 1;
            if rng.random_range(0..ties) == 0 {
                best.1 = node.node;
            }
        }
    }
    if best.1 != own.node {
        window.bump(best.1, 0);
    }
    best.1
}
