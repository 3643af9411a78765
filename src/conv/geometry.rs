//! The memory layout of a convolution whose strides are reduced to 1: the plan shared by all CPU paths.
//!
//! Relevant if you want to change a CPU path; callers need only [`ConvKernel`](super::ConvKernel). An input channel is
//! *staged* as one plane for each phase of the strides (`[phases..., length...]`, padding included). The input element
//! under kernel tap `t` at output point `y` is at `taps[t].of(phase) + y`, with `y` flattened over the staged lengths:
//! the *wide* output, whose rows are as long as staged rows. A convolution of unit stride without padding is already
//! staged, and its input is used in place. Of large planes only a band of rows is staged at a time.
//!
//! Invariant: the element under any tap at any output point of a band lies inside the rows of the band.

use super::params::{AXES, ConvShape};

/// One axis of a staged plane.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// The occurring remainders of the tap positions modulo the stride, ascending.
    pub(super) phases: Vec<usize>,
    /// For each tap: index of its phase, and whole strides.
    taps: Vec<(usize, usize)>,
    /// Elements of one phase.
    pub(super) len: usize,
    /// Staged elements between neighbouring output points: 1, unless a stride is kept.
    pub(super) step: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
    pub(super) input: usize,
}

impl Axis {
    /// With `keep` the stride is not separated into phases: neighbouring outputs are a stride apart.
    fn new(shape: &ConvShape, axis: usize, keep: bool) -> Self {
        let kernel = shape.kernel[axis];
        let dilation = if kernel == 1 { 1 } else { shape.dilation[axis] };
        // A single output point takes no step, so any stride is valid; this one stages the taps densely.
        let stride = if shape.output[axis] == 1 { dilation } else { shape.stride[axis] };
        let (stride, step) = if keep && shape.output[axis] > 1 { (1, stride) } else { (stride, 1) };
        let positions = (0..kernel).map(|k| k * dilation);
        let mut phases: Vec<usize> = positions.clone().map(|p| p % stride).collect();
        phases.sort_unstable();
        phases.dedup();
        let taps: Vec<_> =
            positions.map(|p| (phases.partition_point(|phase| *phase < p % stride), p / stride)).collect();
        let reach = taps.iter().map(|(_, steps)| *steps).max().unwrap_or(0);
        Self {
            phases,
            taps,
            len: (shape.output[axis] - 1) * step + 1 + reach,
            step,
            stride,
            pad: shape.pad_begin[axis],
            input: shape.input[axis],
        }
    }

    fn in_place(&self) -> bool {
        self.stride == 1 && self.step == 1 && self.pad == 0 && self.len == self.input
    }

    /// Input index of staged element `at` of a phase, `None` on padding.
    #[inline]
    pub(super) fn source(&self, phase: usize, at: usize) -> Option<usize> {
        (at * self.stride + phase).checked_sub(self.pad).filter(|i| *i < self.input)
    }

    /// The staged elements of a phase that are input elements (`begin..end`); all others are padding.
    pub(super) fn inside(&self, phase: usize) -> (usize, usize) {
        let begin = self.pad.saturating_sub(phase).div_ceil(self.stride).min(self.len);
        let end = (self.pad + self.input).saturating_sub(phase).div_ceil(self.stride).clamp(begin, self.len);
        (begin, end)
    }
}

/// The offset of a kernel tap: phase of the strides, and whole strides within it, flattened over the staged lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tap {
    phase: usize,
    steps: usize,
}

/// A band of the staged planes: rows, flattened over depth and height, from `first_row` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) first_row: usize,
    /// The first wide output point of that row.
    pub(super) start: usize,
}

/// The layout of one convolution; see the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) groups: usize,
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    /// Input elements of one channel.
    pub(super) input_plane: usize,
    pub(super) output: [usize; AXES],
    pub(super) output_plane: usize,
    pub(super) axes: [Axis; AXES],
    /// Staged elements of one channel.
    pub(super) plane: usize,
    taps: Vec<Tap>,
    /// Whether the input itself serves as the staged planes.
    pub(super) in_place: bool,
}

