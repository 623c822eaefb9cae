//! Random quantities of a scenario.

use mosix_policy::Dice;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{Result, bad};

/// A number, or a distribution from which it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Chance {
    /// Always this.
    Constant(f64),
    /// Any in between, equally likely.
    Uniform {
        /// Least and most.
        uniform: [f64; 2],
    },
    /// Exponential.
    Exponential {
        /// Its mean.
        exponential: f64,
    },
    /// Bounded Pareto: heavy-tailed, as lifetimes of processes are.
    Pareto {
        /// Exponent, least and most.
        pareto: [f64; 3],
    },
}

impl Chance {
    /// Checks that all values that it can take are within `low..=high`.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn check(&self, what: &str, low: f64, high: f64) -> Result<()> {
        let within = |x: f64| x >= low && x <= high;
        let fine = match *self {
            Self::Constant(x) => within(x),
            Self::Uniform { uniform: [a, b] } => within(a) && within(b) && a <= b,
            Self::Exponential { exponential } => exponential > 0.0 && within(exponential),
            Self::Pareto { pareto: [alpha, a, b] } => alpha > 0.0 && alpha <= 100.0 && a > 0.0 && within(a) && within(b) && a < b,
        };
        if fine { Ok(()) } else { Err(bad(what, format!("must be from {low} to {high}, a distribution with its bounds in order"))) }
    }

    /// Draws one.
    pub(crate) fn draw(&self, rng: &mut Dice) -> f64 {
        match *self {
            Self::Constant(x) => x,
            Self::Uniform { uniform: [a, b] } => a + (b - a) * rng.random::<f64>(),
            Self::Exponential { exponential } => -exponential * (1.0 - rng.random::<f64>()).ln(),
            Self::Pareto { pareto: [alpha, low, high] } => {
                let u: f64 = rng.random();
                let ratio = (low / high).powf(alpha);
                low / (1.0 - u * (1.0 - ratio)).powf(1.0 / alpha)
            }
        }
    }
}
