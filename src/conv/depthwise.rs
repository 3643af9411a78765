//! The CPU convolution of depthwise layers: groups of one input channel under 3 x 3 filters, read in place.
//!
//! Relevant if you want to change this path; callers need only [`ConvKernel`](super::ConvKernel). With one input
//! channel, only rows can be shared: a *walk* goes down a plane, one vector of points wide, and reads each input row
//! once for all output rows that use it, whose sums stay in registers. Nothing is staged or cropped. Elements beside a
//! row are read and masked out, a stride of two is separated in registers, and vectors are written whole, since the
//! part beyond a narrow row is overwritten by the next row.
//!
//! Invariant: every output element has the same terms in the same order, independent of its position in a vector. Terms
//! on rows of padding are left out; terms on columns of padding count as weight times zero.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use std::slice::{from_mut, from_ref};

use pulp::Simd;

use super::filters::Filters;
use super::micro::MOST_LANES;
use super::params::ConvShape;
use crate::array::{Element, load};

/// Rows and columns of a filter.
const SIZE: usize = 3;
/// Bytes of the input in one walk: less than the innermost cache holds.
const WALK_BYTES: usize = 16 << 10;
/// The minimum number of rows of a walk, since the first two rows are read twice.
const LEAST_ROWS: usize = 8;

/// The layout of the planes of a depthwise shape.
#[derive(Clone, Debug)]
pub(super) struct Depthwise {
    stride: usize,
    /// Rows of padding above, columns of padding on the left.
    above: usize,
    left: usize,
    /// Rows and columns.
    input: [usize; 2],
    output: [usize; 2],
    /// Output planes for each input plane.
    multiplier: usize,
}

impl Depthwise {
    /// The plan of `shape`, if it is one for this kernel.
    pub(super) fn new(shape: &ConvShape) -> Option<Self> {
        let [strides, kernel, dilation] =
            [shape.stride, shape.kernel, shape.dilation].map(|[_, h, w]| (h, w));
        let [depth, rows, columns] = shape.output;
        let fits = shape.in_channels == shape.groups
            && kernel == (SIZE, SIZE)
            && dilation == (1, 1)
            && (strides == (1, 1) || strides == (2, 2))
            && (shape.input[0], shape.kernel[0], depth) == (1, 1, 1)
            && rows * columns > 1;
        fits.then(|| Self {
            stride: strides.0,
            above: shape.pad_begin[1],
            left: shape.pad_begin[2],
            input: [shape.input[1], shape.input[2]],
            output: [rows, columns],
            multiplier: shape.out_channels / shape.groups,
        })
    }

    /// Elements that vectors may reach before the first element of a plane and beyond its last.
    fn margins(&self) -> (usize, usize) {
        let end = self.stride * self.output[1].max(MOST_LANES) + SIZE - 1;
        (self.left, end.saturating_sub(self.left + self.input[1]))
    }

    /// Elements of a plane with its margins, and of a row with its margins.
    pub(super) fn with_margins(&self) -> (usize, usize) {
        let (before, beyond) = self.margins();
        (before + self.input[0] * self.input[1] + beyond, before + self.input[1] + beyond)
    }

    /// Fills a row with masks: all bits set where the input is, none beside it.
    pub(super) fn mark<T: Element>(&self, row: &mut [T]) {
        row.fill(T::default());
        bytemuck::cast_slice_mut::<T, u8>(&mut row[self.left..][..self.input[1]]).fill(u8::MAX);
    }

    /// Whether a vector of `lanes` points from column `x` on reads anything beside the rows for existing points.
    #[inline(always)]
    fn on_edge(&self, x: usize, lanes: usize) -> bool {
        let last = (x + lanes).min(self.output[1]) - 1;
        x * self.stride < self.left || last * self.stride + SIZE > self.left + self.input[1]
    }
}

/// A run of output planes and its operands.
pub(super) struct Planes<'a, T> {
    pub(super) plan: &'a Depthwise,
    /// All channels of a batch item.
    pub(super) input: &'a [T],
    pub(super) filters: &'a Filters<T>,
    /// The masks that [`Depthwise::mark`] wrote.
    pub(super) inside: &'a [T],
    /// Space for a copy of a plane with its margins.
    pub(super) spare: &'a mut [T],
    /// The first output channel of `output`.
    pub(super) first: usize,
    pub(super) output: &'a mut [T],
}

