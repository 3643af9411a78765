//! Winograd's minimal filtering F(2 x 2, 3 x 3) on the CPU: 2 x 2 outputs from 16 products a channel instead of 36.
//!
//! Relevant if you want to change how 3 x 3 layers with many channels are computed; callers need only
//! [`ConvKernel`](super::ConvKernel). Windows of 4 x 4 elements are transformed, multiplied with transformed filters as in
//! a 1 x 1 convolution with 16 times as many groups, and the products are transformed back. Transformed windows are
//! written as [panels](super::panels), so that nothing is copied between the two. A *part* is a number of rows of tiles
//! whose transformed windows stay in the cache while they are multiplied with all filters. A. Lavin and S. Gray, "Fast
//! Algorithms for Convolutional Neural Networks", CVPR 2016.
//!
//! Costs: the filters take 16 / 9 of their memory, rounding is up to twice that of direct sums, and an infinity becomes NaN.
//!
//! Invariant: an output depends on the elements of its own window alone, not on others of its tile, and not on the part
//! that it is computed in: each of its products has a factor that is a sum of elements of the window.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use std::ops::Range;

use pulp::Simd;

use super::micro::MOST_LANES;
use super::panels;
use super::params::ConvShape;
use crate::array::Element;

/// Products of a tile of outputs.
pub(crate) const PRODUCTS: usize = 16;

/// Elements of a side of a tile of outputs, and of the window that it depends on.
pub(super) const TILE: usize = 2;
const WINDOW: usize = 4;

/// Bytes of the transformed windows of a part.
const WINDOWS_BYTES: usize = 1 << 20;
/// Elements that are copied at once.
const PIECE: usize = 8;
/// Minimum number of tiles of a part, which share each filter that is read.
const LEAST_TILES: usize = 48;
/// Smaller planes, in tiles, are summed directly: filters are read for too few outputs.
const LEAST_PLANE: usize = 12;
/// Maximum number of columns of tiles of a pass.
const MOST_COLUMNS: usize = 256;
/// Groups with fewer input or output channels are summed directly, because the transformations would cost more than they save:
/// on processors with 16 vector registers, and on those with 32, whose vectors multiply faster but are not copied faster.
const LEAST_CHANNELS: [usize; 2] = [32, 64];

/// The limit of [`LEAST_CHANNELS`] on this processor.
pub(super) fn least_channels() -> usize {
    struct Registers;

    impl pulp::WithSimd for Registers {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            LEAST_CHANNELS[usize::from(S::REGISTER_COUNT >= 32)]
        }
    }
    pulp::Arch::new().dispatch(Registers)
}

/// How the tiles of a layer are divided.
#[derive(Clone, Debug)]
pub(super) struct Filtering {
    /// Rows and columns of tiles of an output plane.
    pub(super) tiles: [usize; 2],
    /// Rows of tiles of a part.
    rows: usize,
    /// Columns of tiles of a pass: all, unless planes are very wide.
    pub(super) columns: usize,
}

/// The tiles of a pass, and the input planes that their windows lie in.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Rows and columns of an input plane, and of an output plane.
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    /// Zeros before the first row and column.
    pub(super) pad: [usize; 2],
}

