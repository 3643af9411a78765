//! How a convolution lies in memory once every stride is made 1: the plan shared by all CPU paths.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. An input channel is *staged* as one plane for
//! each phase of the strides (`[phases..., length...]`, padding included), where the input element that kernel
//! tap `t` sees under output point `y` lies at `taps[t].of(phase) + y`, with `y` flattened over the staged lengths:
//! the *wide* output, whose rows are as long as staged rows. A convolution of unit stride without padding is staged
//! already: its input is used in place. Of large planes only a band of rows is staged at a time.
//!
//! Invariant: what a tap sees under any output point of a band lies inside the band's rows.

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
    /// Staged elements from one output point to the next: 1, unless a stride is left in place.
    step: usize,
    stride: usize,
    pad: usize,
    input: usize,
}

impl Axis {
    /// With `keep` the stride is not taken apart: outputs lie as far apart as it is wide.
    fn new(shape: &ConvShape, axis: usize, keep: bool) -> Self {
        let kernel = shape.kernel[axis];
        let dilation = if kernel == 1 { 1 } else { shape.dilation[axis] };
        // A single output point never takes a step: any stride will do, and this one stages the taps densely.
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

/// Where a kernel tap looks: phase of the strides, and whole strides within it, flattened over the staged lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tap {
    phase: usize,
    steps: usize,
}

/// Rows of the staged planes, flattened over depth and height: those behind the wide output points `begin..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Band {
    /// First and end of the wide output points.
    pub(super) begin: usize,
    pub(super) end: usize,
    /// First row that is staged for them.
    first_row: usize,
    /// Staged position of the first output point under a tap that takes no steps.
    pub(super) origin: usize,
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
    taps: Vec<Tap>,
    /// Whether the input itself serves as the staged planes.
    pub(super) in_place: bool,
}

impl Geometry {
    /// `keep_rows` leaves rows as they are, whatever their stride: what lies between the output points is computed too,
    /// which for few channels costs less than taking rows apart.
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

    /// Terms of the sum behind one output element.
    pub(super) fn reduction(&self) -> usize {
        self.group_in() * self.taps.len()
    }

    /// Length of the output flattened over the staged lengths, up to its last element.
    pub(super) fn wide(&self) -> usize {
        self.flat(self.output.map(|size| size - 1)) + 1
    }

    /// Whether the wide output is the output itself: no element between its rows.
    pub(super) fn is_compact(&self) -> bool {
        self.wide() == self.output_plane
    }

    /// Staged elements between a point and the farthest that a tap sees under it.
    pub(super) fn reach(&self) -> usize {
        self.taps.iter().map(|tap| tap.steps).max().unwrap_or(0)
    }

    /// Phases of the strides that taps meet.
    pub(super) fn phases(&self) -> usize {
        self.axes.iter().map(|axis| axis.phases.len()).product()
    }

    /// Elements of a staged row.
    fn row(&self) -> usize {
        self.axes[2].len
    }

    /// Rows of a staged plane, of one phase.
    fn rows(&self) -> usize {
        self.axes[0].len * self.axes[1].len
    }

    /// The band of the wide output points `begin..end`. In place all rows are there at any time.
    pub(super) fn band(&self, begin: usize, end: usize) -> Band {
        let first_row = if self.in_place { 0 } else { begin / self.row() };
        Band { begin, end, first_row, origin: begin - first_row * self.row() }
    }

    /// Rows that a band of `points` wide output points has at most.
    pub(super) fn band_rows(&self, points: usize) -> usize {
        // It begins anywhere in its first row.
        ((self.row() - 1 + points + self.reach()).div_ceil(self.row())).min(self.rows())
    }

    /// Elements of a band of one channel, `rows` rows of every phase.
    pub(super) fn band_elems(&self, rows: usize) -> usize {
        self.phases() * rows * self.row()
    }

    /// For each term of the sum (channel of a group, then tap) where in the channels' bands of `rows` rows it lies,
    /// relative to the output point.
    pub(super) fn offsets(&self, rows: usize) -> Vec<usize> {
        let (channel, phase) = (self.band_elems(rows), rows * self.row());
        (0..self.group_in())
            .flat_map(|c| self.taps.iter().map(move |tap| c * channel + tap.phase * phase + tap.steps))
            .collect()
    }

    fn flat(&self, at: [usize; AXES]) -> usize {
        (at[0] * self.axes[1].len + at[1]) * self.axes[2].len + at[2] * self.axes[2].step
    }

