//! No code: subtask i computes part i mod k_A k_B, which is one slab under one filter bank. With as many subtasks as
//! parts each is needed (the baseline); with more there are copies (replication).

use super::generators::{Generators, Structure};

/// Generator blocks: one 1 in every column.
pub(super) fn generators(k_a: usize, k_b: usize, n: usize) -> (Structure, Generators) {
    let unit = |k: usize, one: usize| (0..k).map(move |row| if row == one { 1.0 } else { 0.0 });
    let generators = Generators {
        n,
        l_a: 1,
        l_b: 1,
        input_blocks: (0..n).flat_map(|i| unit(k_a, i % (k_a * k_b) / k_b)).collect(),
        filter_blocks: (0..n).flat_map(|i| unit(k_b, i % k_b)).collect(),
    };
    (Structure::Selection, generators)
}