impl Pass {
    pub(super) fn tiles(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Where the tiles of each row lie in panels of `width` points, of `all` in all, for `inputs` channels.
    fn segments(&self, width: usize, all: usize, inputs: usize) -> Vec<Segment> {
        let columns = self.columns.len();
        let mut segments = Vec::with_capacity(self.rows.len() + all / width + 1);
        for row in 0..self.rows.len() {
            let mut done = 0;
            while done < columns {
                let point = row * columns + done;
                let (panel, column) = (point / width, point % width);
                let len = (width - column).min(columns - done);
                let points = (all - panel * width).min(width);
                let (from, begin) = (row * (columns + 1) + done, panel * width * inputs);
                let (to, end) = (begin + column, begin + points * inputs);
                segments.push(Segment { from, to, points, end, len });
                done += len;
            }
        }
        segments
    }

    /// Elements between two channels of products.
    pub(super) fn pitch(&self) -> usize {
        self.tiles().next_multiple_of(MOST_LANES)
    }
}

impl Filtering {
    /// The division of `shape`, if filtering pays for it.
    pub(super) fn new(shape: &ConvShape) -> Option<Self> {
        let (outputs, inputs) = (shape.out_channels / shape.groups, shape.in_channels / shape.groups);
        let tiles = [1, 2].map(|axis| shape.output[axis].div_ceil(TILE));
        let pays = outputs.min(inputs) >= least_channels() && tiles[0] * tiles[1] >= LEAST_PLANE;
        if !(pays && shape.suits_filtering()) {
            return None;
        }
        let columns = tiles[1].div_ceil(tiles[1].div_ceil(MOST_COLUMNS));
        let most = (WINDOWS_BYTES / (PRODUCTS * inputs * size_of::<f32>())).max(LEAST_TILES);
        let rows = (most / columns).clamp(1, tiles[0]);
        // Parts of nearly equal size.
        let rows = tiles[0].div_ceil(tiles[0].div_ceil(rows));
        Some(Self { tiles, rows, columns })
    }

    /// Whether the transformed windows of a whole image are kept between calls.
    pub(super) fn holds(&self) -> bool {
        [self.rows, self.columns] == self.tiles
    }

    /// The rows of tiles of a part and the number of parts that output channels are divided into, for `threads` threads
    /// and `blocks` blocks of filters.
    pub(super) fn shares(&self, threads: usize, blocks: usize) -> (usize, usize) {
        let [rows, columns] = self.tiles;
        if threads == 1 {
            return (self.rows, 1);
        }
        // Threads that share rows transform different windows; threads that share channels transform the same ones.
        let each = rows.div_ceil(threads);
        if each * columns >= LEAST_TILES {
            return (self.rows.min(each), 1);
        }
        (self.rows, threads.min(blocks))
    }

    /// Output points for which products are computed, of an output plane.
    pub(super) fn points(&self) -> usize {
        self.tiles[0] * self.tiles[1] * TILE * TILE
    }
}

/// Elements of temporary memory that [`forward`] and [`backward`] need.
pub(super) fn temporary_of(pass: &Pass) -> usize {
    (10 * (pass.rows.len() + 1) * (pass.columns.len() + 1) + PIECE).max(12 * pass.tiles())
}

/// Transforms the windows of a pass: `input` `[C, H, W]` to `windows`, `[16, panels, C, points]`.
pub(super) fn forward<T: Element>(pass: &Pass, input: &[T], windows: &mut [T], temporary: &mut [T]) {
    pulp::Arch::new().dispatch(Forward { pass, input, windows, temporary });
}

struct Forward<'a, T> {
    pass: &'a Pass,
    input: &'a [T],
    windows: &'a mut [T],
    temporary: &'a mut [T],
}

/// A run of tiles of one row that lie in one panel.
struct Segment {
    /// The first among the transformed windows.
    from: usize,
    /// Its place in the panel of the first channel, and the points of that panel.
    to: usize,
    points: usize,
    /// The end of that panel.
    end: usize,
    len: usize,
}

