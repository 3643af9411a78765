//! Count sketches: a result of any size as 64 numbers that are linear in it.
//!
//! Relevant if you want to audit results. Invariant: one [`Sketcher`] is a linear map, the same for every slice of its
//! length, so that a linear relation between results holds between their sketches. It preserves the squared norm in
//! expectation over its random signs.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::array::Element;

/// The number of values of a sketch.
pub(super) const LANES: usize = 64;

/// Accumulators that successive blocks take in turn. With a single one, a block at another shift than its predecessor
/// would have to wait for the stores of the latter.
const BANKS: usize = 4;

/// A random linear map from `elems` numbers to [`Sketch`]es.
///
/// Element i is added with a random sign to lane `(i + shift) mod 64`; each block of 64 elements has its own random
/// shift. Without the shifts an error in every 16th element, as from a broken vector unit, would fall into four lanes
/// and cancel there with noticeable probability.
#[derive(Clone, Debug)]
pub struct Sketcher {
    elems: usize,
    blocks: Vec<Block>,
}

/// Signs and shift of a block of 64 elements.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Bit l: the sign of element l.
    signs: u64,
    /// Lane of element 0, below 64.
    shift: usize,
}

/// The sketch of one result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sketch(
    /// The 64 sums, in the unit of the elements.
    pub [f64; LANES],
);

impl Sketcher {
    /// The map that `seed` defines for slices of `elems` numbers. Takes a quarter of a byte for each element.
    #[must_use]
    pub fn new(elems: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut block = || Block { signs: random.next_u64(), shift: random.random_range(0..LANES) };
        Self { elems, blocks: (0..elems.div_ceil(LANES)).map(|_| block()).collect() }
    }

    /// The length of the slices that this sketches.
    #[must_use]
    pub fn elems(&self) -> usize {
        self.elems
    }

    /// The sketch of `values`: one pass with one addition for each element, summed in f64 in an order that does not
    /// depend on the CPU.
    ///
    /// # Panics
    /// When the length of `values` differs from [`elems`](Self::elems).
    #[must_use]
    pub fn sketch<T: Element>(&self, values: &[T]) -> Sketch {
        assert_eq!(values.len(), self.elems, "a sketcher is made for one length");
        pulp::Arch::new().dispatch(Pass { blocks: &self.blocks, values })
    }
}

/// [`body`] as something that can be compiled once for each instruction set.
struct Pass<'a, T> {
    blocks: &'a [Block],
    values: &'a [T],
}

impl<T: Element> pulp::WithSimd for Pass<'_, T> {
    type Output = Sketch;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Sketch {
        body(self.blocks, self.values)
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn body<T: Element>(blocks: &[Block], values: &[T]) -> Sketch {
    // Twice as many lanes, folded at the end, so that a shifted block needs no wraparound.
    let mut sums = [[0.0_f64; 2 * LANES]; BANKS];
    let mut chunks = values.chunks_exact(LANES);
    for (at, (values, block)) in (&mut chunks).zip(blocks).enumerate() {
        let sums = &mut sums[at % BANKS][block.shift % LANES..][..LANES];
        for lane in 0..LANES {
            sums[lane] += signed(values[lane], block.signs, lane);
        }
    }
    let rest = chunks.remainder();
    if let Some(block) = blocks.last() {
        for (lane, value) in rest.iter().enumerate() {
            sums[0][block.shift % LANES + lane] += signed(*value, block.signs, lane);
        }
    }
    Sketch(std::array::from_fn(|lane| sums.iter().map(|sums| sums[lane] + sums[lane + LANES]).sum()))
}

/// The value, negated where bit `lane` is set, by moving that bit to the sign.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn signed<T: Element>(value: T, signs: u64, lane: usize) -> f64 {
    f64::from_bits(value.to_f64().to_bits() ^ ((signs << (LANES - 1 - lane)) & (1 << 63)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: u64) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    fn square(values: &[f64]) -> f64 {
        values.iter().map(|value| value * value).sum()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits_and_it_is_the_map_described() {
        for len in [0, 1, 63, 64, 65, 128, 1000, 4099] {
            let sketcher = Sketcher::new(len, 1);
            let values: Vec<f32> = values(len, 2).into_iter().map(f32::from_f64).collect();
            let sketch = sketcher.sketch(&values);
            assert_eq!(sketch, body(&sketcher.blocks, &values));
            let mut naive = [0.0; LANES];
            for (i, value) in values.iter().enumerate() {
                let block = sketcher.blocks[i / LANES];
                let sign = if block.signs >> (i % LANES) & 1 == 1 { -1.0 } else { 1.0 };
                naive[(i + block.shift) % LANES] += sign * f64::from(*value);
            }
            let difference: Vec<f64> = naive.iter().zip(sketch.0).map(|(a, b)| a - b).collect();
            assert!(square(&difference) <= 1e-28 * square(&naive), "{len} elements");
            assert_eq!(sketcher.elems(), len);
        }
    }

    #[test]
    fn sums_of_results_are_sums_of_sketches_and_other_seeds_are_other_maps() {
        let (a, b) = (values(777, 3), values(777, 4));
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 2.0 * a - b).collect();
        let distance = |one: &Sketcher, other: &Sketcher| {
            let (a, b, sum) = (one.sketch(&a), one.sketch(&b), other.sketch(&sum));
            square(&std::array::from_fn::<_, LANES, _>(|lane| 2.0 * a.0[lane] - b.0[lane] - sum.0[lane]))
        };
        let one = Sketcher::new(777, 5);
        assert!(distance(&one, &one.clone()) < 1e-24);
        assert!(distance(&one, &Sketcher::new(777, 6)) > 1.0);
    }

    #[test]
    fn norms_are_kept_wherever_the_values_lie() {
        let len = 64 * 64;
        // Everywhere, one element, a run, a column of an image, one lane of a vector unit. Errors that share a lane
        // could cancel.
        let where_to: [(&str, fn(usize) -> bool); 5] = [
            ("everywhere", |_| true),
            ("one", |i| i == 1234),
            ("run", |i| (100..140).contains(&i)),
            ("column", |i| i % 64 == 3),
            ("vector lane", |i| i % 16 == 5),
        ];
        for (name, at) in where_to {
            let values: Vec<f64> =
                values(len, 7).into_iter().enumerate().map(|(i, v)| if at(i) { v } else { 0.0 }).collect();
            let (mut mean, trials) = (0.0, 1000);
            for seed in 0..trials {
                let ratio = square(&Sketcher::new(len, seed).sketch(&values).0) / square(&values);
                // Half the norm is the margin that the audit assumes.
                assert!(ratio > 0.25, "{name}, seed {seed}: {ratio}");
                mean += ratio / trials as f64;
            }
            assert!((mean - 1.0).abs() < 0.03, "{name}: {mean}");
        }
    }
}
