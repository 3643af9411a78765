//! Recovery matrices as dense matrices, and their condition numbers.

use num_complex::Complex64;

use super::code::{Code, SubResult};
use super::generators::Structure;
use super::linear::Dense;

impl Code {
    /// 2-norm condition number of the recovery matrix of whole `subtasks`: the factor by which decoding amplifies
    /// rounding errors. It is 1 for a selection, of which one copy of each part is taken.
    ///
    /// Infinite where the subtasks do not [determine](Code::determines) the parts. Meaningful far beyond what a
    /// [`Decoder`](super::Decoder) accepts; rounding limits it to about 1e15. Cheaper than a decoder.
    #[must_use]
    pub fn condition(&self, subtasks: &[usize]) -> f64 {
        if !self.determines(&|i| subtasks.contains(&i.0)) {
            return f64::INFINITY;
        }
        match self.structure {
            Structure::Selection => 1.0,
            Structure::Rotation { theta } => vandermonde(self, theta, subtasks).condition(),
            Structure::Dense => transposed(self, &self.sub_results_of(subtasks)).condition(),
        }
    }
}

/// G^T, whose row m is the column of sub-result m: `Z = G^T Y`.
pub(super) fn transposed(code: &Code, inputs: &[SubResult]) -> Dense<f64> {
    let mut transposed = Dense::from_fn(inputs.len(), code.k_a() * code.k_b(), |_, _| 0.0);
    for (m, input) in inputs.iter().enumerate() {
        for (part, value) in code.recovery_column(*input).enumerate() {
            transposed[(m, part)] = value;
        }
    }
    transposed
}

/// `w_i^m` of a rotation code, with the angle reduced in integers since i m grows to n delta.
pub(super) fn power(theta: f64, i: usize, m: usize) -> Complex64 {
    let period = (std::f64::consts::TAU / theta).round();
    Complex64::from_polar(1.0, -theta * ((i * m) as f64 % period))
}

/// The complex Vandermonde matrix `V[i,m] = w_i^m` of a rotation code, which has the condition number of G.
pub(super) fn vandermonde(code: &Code, theta: f64, subtasks: &[usize]) -> Dense<Complex64> {
    Dense::from_fn(subtasks.len(), code.recovery_threshold(), |row, m| power(theta, subtasks[row], m))
}
