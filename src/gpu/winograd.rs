//! Winograd's minimal filtering F(2 x 2, 3 x 3): 2 x 2 outputs from 16 products per channel instead of 36.
//!
//! A layer becomes three passes: windows of 4 x 4 elements are transformed, a 1 x 1 convolution with 16 times as many
//! groups multiplies (by any kernel), and its outputs are transformed back. Filters are transformed here, in f64. A.
//! Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
//!
//! Costs: memory (four times the slab and four times the output), rounding (some two to three times that of the direct
//! kernels), and a NaN or infinity spreads to the whole 2 x 2 outputs whose windows contain it.

use crate::array::Element;
use crate::conv::{ConvParams, ConvShape};
use crate::error::Result;

/// Products of a tile of outputs.
pub(super) const PRODUCTS: usize = 16;
/// Number of output tiles, in all images.
pub(super) fn tiles(shape: &ConvShape) -> usize {
    shape.batch * shape.output[1].div_ceil(2) * shape.output[2].div_ceil(2)
}

/// The convolution between the transformations: input `[1, 16 * C, tiles]`, weight `[16 * O, C/g, 1]`, in `16 * g` groups.
///
/// # Errors
/// Those of [`ConvShape::new`], for sizes that overflow.
pub(super) fn products(shape: &ConvShape) -> Result<ConvShape> {
    let groups = shape.groups.saturating_mul(PRODUCTS);
    let input = [1, shape.in_channels.saturating_mul(PRODUCTS), tiles(shape)];
    let weight = [shape.out_channels.saturating_mul(PRODUCTS), shape.in_channels / shape.groups, 1];
    ConvShape::new(&input, &weight, &ConvParams::default().groups(groups))
}

/// Transforms filters `[O, C/g, 3, 3]` to `[16, O, C/g]`: G g G^T of each.
pub(super) fn filters<T: Element>(filters: &[T]) -> Vec<T> {
    let count = filters.len() / 9;
    let mut transformed = vec![T::default(); count * PRODUCTS];
    // G times a column of three.
    let four = |[a, b, c]: [f64; 3]| [a, f64::midpoint(a + c, b), f64::midpoint(a + c, -b), c];
    for (at, filter) in filters.chunks_exact(9).enumerate() {
        let filter: [[f64; 3]; 3] =
            std::array::from_fn(|r| std::array::from_fn(|c| filter[3 * r + c].to_f64()));
        // Rows of G g, transposed: one column of the filter each.
        let columns: [[f64; 4]; 3] = std::array::from_fn(|c| four(filter.map(|row| row[c])));
        for r in 0..4 {
            for (c, value) in four(columns.map(|column| column[r])).into_iter().enumerate() {
                transformed[(4 * r + c) * count + at] = T::from_f64(value);
            }
        }
    }
    transformed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::reference;

    /// B^T d B and A^T m A as matrices, in the notation of the literature.
    const B: [[f64; 4]; 4] =
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]];
    const A: [[f64; 4]; 2] = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]];

    #[test]
    fn transformed_filters_give_the_convolution() {
        let shape = ConvShape::new(&[1, 1, 4, 4], &[2, 1, 3, 3], &ConvParams::default()).unwrap();
        let input: Vec<f64> = (0..16).map(|i| f64::from(i * 7 % 11) - 4.0).collect();
        let weight: Vec<f64> = (0..18).map(|i| f64::from(i * 5 % 13) - 6.0).collect();
        let expected = reference(&shape, &input, &weight, None).unwrap();
        let all = filters(&weight);
        for o in 0..2 {
            let product = |r: usize, c: usize| {
                let seen: f64 = (0..16).map(|i| B[r][i / 4] * input[i] * B[c][i % 4]).sum();
                seen * all[(4 * r + c) * 2 + o]
            };
            for y in 0..2 {
                for x in 0..2 {
                    let sum: f64 = (0..16).map(|i| A[y][i / 4] * product(i / 4, i % 4) * A[x][i % 4]).sum();
                    assert!((sum - expected[4 * o + 2 * y + x]).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn layers_that_would_not_gain_or_are_others_do_not_suit() {
        let suited = |input: &[usize], weight: &[usize], params: ConvParams| {
            ConvShape::new(input, weight, &params).unwrap().suits_filtering()
        };
        let p = ConvParams::default;
        assert!(suited(&[2, 32, 9, 8], &[16, 32, 3, 3], p()));
        assert!(suited(&[1, 32, 9, 8], &[32, 16, 3, 3], p().groups(2)));
        assert!(!suited(&[1, 32, 9, 8], &[32, 8, 3, 3], p().groups(4)));
        assert!(!suited(&[1, 32, 9, 8], &[8, 32, 3, 3], p()));
        assert!(!suited(&[1, 32, 9, 8], &[32, 32, 3, 3], p().stride([2, 1])));
        assert!(!suited(&[1, 32, 9, 8], &[32, 32, 3, 3], p().dilation([1, 2])));
        assert!(!suited(&[1, 32, 9, 8], &[32, 32, 3, 1], p()));
        assert!(!suited(&[1, 32, 4, 4], &[32, 32, 3, 3], p()));
        assert!(!suited(&[1, 32, 3, 9, 8], &[32, 32, 1, 3, 3], p()));
        let shape = ConvShape::new(&[2, 32, 9, 8], &[16, 32, 3, 3], &p()).unwrap();
        let inner = products(&shape).unwrap();
        assert_eq!((tiles(&shape), inner.groups, inner.output), (2 * 4 * 3, 16, [1, 1, 24]));
        assert_eq!((inner.in_channels, inner.out_channels), (512, 256));
    }
}