impl Geometry {
    /// `keep_rows` keeps the stride within rows: the points between the outputs are computed too, which for few
    /// channels costs less than separating the rows.
    pub(super) fn new(shape: &ConvShape, keep_rows: bool) -> Self {
        let axes: [Axis; AXES] = std::array::from_fn(|axis| Axis::new(shape, axis, keep_rows && axis == 2));
        let [d, h, w] = &axes;
        let mut taps = Vec::with_capacity(shape.kernel.iter().product());
        for (phase_d, steps_d) in &d.taps {
            for (phase_h, steps_h) in &h.taps {
                for (phase_w, steps_w) in &w.taps {
                    taps.push(Tap {
                        phase: (phase_d * h.phases.len() + phase_h) * w.phases.len() + phase_w,
                        steps: (steps_d * h.len + steps_h) * w.len + steps_w,
                    });
                }
            }
        }
        Self {
            batch: shape.batch,
            groups: shape.groups,
            in_channels: shape.in_channels,
            out_channels: shape.out_channels,
            input_plane: shape.input_plane(),
            output: shape.output,
            output_plane: shape.output_plane(),
            plane: axes.iter().map(|axis| axis.phases.len() * axis.len).product(),
            in_place: axes.iter().all(Axis::in_place),
            taps,
            axes,
        }
    }

    pub(super) fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    pub(super) fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Terms of the sum of one output element.
    pub(super) fn reduction(&self) -> usize {
        self.group_in() * self.taps.len()
    }

    /// Length of the output flattened over the staged lengths, up to its last element.
    pub(super) fn wide(&self) -> usize {
        self.flat(self.output.map(|size| size - 1)) + 1
    }

    /// The wide point of an output point.
    pub(super) fn wide_of(&self, point: usize) -> usize {
        let [_, rows, width] = self.output;
        let (row, x) = (point / width, point % width);
        (row / rows * self.axes[1].len + row % rows) * self.axes[2].len + x * self.axes[2].step
    }

    /// The number of output points before a wide point.
    pub(super) fn points_before(&self, wide: usize) -> usize {
        let [_, rows, width] = self.output;
        let (row, x) = (wide / self.axes[2].len, wide % self.axes[2].len);
        let (z, y) = (row / self.axes[1].len, row % self.axes[1].len);
        let here = if y < rows { x.div_ceil(self.axes[2].step).min(width) } else { 0 };
        (z * rows + y.min(rows)) * width + here
    }

    /// Whether the wide output is the output itself, with no elements between its rows.
    pub(super) fn is_compact(&self) -> bool {
        self.wide() == self.output_plane
    }

    /// Staged elements between an output point and the farthest element under a tap.
    pub(super) fn reach(&self) -> usize {
        self.taps.iter().map(|tap| tap.steps).max().unwrap_or(0)
    }

    /// Number of phases.
    pub(super) fn phases(&self) -> usize {
        self.axes.iter().map(|axis| axis.phases.len()).product()
    }

    /// Elements of a staged row.
    pub(super) fn row(&self) -> usize {
        self.axes[2].len
    }

    /// Rows of one phase of a staged plane.
    pub(super) fn rows(&self) -> usize {
        self.axes[0].len * self.axes[1].len
    }

    /// The band that begins with the row of the wide output point `begin`. In place the band is the whole plane.
    pub(super) fn band(&self, begin: usize) -> Band {
        let first_row = if self.in_place { 0 } else { begin / self.row() };
        Band { first_row, start: first_row * self.row() }
    }

    /// Maximum number of rows of a band of `points` wide output points.
    pub(super) fn band_rows(&self, points: usize) -> usize {
        // The band may begin anywhere in its first row.
        ((self.row() - 1 + points + self.reach()).div_ceil(self.row())).min(self.rows())
    }

    /// Elements of a band of one channel with `rows` rows of every phase.
    pub(super) fn band_elems(&self, rows: usize) -> usize {
        self.phases() * rows * self.row()
    }

    /// For each term of the sum (channel of a group, then tap): its offset from the output point in the bands of the
    /// channels, of `rows` rows each.
    pub(super) fn offsets(&self, rows: usize) -> Vec<usize> {
        let (channel, phase) = (self.band_elems(rows), rows * self.row());
        (0..self.group_in())
            .flat_map(|c| self.taps.iter().map(move |tap| c * channel + tap.phase * phase + tap.steps))
            .collect()
    }

    fn flat(&self, at: [usize; AXES]) -> usize {
        (at[0] * self.axes[1].len + at[1]) * self.axes[2].len + at[2] * self.axes[2].step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn geometry(input: &[usize], weight: &[usize], params: ConvParams) -> Geometry {
        Geometry::new(&ConvShape::new(input, weight, &params).unwrap(), false)
    }

    #[test]
    fn unit_stride_without_padding_stays_in_place() {
        let g = geometry(&[1, 1, 5, 6], &[1, 1, 2, 3], ConvParams::default());
        assert!(g.in_place && !g.is_compact());
        assert_eq!((g.plane, g.wide(), g.reach()), (30, 3 * 6 + 4, 8));
        assert_eq!(g.offsets(g.rows()), [0, 1, 2, 6, 7, 8]);
        assert!(geometry(&[1, 1, 5, 6], &[1, 1, 2, 1], ConvParams::default()).is_compact());
    }
}
