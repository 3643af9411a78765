//! How a convolution lies in memory once every stride is made 1: the plan shared by all CPU paths.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. An input channel is *staged* as one plane for
//! each phase of the strides (`[phases..., length...]`, padding included), where the input element that kernel
//! tap `t` sees under output point `y` lies at `offsets[t] + y`, with `y` flattened over the staged lengths. A
//! convolution of unit stride without padding is staged already: its input is used in place.
//!
//! Invariant: `offsets[t] + y` lies inside `plane` for every tap and every output point.

use super::params::{AXES, ConvShape};
use crate::array::Element;

use rayon::prelude::*;

/// One axis of a staged plane.
#[derive(Clone, Debug)]
struct Axis {
    /// Remainders of the tap positions modulo the stride that occur, ascending.
    phases: Vec<usize>,
    /// (index of the phase, whole strides) of each tap.
    taps: Vec<(usize, usize)>,
    /// Elements of one phase.
    len: usize,
    stride: usize,
    pad: usize,
    input: usize,
}

impl Axis {
    fn new(shape: &ConvShape, axis: usize) -> Self {
        let kernel = shape.kernel[axis];
        let dilation = if kernel == 1 { 1 } else { shape.dilation[axis] };
        // A single output point never takes a step: any stride will do, and this one stages the taps densely.
        let stride = if shape.output[axis] == 1 { dilation } else { shape.stride[axis] };
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
            len: shape.output[axis] + reach,
            stride,
            pad: shape.pad_begin[axis],
            input: shape.input[axis],
        }
    }

    fn in_place(&self) -> bool {
        self.stride == 1 && self.pad == 0 && self.len == self.input
    }

    /// Input index of staged element `at` of a phase, `None` on padding.
    fn source(&self, phase: usize, at: usize) -> Option<usize> {
        (at * self.stride + phase).checked_sub(self.pad).filter(|i| *i < self.input)
    }

    /// Staged elements of a phase that lie on the input (`begin..end`); all others are padding.
    fn inside(&self, phase: usize) -> (usize, usize) {
        let begin = self.pad.saturating_sub(phase).div_ceil(self.stride).min(self.len);
        let end = (self.pad + self.input).saturating_sub(phase).div_ceil(self.stride).clamp(begin, self.len);
        (begin, end)
    }
}

/// A run of consecutive output columns whose inputs under one tap are consecutive too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// First column, relative to the tile.
    to: usize,
    /// First staged element, relative to the tap's offset.
    from: usize,
    len: usize,
}

/// See the module documentation.
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
    axes: [Axis; AXES],
    /// Staged elements of one channel.
    pub(super) plane: usize,
    /// Staged position of each tap.
    pub(super) offsets: Vec<usize>,
    /// Whether the input itself serves as the staged planes.
    pub(super) in_place: bool,
}

