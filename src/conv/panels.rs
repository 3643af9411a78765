//! Sums over packed panels: for many output channels, the inputs of a few output points are copied side by side first.
//!
//! Relevant if you want to change the inner loop for layers with many channels; callers need only
//! [`ConvKernel`](super::ConvKernel). A *panel* holds, for a run of terms, the inputs of as many output points as fit
//! into the vectors of a tile. It stays in the innermost cache while all output channels are multiplied with it, and is
//! read in order. Read in place, the same inputs are spread over at least as many cache lines as there are terms, which
//! matters most where the caches are small or shared. Copying costs about as much as one output channel. A panel has no
//! points between the rows of the output, which are computed and dropped otherwise.
//!
//! Invariant: a sum is the sum of its runs in order, each of them summed in order. It depends neither on the panel that
//! it is computed in nor on its neighbours.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use pulp::Simd;

use super::filters::Block;
use super::geometry::Geometry;
use super::micro::{MOST_LANES, TILE_POINTS};
use crate::array::{Element, F32_RUN, load};

/// Most terms of a run: as many as may be summed in one f32, which also suits the innermost cache.
const RUN: usize = F32_RUN;

/// Points that are copied for one run of terms before they are multiplied: as many panels as this holds. Each term is read
/// from a cache line of its own, and the processor fetches the lines beside it ahead.
const COPIED_POINTS: usize = 64;

/// Elements of the panels, with those that let them begin at a cache line and those that a copied vector may reach beyond
/// them.
pub(super) const ELEMS: usize = RUN * COPIED_POINTS + LINE + MOST_LANES;

/// Elements of a cache line of f32.
const LINE: usize = 16;

/// Bytes of the sums of a strip, for filters that stay in the L2 cache and for larger ones. Filters are read once for
/// each strip, and the sums once for each run of terms.
const SUMS_BYTES: [usize; 2] = [96 << 10, 512 << 10];

/// Bytes of filters that stay in the L2 cache, beside the sums.
const FEW_FILTERS_BYTES: usize = 256 << 10;

/// Minimum numbers of output and input channels for which copying pays: few output channels do not make up for it, and
/// few input channels stay in the innermost cache in place.
const LEAST_CHANNELS: usize = 32;

/// Minimum number of output channels where points are copied row by row, which takes several times as long.
const LEAST_OUTPUTS_OF_ROWS: usize = 48;

/// Whether panels pay for groups of `outputs` output and `inputs` input channels and sums of `terms` terms, whose points
/// are `compact` or lie in rows. A single run is as fast in place.
pub(super) fn pay(outputs: usize, inputs: usize, terms: usize, compact: bool) -> bool {
    let least = if compact { LEAST_CHANNELS } else { LEAST_OUTPUTS_OF_ROWS };
    outputs >= least && inputs >= LEAST_CHANNELS && terms > RUN
}

/// Output channels of a block of filters on this processor: as many as are multiplied with a panel at once.
pub(super) fn channels() -> usize {
    struct Registers;

    impl pulp::WithSimd for Registers {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            if S::REGISTER_COUNT >= 32 { 8 } else { 6 }
        }
    }
    pulp::Arch::new().dispatch(Registers)
}

/// Terms of each run but the last of `terms` terms: nearly equal parts.
pub(super) fn run(terms: usize) -> usize {
    terms.div_ceil(terms.div_ceil(RUN))
}

/// Output points of a strip of planes of `plane` points: equal parts, whole tiles.
pub(super) fn strip(channels: usize, terms: usize, plane: usize) -> usize {
    let many = channels * terms * size_of::<f32>() > FEW_FILTERS_BYTES;
    let most = (SUMS_BYTES[usize::from(many)] / (channels * size_of::<f32>())).max(TILE_POINTS);
    plane.div_ceil(plane.div_ceil(most)).next_multiple_of(TILE_POINTS)
}

