//! The inverse of a responder set: the matrix that decoding multiplies by, and its condition number.

use num_complex::Complex64;

use super::code::{Code, SubResult};
use super::condition::{power, transposed, vandermonde};
use super::generators::Structure;
use super::panel::{Packed, PackedPairs};
use super::rounding::error_bound;
use crate::error::{Error, Result};
use crate::ids::SubtaskId;

/// Sets beyond this condition number are treated as singular: at f32 accuracy no digit would be correct, not even with
/// f64 results.
pub(crate) const SINGULAR: f64 = 1e13;

/// The linear map from the sub-results of one responder set to the parts.
#[derive(Clone, Debug)]
pub struct Decoder {
    inputs: Vec<SubResult>,
    condition: f64,
    pub(super) map: Map,
}

/// The linear map, in the form that is cheapest to apply.
#[derive(Clone, Debug)]
pub(super) enum Map {
    /// Part k is input `[k]`.
    Select(Vec<usize>),
    /// Parts are combinations of the inputs.
    Real(Packed<f64>),
    /// The complex fast path of whole CRME subtasks, both sides split.
    Rotation(Rotation),
}

/// Two complex systems as real combinations: u of the real and imaginary parts of P, v of those of Q. The factor
/// w^(d_A (d_B - 1)) is folded into v, a factor of one half into both. Sums u + v and differences v - u are parts.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    /// Rows u and v over the four sub-results of each responder.
    pub(super) map: PackedPairs<f64>,
    /// For each row: the part u + v, the part v - u, and the sign of the latter.
    pub(super) parts: Vec<(usize, usize, f64)>,
}

impl Decoder {
    /// The decoder of whole subtasks, with the fast path of the code if it has one.
    ///
    /// More subtasks than the threshold are decoded by least squares. Where each computes one part, the first copy of
    /// each part is used and the others are not among the [`inputs`](Self::inputs).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for fewer subtasks than the recovery threshold or without a copy of every part,
    /// [`Error::Singular`] when the subtasks do not determine the parts.
    pub fn for_subtasks(code: &Code, subtasks: &[usize]) -> Result<Self> {
        if code.structure == Structure::Selection {
            return Self::selection(code, subtasks);
        }
        if subtasks.len() < code.recovery_threshold() {
            return Err(Error::mismatch(
                "number of subtasks to decode from",
                subtasks.len(),
                format!("at least the recovery threshold {}", code.recovery_threshold()),
                "wait for more results",
            ));
        }
        let inputs = code.sub_results_of(subtasks);
        match code.structure {
            Structure::Rotation { theta } if code.k_a() > 1 || code.k_b() > 1 => {
                Self::rotation(code, theta, subtasks)
            }
            // A single part, which every subtask computes.
            Structure::Rotation { .. } | Structure::Selection => {
                Ok(Self { inputs, condition: 1.0, map: Map::Select(vec![0]) })
            }
            Structure::Dense => Self::generic(code, &inputs),
        }
    }

    /// The decoder of any set of sub-results, whole subtasks or not: the pseudo-inverse of their recovery matrix.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for fewer than k_A k_B sub-results, [`Error::Singular`] when they do not determine the
    /// parts.
    pub fn generic(code: &Code, inputs: &[SubResult]) -> Result<Self> {
        let parts = code.k_a() * code.k_b();
        if inputs.len() < parts {
            return Err(Error::mismatch(
                "number of sub-results to decode from",
                inputs.len(),
                format!("at least k_A k_B = {parts}"),
                "wait for more results",
            ));
        }
        let matrix = transposed(code, inputs);
        let condition = matrix.condition();
        if condition > SINGULAR {
            return Err(Error::Singular { subtasks: subtasks_of(inputs), condition });
        }
        let inverse = matrix.pseudo_inverse();
        let map = Packed::new(parts, inputs.len(), |row, col| inverse[(row, col)]);
        Ok(Self { inputs: inputs.to_vec(), condition, map: Map::Real(map) })
    }

