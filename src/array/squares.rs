//! Sums of squares, compiled for each instruction set.

use super::Element;

/// Number of independent sums.
const LANES: usize = 16;

/// The sum of the squares of `values` times `unit`, in f64.
pub(crate) fn sum_of_squares<T: Element>(values: &[T], unit: f64) -> f64 {
    pulp::Arch::new().dispatch(Squares { values, unit })
}

struct Squares<'a, T> {
    values: &'a [T],
    unit: f64,
}

impl<T: Element> pulp::WithSimd for Squares<'_, T> {
    type Output = f64;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        let (blocks, rest) = self.values.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for block in blocks {
            for lane in 0..LANES {
                let value = block[lane].to_f64() * self.unit;
                sums[lane] += value * value;
            }
        }
        let rest = rest.iter().map(|value| value.to_f64() * self.unit).map(|value| value * value);
        sums.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_of_every_element_are_summed_once() {
        for length in 0..70 {
            let values: Vec<f32> = (0..length).map(|i| i as f32 - 9.0).collect();
            let naive = |unit: f64| values.iter().map(|v| (f64::from(*v) * unit).powi(2)).sum::<f64>();
            assert_eq!(sum_of_squares(&values, 0.5), naive(0.5));
            // Negative control.
            assert!(length == 0 || sum_of_squares(&values, 0.25) != naive(0.5));
        }
    }
}