/// A run of terms of a strip of output points, for a number of blocks of filters.
pub(super) struct Panels<'a, T, F> {
    pub(super) geometry: &'a Geometry,
    /// The staged channels of a group.
    pub(super) source: &'a [T],
    /// The wide point at which `source` starts.
    pub(super) start: usize,
    /// The offset of each term of the run in `source`, relative to the output point.
    pub(super) offsets: &'a [usize],
    /// Index of the first term of the run.
    pub(super) first: usize,
    /// Output points, `begin..end`.
    pub(super) points: (usize, usize),
    pub(super) blocks: usize,
    pub(super) block: F,
    /// Memory for a panel.
    pub(super) panel: &'a mut [T],
    /// Channel c of block b at the i-th point: `(b * width + c) * pitch + i`. The first run overwrites them, the later
    /// ones add to them.
    pub(super) sums: &'a mut [T],
    pub(super) pitch: usize,
}

/// A piece of a row of outputs within a panel.
#[derive(Clone, Copy, Default)]
struct Segment {
    /// Its place in the panel of the first term, and the points of that panel.
    to: usize,
    width: usize,
    len: usize,
    /// Its first point in the source.
    from: usize,
}

impl<'f, T: Element, F: Fn(usize) -> Block<'f, T>> pulp::WithSimd for Panels<'_, T, F> {
    type Output = ();

    /// Tiles of 8 x 3 or, with half of the registers, 6 x 2 vectors; 4 x 3 would leave no register for a second weight.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.all::<S, 8, 3>(simd) } else { self.all::<S, 6, 2>(simd) }
    }
}

impl<'f, T: Element, F: Fn(usize) -> Block<'f, T>> Panels<'_, T, F> {
    /// All points, in panels of N vectors, for blocks of W channels.
    #[inline(always)]
    fn all<S: Simd, const W: usize, const N: usize>(mut self, simd: S) {
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        let skip = self.panel.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (begin, end) = self.points;
        let (width, terms) = (N * lanes, self.offsets.len());
        let most = (COPIED_POINTS / width).max(1) * width;
        for from in (begin..end).step_by(most) {
            let count = (end - from).min(most);
            self.pack(skip, (from, count), width, lanes);
            for done in (0..count).step_by(width) {
                let panel = (&self.panel[skip + done * terms..], (count - done).min(width));
                let (sums, to) = (&mut self.sums[from + done - begin..], (self.pitch, self.first > 0));
                multiply::<S, T, W, N>(simd, panel, (self.first, terms), self.blocks, &self.block, sums, to);
            }
        }
    }

    /// Copies the inputs of `count` points from `at` on to panels `[terms, width]`; the last one is as wide as its points need.
    /// What follows the points is arbitrary.
    #[inline(always)]
    fn pack(&mut self, skip: usize, (at, count): (usize, usize), width: usize, lanes: usize) {
        let mut segments = [Segment::default(); COPIED_POINTS];
        let used = self.segments((at, count), (width, lanes), &mut segments);
        let segments = &segments[..used];
        let (source, panel) = (self.source, &mut self.panel[skip..]);
        let last = segments.last().map_or(0, |s| s.from + s.len.next_multiple_of(lanes));
        let reach = self.offsets.iter().max().map_or(0, |offset| offset + last);
        for (term, offset) in self.offsets.iter().enumerate() {
            // Beyond the last term of a panel another one begins.
            let exact = reach > source.len() || term + 1 == self.offsets.len();
            for Segment { to, width, len, from } in segments {
                let (from, to) = (&source[offset + from..], &mut panel[to + term * width..]);
                if exact {
                    to[..*len].copy_from_slice(&from[..*len]);
                    continue;
                }
                // In whole vectors: the next segment or term overwrites what lies beyond the end of this one.
                for done in (0..*len).step_by(lanes) {
                    to[done..done + lanes].copy_from_slice(&from[done..done + lanes]);
                }
            }
        }
    }

    /// The pieces of rows and panels that hold `count` output points from `at` on, and their number.
    fn segments(
        &self,
        (at, count): (usize, usize),
        (width, lanes): (usize, usize),
        segments: &mut [Segment; COPIED_POINTS],
    ) -> usize {
        let (row, terms, compact) = (self.geometry.output[2], self.offsets.len(), self.geometry.is_compact());
        let (mut used, mut done) = (0, 0);
        while done < count {
            let (point, panel, column) = (at + done, done / width, done % width);
            let in_row = if compact { count } else { row - point % row };
            let len = in_row.min(count - done).min(width - column);
            let from = if compact { point } else { self.geometry.wide_of(point) } - self.start;
            let to = panel * width * terms + column;
            let width = (count - panel * width).min(width).next_multiple_of(lanes);
            segments[used] = Segment { to, width, len, from };
            used += 1;
            done += len;
        }
        used
    }
}