    /// Writes the bands, `rows` rows each, of as many channels as `staged` holds. Rows past the plane's end are left as
    /// they are.
    pub(super) fn stage<T: Element>(
        &self,
        input: &[T],
        staged: &mut [T],
        band: Band,
        rows: usize,
        threads: usize,
    ) {
        let elems = self.band_elems(rows);
        let work = |(staged, input): (&mut [T], &[T])| {
            pulp::Arch::new().dispatch(Staging { geometry: self, input, staged, band, rows });
        };
        if threads > 1 {
            let per_task = (staged.len() / elems).div_ceil(threads).max(1);
            staged
                .par_chunks_mut(per_task * elems)
                .zip(input.par_chunks(per_task * self.input_plane))
                .for_each(work);
        } else {
            work((staged, input));
        }
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn stage_channel<T: Element>(&self, input: &[T], staged: &mut [T], band: Band, rows: usize) {
        let [d, h, w] = &self.axes;
        let mut phases = staged.chunks_exact_mut(rows * w.len);
        for phase_d in &d.phases {
            for phase_h in &h.phases {
                for phase_w in &w.phases {
                    let (begin, end) = w.inside(*phase_w);
                    let phase = phases.next().expect("a band has the rows of all phases");
                    let there = rows.min(self.rows() - band.first_row);
                    let mut phase = &mut phase[..there * w.len];
                    let mut row = band.first_row;
                    while !phase.is_empty() {
                        let (at_d, at_h) = (row / h.len, row % h.len);
                        let count = (h.len - at_h).min(phase.len() / w.len);
                        let (slice, rest) = phase.split_at_mut(count * w.len);
                        let (mut first, mut last) = h.inside(*phase_h);
                        (first, last) = (first.clamp(at_h, at_h + count), last.clamp(at_h, at_h + count));
                        let z = d.source(*phase_d, at_d);
                        let Some(z) = z.filter(|_| begin < end && first < last) else {
                            slice.fill(T::default());
                            (phase, row) = (rest, row + count);
                            continue;
                        };
                        slice[..(first - at_h) * w.len].fill(T::default());
                        slice[(last - at_h) * w.len..].fill(T::default());
                        let inner = &mut slice[(first - at_h) * w.len..(last - at_h) * w.len];
                        let y = first * h.stride + phase_h - h.pad;
                        let from = (z * h.input + y) * w.input + begin * w.stride + phase_w - w.pad;
                        let (from, step) = (&input[from..], h.stride * w.input);
                        match w.stride {
                            1 => stage_rows(from, step, inner, w.len, (begin, end), copy),
                            2 => stage_rows(from, step, inner, w.len, (begin, end), copy_evens),
                            stride => stage_rows(from, step, inner, w.len, (begin, end), |from, to| {
                                to.iter_mut()
                                    .zip(from.iter().step_by(stride))
                                    .for_each(|(to, from)| *to = *from);
                            }),
                        }
                        (phase, row) = (rest, row + count);
                    }
                }
            }
        }
    }

    /// Copies the wide output points from `begin` on, of one channel, to their places in the channel.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn crop_channel<T: Element>(&self, wide: &[T], begin: usize, output: &mut [T]) {
        let ([_, rows, width], step) = (self.output, self.axes[2].step);
        let (row, mut x) = (begin / self.row(), begin % self.row());
        let (mut z, mut y) = (row / self.axes[1].len, row % self.axes[1].len);
        let mut wide = wide;
        while !wide.is_empty() {
            let (here, rest) = wide.split_at((self.row() - x).min(wide.len()));
            if y < rows {
                let to = &mut output[(z * rows + y) * width..][..width];
                match step {
                    1 if x < width => {
                        let kept = here.len().min(width - x);
                        copy(here, &mut to[x..x + kept]);
                    }
                    1 => {}
                    2 => {
                        // The first output point at or after x.
                        let (column, skip) = (x.div_ceil(2), x % 2);
                        let kept = (here.len() - skip).div_ceil(2);
                        let kept = kept.min(width.saturating_sub(column));
                        if kept > 0 {
                            copy_evens(&here[skip..], &mut to[column..column + kept]);
                        }
                    }
                    step => {
                        let (column, skip) = (x.div_ceil(step), x.next_multiple_of(step) - x);
                        let from = here.iter().skip(skip).step_by(step);
                        let to = to.iter_mut().skip(column);
                        to.zip(from).for_each(|(to, from)| *to = *from);
                    }
                }
            }
            (wide, x, y) = (rest, 0, y + 1);
            if y == self.axes[1].len {
                (y, z) = (0, z + 1);
            }
        }
    }

    /// Copies `points` wide output points from `begin` on to their places, of as many channels as `output` holds; those in
    /// `wide` lie `pitch` apart.
    pub(super) fn crop<T: Element>(
        &self,
        wide: &[T],
        pitch: usize,
        begin: usize,
        points: usize,
        output: &mut [T],
    ) {
        pulp::Arch::new().dispatch(Cropping { geometry: self, wide, pitch, begin, points, output });
    }
}

