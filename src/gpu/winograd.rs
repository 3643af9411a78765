//! Winograd's minimal filtering F(2 x 2, 3 x 3): 2 x 2 outputs from 16 products per channel instead of 36.
//!
//! A layer becomes three passes: windows of 4 x 4 elements are transformed, a 1 x 1 convolution with 16 times as many
//! groups multiplies (by any kernel), and its outputs are transformed back. Filters are transformed beforehand, in f64. A.
//! Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
//!
//! Costs: memory (four times the slab and four times the output), rounding (some two to three times that of the direct
//! kernels), and an infinity becomes NaN.

use crate::conv::{ConvParams, ConvShape, PRODUCTS};
use crate::error::Result;

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

#[cfg(test)]
mod tests {
    use super::*;

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
