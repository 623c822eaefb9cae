//! What is possible: the bounds against which balancing is measured.
//!
//! For `k` equal processes of `work_s` CPU seconds on `nodes` equal nodes of one CPU each. [`greedy_s`] is the
//! "optimal" column of Barak, Braverman, Gilderman and Laden (1996): loads differ by at most one at any time, and
//! nothing moves while they do. [`bound_s`] is what no schedule can beat.

/// Seconds until the last process ends under greedy balancing without cost: with `q = k / nodes` and `m = k % nodes`,
/// the nodes with `q` processes finish after `q * r`; what is left of the others is spread evenly; and so on.
/// 0 if there are no processes, infinite if there are no nodes.
pub fn greedy_s(k: u32, nodes: u32, work_s: f64) -> f64 {
    if k == 0 {
        return 0.0;
    }
    if nodes == 0 {
        return f64::INFINITY;
    }
    let (mut k, mut left_s, mut total_s) = (u64::from(k), work_s, 0.0);
    let nodes = u64::from(nodes);
    loop {
        let (q, m) = (k / nodes, k % nodes);
        if q == 0 {
            return total_s + left_s;
        }
        total_s += q as f64 * left_s;
        if m == 0 {
            return total_s;
        }
        // Each process of a node with q + 1 has got q * r / (q + 1) of its r.
        k = m * (q + 1);
        left_s /= (q + 1) as f64;
        // The series ends by itself for most k; for the others it converges faster than doubles can tell.
        if left_s < work_s * 1e-15 {
            return total_s;
        }
    }
}

/// The work bound (McNaughton): `max(work_s, k * work_s / nodes)`. 0 if there are no processes, infinite if there are no
/// nodes.
pub fn bound_s(k: u32, nodes: u32, work_s: f64) -> f64 {
    if k == 0 {
        return 0.0;
    }
    (f64::from(k) * work_s / f64::from(nodes)).max(work_s)
}

/// The least time in which processes of these CPU seconds can all end on single CPUs of these speeds, with free preemption and
/// migration by somebody who knows all lengths (Horvath, Lam, Sethi 1977): no `k` longest processes can get more than the
/// `k` fastest CPUs give, and all together no more than all CPUs. 0 without processes, infinite without speed.
pub fn clairvoyant_s(works_s: &[f64], speeds: &[f64]) -> f64 {
    let (mut works, mut speeds) = (works_s.to_vec(), speeds.to_vec());
    works.sort_by(|a, b| b.total_cmp(a));
    speeds.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = speeds.iter().fold(0.0, |sum, s| sum + s);
    let (mut work, mut speed, mut bound_s) = (0.0, 0.0, 0.0_f64);
    for (i, one) in works.iter().enumerate() {
        work += one;
        speed += speeds.get(i).copied().unwrap_or(0.0);
        if i < speeds.len() {
            bound_s = bound_s.max(work / speed);
        }
    }
    if works.is_empty() { 0.0 } else { bound_s.max(work / total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// k, the rule's value, the bound; for 16 nodes and 300 s. All 19 rows of the paper's table 1, and 30.
    const ROWS: [(u32, f64, f64); 20] = [
        (1, 300.0, 300.0),
        (2, 300.0, 300.0),
        (4, 300.0, 300.0),
        (8, 300.0, 300.0),
        (16, 300.0, 300.0),
        (17, 450.0, 318.75),
        (20, 450.0, 375.0),
        (24, 450.0, 450.0),
        (25, 525.0, 468.75),
        (27, 525.0, 506.25),
        (30, 562.5, 562.5),
        (31, 581.25, 581.25),
        (32, 600.0, 600.0),
        (33, 700.0, 618.75),
        (36, 700.0, 675.0),
        (38, 750.0, 712.5),
        (40, 750.0, 750.0),
        (43, 2500.0 / 3.0, 806.25),
        (47, 2650.0 / 3.0, 881.25),
        (48, 900.0, 900.0),
    ];

    #[test]
    fn table_1_is_reproduced() {
        for (k, greedy, bound) in ROWS {
            assert!((greedy_s(k, 16, 300.0) - greedy).abs() < 1e-6, "greedy {k}: {}", greedy_s(k, 16, 300.0));
            assert!((bound_s(k, 16, 300.0) - bound).abs() < 1e-9, "bound {k}: {}", bound_s(k, 16, 300.0));
        }
    }

    #[test]
    fn the_clairvoyant_optimum_is_the_bound_on_equal_nodes() {
        for (k, _, bound) in ROWS {
            let found = clairvoyant_s(&vec![300.0; k as usize], &[1.0; 16]);
            assert!((found - bound).abs() < 1e-9, "{k}: {found}");
        }
        let mut speeds = vec![1.0; 12];
        speeds.extend([1.0 / 3.0; 4]);
        for (k, optimum) in [(12, 300.0), (20, 450.0), (28, 630.0)] {
            let found = clairvoyant_s(&vec![300.0; k], &speeds);
            assert!((found - optimum).abs() < 1e-6, "{k}: {found}");
        }
        assert_eq!(clairvoyant_s(&[], &[1.0]), 0.0);
        assert!(clairvoyant_s(&[1.0], &[]).is_infinite());
    }

    #[test]
    fn greedy_is_never_below_the_bound_and_ends() {
        for nodes in 1..40 {
            for k in 0..200 {
                let (greedy, bound) = (greedy_s(k, nodes, 300.0), bound_s(k, nodes, 300.0));
                assert!(greedy >= bound - 1e-6, "{k} on {nodes}: {greedy} < {bound}");
                assert!(greedy <= 2.0 * bound + 1e-6, "{k} on {nodes}: {greedy} > 2 * {bound}");
            }
        }
        assert!(greedy_s(1, 0, 1.0).is_infinite() && bound_s(1, 0, 1.0).is_infinite());
        assert!(greedy_s(u32::MAX, 3, 300.0).is_finite());
    }
}