impl<T: Element> pulp::WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pass, input, windows, temporary } = self;
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        let [height, row] = pass.input;
        let inputs = input.len() / (height * row);
        let all = pass.tiles().next_multiple_of(lanes);
        let segments = pass.segments(panels::points::<S, T>(), all, inputs);
        // Every second column of a row of windows; one more than there are tiles.
        let half = pass.columns.len() + 1;
        let phase = (pass.rows.len() + 1) * half;
        let (phases, temporary) = temporary.split_at_mut(4 * phase);
        let (sums, transformed) = temporary.split_at_mut(2 * phase);
        // The tiles of all rows one after the other; what lies between two rows is computed and dropped.
        let len = phase - half - 1;
        for (channel, plane) in input.chunks_exact(height * row).enumerate() {
            for (index, phases) in phases.chunks_exact_mut(2 * phase).enumerate() {
                let (evens, odds) = phases.split_at_mut(phase);
                let to = evens.chunks_exact_mut(half).zip(odds.chunks_exact_mut(half));
                for (at, (evens, odds)) in to.enumerate() {
                    let at = (pass.rows.start + at) * TILE + index;
                    let from = at.checked_sub(pass.pad[0]).filter(|y| *y < height);
                    let from = from.map_or(&[][..], |y| &plane[y * row..][..row]);
                    separate(from, pass.columns.start * TILE, pass.pad[1], evens, odds);
                }
            }
            // Row r of a window, in even and in odd columns.
            let rows = |r: usize| {
                let of = |column: usize| &phases[(r % 2 * 2 + column) * phase + r / 2 * half..][..=len];
                (of(0), of(1))
            };
            // d0 - d2, d1 + d2, d2 - d1, d1 - d3.
            for (k, (a, b)) in [(0, 2), (1, 2), (2, 1), (1, 3)].into_iter().enumerate() {
                let (even, odd) = sums.split_at_mut(phase);
                let ((a_even, a_odd), (b_even, b_odd)) = (rows(a), rows(b));
                if k == 1 {
                    pairwise(a_even, b_even, even, |a, b| a + b);
                    pairwise(a_odd, b_odd, odd, |a, b| a + b);
                } else {
                    pairwise(a_even, b_even, even, |a, b| a - b);
                    pairwise(a_odd, b_odd, odd, |a, b| a - b);
                }
                // The same over the columns: 0 is `even`, 1 `odd`, 2 the next of `even`, 3 the next of `odd`.
                let mut results = transformed.chunks_exact_mut(phase);
                let mut next = |a: &[T], b: &[T], plus: bool| {
                    let Some(to) = results.next() else { return };
                    if plus {
                        pairwise(a, b, to, |a, b| a + b);
                    } else {
                        pairwise(a, b, to, |a, b| a - b);
                    }
                };
                next(&even[..len], &even[1..], false);
                next(&odd[..len], &even[1..], true);
                next(&even[1..=len], odd, false);
                next(&odd[..len], &odd[1..], false);
                let windows = windows[WINDOW * k * all * inputs..].chunks_exact_mut(all * inputs);
                for (windows, x) in windows.zip(0..WINDOW) {
                    let from = &transformed[x * phase..];
                    for segment in &segments {
                        segment.copy(from, channel, windows);
                    }
                }
            }
        }
    }
}

impl Segment {
    /// Copies its tiles to the panel row of `channel`.
    #[inline(always)]
    fn copy<T: Element>(&self, from: &[T], channel: usize, windows: &mut [T]) {
        let Self { from: first, to, points, end, len } = *self;
        let (to, pieces) = (to + channel * points, len.next_multiple_of(PIECE));
        if to + pieces > end {
            windows[to..to + len].copy_from_slice(&from[first..first + len]);
            return;
        }
        // In whole pieces: the next segment or channel overwrites what lies beyond the end.
        let (to, _) = windows[to..to + pieces].as_chunks_mut::<PIECE>();
        to.iter_mut().zip(from[first..].as_chunks::<PIECE>().0).for_each(|(to, from)| *to = *from);
    }
}

/// `to = with(a, b)`, element by element, for as many as the shortest has.
#[inline(always)]
fn pairwise<T: Element>(a: &[T], b: &[T], to: &mut [T], with: impl Fn(T, T) -> T) {
    to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (a, b))| *to = with(*a, *b));
}

