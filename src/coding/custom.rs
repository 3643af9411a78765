//! Codes of the caller's own, from generator blocks.
//!
//! Relevant if you study a code that this library does not have. [`Code::from_generators`] takes the blocks; layers take the
//! code by [`LayerOptions::own_code`](crate::LayerOptions::own_code). Such a code is encoded and decoded by the generic path:
//! any set of sub-results, by the pseudo-inverse of its recovery matrix.
//!
//! Invariant: the recovery threshold of a code is one that all its sets of subtasks, or a fixed sample of them, fulfil.

use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::code::Code;
use super::decoder::SINGULAR;
use super::generators::{Structure, product};
use super::kind::CodeKind;
use crate::error::{Error, Result};

/// Up to this number of responder sets of one size, all are looked at; of more, this number is drawn.
const SETS: usize = 2000;

/// Maximum number of values of the generator blocks of one side.
const MOST_VALUES: usize = 1 << 26;

impl Code {
    /// A code given by its generator blocks: A_i, k_A x l_A, for the slabs of subtask i, and B_i, k_B x l_B, for its filter
    /// banks, each row-major and one after the other. Its recovery threshold is the smallest delta such that any delta
    /// subtasks determine the parts. Where a size has more than 2000 sets of subtasks, 2000 random ones are looked at; a set
    /// that turns out to be singular is not decoded, and a run then waits for one more result.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for no subtasks, sizes of zero, or values that are not finite; [`Error::Mismatch`] for
    /// blocks of another number of values; [`Error::Singular`] if even all subtasks do not determine the parts.
    ///
    /// # Examples
    ///
    /// ```
    /// use fcdcc::coding::Code;
    ///
    /// // The two halves of the input, and their sum: any two of three subtasks.
    /// let code = Code::from_generators(3, (2, 1), (1, 1), vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0], vec![1.0; 3])?;
    /// assert_eq!((code.recovery_threshold(), code.tolerated()), (2, 1));
    /// # Ok::<(), fcdcc::Error>(())
    /// ```
    pub fn from_generators(
        n: usize,
        (k_a, l_a): (usize, usize),
        (k_b, l_b): (usize, usize),
        input_blocks: Vec<f64>,
        filter_blocks: Vec<f64>,
    ) -> Result<Self> {
        product(k_a, k_b)?;
        for (what, got) in [("number of subtasks n", n), ("l_A", l_a), ("l_B", l_b)] {
            if got == 0 {
                return Err(Error::invalid(what, 0, "use at least one"));
            }
        }
        let sides = [("A", k_a, l_a, &input_blocks), ("B", k_b, l_b, &filter_blocks)];
        for (side, k, l, blocks) in sides {
            let expected =
                n.checked_mul(k).and_then(|size| size.checked_mul(l)).filter(|s| *s <= MOST_VALUES);
            if expected != Some(blocks.len()) {
                let expected = format!("n k l = {n} x {k} x {l}");
                let help = "give one block for each subtask";
                return Err(Error::mismatch(
                    format!("values of the blocks {side}"),
                    blocks.len(),
                    expected,
                    help,
                ));
            }
            if let Some(value) = blocks.iter().find(|value| !value.is_finite()) {
                return Err(Error::invalid(
                    format!("a value of the blocks {side}"),
                    *value,
                    "give finite numbers",
                ));
            }
        }
        let mut code = Self {
            kind: CodeKind::Custom,
            n,
            k_a,
            k_b,
            l_a,
            l_b,
            recovery_threshold: 1,
            structure: Structure::Dense,
            input_blocks,
            filter_blocks,
        };
        code.recovery_threshold = code.threshold()?;
        Ok(code)
    }

