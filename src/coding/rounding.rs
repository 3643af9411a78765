//! Rounding errors of a decoded layer: the constants of all error bounds.
//!
//! Relevant if you want to predict an error; the engine reports both bounds with every run.
//!
//! Two measures are bounded. *Normwise*: the L2 norm of all errors over that of all outputs. *Windowwise*: the error of
//! each output over the largest magnitude in its window times the sum of magnitudes of its filter (see
//! [`scaling`](crate::scaling)).
//!
//! Invariant: bounds grow in proportion to the condition number of what is decoded (1 without decoding).

use crate::array::{Element, HALF_EPSILON, WireFormat};

/// Terms of a sum that workers add up before they begin another partial sum.
const RUN: f64 = 128.0;

/// The share of values mixed into a window from elsewhere that shows in its error.
const MIXED: f64 = 0.4;

/// Rounding of Winograd's filtering relative to that of sums of plain products, where the kernel is not known.
pub const FILTERING: f64 = 6.0;

/// The same for the kernel of this machine's processor, whose filters are transformed in f64: at most 1.6 times on the
/// data that make it largest.
pub const FILTERING_CPU: f64 = 2.0;

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

/// The `epsilon` to pass to [`error_bound`] for workers that store their operands in a narrower type, with epsilon
/// `stored`, than they compute in. Rounding the operands adds to the constant part only, not to the part that grows
/// with the sums.
#[must_use]
pub fn storage_epsilon(epsilon: f64, stored: f64, reduction: usize) -> f64 {
    epsilon + 2.0 * stored / error_bound(1.0, 1.0, reduction)
}

/// Rounding of slabs and sub-results that travel in 16 bits, in units of the format's epsilon: each is off by half a unit,
/// and both errors may point the same way. The rest covers how decoding adds them up, as the constants above do for sums.
const TRAVELLED: f64 = 1.75;

/// Rounding properties of the workers of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Machine epsilon of the element type: the distance from 1 to the next number.
    pub epsilon: f64,
    /// The smallest positive normal number of the element type.
    pub min_normal: f64,
    /// Terms of the sum of one output element.
    pub reduction: usize,
    /// Whether slabs and filters are stored in 16 bits.
    pub half: bool,
    /// Format in which slabs and sub-results travel to and from workers.
    pub wire: WireFormat,
    /// Rounding of the workers' sums relative to that of sums of plain products: above 1 where they may be computed by
    /// Winograd's minimal filtering.
    pub filtering: f64,
}

impl Rounding {
    /// Sums of `reduction` plain products in `T`.
    #[must_use]
    pub fn plain<T: Element>(reduction: usize) -> Self {
        Self {
            epsilon: T::EPSILON,
            min_normal: T::MIN_NORMAL,
            reduction,
            half: false,
            wire: WireFormat::Full,
            filtering: 1.0,
        }
    }