/// Writes elements of even and of odd columns of a padded row apart, from padded column `first` on; what lies outside
/// `row` is zero.
#[inline(always)]
fn separate<T: Element>(row: &[T], first: usize, pad: usize, evens: &mut [T], odds: &mut [T]) {
    let half = evens.len();
    let at = |column: usize| column.checked_sub(pad).and_then(|x| row.get(x)).copied().unwrap_or_default();
    // Pairs that lie inside the row.
    let begin = pad.saturating_sub(first).div_ceil(2).min(half);
    let inside = (row.len() + pad).saturating_sub(first + 2 * begin) / 2;
    let end = (begin + inside).min(half);
    for i in (0..begin).chain(end..half) {
        evens[i] = at(first + 2 * i);
        odds[i] = at(first + 2 * i + 1);
    }
    if begin < end {
        let (pairs, _) = row[first + 2 * begin - pad..].as_chunks::<2>();
        let to = evens[begin..end].iter_mut().zip(&mut odds[begin..end]);
        for ((even, odd), pair) in to.zip(pairs) {
            *even = pair[0];
            *odd = pair[1];
        }
    }
}

/// Transforms the products of one channel back to its outputs. The 16 products of each tile are `step` apart; `output` are the
/// rows of the output plane from the first row of tiles on.
pub(super) fn backward<T: Element>(
    pass: &Pass,
    (products, step): (&[T], usize),
    temporary: &mut [T],
    output: &mut [T],
) {
    pulp::Arch::new().dispatch(Backward { pass, products, step, temporary, output });
}

struct Backward<'a, T> {
    pass: &'a Pass,
    products: &'a [T],
    step: usize,
    temporary: &'a mut [T],
    output: &'a mut [T],
}

impl<T: Element> pulp::WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pass, products, step, temporary, output } = self;
        let tiles = pass.tiles();
        let (sums, outputs) = temporary.split_at_mut(2 * WINDOW * tiles);
        // Over the rows of products: m0 + m1 + m2 and m1 - m2 - m3.
        for (c, sums) in sums.chunks_exact_mut(2 * tiles).enumerate() {
            let [m0, m1, m2, m3] = std::array::from_fn(|r| &products[(WINDOW * r + c) * step..][..tiles]);
            let (upper, lower) = sums.split_at_mut(tiles);
            for i in 0..tiles {
                upper[i] = m0[i] + m1[i] + m2[i];
                lower[i] = m1[i] - m2[i] - m3[i];
            }
        }
        let of = |c: usize, r: usize| &sums[(2 * c + r) * tiles..][..tiles];
        for (r, outputs) in outputs[..2 * TILE * tiles].chunks_exact_mut(2 * tiles).enumerate() {
            let (s0, s1, s2, s3) = (of(0, r), of(1, r), of(2, r), of(3, r));
            let (left, right) = outputs.split_at_mut(tiles);
            for i in 0..tiles {
                left[i] = s0[i] + s1[i] + s2[i];
                right[i] = s1[i] - s2[i] - s3[i];
            }
        }
        let (columns, [height, width]) = (pass.columns.len(), pass.output);
        let first = pass.columns.start * TILE;
        let len = (width - first).min(TILE * columns);
        for (index, row) in pass.rows.clone().enumerate() {
            for r in (0..TILE).filter(|r| row * TILE + r < height) {
                let from = &outputs[2 * r * tiles + index * columns..];
                let (left, right) = (&from[..columns], &from[tiles..][..columns]);
                let to = &mut output[(index * TILE + r) * width + first..][..len];
                let (pairs, last) = to.as_chunks_mut::<2>();
                for (pair, (left, right)) in pairs.iter_mut().zip(left.iter().zip(right)) {
                    *pair = [*left, *right];
                }
                if let [last] = last {
                    *last = left[columns - 1];
                }
            }
        }
    }
}

