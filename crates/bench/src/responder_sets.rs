//! Enumerates or samples the sets of missing subtasks. If they are too many, the sample includes sets known to be bad.
//!
//! Invariant: sets are ascending and have the requested size; equal arguments give equal sets in equal order.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

/// How to choose the sets to examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// All sets are examined if there are at most this many.
    pub limit: usize,
    /// Random sets to draw if there are more.
    pub samples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Sets of missing subtasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSets {
    /// Every set, or distinct random sets. Quantiles are taken over these.
    pub typical: Vec<Vec<usize>>,
    /// Sets known to be bad; empty if `typical` has every set.
    pub structured: Vec<Vec<usize>>,
    /// Whether `typical` has every set.
    pub exhaustive: bool,
}

/// The binomial coefficient C(n, k); `u128::MAX` if it (or an intermediate product) overflows.
#[must_use]
pub fn binomial(n: usize, k: usize) -> u128 {
    if k > n {
        return 0;
    }
    let mut ways = 1_u128;
    for i in 0..k.min(n - k) {
        // Exact: the product so far is C(n, i + 1) times (i + 1).
        let Some(product) = ways.checked_mul((n - i) as u128) else { return u128::MAX };
        ways = product / (i as u128 + 1);
    }
    ways
}

impl MissingSets {
    /// Sets of `missing` of `n` subtasks.
    ///
    /// # Panics
    /// If `missing` exceeds `n`.
    #[must_use]
    pub fn new(n: usize, missing: usize, sampling: &Sampling) -> Self {
        assert!(missing <= n, "no more can be missing than there are");
        if binomial(n, missing) <= sampling.limit as u128 {
            return Self { typical: all(n, missing), structured: Vec::new(), exhaustive: true };
        }
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        // Each (n, missing) has its own random stream; codes of the same size meet the same sets.
        random.set_stream((n as u64) << 32 | missing as u64);
        let draws =
            (0..sampling.samples).map(|_| ascending(index::sample(&mut random, n, missing).into_vec()));
        let mut seen = BTreeSet::new();
        let typical = draws.filter(|set| seen.insert(set.clone())).collect();
        Self { typical, structured: structured(n, missing), exhaustive: false }
    }

    /// The number of sets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.typical.len() + self.structured.len()
    }

    /// Whether there are no sets, because no samples were requested.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The complement of `missing`: the subtasks that have answered.
#[must_use]
pub fn responders(n: usize, missing: &[usize]) -> Vec<usize> {
    (0..n).filter(|i| missing.binary_search(i).is_err()).collect()
}

fn ascending(mut set: Vec<usize>) -> Vec<usize> {
    set.sort_unstable();
    set
}

/// Every subset of this size, in lexicographic order.
fn all(n: usize, size: usize) -> Vec<Vec<usize>> {
    let mut sets = Vec::new();
    let mut set: Vec<usize> = (0..size).collect();
    loop {
        sets.push(set.clone());
        let Some(at) = (0..size).rev().find(|at| set[*at] < n - size + at) else { return sets };
        set[at] += 1;
        for next in at + 1..size {
            set[next] = set[next - 1] + 1;
        }
    }
}

/// Known bad sets: runs of neighbours (the worst case of rotation codes and, at the ends, of polynomial codes), every
/// second subtask, two opposite runs, and the most even spread.
fn structured(n: usize, size: usize) -> Vec<Vec<usize>> {
    let run = |first: usize, size: usize| (first..first + size).map(move |i| i % n);
    let mut sets: BTreeSet<Vec<usize>> = (0..n).map(|first| ascending(run(first, size).collect())).collect();
    for odd in 0..2 {
        let others = (1 - odd..n).step_by(2);
        sets.insert(ascending((odd..n).step_by(2).chain(others).take(size).collect()));
    }
    let half = size / 2;
    let opposite: BTreeSet<usize> = run(0, half).chain(run(n / 2, size - half)).collect();
    let even: BTreeSet<usize> = (0..size).map(|i| i * n / size).collect();
    sets.extend([opposite, even].into_iter().map(|set| set.into_iter().collect()));
    sets.retain(|set| set.len() == size);
    sets.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(limit: usize, samples: usize) -> Sampling {
        Sampling { limit, samples, seed: 3 }
    }

    #[test]
    fn binomials_are_exact_and_never_overflow() {
        for (n, k, ways) in
            [(0, 0, 1), (5, 0, 1), (5, 6, 0), (20, 4, 4845), (24, 16, 735_471), (31, 28, 4495)]
        {
            assert_eq!(binomial(n, k), ways, "{n}, {k}");
        }
        assert_eq!(binomial(40, 32), 76_904_685);
        assert_eq!(binomial(100, 50), 100_891_344_545_564_193_334_812_497_256);
        assert_eq!(binomial(usize::MAX, usize::MAX / 2), u128::MAX);
    }

    #[test]
    fn small_families_are_complete() {
        for (n, missing) in [(1, 0), (1, 1), (6, 2), (9, 4), (20, 4)] {
            let sets = MissingSets::new(n, missing, &sampling(5000, 1));
            let distinct: BTreeSet<_> = sets.typical.iter().collect();
            assert!(sets.exhaustive && sets.structured.is_empty());
            assert_eq!((distinct.len() as u128, sets.len()), (binomial(n, missing), distinct.len()));
        }
    }

    #[test]
    fn samples_are_distinct_and_accompanied_by_bad_cases() {
        for (n, missing) in [(5, 1), (6, 4), (24, 8), (25, 7), (60, 1), (60, 59)] {
            let sets = MissingSets::new(n, missing, &sampling(2, 300));
            assert!(!sets.exhaustive && !sets.is_empty());
            assert_eq!(sets.typical.iter().collect::<BTreeSet<_>>().len(), sets.typical.len());
            for set in sets.typical.iter().chain(&sets.structured) {
                assert!(set.len() == missing && set.is_sorted() && set.iter().all(|i| *i < n), "{set:?}");
                assert_eq!(responders(n, set).len(), n - missing);
            }
            assert!((0..n).all(|first| {
                let run = ascending((first..first + missing).map(|i| i % n).collect());
                sets.structured.contains(&run)
            }));
        }
        let of = |seed| MissingSets::new(24, 8, &Sampling { seed, ..sampling(2, 50) });
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).typical, of(2).typical);
        assert!(MissingSets::new(24, 8, &sampling(0, 0)).typical.is_empty());
    }
}
