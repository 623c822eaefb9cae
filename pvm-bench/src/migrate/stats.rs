//! Percentiles of a few dozen figures.

/// What is said of a column of figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Smallest.
    pub min: f64,
    /// Half of the figures are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this; of fewer than 100 figures it is the largest.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// `None` for no figures. Percentiles by nearest rank: each is a figure that was measured.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { min: *sorted.first()?, p50: nearest_rank(&sorted, 50)?, p99: nearest_rank(&sorted, 99)?, max: *sorted.last()? })
    }
}

/// The smallest of the sorted figures that at least `percent` of 100 do not exceed.
fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_figure_is_everything() {
        assert_eq!(Summary::of(&[3.0]), Some(Summary { min: 3.0, p50: 3.0, p99: 3.0, max: 3.0 }));
    }

    #[test]
    fn percentiles_are_measured_figures() {
        let figures: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&figures), Some(Summary { min: 1.0, p50: 25.0, p99: 50.0, max: 50.0 }));
        let figures: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(Summary::of(&figures), Some(Summary { min: 1.0, p50: 100.0, p99: 198.0, max: 200.0 }));
    }
}
