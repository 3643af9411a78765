//! The inverse of a responder set: what decoding multiplies by, and how well conditioned it is.

use num_complex::Complex64;

use super::code::{Code, SubResult};
use super::condition::{condition_of, power, transposed, vandermonde};
use super::generators::Structure;
use crate::error::{Error, Result};

/// Beyond this condition number not even f64 results carry a correct digit at f32 accuracy: treated as singular.
pub(crate) const SINGULAR: f64 = 1e13;

/// How the sub-results of one responder set become parts.
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
    /// Parts are this (k_A k_B) x inputs matrix, row-major, times the inputs.
    Real(Vec<f64>),
    /// The complex fast path of whole CRME subtasks.
    Rotation(Rotation),
}

/// Two (or, with one side unsplit, one) complex systems as real matrices over stacked real and imaginary rows.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    /// l_A and l_B: which sums P and Q are made of.
    pub(super) l_a: usize,
    pub(super) l_b: usize,
    /// d_A, d_B.
    pub(super) d_a: usize,
    pub(super) d_b: usize,
    /// Subtasks whose results are used.
    pub(super) responders: usize,
    /// `[Re u; Im u] = p [Re P; Im P]`, (2 delta) x (2 responders), row-major.
    pub(super) p: Vec<f64>,
    /// The same for v from Q, the factor w^(d_A (d_B - 1)) folded in; empty when one side is not split.
    pub(super) q: Vec<f64>,
}

impl Decoder {
    /// The decoder of whole subtasks: the fast path of the code where it has one.
    ///
    /// More subtasks than the threshold are decoded by least squares; where each computes one part the first copy of
    /// each is taken, and the others are no [`inputs`](Self::inputs).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for fewer than the recovery threshold or without a copy of every part,
    /// [`Error::Singular`] when they do not determine the parts.
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
            // One part, which every subtask computes.
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
        let failed = || Error::Singular { subtasks: subtasks_of(inputs), condition: f64::INFINITY };
        let svd = transposed(code, inputs).thin_svd().map_err(|_| failed())?;
        let condition = condition_of(svd.S().column_vector().iter().copied());
        if condition > SINGULAR {
            return Err(Error::Singular { subtasks: subtasks_of(inputs), condition });
        }
        let inverse = svd.pseudoinverse();
        let map = (0..parts).flat_map(|row| (0..inputs.len()).map(move |col| (row, col)));
        Ok(Self { inputs: inputs.to_vec(), condition, map: Map::Real(map.map(|at| inverse[at]).collect()) })
    }

    fn selection(code: &Code, subtasks: &[usize]) -> Result<Self> {
        let parts = code.k_a() * code.k_b();
        let copy_of = |part: usize| subtasks.iter().copied().find(|i| code.part_of(*i) == Some(part));
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
        let failed = |condition| Error::Singular { subtasks: subtasks.to_vec(), condition };
        let svd = vandermonde(code, theta, subtasks).thin_svd().map_err(|_| failed(f64::INFINITY))?;
        let condition = condition_of(svd.S().column_vector().iter().map(|s| s.re));
        if condition > SINGULAR {
            return Err(failed(condition));
        }
        let inverse = svd.pseudoinverse();
        let responders = subtasks.len();
        let as_real = |entry: &dyn Fn(usize, usize) -> Complex64| {
            let mut real = vec![0.0; 4 * delta * responders];
            for row in 0..delta {
                for col in 0..responders {
                    let d = entry(row, col);
                    let mut set = |r: usize, c: usize, v: f64| real[r * 2 * responders + c] = v;
                    set(row, col, d.re);
                    set(row, responders + col, -d.im);
                    set(delta + row, col, d.im);
                    set(delta + row, responders + col, d.re);
                }
            }
            real
        };
        let both = code.l_a() == 2 && code.l_b() == 2;
        Ok(Self {
            inputs: code.sub_results_of(subtasks),
            condition,
            map: Map::Rotation(Rotation {
                l_a: code.l_a(),
                l_b: code.l_b(),
                d_a,
                d_b,
                responders,
                p: as_real(&|row, col| inverse[(row, col)]),
                q: if both {
                    as_real(&|row, col| inverse[(row, col)] * power(theta, subtasks[col], d_a * (d_b - 1)))
                } else {
                    Vec::new()
                },
            }),
        })
    }

    /// The sub-results this decoder takes, in its order.
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

/// Estimated relative L2 error of a layer decoded at `condition` (1 when nothing is decoded) from workers that compute
/// in a type with the given `epsilon` and sum `reduction` terms an output element.
///
/// `condition * epsilon * (2 + sqrt(reduction) / 4)`: rounding of coded operands and of the decoder (constant),
/// random-walk growth of the sums (measured below a quarter of the square root), all amplified by the
/// condition number. Relative to outputs of the size that operands of these magnitudes give; an output that
/// cancels to nearly zero has no meaningful relative error.
#[must_use]
pub fn error_bound(condition: f64, epsilon: f64, reduction: usize) -> f64 {
    condition * epsilon * (2.0 + (reduction as f64).sqrt() / 4.0)
}

fn subtasks_of(inputs: &[SubResult]) -> Vec<usize> {
    let mut subtasks: Vec<usize> = inputs.iter().map(|input| input.subtask).collect();
    subtasks.sort_unstable();
    subtasks.dedup();
    subtasks
}
