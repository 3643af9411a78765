//! Linear relations among sub-results: the null space of a recovery matrix, and the errors that it reveals.
//!
//! Relevant if you want to change how the audit detects errors. Invariant: the columns are orthonormal up to rounding;
//! a result that is not kept takes part in no relation, so its values are not read.

use std::collections::HashMap;

use super::code::{Code, SubResult};
use super::condition::transposed;
use super::linear::Dense;
use super::sketch::{LANES, Sketch};

/// Residuals up to this multiple of what independent rounding errors of size `noise` leave raise no alarm.
///
/// Rounding errors of one subtask are not quite independent (its sub-results share coded operands: at most a factor 2
/// for four of them), and the energy of a sketch varies (64 lanes: by half, one time in 1e7). Both together stay below
/// 3 even if `noise` is exactly the true size. As an upper bound `noise` is two to ten times that, and correct results
/// of convolutions measure 0.01 to 0.15 of the threshold.
const KAPPA: f64 = 4.0;

/// Errors that would leave this multiple of the threshold are certain to be detected: their sketch may be shorter than
/// they are (by half: one time in 1e9), and rounding may have the opposite sign.
const MARGIN: f64 = 2.0;

/// Rounding of the check itself: relative error of the null space and of sums in f64. Matters for f64 workers only.
const OWN: f64 = 16.0 * f64::EPSILON;

/// Orthonormal relations among some of a list of sub-results: N with `N^T Z = 0`.
#[derive(Clone, Debug)]
pub(super) struct Relations {
    /// Indices of the kept sub-results in the list, ascending.
    kept: Vec<usize>,
    /// Columns of N, at least one.
    directions: usize,
    /// A row of N for each sub-result kept, one after the other.
    rows: Vec<f64>,
}

impl Relations {
    /// The relations of `inputs`, which must be more than k_A k_B. By QR, O(M^2 k) for M inputs and k parts.
    pub(super) fn new(code: &Code, inputs: &[SubResult]) -> Self {
        Self::of((0..inputs.len()).collect(), &transposed(code, inputs).complement())
    }

    /// The relations of the `copies` among `inputs`, at least two, which all compute `part` up to a factor.
    pub(super) fn of_copies(code: &Code, inputs: &[SubResult], copies: Vec<usize>, part: usize) -> Self {
        let factor = |copy: usize| code.recovery_column(inputs[copy]).nth(part).unwrap_or(0.0);
        let n = Dense::from_fn(copies.len(), 1, |row, _| factor(copies[row])).complement();
        Self::of(copies, &n)
    }

    fn of(kept: Vec<usize>, n: &Dense<f64>) -> Self {
        let rows = (0..n.rows()).flat_map(|row| (0..n.columns()).map(move |d| n[(row, d)])).collect();
        Self { kept, directions: n.columns(), rows }
    }

    fn rows(&self) -> impl Iterator<Item = (usize, &[f64])> {
        self.kept.iter().copied().zip(self.rows.chunks_exact(self.directions))
    }

    /// The relations that do not involve the sub-results `out`; None if none is left.
    ///
    /// They are the combinations a of the columns with `N_out a = 0`, which saves another large QR.
    pub(super) fn without(&self, out: impl Fn(usize) -> bool) -> Option<Self> {
        let (gone, stay): (Vec<_>, Vec<_>) = self.rows().partition(|(m, _)| out(*m));
        if gone.is_empty() {
            return Some(self.clone());
        }
        if gone.len() >= self.directions {
            return None;
        }
        let a = Dense::from_fn(self.directions, gone.len(), |d, row| gone[row].1[d]).complement();
        let n = Dense::from_fn(stay.len(), self.directions, |row, d| stay[row].1[d]);
        Some(Self::of(stay.into_iter().map(|(m, _)| m).collect(), &n.times(&a)))
    }

    /// Norm of the residual above which an alarm is raised, for kept results of these squared norms.
    ///
    /// Independent rounding errors e_m leave a mean energy of `sum ||N_m||^2 ||e_m||^2`.
    fn threshold(&self, energies: impl Iterator<Item = f64>, noise: f64) -> f64 {
        let explained =
            |((_, row), energy): ((usize, &[f64]), f64)| (noise * noise * square(row) + OWN * OWN) * energy;
        KAPPA * self.rows().zip(energies).map(explained).sum::<f64>().sqrt()
    }

    /// Smallest error of a group, relative to as many results of average size, that is certain to exceed the threshold,
    /// whichever group it is. `energy(m)` is the squared norm of result m.
    pub(super) fn floor(&self, groups: &[usize], energy: impl Fn(usize) -> f64, noise: f64) -> f64 {
        let mean = self.kept.iter().map(|m| energy(*m)).sum::<f64>() / self.kept.len() as f64;
        // Results that are all zero have no size to compare with; any value serves.
        let relative = |m: &usize| if mean > 0.0 { energy(*m) / mean } else { 1.0 };
        // An error of the group may lie in the result in which it is least visible.
        let mut shown = HashMap::new();
        for (m, row) in self.rows() {
            let (least, results) = shown.entry(groups[m]).or_insert((f64::INFINITY, 0.0));
            *least = square(row).min(*least);
            *results += 1.0;
        }
        let least = shown.into_values().map(|(least, results)| least * results).fold(f64::INFINITY, f64::min);
        MARGIN * self.threshold(self.kept.iter().map(relative), noise) / least.sqrt()
    }

    /// `||N^T S||` of the sketches S, relative to its threshold; infinite where a kept sketch is not finite.
    pub(super) fn residual(&self, sketches: &[&Sketch], noise: f64) -> f64 {
        let mut largest = 0.0_f64;
        for m in &self.kept {
            for value in &sketches[*m].0 {
                if !value.is_finite() {
                    return f64::INFINITY;
                }
                largest = largest.max(value.abs());
            }
        }
        if largest == 0.0 {
            return 0.0;
        }
        // Relative to the largest value: squares of values near the limits of f64 would overflow or underflow.
        let scaled: Vec<_> = self.kept.iter().map(|m| sketches[*m].0.map(|value| value / largest)).collect();
        let mut found = 0.0;
        for direction in 0..self.directions {
            let mut relation = [0.0_f64; LANES];
            for (row, sketch) in self.rows.chunks_exact(self.directions).zip(&scaled) {
                for (sum, value) in relation.iter_mut().zip(sketch) {
                    *sum += row[direction] * value;
                }
            }
            found += square(&relation);
        }
        found.sqrt() / self.threshold(scaled.iter().map(|sketch| square(sketch)), noise)
    }
}

/// Sum of squares: for a sketch, about that of its result.
pub(super) fn square(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}