/// Points of a whole panel on this processor: vectors of a tile.
#[inline(always)]
pub(super) fn points<S: Simd, T: Element>() -> usize {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    lanes * if S::REGISTER_COUNT >= 32 { 3 } else { 2 }
}

/// Multiplies a panel of `points` points, at most N vectors, which holds `count` terms from term `first` on, with `blocks`
/// blocks of W channels. Channel c of block b goes to `sums[(b * W + c) * pitch..]`: overwritten, or added to with `add`.
#[inline(always)]
pub(super) fn multiply<'f, S: Simd, T: Element, const W: usize, const N: usize>(
    simd: S,
    (panel, points): (&[T], usize),
    terms: (usize, usize),
    blocks: usize,
    block: &impl Fn(usize) -> Block<'f, T>,
    sums: &mut [T],
    to: (usize, bool),
) {
    match points.div_ceil(size_of::<T::Vector<S>>() / size_of::<T>()) {
        1 => vectors::<S, T, W, 1>(simd, panel, terms, blocks, block, sums, to),
        2 => vectors::<S, T, W, 2>(simd, panel, terms, blocks, block, sums, to),
        _ => vectors::<S, T, W, N>(simd, panel, terms, blocks, block, sums, to),
    }
}

/// [`multiply`] for a panel of N vectors.
#[inline(always)]
fn vectors<'f, S: Simd, T: Element, const W: usize, const N: usize>(
    simd: S,
    panel: &[T],
    (first, count): (usize, usize),
    blocks: usize,
    block: &impl Fn(usize) -> Block<'f, T>,
    sums: &mut [T],
    (pitch, add): (usize, bool),
) {
    let panel = &panel[..count * N * (size_of::<T::Vector<S>>() / size_of::<T>())];
    for index in 0..blocks {
        let block = block(index);
        let (weights, _) = block.run(first, count).as_chunks::<W>();
        let sums = &mut sums[index * W * pitch..];
        let mut channel = 0;
        while channel < block.channels {
            let left = block.channels - channel;
            let (from, sums) = (block.first + channel, &mut sums[channel * pitch..]);
            channel += if left >= W {
                tile::<S, T, W, N, W>(simd, panel, weights, from, sums, (pitch, add))
            } else if left >= 4 {
                tile::<S, T, 4, N, W>(simd, panel, weights, from, sums, (pitch, add))
            } else if left >= 2 {
                tile::<S, T, 2, N, W>(simd, panel, weights, from, sums, (pitch, add))
            } else {
                tile::<S, T, 1, N, W>(simd, panel, weights, from, sums, (pitch, add))
            };
        }
    }
}

/// Channels `first..first + M` of a block of W x N vectors of points; returns M.
#[inline(always)]
fn tile<S: Simd, T: Element, const M: usize, const N: usize, const W: usize>(
    simd: S,
    panel: &[T],
    weights: &[[T; W]],
    first: usize,
    output: &mut [T],
    (pitch, add): (usize, bool),
) -> usize {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    let mut sums = [[T::splat(simd, T::default()); N]; M];
    for (values, weights) in panel.chunks_exact(N * lanes).zip(weights) {
        let values = load::<S, T, N>(simd, values, 0);
        for m in 0..M {
            // The remainder changes nothing, but shows the compiler that the index is valid.
            let weight = T::splat(simd, weights[(first + m) % W]);
            for n in 0..N {
                sums[m][n] = T::mul_add(simd, weight, values[n], sums[m][n]);
            }
        }
    }
    super::micro::store::<S, T, M, N>(simd, sums, output, pitch, add);
    M
}
