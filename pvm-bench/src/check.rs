//! A run is only believed if the nodes got the CPU they were entitled to.
//!
//! Entitlement is CPU received / CPU entitled of a node that wanted its CPU during the whole run. Below
//! [`MIN_ENTITLEMENT`] something else on the machine starved the lab; the run is repeated once, and the better one is
//! reported with its ratio, so that a reader can judge.

use crate::Result;

/// Lowest ratio at which a run is believed at once.
pub const MIN_ENTITLEMENT: f64 = 0.98;

/// Something that was measured and knows its entitlement.
pub trait Measured {
    /// CPU received / CPU entitled of the worst served node that was busy all the time.
    fn entitlement(&self) -> f64;
}

/// Runs, and once more if the nodes were starved. Returns the better run and whether it was repeated.
///
/// # Errors
/// The first error of a run.
pub fn checked<T: Measured>(mut run: impl FnMut() -> Result<T>) -> Result<(T, bool)> {
    let first = run()?;
    if first.entitlement() >= MIN_ENTITLEMENT {
        return Ok((first, false));
    }
    let second = run()?;
    Ok((if second.entitlement() > first.entitlement() { second } else { first }, true))
}

/// The lowest ratio among the nodes that were busy all the time; 0 if there was none.
pub fn lowest(ratios: &[f64], is_busy: impl Fn(usize) -> bool) -> f64 {
    let busy = ratios.iter().enumerate().filter(|(index, _)| is_busy(*index)).map(|(_, ratio)| *ratio);
    busy.reduce(f64::min).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Measured for f64 {
        fn entitlement(&self) -> f64 {
            *self
        }
    }

    #[test]
    fn a_starved_run_is_repeated_once() {
        let run = |results: &[f64]| {
            let mut results = results.iter().copied();
            checked(|| Ok(results.next().unwrap())).unwrap()
        };
        assert_eq!(run(&[0.99]), (0.99, false));
        assert_eq!(run(&[0.5, 0.99]), (0.99, true));
        assert_eq!(run(&[0.5, 0.4]), (0.5, true));
    }

    #[test]
    fn idle_nodes_do_not_count() {
        assert_eq!(lowest(&[0.99, 0.1, 0.98], |index| index != 1), 0.98);
        assert_eq!(lowest(&[0.99], |_| false), 0.0);
    }
}
