//! Stages bands of the input, and crops wide sums to the output.
//!
//! Relevant if you want to change these copies; callers need only [`ConvKernel`](super::ConvKernel). [`Geometry`]
//! defines the layout; this module moves the data, in loops compiled for each instruction set, because rows are so
//! short that a call for each would cost as much as the copy.
//!
//! Invariant: a staged row is written whole, padding included; exactly the given points of the output are written.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::geometry::{Band, Geometry};
use crate::array::Element;
use crate::share::share;

impl Geometry {
    /// Writes the bands, of `rows` rows each, of all channels in `staged`. Rows past the end of the plane are left as
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
        let per_task = (staged.len() / elems).div_ceil(threads * PIECES_PER_THREAD).max(1);
        let pieces = staged.chunks_mut(per_task * elems).zip(input.chunks(per_task * self.input_plane));
        if threads > 1 { share(threads, pieces, work) } else { work((staged, input)) }
    }

    #[inline(always)]
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
                        let rows = Rows { from, step, to: inner, len: w.len, inside: (begin, end) };
                        match w.stride {
                            1 => rows.stage::<1>(1),
                            2 => rows.stage::<2>(2),
                            stride => rows.stage::<0>(stride),
                        }
                        (phase, row) = (rest, row + count);
                    }
                }
            }
        }
    }

    /// Copies the wide output points from `begin` on of one channel to their places in the channel.
    #[inline(always)]
    fn crop_channel<T: Element, const KNOWN: usize>(&self, wide: &[T], begin: usize, output: &mut [T]) {
        let [_, rows, width] = self.output;
        let step = if KNOWN == 0 { self.axes[2].step } else { KNOWN };
        let (row, mut x) = (begin / self.row(), begin % self.row());
        let (mut z, mut y) = (row / self.axes[1].len, row % self.axes[1].len);
        let mut wide = wide;
        while !wide.is_empty() {
            let (here, rest) = wide.split_at((self.row() - x).min(wide.len()));
            // The first output point at or after x.
            let column = if x == 0 { 0 } else { x.div_ceil(step) };
            if y < rows && column < width {
                let here = here.get(column * step - x..).unwrap_or_default();
                // A complete row has all its points.
                let count = if rest.is_empty() { here.len().div_ceil(step) } else { width };
                let to = &mut output[(z * rows + y) * width..][..width][column..];
                let count = count.min(to.len());
                copy_every::<T, KNOWN>(step, here, &mut to[..count]);
            }
            (wide, x, y) = (rest, 0, y + 1);
            if y == self.axes[1].len {
                (y, z) = (0, z + 1);
            }
        }
    }

    /// Copies `points` wide output points from `begin` on to their places, for all channels in `output`; the channels
    /// in `wide` are `pitch` apart.
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

/// Elements copied at once: pieces of a fixed size compile to a few vector instructions, whereas a call of memcpy would
/// cost as much as copying a short row.
const PIECE: usize = 16;

/// Pieces into which channels are divided for each thread.
const PIECES_PER_THREAD: usize = 4;

/// Rows of one phase of a plane.
struct Rows<'a, T> {
    /// Starts at the first staged element of the first row; the next row is `step` elements further.
    from: &'a [T],
    step: usize,
    /// Staged rows of `len`, of which the elements `inside` are input elements.
    to: &'a mut [T],
    len: usize,
    inside: (usize, usize),
}

impl<T: Element> Rows<'_, T> {
    /// Copies every `stride`th element and writes zeros around them. `KNOWN` is the stride if known at compile time,
    /// else 0.
    #[inline(always)]
    fn stage<const KNOWN: usize>(self, stride: usize) {
        let (begin, end) = self.inside;
        for (row, to) in self.to.chunks_exact_mut(self.len).enumerate() {
            // At most a few elements, for which a call of memset would cost more.
            to[..begin].iter_mut().for_each(|to| *to = T::default());
            to[end..].iter_mut().for_each(|to| *to = T::default());
            copy_every::<T, KNOWN>(stride, &self.from[row * self.step..], &mut to[begin..end]);
        }
    }
}

/// Fills `to` with every `step`th element of `from`, starting with the first. `KNOWN` is the step if known at compile
/// time, else 0; choosing at run time for each row would cost more than the copy.
#[inline(always)]
fn copy_every<T: Element, const KNOWN: usize>(step: usize, from: &[T], to: &mut [T]) {
    match KNOWN {
        1 => copy(from, to),
        2 => copy_evens(from, to),
        _ => to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, from)| *to = *from),
    }
}

/// Copies the beginning of `from` to `to`. The last piece overlaps the one before.
#[inline(always)]
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

/// Fills `to` with every second element of `from`, starting with the first.
#[inline(always)]
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

/// [`Geometry::crop_channel`] for several channels, compiled for each instruction set.
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
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let channels = self.output.chunks_exact_mut(self.geometry.output_plane);
        for (wide, output) in self.wide.chunks_exact(self.pitch).zip(channels) {
            let (g, wide) = (self.geometry, &wide[..self.points]);
            match g.axes[2].step {
                1 => g.crop_channel::<T, 1>(wide, self.begin, output),
                2 => g.crop_channel::<T, 2>(wide, self.begin, output),
                _ => g.crop_channel::<T, 0>(wide, self.begin, output),
            }
        }
    }
}

impl<T: Element> pulp::WithSimd for Staging<'_, T> {
    type Output = ();

    #[inline(always)]
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
    use crate::conv::{ConvParams, ConvShape};

    fn geometry(input: &[usize], weight: &[usize], params: ConvParams) -> Geometry {
        Geometry::new(&ConvShape::new(input, weight, &params).unwrap(), false)
    }

    /// All phases of a channel, staged in one band.
    fn staged(g: &Geometry, input: &[f64]) -> Vec<f64> {
        let mut staged = vec![f64::NAN; g.plane];
        g.stage(input, &mut staged, g.band(0), g.rows(), 1);
        staged
    }

    #[test]
    fn only_the_phases_that_taps_meet_are_staged() {
        // A 1x1 kernel of stride 3 reads every third element only.
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
            g.stage(&values, &mut all, g.band(0), g.rows(), 1);
            let whole = g.offsets(g.rows());
            for points in 1..=g.wide() {
                let rows = g.band_rows(points);
                let offsets = g.offsets(rows);
                for begin in (0..g.wide()).step_by(points) {
                    let band = g.band(begin);
                    let mut staged = vec![f64::NAN; 2 * g.band_elems(rows)];
                    g.stage(&values, &mut staged, band, rows, 1 + begin % 2);
                    for (near, far) in offsets.iter().zip(&whole) {
                        for point in begin..(begin + points).min(g.wide()) {
                            let seen = staged[near + point - band.start];
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
                // The elements under a tap, cropped to the output, are the same either way.
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