    /// Whether numbers are stored or sent in 16 bits.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        self.half || self.wire.is_narrow()
    }

    /// Whether slabs must be scaled to a size near 1, because a 16-bit format holds no others with all digits.
    #[must_use]
    pub fn needs_scaling(&self) -> bool {
        self.half || self.wire == WireFormat::F16
    }

    /// Epsilon of the type in which workers store operands where that is narrower than the element type; otherwise 0.
    fn stored(&self) -> f64 {
        if self.half { HALF_EPSILON } else { 0.0 }
    }

    /// The bound of the relative L2 error of a layer decoded at `condition`, for outputs of the size expected from
    /// their operands: [`error_bound`].
    #[must_use]
    pub fn normwise(&self, condition: f64) -> f64 {
        // Slabs and sub-results in 16 bits add as much as slabs and filters in 16 bits.
        let epsilon = storage_epsilon(self.epsilon, self.stored() + self.wire.epsilon(), self.reduction);
        error_bound(condition, epsilon, self.reduction) + condition * self.epsilon * self.coding()
    }

    /// Roundings that coding adds to those of the workers, in units of epsilon. f32 operands are encoded in f64, and
    /// decoded in f64 where that matters; f64 operands and their coefficients have no wider type.
    fn coding(&self) -> f64 {
        if self.epsilon < f64::from(f32::EPSILON) { 4.0 } else { 0.0 }
    }

    /// The bound of the windowwise error of outputs decoded at `condition` from windows of at most this `amplification`:
    /// `condition * epsilon * c * (1 + 0.4 (amplification - 1))` with
    /// `c = 1.75 + sqrt(min(R, 128) + R / 128) / 4` for R terms.
    ///
    /// Unlike the normwise bound, it does not grow with the root of R: partial sums are bounded by the quantity that
    /// the error is measured by, so rounding grows only with the number of additions in one partial sum. Winograd's
    /// filtering rounds up to `filtering` times as much; operands and messages in 16 bits add their own rounding.
    #[must_use]
    pub fn windowwise(&self, condition: f64, amplification: f64) -> f64 {
        let terms = self.reduction as f64;
        let sums = 1.75 + (terms.min(RUN) + terms / RUN).sqrt() / 4.0;
        let stored = self.stored() * (1.0 + terms / 32768.0) + self.wire.epsilon() * TRAVELLED;
        // Errors from larger windows are sums of few terms in random directions.
        let mixed = 1.0 + MIXED * (amplification - 1.0);
        condition * mixed * (self.epsilon * (sums * self.filtering + self.coding()) + stored)
    }

    /// Added to the windowwise bound because subnormal outputs lose digits. `window` is the smallest maximum of a
    /// nonzero window, `sum` the smallest sum of magnitudes of a filter.
    #[must_use]
    pub fn underflow(&self, window: f64, sum: f64) -> f64 {
        let size = window * sum;
        let step = self.min_normal * self.epsilon / 2.0;
        // All-zero inputs or filters have no such window.
        if size == f64::INFINITY || size.is_nan() { 0.0 } else { (step / size).min(f64::MAX) }
    }

    /// The same addition for the normwise bound, for `outputs` elements of L2 norm `norm`.
    #[must_use]
    pub fn underflow_of(&self, outputs: usize, norm: f64) -> f64 {
        let step = self.min_normal * self.epsilon / 2.0;
        if norm > 0.0 { (step * (outputs as f64).sqrt() / norm).min(1.0) } else { 0.0 }
    }

    /// The size of a scaled element below which products with scaled filters lose digits.
    #[must_use]
    pub fn floor(&self) -> f64 {
        let narrow = if self.half { WireFormat::F16 } else { self.wire };
        narrow.min_normal().max(self.min_normal * self.reduction as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_with_condition_amplification_and_what_workers_do() {
        let plain = Rounding::plain::<f32>(576);
        let epsilon = f64::from(f32::EPSILON);
        assert!((plain.windowwise(1.0, 1.0) / epsilon - (1.75 + 132.5_f64.sqrt() / 4.0)).abs() < 1e-9);
        assert!((plain.windowwise(9.0, 21.0) / plain.windowwise(1.0, 1.0) - 81.0).abs() < 1e-9);
        assert_eq!(plain.normwise(3.0), error_bound(3.0, epsilon, 576));
        let (half, filtering) =
            (Rounding { half: true, ..plain }, Rounding { filtering: FILTERING, ..plain });
        assert!(half.windowwise(1.0, 1.0) > 0.9e-3 && half.normwise(1.0) > 1e-3 && half.floor() > 6e-5);
        for wire in [WireFormat::F16, WireFormat::Bf16] {
            let sent = Rounding { wire, ..plain };
            assert!(sent.windowwise(1.0, 1.0) > wire.epsilon() && sent.normwise(1.0) > 2.0 * wire.epsilon());
            assert!(sent.is_narrow() && sent.needs_scaling() == (wire == WireFormat::F16));
        }
        assert!(Rounding { wire: WireFormat::F16, ..plain }.floor() > 6e-5);
        assert_eq!(Rounding { wire: WireFormat::Bf16, ..plain }.floor(), plain.floor());
        assert!(half.is_narrow() && !plain.is_narrow());
        assert!(filtering.windowwise(1.0, 1.0) > 5.0 * plain.windowwise(1.0, 1.0));
        assert!(Rounding::plain::<f64>(576).windowwise(10.0, 10.0) < 1e-12);
    }

    #[test]
    fn tiny_outputs_lose_digits_and_nothing_loses_none() {
        let plain = Rounding::plain::<f32>(9);
        assert!(plain.underflow(1.0, 1.0) < 1e-44);
        assert!((plain.underflow(1e-20, 1e-20) / 7e-6 - 1.0).abs() < 0.01);
        assert_eq!(plain.underflow(f64::INFINITY, 1.0), 0.0);
        assert_eq!(plain.underflow(0.0, f64::INFINITY), 0.0);
        assert!(plain.underflow(1e-200, 1e-200).is_finite());
    }
}