impl<T: Element> Planes<'_, T> {
    /// Computes all planes.
    pub(super) fn compute(self) {
        pulp::Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn planes<S: Simd, const STRIDE: usize>(self, simd: S) {
        let Self { plan, input, filters, inside, spare, first, output } = self;
        let (before, beyond) = plan.margins();
        let [elems, out_elems] = [plan.input, plan.output].map(|[rows, columns]| rows * columns);
        for index in 0..output.len() / out_elems {
            let begin = (first + index) / plan.multiplier * elems;
            let around = begin.checked_sub(before).and_then(|from| input.get(from..begin + elems + beyond));
            // The first and last planes lack margins.
            let source = if let Some(around) = around {
                around
            } else {
                spare[before..][..elems].copy_from_slice(&input[begin..][..elems]);
                &*spare
            };
            let filter = &filters.plain()[(first + index) * SIZE * SIZE..][..SIZE * SIZE];
            let mut weights = [[T::splat(simd, T::default()); SIZE]; SIZE];
            for term in 0..SIZE * SIZE {
                weights[term / SIZE][term % SIZE] = T::splat(simd, filter[term]);
            }
            let output = &mut output[index * out_elems..];
            Plane::<T, S> { plan, source, inside, weights, output }.walks::<STRIDE>(simd);
        }
    }
}

impl<T: Element> pulp::WithSimd for Planes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.plan.stride {
            1 => self.planes::<S, 1>(simd),
            _ => self.planes::<S, 2>(simd),
        }
    }
}

/// One output plane.
struct Plane<'a, T: Element, S: Simd> {
    plan: &'a Depthwise,
    /// The input plane with its margins.
    source: &'a [T],
    inside: &'a [T],
    weights: [[T::Vector<S>; SIZE]; SIZE],
    /// Starts at its first element and includes the planes that are written after it.
    output: &'a mut [T],
}

impl<T: Element, S: Simd> Plane<'_, T, S> {
    const LANES: usize = size_of::<T::Vector<S>>() / size_of::<T>();

    /// Computes the whole plane. Walks are short enough that the next one finds shared cache lines still cached.
    #[inline(always)]
    fn walks<const STRIDE: usize>(&mut self, simd: S) {
        let [rows, columns] = self.plan.output;
        let step = (WALK_BYTES / size_of::<T>() / (STRIDE * STRIDE * columns)).max(LEAST_ROWS);
        for begin in (0..rows).step_by(step) {
            let end = (begin + step).min(rows);
            for x in (0..columns).step_by(Self::LANES) {
                // A vector that would reach beyond the last column begins earlier instead, which recomputes the same
                // values.
                let x = x.min(columns.saturating_sub(Self::LANES));
                // The compiler keeps the separation of a stride in registers only if the read vectors go through an
                // operation; otherwise it reads the elements again one by one. So at a stride of two the masks are
                // always applied.
                if STRIDE == 2 || self.plan.on_edge(x, Self::LANES) {
                    self.walk::<STRIDE, true>(simd, (begin, end), x);
                } else {
                    self.walk::<STRIDE, false>(simd, (begin, end), x);
                }
            }
        }
    }

    /// Computes output rows `begin..end` for one vector of points from column `x` on, going down their input rows.
    #[inline(always)]
    fn walk<const STRIDE: usize, const EDGE: bool>(
        &mut self,
        simd: S,
        (begin, end): (usize, usize),
        x: usize,
    ) {
        let Depthwise { above, input: [rows, row], output: [_, columns], .. } = *self.plan;
        let zero = T::splat(simd, T::default());
        let masks = if EDGE { read::<T, S, STRIDE>(simd, &self.inside[x * STRIDE..]) } else { [zero; SIZE] };
        let source = &self.source[x * STRIDE..];
        let view = View::<T, S> { above, rows, row, source, masks };
        let output = &mut self.output[x..];
        let [first, second, third] = self.weights;
        // The sums of the current output row and of the rows below it, which share some of its input rows.
        let (mut here, mut next) = (zero, zero);
        if let Some(values) = view.seen::<STRIDE, EDGE>(simd, begin * STRIDE) {
            here = add::<T, S>(simd, first, values, here);
        }
        if STRIDE == 1
            && let Some(values) = view.seen::<STRIDE, EDGE>(simd, begin + 1)
        {
            here = add::<T, S>(simd, second, values, here);
            next = add::<T, S>(simd, first, values, next);
        }
        for y in begin..end {
            let mut last = zero;
            if STRIDE == 2
                && let Some(values) = view.seen::<STRIDE, EDGE>(simd, y * STRIDE + 1)
            {
                here = add::<T, S>(simd, second, values, here);
            }
            if let Some(values) = view.seen::<STRIDE, EDGE>(simd, y * STRIDE + 2) {
                here = add::<T, S>(simd, third, values, here);
                if STRIDE == 1 {
                    next = add::<T, S>(simd, second, values, next);
                }
                last = add::<T, S>(simd, first, values, last);
            }
            let to = &mut output[y * columns..];
            // The part beyond a narrow row is overwritten later; there is no memory beyond the last plane.
            match to.get_mut(..Self::LANES) {
                Some(to) => to.copy_from_slice(bytemuck::cast_slice(from_ref(&here))),
                None => part::<T, S>(here, to),
            }
            (here, next) = if STRIDE == 1 { (next, last) } else { (last, zero) };
        }
    }
}

