//! No code: subtask i is part (i / k_B, i mod k_B), and every part is needed. The baseline.

use super::generators::{Generators, Structure};
use crate::error::{Error, Result};

/// k_A k_B, which is both n and the recovery threshold.
pub(super) fn parts(k_a: usize, k_b: usize) -> Result<usize> {
    k_a.checked_mul(k_b).filter(|parts| (1..=1 << 20).contains(parts)).ok_or_else(|| {
        Error::invalid(
            "partitions k_A,k_B",
            format!("{k_a},{k_b}"),
            "both must be at least 1 and few enough to hold",
        )
    })
}

/// Generator blocks: one 1 in every column.
pub(super) fn generators(k_a: usize, k_b: usize) -> (Structure, Generators) {
    let n = k_a * k_b;
    let unit = |k: usize, one: usize| (0..k).map(move |row| if row == one { 1.0 } else { 0.0 });
    let generators = Generators {
        n,
        l_a: 1,
        l_b: 1,
        input_blocks: (0..n).flat_map(|i| unit(k_a, i / k_b)).collect(),
        filter_blocks: (0..n).flat_map(|i| unit(k_b, i % k_b)).collect(),
    };
    (Structure::Selection, generators)
}