/// Copies rows of a plane, `step` elements apart in `from`, to the elements `begin..end` of staged rows of `len`, and
/// zeros to the others.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn stage_rows<T: Element>(
    from: &[T],
    step: usize,
    to: &mut [T],
    len: usize,
    (begin, end): (usize, usize),
    copy: impl Fn(&[T], &mut [T]),
) {
    for (row, to) in to.chunks_exact_mut(len).enumerate() {
        // A few elements at most, for which calling memset would cost more than they do.
        to[..begin].iter_mut().for_each(|to| *to = T::default());
        to[end..].iter_mut().for_each(|to| *to = T::default());
        copy(&from[row * step..], &mut to[begin..end]);
    }
}

/// Elements copied at once: pieces of a fixed size become a few vector instructions, where a call of memcpy would cost as
/// much as copying the short rows of a plane does.
const PIECE: usize = 16;

/// Fills `to` with the elements that `from` begins with. The last piece overlaps the one before.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn copy<T: Element>(from: &[T], to: &mut [T]) {
    let Some(last) = to.len().checked_sub(PIECE) else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        return;
    };
    for (to, from) in to.as_chunks_mut::<PIECE>().0.iter_mut().zip(from.as_chunks::<PIECE>().0) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to[last..].first_chunk_mut::<PIECE>(), from[last..].first_chunk()) {
        *to = *from;
    }
}

/// Fills `to` with every second element of `from`, beginning with the first.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "it must be compiled for each instruction set; not every clippy minds"
)]
fn copy_evens<T: Element>(from: &[T], to: &mut [T]) {
    const HALF: usize = PIECE / 2;
    let Some((end, to)) = to.split_last_mut() else { return };
    *end = from[2 * to.len()];
    let Some(last) = to.len().checked_sub(HALF) else {
        to.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, from)| *to = *from);
        return;
    };
    let evens = |pairs: &[T; PIECE]| -> [T; HALF] { std::array::from_fn(|i| pairs[2 * i]) };
    for (to, pairs) in to.as_chunks_mut::<HALF>().0.iter_mut().zip(from.as_chunks().0) {
        *to = evens(pairs);
    }
    if let (Some(to), Some(pairs)) = (to[last..].first_chunk_mut(), from[2 * last..].first_chunk()) {
        *to = evens(pairs);
    }
}

/// [`Geometry::stage_channel`] for several channels, compiled for each instruction set.
struct Staging<'a, T> {
    geometry: &'a Geometry,
    input: &'a [T],
    staged: &'a mut [T],
    band: Band,
    rows: usize,
}

/// [`Geometry::crop_channel`] likewise.
struct Cropping<'a, T> {
    geometry: &'a Geometry,
    wide: &'a [T],
    pitch: usize,
    begin: usize,
    points: usize,
    output: &'a mut [T],
}

impl<T: Element> pulp::WithSimd for Cropping<'_, T> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let channels = self.output.chunks_exact_mut(self.geometry.output_plane);
        for (wide, output) in self.wide.chunks_exact(self.pitch).zip(channels) {
            self.geometry.crop_channel(&wide[..self.points], self.begin, output);
        }
    }
}

