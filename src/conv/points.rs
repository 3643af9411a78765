//! Single outputs of a convolution, computed by definition.
//!
//! Relevant if you want to compute a few elements of a large layer; [`conv_uncoded`](super::conv_uncoded) computes
//! whole layers.
//!
//! Invariant: sums are accumulated in f64 and rounded once.

use super::params::{AXES, ConvShape};
use crate::array::Element;

/// Partial sums that are accumulated side by side.
const LANES: usize = 8;

/// Computes the outputs of all channels of one group at one position.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/g, kernel...]`. `image_group` is `image * groups + group`, `at` the
/// position in the plane of an output channel. `window` is scratch memory. Calls `emit` with each output channel of the
/// group, its index in the output `[N, O, spatial...]`, and its value without bias.
///
/// # Panics
/// When the slices do not match the shape, or there is no such group or position.
pub fn outputs_at<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    image_group: usize,
    at: usize,
    window: &mut Vec<T>,
    mut emit: impl FnMut(usize, usize, f64),
) {
    let (image, group) = (image_group / shape.groups, image_group % shape.groups);
    let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let plane = shape.input_plane();
    gather(shape, &input[image_group * group_in * plane..][..group_in * plane], at, window);
    let weight = &weight[group * group_out * window.len()..];
    for (o, filter) in weight.chunks_exact(window.len()).take(group_out).enumerate() {
        let channel = group * group_out + o;
        let place = (image * shape.out_channels + channel) * shape.output_plane() + at;
        emit(channel, place, pulp::Arch::new().dispatch(Dot { a: window, b: filter }));
    }
}

/// The elements under the window of output position `at`, `[C/g, kernel...]`, with zeros on padding.
fn gather<T: Element>(shape: &ConvShape, channels: &[T], at: usize, window: &mut Vec<T>) {
    let [_, rows, columns] = shape.output;
    let position = [at / (rows * columns), at / columns % rows, at % columns];
    let element = |axis: usize, tap: usize| {
        let padded = position[axis] * shape.stride[axis] + tap * shape.dilation[axis];
        padded.checked_sub(shape.pad_begin[axis]).filter(|inside| *inside < shape.input[axis])
    };
    window.clear();
    for plane in channels.chunks_exact(shape.input_plane()) {
        for z in (0..shape.kernel[0]).map(|tap| element(0, tap)) {
            for y in (0..shape.kernel[1]).map(|tap| element(1, tap)) {
                let row = z.zip(y).map(|(z, y)| (z * shape.input[1] + y) * shape.input[2]);
                let value =
                    |tap| row.zip(element(AXES - 1, tap)).map_or(T::default(), |(row, x)| plane[row + x]);
                window.extend((0..shape.kernel[2]).map(value));
            }
        }
    }
}

/// The sum of products, in f64.
struct Dot<'a, T> {
    a: &'a [T],
    b: &'a [T],
}

impl<T: Element> pulp::WithSimd for Dot<'_, T> {
    type Output = f64;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        let mut sums = [0.0_f64; LANES];
        let (mut a, mut b) = (self.a.chunks_exact(LANES), self.b.chunks_exact(LANES));
        for (a, b) in (&mut a).zip(&mut b) {
            for lane in 0..LANES {
                sums[lane] += a[lane].to_f64() * b[lane].to_f64();
            }
        }
        let rest = a.remainder().iter().zip(b.remainder());
        sums.iter().sum::<f64>() + rest.map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{ConvParams, reference};

    #[test]
    fn every_output_is_that_of_the_definition() {
        let p = ConvParams::default;
        for (input, weight, params) in [
            (vec![2, 4, 7, 6], vec![6, 2, 3, 2], p().groups(2).padding([1, 0, 2, 1]).stride([2, 1])),
            (vec![1, 3, 9], vec![2, 3, 3], p().dilation([2]).padding([2])),
            (vec![1, 2, 4, 5, 3], vec![4, 1, 2, 3, 3], p().groups(2).padding([1])),
        ] {
            let shape = ConvShape::new(&input, &weight, &params).unwrap();
            let values = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<_>>();
            let (x, w) = (values(shape.input_elems(), 0.7), values(shape.weight_elems(), 0.3));
            let want = reference(&shape, &x, &w, None).unwrap();
            let mut got = vec![f32::NAN; shape.output_elems()];
            let mut window = Vec::new();
            for group in 0..shape.batch * shape.groups {
                for at in 0..shape.output_plane() {
                    outputs_at(&shape, &x, &w, group, at, &mut window, |channel, place, value| {
                        assert_eq!(place / shape.output_plane() % shape.out_channels, channel);
                        got[place] = f32::from_f64(value);
                    });
                }
            }
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= f32::EPSILON * b.abs().max(0.1);
            assert!(got.iter().zip(&want).all(close));
            // Negative control.
            assert!(!got.iter().zip(want[1..].iter()).all(close));
        }
    }
}
