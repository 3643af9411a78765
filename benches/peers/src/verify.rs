//! Inputs, what they must give, and the refusal of anything else.

use anyhow::Result;
use fcdcc::conv::ConvShape;
use fcdcc_peers::numbers::{difference, random};
use rayon::prelude::*;

use crate::layers::Layer;

/// One layer's numbers.
pub(crate) struct Data {
    pub(crate) input: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    /// The convolution computed in f64.
    pub(crate) expected: Vec<f64>,
}

impl Data {
    pub(crate) fn new(layer: &Layer) -> Self {
        let input = random(layer.shape.input_elems(), 1);
        let weight = random(layer.shape.weight_elems(), 2);
        let expected = convolve(&layer.shape, &input, &weight);
        Self { input, weight, expected }
    }

    /// The relative L2 error of a result.
    ///
    /// # Errors
    /// Those of [`difference`].
    pub(crate) fn verify(&self, got: &[f32]) -> Result<f64> {
        difference(got, &self.expected)
    }
}

/// The convolution in f64, two spatial axes: whole rows are added up, which is fast enough to do it for every
/// layer. [`crate::self_test`] compares it with [`fcdcc::conv::reference`], which is the definition and too slow here.
pub(crate) fn convolve(shape: &ConvShape, input: &[f32], weight: &[f32]) -> Vec<f64> {
    let [_, height, width] = shape.input;
    let [_, rows, cols] = shape.output;
    let [_, taps_y, taps_x] = shape.kernel;
    let ([_, stride_y, stride_x], [_, pad_y, pad_x]) = (shape.stride, shape.pad_begin);
    let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let mut output = vec![0.0; shape.output_elems()];
    output.par_chunks_mut(rows * cols).enumerate().for_each(|(o, plane)| {
        for c in 0..group_in {
            let channel = &input[(o / group_out * group_in + c) * height * width..][..height * width];
            for tap in 0..taps_y * taps_x {
                let (ky, kx) = (tap / taps_x, tap % taps_x);
                let w = f64::from(weight[(o * group_in + c) * taps_y * taps_x + tap]);
                // Columns whose tap lies inside the input.
                let first = pad_x.saturating_sub(kx).div_ceil(stride_x);
                let end = (width + pad_x).saturating_sub(kx).div_ceil(stride_x).min(cols);
                for (y, row) in plane.chunks_exact_mut(cols).enumerate() {
                    let Some(from) = (y * stride_y + ky).checked_sub(pad_y).filter(|&at| at < height) else {
                        continue;
                    };
                    let line = &channel[from * width..][..width];
                    if first >= end {
                        continue;
                    }
                    let line = &line[first * stride_x + kx - pad_x..];
                    if stride_x == 1 {
                        row[first..end].iter_mut().zip(line).for_each(|(sum, x)| *sum += w * f64::from(*x));
                    } else {
                        let line = line.iter().step_by(stride_x);
                        row[first..end].iter_mut().zip(line).for_each(|(sum, x)| *sum += w * f64::from(*x));
                    }
                }
            }
        }
    });
    output
}
