//! Random Khatri-Rao product codes (arXiv 1907.05965): every subtask combines the slabs and the banks with independent
//! normal coefficients. Any k_A k_B of the Kronecker products of these are independent with probability 1.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::generators::{Generators, Structure};
use crate::array::normal;

/// Generator blocks, drawn from a stream seeded by (k_A, k_B, n): equal numbers give the same code.
pub(super) fn generators(k_a: usize, k_b: usize, n: usize) -> (Structure, Generators) {
    let mut seed = [0; 32];
    for (bytes, value) in seed.chunks_exact_mut(8).zip([k_a, k_b, n]) {
        bytes.copy_from_slice(&(value as u64).to_le_bytes());
    }
    let mut random = ChaCha8Rng::from_seed(seed);
    let mut side = |k: usize| (0..n * k).map(|_| normal(&mut random)).collect();
    let generators = Generators { n, l_a: 1, l_b: 1, input_blocks: side(k_a), filter_blocks: side(k_b) };
    (Structure::Dense, generators)
}
