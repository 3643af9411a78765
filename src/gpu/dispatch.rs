//! The dispatches of a plan: parts of the reduction, and the uniform blocks of shaders.
//!
//! Relevant if you want to change how a plan divides its work. Pure functions of the shape.
//!
//! Invariant: no part runs more than [`MAX_LOOP_ITERATIONS`] loop iterations per thread.

use std::ops::Range;

use super::device::Caps;
use super::kernel::{Kernel, TILED_SIDE};
use super::params::Params;
use super::shaders::Stage;
use super::tile::{Tile, depth};
use crate::conv::{AXES, ConvShape};

/// Maximum loop iterations of a thread in one dispatch, all loops together. Mesa's llvmpipe before version 25 silently
/// stops every loop once a thread has run 65,535; half of that leaves room for iterations that are not counted here.
const MAX_LOOP_ITERATIONS: usize = 32_768;

/// One dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) stage: Stage,
    pub(super) params: Params,
    pub(super) grid: [u32; 2],
}

/// A part of the reduction: whole channels, or some taps of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) channels: Range<usize>,
    pub(super) taps: Range<usize>,
}

/// The steps of a pass other than the main one.
pub(super) fn passes(caps: &Caps, stage: Stage, workgroups: u32, base: Params) -> Vec<Step> {
    let (mut steps, mut first) = (Vec::new(), 0);
    let most = caps.max_workgroups_per_dimension.saturating_pow(2);
    while first < workgroups {
        let end = first.saturating_add(most).min(workgroups);
        let grid_x = (end - first).min(caps.max_workgroups_per_dimension);
        let params = Params { first_workgroup: first, end_workgroup: end, grid_x, ..base };
        steps.push(Step { stage, params, grid: [grid_x, (end - first).div_ceil(grid_x)] });
        first = end;
    }
    steps
}

pub(super) fn axes(size: [usize; AXES]) -> (usize, usize, usize) {
    (size[0], size[1], size[2])
}

/// Narrows a size that the plan keeps within 32 bits.
pub(super) fn small(value: usize) -> u32 {
    u32::try_from(value).expect("sizes and offsets lie inside arrays of at most MAX_ELEMS elements")
}

/// Output channels that one workgroup computes.
pub(super) fn block_channels(kernel: Kernel, tile: Tile) -> usize {
    (if kernel == Kernel::Tiled { tile.channels * TILED_SIDE } else { tile.channels }) as usize
}

/// Number of threads of `patch.wgsl` for the outputs of all channels and images.
pub(super) fn patches(shape: &ConvShape, tile: Tile) -> usize {
    let [_, h, w] = shape.output;
    shape.batch * shape.out_channels * h.div_ceil(tile.rows as usize) * w.div_ceil(tile.columns as usize)
}

/// Splits the reduction so that no thread exceeds [`MAX_LOOP_ITERATIONS`]: at most one iteration of the channel loop
/// per channel, one of the tap loop per tap, and the exit of each. The loop over runs around them fits into the
/// remaining reserve. `tiled` has a single loop over all steps of the reduction and treats its parts as taps of one
/// channel.
///
/// Parts of several channels have an even number of steps, since `direct_subgroup` processes two at a time.
pub(super) fn parts(shape: &ConvShape, kernel: Kernel, tile: Tile) -> Vec<Part> {
    let group_in = shape.in_channels / shape.groups;
    let taps: usize = shape.kernel.iter().product();
    if kernel == Kernel::Tiled {
        let some = (MAX_LOOP_ITERATIONS - 1) * depth(tile);
        let reduction = group_in * taps;
        return (0..reduction)
            .step_by(some)
            .map(|k| Part { channels: 0..1, taps: k..(k + some).min(reduction) })
            .collect();
    }
    let channels = MAX_LOOP_ITERATIONS / (taps + 2);
    if channels > 0 {
        let channels = if channels > 1 { channels / 2 * 2 } else { 1 };
        return (0..group_in)
            .step_by(channels)
            .map(|c| Part { channels: c..(c + channels).min(group_in), taps: 0..taps })
            .collect();
    }
    let some = MAX_LOOP_ITERATIONS - 4;
    (0..group_in)
        .flat_map(|c| (0..taps).step_by(some).map(move |t| (c, t)))
        .map(|(c, t)| Part { channels: c..c + 1, taps: t..(t + some).min(taps) })
        .collect()
}

pub(super) fn layer_params(shape: &ConvShape, column_blocks: usize, channel_blocks: usize) -> Params {
    let (_, h, w) = axes(shape.input);
    // A step along an axis with one position is never taken, so its parameter may be of any size.
    let stride: [usize; AXES] =
        std::array::from_fn(|a| if shape.output[a] == 1 { 1 } else { shape.stride[a] });
    let dilation: [usize; AXES] =
        std::array::from_fn(|a| if shape.kernel[a] == 1 { 1 } else { shape.dilation[a] });
    let (row, slice) = (small(dilation[1] * w), small(dilation[0] * h * w));
    let along = |axis: usize| small((shape.kernel[axis] - 1) * dilation[axis]);
    let (back_x, back_y) = (along(2), along(1) * small(w));
    let out_plane = shape.output.iter().product::<usize>();
    Params {
        columns: small(shape.batch * out_plane),
        out_plane: small(out_plane),
        out_h: small(shape.output[1]),
        out_w: small(shape.output[2]),
        out_channels: small(shape.out_channels),
        group_out: small(shape.out_channels / shape.groups),
        in_channels: small(shape.in_channels),
        group_in: small(shape.in_channels / shape.groups),
        in_plane: small(shape.input_plane()),
        in_row: small(w),
        in_slice: small(h * w),
        taps: small(shape.kernel.iter().product()),
        kernel_h: small(shape.kernel[1]),
        kernel_w: small(shape.kernel[2]),
        stride_z: small(stride[0]),
        stride_y: small(stride[1]),
        stride_x: small(stride[2]),
        step_x: small(dilation[2]),
        step_y: row.wrapping_sub(back_x),
        step_z: slice.wrapping_sub(back_y).wrapping_sub(back_x),
        dilated_row: row,
        dilated_slice: slice,
        last_tap: small((shape.kernel[0] - 1) * dilation[0] * h * w) + back_y + back_x,
        column_blocks: small(column_blocks),
        channel_blocks: small(channel_blocks),
        ..Params::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    #[test]
    fn long_reductions_are_split_without_gap_or_overlap() {
        let tile = Tile { channels: 1, columns: 1, rows: 0, workgroup_x: 64 };
        for (channels, kernel) in [(8192, 3), (1, 70_000), (3, 40_000), (40_000, 1), (1, 1)] {
            let shape =
                ConvShape::new(&[1, channels, kernel], &[1, channels, kernel], &ConvParams::default())
                    .unwrap();
            let mut next = 0;
            for part in parts(&shape, Kernel::Naive, tile) {
                assert_eq!(part.channels.start * kernel + part.taps.start, next);
                assert!(part.taps == (0..kernel) || part.channels.len() == 1);
                assert!(part.channels.len() * (part.taps.len() + 2) < 65_000);
                next = (part.channels.end - 1) * kernel + part.taps.end;
            }
            assert_eq!(next, channels * kernel);
        }
    }
}