    fn selection(code: &Code, subtasks: &[usize]) -> Result<Self> {
        let parts = code.k_a() * code.k_b();
        let copy_of =
            |part: usize| subtasks.iter().copied().find(|i| code.part_of(SubtaskId(*i)) == Some(part));
        let copies: Vec<Option<usize>> = (0..parts).map(copy_of).collect();
        if let Some(missing) = copies.iter().position(Option::is_none) {
            let holders = (missing..code.n()).step_by(parts).map(|i| i.to_string()).collect::<Vec<_>>();
            return Err(Error::mismatch(
                format!("number of parts that subtasks {subtasks:?} hold"),
                copies.iter().flatten().count(),
                format!("all {parts}"),
                format!("wait for part {missing}, which subtask {} computes", holders.join(" or ")),
            ));
        }
        let chosen: Vec<usize> = copies.into_iter().flatten().collect();
        Ok(Self {
            inputs: code.sub_results_of(&chosen),
            condition: 1.0,
            map: Map::Select((0..parts).collect()),
        })
    }

    fn rotation(code: &Code, theta: f64, subtasks: &[usize]) -> Result<Self> {
        let delta = code.recovery_threshold();
        let (d_a, d_b) = (code.k_a() / code.l_a(), code.k_b() / code.l_b());
        let matrix = vandermonde(code, theta, subtasks);
        let condition = matrix.condition();
        if condition > SINGULAR {
            return Err(Error::Singular { subtasks: subtasks.to_vec(), condition });
        }
        let inverse = matrix.pseudo_inverse();
        let (responders, inputs) = (subtasks.len(), code.sub_results_of(subtasks));
        // Entry (row, col) of the complex matrix as rows of Re and Im over columns of Re and Im.
        let real =
            |d: Complex64, imaginary_row: bool, imaginary_col: bool| match (imaginary_row, imaginary_col) {
                (false, false) | (true, true) => d.re,
                (false, true) => -d.im,
                (true, false) => d.im,
            };
        if code.l_a() == 1 || code.l_b() == 1 {
            // One side is unsplit: P = Z0 + i Z1 over the two sub-results of the split side, and the rows u are the
            // parts.
            let map = Packed::new(2 * delta, 2 * responders, |row, col| {
                real(inverse[(row / 2, col / 2)], row % 2 == 1, col % 2 == 1)
            });
            return Ok(Self { inputs, condition, map: Map::Real(map) });
        }
        let k_b = code.k_b();
        // The pair (j, l) of complex parts: real rows first, then imaginary rows.
        let pair = |row: usize| (row % delta % d_a, row % delta / d_a);
        let map = PackedPairs::new(2 * delta, responders, |row, i| {
            let (j, l) = pair(row);
            let p = inverse[(j + d_a * l, i)];
            let q = inverse[(j + d_a * (d_b - 1 - l), i)] * power(theta, subtasks[i], d_a * (d_b - 1));
            let of = |entry, imaginary| 0.5 * real(entry, row >= delta, imaginary);
            [of(p, false), of(p, true), of(q, false), of(q, true)]
        });
        let parts = (0..2 * delta).map(|row| {
            let part = |of_a: usize, of_b: usize| (2 * pair(row).0 + of_a) * k_b + 2 * pair(row).1 + of_b;
            if row < delta { (part(0, 0), part(1, 1), 1.0) } else { (part(1, 0), part(0, 1), -1.0) }
        });
        let map = Map::Rotation(Rotation { map, parts: parts.collect() });
        Ok(Self { inputs, condition, map })
    }

    /// The sub-results that this decoder takes, in order.
    #[must_use]
    pub fn inputs(&self) -> &[SubResult] {
        &self.inputs
    }

    /// 2-norm condition number of the recovery matrix (1 for a selection).
    #[must_use]
    pub fn condition(&self) -> f64 {
        self.condition
    }

    /// [`error_bound`] of a layer decoded by this decoder.
    #[must_use]
    pub fn error_bound(&self, epsilon: f64, reduction: usize) -> f64 {
        error_bound(self.condition, epsilon, reduction)
    }
}

fn subtasks_of(inputs: &[SubResult]) -> Vec<usize> {
    let mut subtasks: Vec<usize> = inputs.iter().map(|input| input.subtask.0).collect();
    subtasks.sort_unstable();
    subtasks.dedup();
    subtasks
}
