//! The output of a code family: generator blocks, and the structure that selects the decoder.

use crate::error::{Error, Result};

/// Maximum number of parts of one side: condition numbers exceed the range of f64 well before.
pub(super) const MAX_PARTS: usize = 4096;

/// Maximum number of parts of a layer.
const MAX_PRODUCT: usize = 1 << 20;

/// The structure of the recovery matrix, which selects the decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Structure {
    /// Each subtask rotates by a multiple of this angle; the complex fast path applies.
    Rotation {
        /// theta = 2 pi / q.
        theta: f64,
    },
    /// Each subtask has one combination of all parts; decoding multiplies by the real pseudo-inverse.
    Dense,
    /// Subtask i is part i mod k_A k_B: decoding copies.
    Selection,
}

/// The generator blocks of a family.
pub(super) struct Generators {
    pub(super) n: usize,
    pub(super) l_a: usize,
    pub(super) l_b: usize,
    pub(super) input_blocks: Vec<f64>,
    pub(super) filter_blocks: Vec<f64>,
}

/// k_A k_B: the degree of the families with one coded slab and bank a subtask, which accept any whole numbers.
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