impl<T: Element> pulp::WithSimd for Staging<'_, T> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let g = self.geometry;
        let bands = self.staged.chunks_exact_mut(g.band_elems(self.rows));
        for (to, from) in bands.zip(self.input.chunks_exact(g.input_plane)) {
            g.stage_channel(from, to, self.band, self.rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn geometry(input: &[usize], weight: &[usize], params: ConvParams) -> Geometry {
        Geometry::new(&ConvShape::new(input, weight, &params).unwrap(), false)
    }

    /// All of a channel's phases, staged in one band.
    fn staged(g: &Geometry, input: &[f64]) -> Vec<f64> {
        let mut staged = vec![f64::NAN; g.plane];
        g.stage(input, &mut staged, g.band(0, g.wide()), g.rows(), 1);
        staged
    }

    #[test]
    fn unit_stride_without_padding_stays_in_place() {
        let g = geometry(&[1, 1, 5, 6], &[1, 1, 2, 3], ConvParams::default());
        assert!(g.in_place && !g.is_compact());
        assert_eq!((g.plane, g.wide(), g.reach()), (30, 3 * 6 + 4, 8));
        assert_eq!(g.offsets(g.rows()), [0, 1, 2, 6, 7, 8]);
        assert!(geometry(&[1, 1, 5, 6], &[1, 1, 2, 1], ConvParams::default()).is_compact());
    }

    #[test]
    fn only_the_phases_that_taps_meet_are_staged() {
        // A 1x1 kernel of stride 3 sees every third element and nothing else.
        let g = geometry(&[1, 1, 8], &[1, 1, 1], ConvParams::default().stride([3]));
        assert!(!g.in_place);
        assert_eq!(staged(&g, &(0..8).map(f64::from).collect::<Vec<_>>()), [0.0, 3.0, 6.0]);
    }

    #[test]
    fn phases_and_padding_lie_where_the_offsets_say() {
        // 0 0 | 1 2 3 4 5 | 0 under stride 2: even phase 0 1 3 5, odd phase 0 2 4 0.
        let params = ConvParams::default().stride([2]).padding([2, 1]);
        let g = geometry(&[1, 1, 5], &[1, 1, 3], params);
        assert_eq!(staged(&g, &[1.0, 2.0, 3.0, 4.0, 5.0]), [0.0, 1.0, 3.0, 5.0, 0.0, 2.0, 4.0, 0.0]);
        assert_eq!(g.offsets(1), [0, 4, 1]);
    }

    #[test]
    fn bands_hold_what_whole_planes_hold() {
        for (input, weight, params) in [
            (&[1, 2, 9, 7][..], &[1, 2, 3, 3][..], ConvParams::default().padding([1])),
            (&[1, 2, 11, 12], &[1, 2, 3, 4], ConvParams::default().padding([2, 1]).stride([2, 3])),
            (&[1, 2, 5, 6, 7], &[1, 2, 2, 3, 3], ConvParams::default().padding([1]).stride([1, 2, 1])),
        ] {
            let g = geometry(input, weight, params);
            let values: Vec<f64> = (0..2 * g.input_plane).map(|i| i as f64 + 1.0).collect();
            let mut all = vec![f64::NAN; 2 * g.plane];
            g.stage(&values, &mut all, g.band(0, g.wide()), g.rows(), 1);
            let whole = g.offsets(g.rows());
            for points in 1..=g.wide() {
                let rows = g.band_rows(points);
                let offsets = g.offsets(rows);
                for begin in (0..g.wide()).step_by(points) {
                    let band = g.band(begin, (begin + points).min(g.wide()));
                    let mut staged = vec![f64::NAN; 2 * g.band_elems(rows)];
                    g.stage(&values, &mut staged, band, rows, 1 + begin % 2);
                    for (near, far) in offsets.iter().zip(&whole) {
                        for point in band.begin..band.end {
                            let seen = staged[near + band.origin + point - band.begin];
                            assert_eq!(seen, all[far + point]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_kept_hold_outputs_as_far_apart_as_their_stride() {
        for (stride, width) in [(1, 9), (2, 9), (2, 37), (3, 40)] {
            let params = ConvParams::default().padding([1]).stride([2, stride]);
            let shape = ConvShape::new(&[1, 1, 7, width], &[1, 1, 3, 3], &params).unwrap();
            let (g, apart) = (Geometry::new(&shape, true), Geometry::new(&shape, false));
            let values: Vec<f64> = (0..g.input_plane).map(|i| i as f64 + 1.0).collect();
            let (kept, taken) = (staged(&g, &values), staged(&apart, &values));
            let near = g.offsets(g.rows());
            for (tap, far) in apart.offsets(apart.rows()).iter().enumerate() {
                // What a tap sees, cropped to the output, is the same either way.
                let (mut one, mut other) = (vec![0.0; g.output_plane], vec![0.0; g.output_plane]);
                g.crop(&kept[near[tap]..][..g.wide()], g.wide(), 0, g.wide(), &mut one);
                apart.crop(&taken[*far..][..apart.wide()], apart.wide(), 0, apart.wide(), &mut other);
                assert_eq!(one, other);
                // The same in pieces.
                for points in 1..20 {
                    let mut pieces = vec![0.0; g.output_plane];
                    for begin in (0..g.wide()).step_by(points) {
                        let count = points.min(g.wide() - begin);
                        g.crop(&kept[near[tap] + begin..][..count], count, begin, count, &mut pieces);
                    }
                    assert_eq!(pieces, one);
                }
            }
        }
    }

    #[test]
    fn cropping_leaves_out_what_lies_between_rows() {
        let g = geometry(&[1, 1, 4, 5], &[1, 1, 2, 3], ConvParams::default());
        let wide: Vec<f64> = (0..g.wide()).map(|i| i as f64).collect();
        for points in 1..=g.wide() {
            let mut output = [f64::NAN; 9];
            for begin in (0..g.wide()).step_by(points) {
                let count = points.min(g.wide() - begin);
                g.crop(&wide[begin..begin + count], count, begin, count, &mut output);
            }
            assert_eq!(output, [0.0, 1.0, 2.0, 5.0, 6.0, 7.0, 10.0, 11.0, 12.0]);
        }
    }
}