/// Transforms filters `[O, C/g, 3, 3]` to `[16, O, C/g]`: G g G^T of each, computed in f64.
pub(crate) fn transform_filters<T: Element>(filters: &[T]) -> Vec<T> {
    let count = filters.len() / 9;
    let mut transformed = vec![T::default(); count * PRODUCTS];
    // G times a column of three.
    let four = |[a, b, c]: [f64; 3]| [a, f64::midpoint(a + c, b), f64::midpoint(a + c, -b), c];
    for (at, filter) in filters.chunks_exact(9).enumerate() {
        let filter: [[f64; 3]; 3] =
            std::array::from_fn(|r| std::array::from_fn(|c| filter[3 * r + c].to_f64()));
        // Rows of G g, transposed: one column of the filter each.
        let columns: [[f64; 4]; 3] = std::array::from_fn(|c| four(filter.map(|row| row[c])));
        for r in 0..4 {
            for (c, value) in four(columns.map(|column| column[r])).into_iter().enumerate() {
                transformed[(4 * r + c) * count + at] = T::from_f64(value);
            }
        }
    }
    transformed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{ConvKernel, ConvParams, ConvPath, reference};

    /// B^T d B and A^T m A as matrices, in the notation of the literature.
    const B: [[f64; 4]; 4] =
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]];
    const A: [[f64; 4]; 2] = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]];

    #[test]
    fn transformed_filters_give_the_convolution() {
        let shape = ConvShape::new(&[1, 1, 4, 4], &[2, 1, 3, 3], &ConvParams::default()).unwrap();
        let input: Vec<f64> = (0..16).map(|i| f64::from(i * 7 % 11) - 4.0).collect();
        let weight: Vec<f64> = (0..18).map(|i| f64::from(i * 5 % 13) - 6.0).collect();
        let expected = reference(&shape, &input, &weight, None).unwrap();
        let all = transform_filters(&weight);
        for o in 0..2 {
            let product = |r: usize, c: usize| {
                let seen: f64 = (0..16).map(|i| B[r][i / 4] * input[i] * B[c][i % 4]).sum();
                seen * all[(4 * r + c) * 2 + o]
            };
            for y in 0..2 {
                for x in 0..2 {
                    let sum: f64 = (0..16).map(|i| A[y][i / 4] * product(i / 4, i % 4) * A[x][i % 4]).sum();
                    assert!((sum - expected[4 * o + 2 * y + x]).abs() < 1e-12);
                }
            }
        }
    }

    /// A layer of C to O channels, H x W.
    fn shape(channels: [usize; 2], plane: [usize; 2]) -> ConvShape {
        let ([c, o], [h, w]) = (channels, plane);
        ConvShape::new(&[1, c, h, w], &[o, c, 3, 3], &ConvParams::default().padding([1])).unwrap()
    }

    #[test]
    fn parts_cover_all_tiles_whatever_the_number_of_threads() {
        for plane in [[8, 8], [14, 14], [7, 33], [200, 3], [3, 1200], [224, 224]] {
            let plan = Filtering::new(&shape([64, 64], plane)).unwrap();
            assert_eq!(plan.tiles, plane.map(|size| size.div_ceil(2)));
            assert!((1..=MOST_COLUMNS).contains(&plan.columns) && plan.rows >= 1);
            for threads in 1..=5 {
                let (rows, parts) = plan.shares(threads, 11);
                assert!((1..=plan.tiles[0]).contains(&rows) && (1..=11).contains(&parts), "{plane:?}");
                assert!(threads == 1 || parts > 1 || plan.tiles[0].div_ceil(rows) >= threads.min(2));
            }
        }
    }

    #[test]
    fn small_layers_and_those_of_few_channels_are_summed_directly() {
        let path = |channels, plane| ConvKernel::with_filtering(&shape(channels, plane)).path();
        let least = least_channels();
        assert_eq!(path([least, least], [8, 8]), ConvPath::Filtering);
        assert_eq!(path([least - 1, least], [8, 8]), ConvPath::Staged);
        assert_eq!(path([least, least - 1], [8, 8]), ConvPath::Staged);
        assert_eq!(path([least, least], [4, 8]), ConvPath::Staged);
        assert_eq!(ConvKernel::new(&shape([least, least], [8, 8])).path(), ConvPath::Staged);
    }
}