impl Geometry {
    pub(super) fn new(shape: &ConvShape) -> Self {
        let axes: [Axis; AXES] = std::array::from_fn(|axis| Axis::new(shape, axis));
        let [d, h, w] = &axes;
        let phase_plane = d.len * h.len * w.len;
        let mut offsets = Vec::with_capacity(shape.kernel.iter().product());
        for (phase_d, steps_d) in &d.taps {
            for (phase_h, steps_h) in &h.taps {
                for (phase_w, steps_w) in &w.taps {
                    let phase = (phase_d * h.phases.len() + phase_h) * w.phases.len() + phase_w;
                    offsets.push(phase * phase_plane + (steps_d * h.len + steps_h) * w.len + steps_w);
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
            offsets,
            axes,
        }
    }

    pub(super) fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    pub(super) fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Terms of the sum behind one output element.
    pub(super) fn reduction(&self) -> usize {
        self.group_in() * self.offsets.len()
    }

    /// Length of the output flattened over the staged lengths, up to its last element.
    pub(super) fn wide(&self) -> usize {
        self.flat(self.output.map(|size| size - 1)) + 1
    }

    fn flat(&self, at: [usize; AXES]) -> usize {
        (at[0] * self.axes[1].len + at[1]) * self.axes[2].len + at[2]
    }

    /// Writes the staged planes of as many channels as `staged` holds.
    pub(super) fn stage<T: Element>(&self, input: &[T], staged: &mut [T], threads: usize) {
        let per_task = staged.len().div_ceil(self.plane).div_ceil(threads).max(1);
        let work = |(staged, input): (&mut [T], &[T])| {
            for (to, from) in staged.chunks_mut(self.plane).zip(input.chunks(self.input_plane)) {
                self.stage_channel(from, to);
            }
        };
        if threads > 1 {
            staged
                .par_chunks_mut(per_task * self.plane)
                .zip(input.par_chunks(per_task * self.input_plane))
                .for_each(work);
        } else {
            work((staged, input));
        }
    }

    fn stage_channel<T: Element>(&self, input: &[T], staged: &mut [T]) {
        let [d, h, w] = &self.axes;
        let mut rows = staged.chunks_mut(w.len);
        for phase_d in &d.phases {
            for phase_h in &h.phases {
                for phase_w in &w.phases {
                    let (begin, end) = w.inside(*phase_w);
                    for at_d in 0..d.len {
                        let plane = d.source(*phase_d, at_d);
                        for at_h in 0..h.len {
                            let row = rows.next().expect("a staged plane has all rows of all phases");
                            let source = plane.zip(h.source(*phase_h, at_h));
                            let Some((z, y)) = source.filter(|_| begin < end) else {
                                row.fill(T::default());
                                continue;
                            };
                            row[..begin].fill(T::default());
                            row[end..].fill(T::default());
                            let first = (z * h.input + y) * w.input + begin * w.stride + phase_w - w.pad;
                            let row = &mut row[begin..end];
                            if w.stride == 1 {
                                row.copy_from_slice(&input[first..first + row.len()]);
                            } else {
                                let source = input[first..].iter().step_by(w.stride);
                                row.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The runs that make up output columns `begin..begin + cols` (flattened, row-major).
    pub(super) fn segments(&self, begin: usize, cols: usize, segments: &mut Vec<Segment>) {
        segments.clear();
        let [_, rows, width] = self.output;
        let mut column = begin;
        while column < begin + cols {
            let (row, at) = (column / width, column % width);
            let len = (width - at).min(begin + cols - column);
            let from = self.flat([row / rows, row % rows, at]);
            match segments.last_mut() {
                Some(last) if last.from + last.len == from => last.len += len,
                _ => segments.push(Segment { to: column - begin, from, len }),
            }
            column += len;
        }
    }

    /// Packs one row of the im2col matrix: what term `k` (channel, then tap) of the sum sees in every column.
    /// `group` holds the staged channels of one group.
    pub(super) fn pack_row<T: Element>(&self, group: &[T], k: usize, segments: &[Segment], row: &mut [T]) {
        let (channel, tap) = (k / self.offsets.len(), k % self.offsets.len());
        let source = &group[channel * self.plane + self.offsets[tap]..];
        for run in segments {
            row[run.to..run.to + run.len].copy_from_slice(&source[run.from..run.from + run.len]);
        }
    }

    /// Copies an output channel that is flattened over the staged lengths to its row-major place.
    pub(super) fn crop<T: Element>(&self, wide: &[T], output: &mut [T]) {
        let [_, rows, width] = self.output;
        for (row, to) in output.chunks_mut(width).enumerate() {
            let from = self.flat([row / rows, row % rows, 0]);
            to.copy_from_slice(&wide[from..from + width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn geometry(input: &[usize], weight: &[usize], params: ConvParams) -> Geometry {
        Geometry::new(&ConvShape::new(input, weight, &params).unwrap())
    }

    #[test]
    fn unit_stride_without_padding_stays_in_place() {
        let g = geometry(&[1, 1, 5, 6], &[1, 1, 2, 3], ConvParams::default());
        assert!(g.in_place);
        assert_eq!((g.plane, g.wide()), (30, 3 * 6 + 4));
        assert_eq!(g.offsets, [0, 1, 2, 6, 7, 8]);
    }

    #[test]
    fn only_the_phases_that_taps_meet_are_staged() {
        // A 1x1 kernel of stride 3 sees every third element and nothing else.
        let g = geometry(&[1, 1, 8], &[1, 1, 1], ConvParams::default().stride([3]));
        assert!(!g.in_place);
        let mut staged = vec![f64::NAN; g.plane];
        g.stage(&(0..8).map(f64::from).collect::<Vec<_>>(), &mut staged, 1);
        assert_eq!(staged, [0.0, 3.0, 6.0]);
    }

    #[test]
    fn phases_and_padding_lie_where_the_offsets_say() {
        // 0 0 | 1 2 3 4 5 | 0 under stride 2: even phase 0 1 3 5, odd phase 0 2 4 0.
        let params = ConvParams::default().stride([2]).padding([2, 1]);
        let g = geometry(&[1, 1, 5], &[1, 1, 3], params);
        let mut staged = vec![f64::NAN; g.plane];
        g.stage(&[1.0, 2.0, 3.0, 4.0, 5.0], &mut staged, 1);
        assert_eq!(staged, [0.0, 1.0, 3.0, 5.0, 0.0, 2.0, 4.0, 0.0]);
        assert_eq!(g.offsets, [0, 4, 1]);
    }

    #[test]
    fn segments_merge_where_rows_touch() {
        let g = geometry(&[1, 1, 4, 5], &[1, 1, 2, 1], ConvParams::default());
        let mut segments = Vec::new();
        g.segments(3, 9, &mut segments);
        assert_eq!(segments, [Segment { to: 0, from: 3, len: 9 }]);
        let g = geometry(&[1, 1, 4, 5], &[1, 1, 2, 2], ConvParams::default());
        g.segments(3, 6, &mut segments);
        assert_eq!(
            segments,
            [
                Segment { to: 0, from: 3, len: 1 },
                Segment { to: 1, from: 5, len: 4 },
                Segment { to: 5, from: 10, len: 1 }
            ]
        );
    }
}
