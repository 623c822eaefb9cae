//! Lag: how much CPU a process has got less than its fair share of the whole cluster, in CPU seconds of speed 1.
//!
//! With 17 processes on 16 nodes greedy balancing leaves two of them at half speed to the end. Nobody is wrong, yet the
//! last ends after 450 s instead of 319. Each process therefore counts its lag, `sum of (fair - actual rate) * dt`; it is 0 at
//! birth, goes on while the process is frozen, and travels with it. [`crate::decide`] moves those that are ahead to nodes
//! whose processes are even further ahead, as soon as the difference is worth a move ([`threshold_s`]).

use crate::params::Params;
use crate::predict::Figures;
use crate::window::Window;

/// News older than so many periods does not enter the fair rate.
const MAX_AGE_PERIODS: f64 = 30.0;

/// What each process would get if all CPUs that this node knows of were shared equally, in CPU seconds of speed 1 a second:
/// speeds by processes, and no more than one CPU gives. The own speed for a cluster without processes.
pub fn fair_rate(params: &Params, own: &Figures, window: &Window, now_s: f64) -> f64 {
    let limit_s = MAX_AGE_PERIODS * params.period_s;
    let (mut speed, mut committed, mut fastest) = (own.speed * f64::from(own.cpus), f64::from(own.committed), own.speed);
    for heard in window.usable(params, now_s).filter(|h| h.age_s(now_s) <= limit_s) {
        let one = f64::from(heard.record.speed);
        speed += one * f64::from(heard.record.cpus);
        committed += f64::from(heard.record.committed);
        fastest = fastest.max(one);
    }
    if committed < 0.5 { fastest } else { fastest.min(speed / committed) }
}

/// The lag after `dt_s` seconds with these rates. Rates or times that are no numbers change nothing.
pub fn accrue(lag_s: f64, fair: f64, actual: f64, dt_s: f64) -> f64 {
    let change = (fair - actual) * dt_s.max(0.0);
    if change.is_finite() { lag_s + change } else { lag_s }
}

/// Difference of lags that is worth moving a process of this cost and age: `max(floor, 0.3 sqrt(cost * age), 0.015 age)`.
/// The root weighs the loss by moving often against that by sharing unevenly; the share of the age keeps the number of
/// moves of a long run to its logarithm.
pub fn threshold_s(params: &Params, cost_s: f64, wall_age_s: f64) -> f64 {
    let (cost_s, age_s) = (cost_s.max(0.0), wall_age_s.max(0.0));
    params.rotation_floor_s.max(params.rotation_cost_factor * (cost_s * age_s).sqrt()).max(params.rotation_age_share * age_s)
}

/// Mean and minimum of a node's lags, as its record carries them. Zeros without processes.
pub fn summary(lags: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut sum, mut least) = (0_u32, 0.0, f64::INFINITY);
    for lag in lags.into_iter().filter(|l| l.is_finite()) {
        count += 1;
        sum += lag;
        least = least.min(lag);
    }
    if count == 0 { (0.0, 0.0) } else { (sum / f64::from(count), least) }
}
