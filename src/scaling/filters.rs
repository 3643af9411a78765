//! The scale of each filter.

use super::power::power_of_two;
use crate::array::{DType, Element};

/// Powers of two that bring the sum of magnitudes of each filter into `[1, 2)`, and the sums that error bounds need.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterScales {
    /// `[O]`: factor by which each filter is multiplied.
    pub factors: Vec<f64>,
    /// `[O]`: factor by which the decoded outputs of each filter are multiplied: the inverse, or 0 for a filter of zeros, so
    /// that its outputs are exactly the bias.
    pub undo: Vec<f64>,
    /// `[O]`: sum of magnitudes of each filter, before scaling.
    pub sums: Vec<f64>,
    /// `[O]`: sum of squares of each filter, after scaling.
    pub energies: Vec<f64>,
}

impl FilterScales {
    /// The scales of `weight` `[O, C/groups, kernel...]`, row-major, with `filter_elems` elements in each filter. Filters
    /// with a NaN or infinity are not scaled.
    #[must_use]
    pub fn new<T: Element>(weight: &[T], filter_elems: usize) -> Self {
        let count = weight.len() / filter_elems.max(1);
        let mut scales = Self {
            factors: Vec::with_capacity(count),
            undo: Vec::with_capacity(count),
            sums: Vec::with_capacity(count),
            energies: Vec::with_capacity(count),
        };
        for filter in weight.chunks_exact(filter_elems.max(1)) {
            let sum: f64 = filter.iter().map(|w| w.to_f64().abs()).sum();
            let factor = power_of_two(sum, T::DTYPE == DType::F32);
            scales.energies.push(filter.iter().map(|w| (w.to_f64() * factor).powi(2)).sum());
            scales.undo.push(if sum == 0.0 { 0.0 } else { 1.0 / factor });
            scales.factors.push(factor);
            scales.sums.push(sum);
        }
        scales
    }

    /// The smallest sum of magnitudes of a nonzero filter; infinite if all filters are zero.
    #[must_use]
    pub fn smallest_sum(&self) -> f64 {
        self.sums.iter().copied().filter(|sum| *sum > 0.0).fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_come_near_one_and_zero_filters_undo_to_zero() {
        let weight = [3.0_f32, -5.0, 0.0, 0.0, 1e-40, 0.0, 1e38, -3e38, f32::NAN, 1.0];
        let scales = FilterScales::new(&weight, 2);
        assert_eq!(scales.factors[..2], [0.125, 1.0]);
        assert_eq!(scales.undo[..2], [8.0, 0.0]);
        assert_eq!(scales.factors[2], 2.0_f64.powi(126));
        assert!(scales.sums[3] > f64::from(f32::MAX) && scales.factors[3] == 2.0_f64.powi(-126));
        assert_eq!((scales.factors[4], scales.undo[4]), (1.0, 1.0));
        assert_eq!(scales.energies[0], (9.0 + 25.0) / 64.0);
        let smallest = scales.smallest_sum();
        assert!((smallest / 1e-40 - 1.0).abs() < 1e-5, "{smallest:e}");
        assert_eq!(FilterScales::new(&[0.0_f64; 4], 2).smallest_sum(), f64::INFINITY);
    }
}
