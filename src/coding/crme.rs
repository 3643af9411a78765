//! Circulant and rotation matrix embeddings (arXiv 1910.06515, section III), as FCDCC uses them.

use super::generators::{Generators, MAX_PARTS, Structure};
use crate::error::{Error, Result};

/// l: the size of the rotation block of a side split into `k` parts.
pub(super) fn embedding(k: usize) -> usize {
    if k == 1 { 1 } else { 2 }
}

/// d = k / l, the complex degree of one side.
pub(super) fn degree(name: &str, k: usize) -> Result<usize> {
    if k == 0 || k > MAX_PARTS || (k > 1 && !k.is_multiple_of(2)) {
        return Err(Error::invalid(
            format!("partitions {name}"),
            k,
            format!("CRME pairs the parts: use 1 or an even number up to {MAX_PARTS}"),
        ));
    }
    Ok(k / embedding(k))
}

/// Generator blocks for valid `k_a`, `k_b` (see [`degree`]) and any `n`.
pub(super) fn generators(k_a: usize, k_b: usize, n: usize) -> (Structure, Generators) {
    let q = if n.is_multiple_of(2) { n + 1 } else { n };
    let theta = std::f64::consts::TAU / q as f64;
    let (l_a, l_b) = (embedding(k_a), embedding(k_b));
    let d_a = k_a / l_a;
    let side = |k: usize, l: usize, step: usize| {
        let mut blocks = Vec::with_capacity(n * k * l);
        for i in 0..n {
            for j in 0..k / l {
                // The angle is reduced in integers, because the cosine of a large argument would lose digits.
                let (sin, cos) = (theta * (step * j % q * i % q) as f64).sin_cos();
                if l == 1 {
                    blocks.push(1.0);
                } else {
                    blocks.extend([cos, -sin, sin, cos]);
                }
            }
        }
        blocks
    };
    let generators =
        Generators { n, l_a, l_b, input_blocks: side(k_a, l_a, 1), filter_blocks: side(k_b, l_b, d_a) };
    (Structure::Rotation { theta }, generators)
}
