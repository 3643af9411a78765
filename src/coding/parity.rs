//! Linear relations among sub-results: the null space of a recovery matrix, and what it lets one see.
//!
//! Who uses the audit can skip this. Invariant: the columns are orthonormal up to rounding, and a result that is not
//! kept has no part in any of them, so that its values are not even read.

use std::collections::HashMap;

use faer::Mat;

use super::code::{Code, SubResult};
use super::condition::transposed;
use super::sketch::{LANES, Sketch};

/// Residuals up to so many times what independent rounding errors of the size `noise` leave are no alarm.
///
/// Rounding errors of one subtask are not quite independent (its sub-results share coded operands: at most a factor 2
/// for four of them), and the energy of a sketch scatters (64 lanes: by half, one time in 1e7). Both together stay
/// below 3 even if `noise` is no more than the true size; as an upper envelope it is two to ten times that, and clean
/// results of convolutions measure 0.01 to 0.15 of the threshold.
const KAPPA: f64 = 4.0;

/// Errors that would leave so many times the threshold are certain to be seen: their sketch may be shorter than they
/// are (by half: one time in 1e9), and rounding may point the other way.
const MARGIN: f64 = 2.0;

/// What this check itself rounds: relative error of the null space and of sums in f64. Matters for f64 workers alone.
const OWN: f64 = 16.0 * f64::EPSILON;

/// Orthonormal relations among some of a list of sub-results: N with `N^T Z = 0`.
#[derive(Clone, Debug)]
pub(super) struct Relations {
    /// Places in the list of the sub-results that are kept, ascending.
    kept: Vec<usize>,
    /// Columns of N, at least one.
    directions: usize,
    /// A row of N for each sub-result kept, one after the other.
    rows: Vec<f64>,
}

impl Relations {
    /// Those of `inputs`, which must be more than k_A k_B. By QR, O(M^2 k) for M inputs and k parts.
    pub(super) fn new(code: &Code, inputs: &[SubResult]) -> Self {
        Self::of((0..inputs.len()).collect(), &complement(&transposed(code, inputs)))
    }

    /// Those of the `copies` among `inputs`, at least two, which all compute `part` alone, but for a factor.
    pub(super) fn of_copies(code: &Code, inputs: &[SubResult], copies: Vec<usize>, part: usize) -> Self {
        let factor = |copy: usize| code.recovery_column(inputs[copy]).nth(part).unwrap_or(0.0);
        let n = complement(&Mat::from_fn(copies.len(), 1, |row, _| factor(copies[row])));
        Self::of(copies, &n)
    }

    fn of(kept: Vec<usize>, n: &Mat<f64>) -> Self {
        let rows = (0..n.nrows()).flat_map(|row| (0..n.ncols()).map(move |d| n[(row, d)])).collect();
        Self { kept, directions: n.ncols(), rows }
    }

    fn rows(&self) -> impl Iterator<Item = (usize, &[f64])> {
        self.kept.iter().copied().zip(self.rows.chunks_exact(self.directions))
    }

    /// The relations in which those that are `out` have no part, if some are left.
    ///
    /// They are the combinations a of the columns with `N_out a = 0`, which spares another large QR.
    pub(super) fn without(&self, out: impl Fn(usize) -> bool) -> Option<Self> {
        let (gone, stay): (Vec<_>, Vec<_>) = self.rows().partition(|(m, _)| out(*m));
        if gone.is_empty() {
            return Some(self.clone());
        }
        if gone.len() >= self.directions {
            return None;
        }
        let a = complement(&Mat::from_fn(self.directions, gone.len(), |d, row| gone[row].1[d]));
        let n = Mat::from_fn(stay.len(), self.directions, |row, d| stay[row].1[d]);
        Some(Self::of(stay.into_iter().map(|(m, _)| m).collect(), &(n * a)))
    }

    /// Norm of the residual from which it is an alarm, for results kept of these squared norms.
    ///
    /// Independent rounding errors e_m leave a mean energy of `sum ||N_m||^2 ||e_m||^2`.
    fn threshold(&self, energies: impl Iterator<Item = f64>, noise: f64) -> f64 {
        let explained =
            |((_, row), energy): ((usize, &[f64]), f64)| (noise * noise * square(row) + OWN * OWN) * energy;
        KAPPA * self.rows().zip(energies).map(explained).sum::<f64>().sqrt()
    }

    /// Smallest error of a group, relative to as many results of average size, that is certain to pass the threshold
    /// whichever group it is. `energy(m)` is the squared norm of result m.
    pub(super) fn floor(&self, groups: &[usize], energy: impl Fn(usize) -> f64, noise: f64) -> f64 {
        let mean = self.kept.iter().map(|m| energy(*m)).sum::<f64>() / self.kept.len() as f64;
        // Results that are all zero have no size to compare with; any will do.
        let relative = |m: &usize| if mean > 0.0 { energy(*m) / mean } else { 1.0 };
        // An error of the group may lie in the one result in which it shows least.
        let mut shown = HashMap::new();
        for (m, row) in self.rows() {
            let (least, results) = shown.entry(groups[m]).or_insert((f64::INFINITY, 0.0));
            *least = square(row).min(*least);
            *results += 1.0;
        }
        let least = shown.into_values().map(|(least, results)| least * results).fold(f64::INFINITY, f64::min);
        MARGIN * self.threshold(self.kept.iter().map(relative), noise) / least.sqrt()
    }

    /// `||N^T S||` of the sketches S over its threshold; infinite where a kept one is not finite.
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
        // Relative to the largest: squares of values near the ends of the range of f64 would leave it.
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

/// Sum of squares: of a sketch, about that of its result.
pub(super) fn square(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// Orthonormal basis of what is orthogonal to the columns of the tall `of`: the last columns of Q in its QR. Should
/// `of` lack rank, then it leaves out a part of the complement, and is no less orthogonal.
fn complement(of: &Mat<f64>) -> Mat<f64> {
    let (rows, columns) = of.shape();
    of.qr().compute_Q().get(.., columns..rows).to_owned()
}
