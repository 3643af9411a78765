//! Local response normalisation over channels (ONNX `LRN`).

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::Element;

/// Elements of a plane whose sums of squares are kept at a time.
const BLOCK: usize = 512;

/// `x / (bias + alpha / size * s)^beta`, where `s` is the sum of the squares of `size` channels around that of `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// Factor of the mean square.
    pub alpha: f64,
    /// Exponent.
    pub beta: f64,
    /// Added to the mean square.
    pub bias: f64,
    /// Number of channels of a window; with an even number, one more lies behind than before.
    pub size: usize,
}

impl Lrn {
    /// Normalises `input` `[N, channels, plane]` into `output`.
    pub fn run<T: Element>(&self, channels: usize, plane: usize, input: &[T], output: &mut [T]) {
        assert_eq!(input.len(), output.len(), "input and output of a normalisation differ in length");
        share(output, plane, self.size + 8, |first, planes| {
            for (index, to) in planes.chunks_exact_mut(plane.max(1)).enumerate() {
                let at = first + index;
                let channel = at % channels;
                let low = channel.saturating_sub((self.size - 1) / 2);
                let high = (channel + self.size / 2).min(channels - 1);
                let image = at - channel;
                let window = &input[(image + low) * plane..(image + high + 1) * plane];
                let from = &input[at * plane..(at + 1) * plane];
                for (index, to) in to.chunks_mut(BLOCK).enumerate() {
                    vectorized(Block { lrn: self, from, window, begin: index * BLOCK, plane, to });
                }
            }
        });
    }
}

/// Successive elements of a plane.
struct Block<'a, T> {
    lrn: &'a Lrn,
    from: &'a [T],
    /// The planes of the channels around it.
    window: &'a [T],
    begin: usize,
    plane: usize,
    to: &'a mut [T],
}

impl<T: Element> Vectorized for Block<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { lrn, from, window, begin, plane, to } = self;
        let mut sums = [T::default(); BLOCK];
        let sums = &mut sums[..to.len()];
        for channel in window.chunks_exact(plane) {
            for (sum, x) in sums.iter_mut().zip(&channel[begin..]) {
                *sum += *x * *x;
            }
        }
        let (bias, factor) = (T::from_f64(lrn.bias), T::from_f64(lrn.alpha / lrn.size as f64));
        let from = &from[begin..];
        if lrn.beta == 0.75 {
            // Roots are much cheaper than a power.
            for ((y, x), sum) in to.iter_mut().zip(from).zip(sums) {
                let root = (bias + factor * *sum).sqrt();
                *y = *x / (root * root.sqrt());
            }
        } else {
            let beta = T::from_f64(lrn.beta);
            for ((y, x), sum) in to.iter_mut().zip(from).zip(sums) {
                *y = *x / (bias + factor * *sum).powf(beta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_channels_are_those_of_the_definition() {
        let (images, channels, plane) = (2, 7, 1031);
        let data: Vec<f64> = (0..images * channels * plane)
            .map(|i| f64::from(u32::try_from(i * 7919 % 2003).unwrap()) / 500.0 - 2.0)
            .collect();
        for (size, beta) in [(1, 0.75), (2, 0.75), (3, 0.6), (4, 1.0), (5, 0.75), (20, 0.5)] {
            let lrn = Lrn { alpha: 0.3, beta, bias: 1.5, size };
            let mut got = vec![f64::NAN; data.len()];
            lrn.run(channels, plane, &data, &mut got);
            for (i, got) in got.iter().enumerate() {
                let (image, channel, at) = (i / (channels * plane), i / plane % channels, i % plane);
                let (before, after) = ((size - 1) / 2, size / 2);
                let near = (0..channels).filter(|c| c + before >= channel && *c <= channel + after);
                let sum: f64 = near.map(|c| data[(image * channels + c) * plane + at].powi(2)).sum();
                let want = data[i] / (1.5 + 0.3 / size as f64 * sum).powf(beta);
                assert!((got - want).abs() < 1e-12, "size {size}: element {i} is {got} where {want} follows");
            }
        }
    }
}
