//! What a code family builds: generator blocks, and the structure that decides how to decode.

use crate::error::{Error, Result};

/// Most parts of one side: condition numbers leave the range of f64 long before.
pub(super) const MAX_PARTS: usize = 4096;

/// Most parts of a layer.
const MAX_PRODUCT: usize = 1 << 20;

/// How the columns of the recovery matrix are built, which decides how to decode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Structure {
    /// Rotations by multiples of this angle a subtask; the complex fast path applies.
    Rotation {
        /// theta = 2 pi / q.
        theta: f64,
    },
    /// One combination of all parts a subtask: decoding multiplies by the real pseudo-inverse.
    Dense,
    /// Subtask i is part i mod k_A k_B: decoding copies.
    Selection,
}

/// What a family builds.
pub(super) struct Generators {
    pub(super) n: usize,
    pub(super) l_a: usize,
    pub(super) l_b: usize,
    pub(super) input_blocks: Vec<f64>,
    pub(super) filter_blocks: Vec<f64>,
}

/// k_A k_B: the degree of the families with one coded slab and bank a subtask, where any whole numbers will do.
pub(super) fn product(k_a: usize, k_b: usize) -> Result<usize> {
    let sides = 1..=MAX_PARTS;
    let product = if sides.contains(&k_a) && sides.contains(&k_b) { k_a * k_b } else { usize::MAX };
    if product > MAX_PRODUCT {
        return Err(Error::invalid(
            "partitions k_A,k_B",
            format!("{k_a},{k_b}"),
            format!(
                "both must be at least 1 and few enough: up to {MAX_PARTS}, their product up to {MAX_PRODUCT}"
            ),
        ));
    }
    Ok(product)
}