/// The rows of an input plane, as read by a walk.
struct View<'a, T: Element, S: Simd> {
    /// Rows of padding above.
    above: usize,
    /// Rows of the input, and elements of one.
    rows: usize,
    row: usize,
    /// Starts at the element under the first tap at the first point.
    source: &'a [T],
    masks: [T::Vector<S>; SIZE],
}

impl<T: Element, S: Simd> View<'_, T, S> {
    /// The vectors under the taps in row `at`, side padding included; `None` for a row of padding, which adds nothing.
    #[inline(always)]
    fn seen<const STRIDE: usize, const EDGE: bool>(
        &self,
        simd: S,
        at: usize,
    ) -> Option<[T::Vector<S>; SIZE]> {
        let at = at.wrapping_sub(self.above);
        if at >= self.rows {
            return None;
        }
        let mut values = read::<T, S, STRIDE>(simd, &self.source[at * self.row..]);
        if EDGE {
            for (value, mask) in values.iter_mut().zip(&self.masks) {
                *value = T::keep(simd, *mask, *value);
            }
        }
        Some(if STRIDE == 1 { values } else { take_apart::<T, S>(simd, values) })
    }
}

/// Copies the beginning of `from` to `to`. Out of line, because the operands of the caller would otherwise stay in
/// memory.
#[cold]
#[inline(never)]
fn part<T: Element, S: Simd>(from: T::Vector<S>, to: &mut [T]) {
    to.iter_mut().zip(bytemuck::cast_slice(from_ref(&from))).for_each(|(to, from)| *to = *from);
}

/// Adds the contributions of the taps of a filter row, one after the other.
#[inline(always)]
fn add<T: Element, S: Simd>(
    simd: S,
    weights: [T::Vector<S>; SIZE],
    values: [T::Vector<S>; SIZE],
    sum: T::Vector<S>,
) -> T::Vector<S> {
    let mut sum = sum;
    for tap in 0..SIZE {
        sum = T::mul_add(simd, weights[tap], values[tap], sum);
    }
    sum
}

/// Reads a row for one vector of points, the first of which starts at the beginning of `row`. Gives the vector of each
/// tap or, at a stride of two, the same elements as contiguous pieces.
#[inline(always)]
fn read<T: Element, S: Simd, const STRIDE: usize>(simd: S, row: &[T]) -> [T::Vector<S>; SIZE] {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    // One bounds check for all reads.
    let row = &row[..STRIDE * lanes + SIZE - STRIDE];
    let offsets = if STRIDE == 1 { [0, 1, 2] } else { [0, lanes, lanes + 1] };
    let mut values = [T::splat(simd, T::default()); SIZE];
    for tap in 0..SIZE {
        [values[tap]] = load::<S, T, 1>(simd, row, offsets[tap]);
    }
    values
}

/// The vector of each tap at a stride of two.
#[inline(always)]
fn take_apart<T: Element, S: Simd>(simd: S, [low, high, end]: [T::Vector<S>; SIZE]) -> [T::Vector<S>; SIZE] {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    let (pairs, end) = ([low, high], [end]);
    let (pairs, end): (&[T], &[T]) = (bytemuck::cast_slice(&pairs), bytemuck::cast_slice(&end));
    let evens = vector::<T, S>(simd, |lane| pairs[2 * lane]);
    let odds = vector::<T, S>(simd, |lane| pairs[2 * lane + 1]);
    let next =
        vector::<T, S>(simd, |lane| if lane + 1 < lanes { pairs[2 * lane + 2] } else { end[lanes - 1] });
    [evens, odds, next]
}

/// A vector of `element` for each lane, which compiles to a permutation in registers.
#[inline(always)]
fn vector<T: Element, S: Simd>(simd: S, element: impl Fn(usize) -> T) -> T::Vector<S> {
    let mut all = T::splat(simd, T::default());
    let lanes: &mut [T] = bytemuck::cast_slice_mut(from_mut(&mut all));
    lanes.iter_mut().enumerate().for_each(|(lane, to)| *to = element(lane));
    all
}
