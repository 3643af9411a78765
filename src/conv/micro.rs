//! The inner kernel of the CPU convolution: a few output channels over a run of wide output points, in registers.
//!
//! Relevant if you want to change the inner loop; callers need only [`ConvKernel`](super::ConvKernel). Since staged
//! planes reduce every stride to 1 ([`Geometry`](super::geometry::Geometry)), a term of the sum is one weight times one
//! contiguous run of the input for any shape, without im2col. A tile of channels x vectors of points stays in registers
//! while its terms are added, so each input vector serves all channels of the tile, and each weight all of its vectors.
//!
//! Invariant: every element of the given channels is written as the sum of its terms in order. Its value depends
//! neither on its position in a tile nor on its neighbours.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use pulp::Simd;

use crate::array::{DType, Element, F32_RUN, load};

/// Maximum number of lanes of a vector, for either type: the minimum number of points of a run computed in place.
pub(super) const MOST_LANES: usize = 16;

/// Points of the widest tiles on the largest vectors: runs of a multiple of this need no narrow tile.
pub(super) const TILE_POINTS: usize = 3 * MOST_LANES;

/// Maximum number of output channels that share an input vector, and the block size of packed filters.
pub(super) const CHANNELS: usize = 8;

/// The operands of one call.
pub(super) struct Sums<'a, T> {
    /// The staged channels of a group, starting at the first output point under a tap of offset 0.
    pub(super) source: &'a [T],
    /// The offset of each term in `source`, relative to the output point.
    pub(super) offsets: &'a [usize],
    /// `[terms, width]`: the weights of a block of output channels.
    pub(super) weights: &'a [T],
    pub(super) width: usize,
    /// Output channels in the block, at most `width`.
    pub(super) channels: usize,
    /// Output points.
    pub(super) points: usize,
    /// Channel c, point p goes to `c * pitch + p`.
    pub(super) output: &'a mut [T],
    pub(super) pitch: usize,
}

/// Computes `sums`. With `room`, source and output extend beyond the last point up to whole vectors, and their contents
/// there are ignored; without it, there must be at least [`MOST_LANES`] points.
pub(super) fn sum<T: Element>(sums: Sums<'_, T>, room: bool) {
    pulp::Arch::new().dispatch(Tiles { sums, room });
}

/// Splits `begin..end` into pieces of `step`. If possible, the last piece has at least [`MOST_LANES`] points, so it may
/// be longer than `step` by less than that.
pub(super) fn pieces(begin: usize, end: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let from = at;
        at = if end - from < step + MOST_LANES { end } else { from + step };
        (from < end).then_some((from, at))
    })
}

/// The loops, compiled for each instruction set and selected at run time. `inline(always)` is needed because a separate
/// function would be compiled for the oldest processor.
struct Tiles<'a, T> {
    sums: Sums<'a, T>,
    room: bool,
}

impl<T: Element> pulp::WithSimd for Tiles<'_, T> {
    type Output = ();

    /// Divides channels into blocks as large as the registers allow: tiles of 8 x 3, 4 x 6 or (with half of the
    /// registers) 4 x 3 vectors. With one or two channels reads dominate, whatever the tile.
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
    /// All points of the channels from `first` on, in tiles of M channels x N vectors; returns M.
    #[inline(always)]
    fn rows<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, first: usize) -> usize {
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        // With room the last vector is computed whole.
        let points = self.sums.points.next_multiple_of(if self.room { lanes } else { 1 });
        let mut at = 0;
        while at < points {
            // The rest is a whole tile, nearly one, or a few vectors. A tile that would reach beyond the last point
            // begins earlier instead, which recomputes the same values.
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

    /// M channels from `first` on x N vectors of points from `at` on. The first run of terms overwrites the output, the
    /// later runs add to it.
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

/// Writes `sums` to rows that are `pitch` apart, or adds them to the contents.
#[inline(always)]
pub(super) fn store<S: Simd, T: Element, const M: usize, const N: usize>(
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