    /// The smallest number of subtasks any set of which determines the parts.
    fn threshold(&self) -> Result<usize> {
        let least = (self.k_a * self.k_b).div_ceil(self.l_a * self.l_b);
        let all: Vec<usize> = (0..self.n).collect();
        // Fewer columns than parts: singular by their number.
        let condition = if least > self.n { f64::INFINITY } else { self.condition(&all) };
        if condition > SINGULAR {
            return Err(Error::Singular { subtasks: all, condition });
        }
        // A set determines the parts if a part of it does: the sizes that suffice are those from one on.
        let (mut fails, mut suffices) = (least - 1, self.n);
        while suffices - fails > 1 {
            let middle = fails.midpoint(suffices);
            if self.all_determine(middle) {
                suffices = middle;
            } else {
                fails = middle;
            }
        }
        Ok(suffices)
    }

    /// Whether every set of `size` subtasks that is looked at determines the parts.
    fn all_determine(&self, size: usize) -> bool {
        let determines = |set: &[usize]| self.condition(set) <= SINGULAR;
        if binomial(self.n, size).is_some_and(|sets| sets <= SETS) {
            let mut set: Vec<usize> = (0..size).collect();
            loop {
                if !determines(&set) {
                    return false;
                }
                let Some(last) = (0..size).rev().find(|at| set[*at] < self.n - size + at) else {
                    return true;
                };
                set[last] += 1;
                for at in last + 1..size {
                    set[at] = set[at - 1] + 1;
                }
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        (0..SETS).all(|_| {
            let mut set = sample(&mut rng, self.n, size).into_vec();
            set.sort_unstable();
            determines(&set)
        })
    }
}

/// Number of sets of `size` among `n`; `None` beyond the range.
fn binomial(n: usize, size: usize) -> Option<usize> {
    (0..size.min(n - size)).try_fold(1usize, |sets, i| Some(sets.checked_mul(n - i)? / (i + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::Decoder;

    fn blocks(code: &Code) -> (Vec<f64>, Vec<f64>) {
        (code.input_blocks.clone(), code.filter_blocks.clone())
    }

    #[test]
    fn a_family_rebuilt_from_its_blocks_has_its_threshold_and_conditions() {
        let rows = [
            (CodeKind::Crme, 4, 4, 6),
            (CodeKind::Crme, 4, 8, 10),
            (CodeKind::Chebyshev, 2, 2, 6),
            (CodeKind::KhatriRao, 3, 2, 9),
        ];
        for (kind, k_a, k_b, n) in rows {
            let own = Code::new(kind, k_a, k_b, n).unwrap();
            let (a, b) = blocks(&own);
            let code = Code::from_generators(n, (k_a, own.l_a()), (k_b, own.l_b()), a, b).unwrap();
            assert_eq!(code.recovery_threshold(), own.recovery_threshold(), "{kind}");
            let set: Vec<usize> = (n - own.recovery_threshold()..n).collect();
            let (got, expected) = (code.condition(&set), own.condition(&set));
            assert!((got / expected - 1.0).abs() < 1e-6, "{kind}: {got} and {expected}");
            assert!(Decoder::for_subtasks(&code, &set).is_ok(), "{kind}");
            assert!(Decoder::for_subtasks(&code, &set[1..]).is_err(), "{kind}");
        }
    }

    #[test]
    fn copies_raise_the_threshold_and_singular_codes_are_refused() {
        // Subtasks 0 and 1 are copies: two of them do not determine two parts.
        let code = Code::from_generators(3, (2, 1), (1, 1), vec![1.0, 0.0, 1.0, 0.0, 0.0, 1.0], vec![1.0; 3]);
        assert_eq!(code.unwrap().recovery_threshold(), 3);
        let error = Code::from_generators(3, (2, 1), (1, 1), [1.0, 0.0].repeat(3), vec![1.0; 3]).unwrap_err();
        assert!(matches!(error, Error::Singular { .. }), "{error}");
        let error = Code::from_generators(3, (2, 1), (1, 1), vec![1.0; 5], vec![1.0; 3]).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        let error = Code::from_generators(1, (1, 1), (1, 1), vec![f64::NAN], vec![1.0]).unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }), "{error}");
    }
}
