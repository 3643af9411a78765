//! The inner kernel of the CPU convolution: a few output channels over a run of wide output points, in registers.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. Because staged planes turn every stride into 1
//! ([`Geometry`](super::geometry::Geometry)), a term of the sum is one weight times one contiguous run of the input,
//! whatever the shape: nothing is gathered into columns first. A tile of channels x vectors of points stays in
//! registers while its terms are added, so each vector read from the input serves all channels of the tile, and each
//! weight all of its vectors.
//!
//! Invariant: every element of the channels in hand is written, from the terms in their order: what it becomes
//! depends neither on its place in a tile nor on its neighbours.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use pulp::Simd;

use crate::array::{DType, Element, F32_RUN, load};

/// Elements that a vector has at most, of either type: what a run of points must have to be computed in place.
pub(super) const MOST_LANES: usize = 16;

/// Points that the widest tiles hold, on the largest vectors: runs of a multiple of this leave no narrow tile.
pub(super) const TILE_POINTS: usize = 3 * MOST_LANES;

/// Output channels that share a vector of the input, at most: filters are packed in blocks of so many.
pub(super) const CHANNELS: usize = 8;

/// What one call sums.
pub(super) struct Sums<'a, T> {
    /// The staged channels of a group, beginning with the first output point under a tap without steps.
    pub(super) source: &'a [T],
    /// Where each term lies in `source`, relative to the output point.
    pub(super) offsets: &'a [usize],
    /// `[terms, width]`: the weights of a block of output channels.
    pub(super) weights: &'a [T],
    pub(super) width: usize,
    /// Output channels of the block that there are, at most `width`.
    pub(super) channels: usize,
    /// Output points.
    pub(super) points: usize,
    /// Channel c, point p goes to `c * pitch + p`.
    pub(super) output: &'a mut [T],
    pub(super) pitch: usize,
}

/// Computes `sums`. If `room` says so, source and output go on beyond the last point, up to whole vectors, and hold
/// nothing of use there; else there must be at least [`MOST_LANES`] points.
pub(super) fn sum<T: Element>(sums: Sums<'_, T>, room: bool) {
    pulp::Arch::new().dispatch(Tiles { sums, room });
}

/// `begin..end` in pieces of `step`; the last has at least [`MOST_LANES`] points where there are so many, and so one piece
/// may be longer by less than that.
pub(super) fn pieces(begin: usize, end: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let from = at;
        at = if end - from < step + MOST_LANES { end } else { from + step };
        (from < end).then_some((from, at))
    })
}

/// The loops, compiled for each instruction set and chosen at run time. `inline(always)` carries the choice inwards: a
/// function of its own would be compiled for the oldest processor.
struct Tiles<'a, T> {
    sums: Sums<'a, T>,
    room: bool,
}

impl<T: Element> pulp::WithSimd for Tiles<'_, T> {
    type Output = ();

    /// Blocks of channels as large as the registers allow: tiles of 8 x 3, 4 x 6 or (with half of the registers) 4 x 3
    /// vectors; one or two channels read more than they compute, whatever the tile.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let many = S::REGISTER_COUNT >= 32;
        let mut first = 0;
        while first < self.sums.channels {
            let left = self.sums.channels - first;
            first += if many && left >= 8 {
                self.rows::<S, 8, 3>(simd, first)
            } else if many && left >= 4 {
                self.rows::<S, 4, 6>(simd, first)
            } else if left >= 4 {
                self.rows::<S, 4, 3>(simd, first)
            } else if left >= 2 {
                self.rows::<S, 2, 4>(simd, first)
            } else {
                self.rows::<S, 1, 8>(simd, first)
            };
        }
    }
}

impl<T: Element> Tiles<'_, T> {
    /// All points of the channels from `first` on, in tiles of M channels x N vectors; answers M.
    #[inline(always)]
    fn rows<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, first: usize) -> usize {
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        // With room the last vector may as well be full.
        let points = self.sums.points.next_multiple_of(if self.room { lanes } else { 1 });
        let mut at = 0;
        while at < points {
            // What is left is a whole tile, nearly one, or a few vectors. A tile that would reach beyond the last point
            // begins earlier instead: the values are the same.
            let left = (points - at).div_ceil(lanes);
            let begin = |vectors: usize| at.min(points - vectors * lanes);
            let fits = |vectors: usize| points >= vectors * lanes;
            at += lanes
                * if left > N - N / 4 - 1 && fits(N) {
                    self.tile::<S, M, N>(simd, first, begin(N));
                    N
                } else if N > 4 && left >= 4 && fits(4) {
                    self.tile::<S, M, 4>(simd, first, begin(4));
                    4
                } else if N > 2 && left >= 2 && fits(2) {
                    self.tile::<S, M, 2>(simd, first, begin(2));
                    2
                } else {
                    self.tile::<S, M, 1>(simd, first, begin(1));
                    1
                };
        }
        M
    }

    /// M channels from `first` on x N vectors of points from `at` on: the first run of terms is written, the others are
    /// added to what those before have written.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, first: usize, at: usize) {
        let Sums { source, offsets, weights, width, output, pitch, .. } = &mut self.sums;
        let (source, output) = (&source[at..], &mut output[first * *pitch + at..]);
        let run = match T::DTYPE {
            DType::F32 => F32_RUN,
            DType::F64 => offsets.len(),
        };
        let runs = offsets.chunks(run).zip(weights.chunks(run * *width));
        for (index, (offsets, weights)) in runs.enumerate() {
            let sums = run_of::<S, T, M, N>(simd, source, offsets, &weights[first..], *width);
            store::<S, T, M, N>(simd, sums, output, *pitch, index > 0);
        }
    }
}

/// The sums of one run of terms.
#[inline(always)]
fn run_of<S: Simd, T: Element, const M: usize, const N: usize>(
    simd: S,
    source: &[T],
    offsets: &[usize],
    weights: &[T],
    width: usize,
) -> [[T::Vector<S>; N]; M] {
    let mut sums = [[T::splat(simd, T::default()); N]; M];
    for (offset, weights) in offsets.iter().zip(weights.chunks(width)) {
        let weights = &weights[..M];
        let values = load::<S, T, N>(simd, source, *offset);
        for m in 0..M {
            let weight = T::splat(simd, weights[m]);
            for n in 0..N {
                sums[m][n] = T::mul_add(simd, weight, values[n], sums[m][n]);
            }
        }
    }
    sums
}

/// Writes `sums` to rows that lie `pitch` apart, or adds them to what is there.
#[inline(always)]
fn store<S: Simd, T: Element, const M: usize, const N: usize>(
    simd: S,
    sums: [[T::Vector<S>; N]; M],
    output: &mut [T],
    pitch: usize,
    add: bool,
) {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    for m in 0..M {
        let row = &mut output[m * pitch..][..N * lanes];
        let before = if add { load::<S, T, N>(simd, row, 0) } else { [T::splat(simd, T::default()); N] };
        for n in 0..N {
            let sum = if add { T::plus(simd, sums[m][n], before[n]) } else { sums[m][n] };
            row[n * lanes..(n + 1) * lanes].copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&sum)));
        }
    }
}
