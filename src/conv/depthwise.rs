//! The CPU convolution of depthwise layers: groups of one input channel under 3 x 3 filters, read where they lie.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. With one channel there is little to share: a tile is
//! some output rows of a plane times one vector of their points, and it walks down the input rows, so that what is read
//! of one serves all output rows that see it. Nothing is staged: what lies beside a row is masked out after it was read, a
//! stride of two is taken apart in registers, and whole vectors are written, what they hold beyond a narrow row being
//! overwritten by the next.
//!
//! Invariant: of every output element the terms are the same in the same order, wherever it lies in a tile; those on
//! rows of padding are left out, and those on columns of padding count as weight times zero.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use std::slice::{from_mut, from_ref};

use pulp::Simd;

use super::filters::Filters;
use super::micro::MOST_LANES;
use super::params::ConvShape;
use crate::array::{Element, load};

/// Rows and columns of a filter.
const SIZE: usize = 3;
/// Bytes of the input that are walked over before the next column: less than the innermost cache holds.
const WALK_BYTES: usize = 16 << 10;
/// But so many rows at least, as the first two are read twice.
const LEAST_ROWS: usize = 8;

/// How the planes of a depthwise shape lie.
#[derive(Clone, Debug)]
pub(super) struct Depthwise {
    stride: usize,
    /// Rows of padding above, columns of it on the left.
    above: usize,
    left: usize,
    /// Rows and columns.
    input: [usize; 2],
    output: [usize; 2],
    /// Output planes that see the same input plane.
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

    /// Elements that vectors may reach before the first of a plane and beyond its last.
    fn margins(&self) -> (usize, usize) {
        let end = self.stride * self.output[1].max(MOST_LANES) + SIZE - 1;
        (self.left, end.saturating_sub(self.left + self.input[1]))
    }

    /// Elements of a plane with its margins, and of a row with its own.
    pub(super) fn with_margins(&self) -> (usize, usize) {
        let (before, beyond) = self.margins();
        (before + self.input[0] * self.input[1] + beyond, before + self.input[1] + beyond)
    }

    /// A row whose elements have all bits set where the input is, and none beside it.
    pub(super) fn mark<T: Element>(&self, row: &mut [T]) {
        row.fill(T::default());
        bytemuck::cast_slice_mut::<T, u8>(&mut row[self.left..][..self.input[1]]).fill(u8::MAX);
    }

    /// Whether a vector of `lanes` points from column `x` on sees something beside the rows, under points that there are.
    #[inline(always)]
    fn on_edge(&self, x: usize, lanes: usize) -> bool {
        let last = (x + lanes).min(self.output[1]) - 1;
        x * self.stride < self.left || last * self.stride + SIZE > self.left + self.input[1]
    }
}

/// A run of output planes, and what they are computed from.
pub(super) struct Planes<'a, T> {
    pub(super) plan: &'a Depthwise,
    /// All channels of a batch item.
    pub(super) input: &'a [T],
    pub(super) filters: &'a Filters<T>,
    /// What [`Depthwise::mark`] wrote.
    pub(super) inside: &'a [T],
    /// For a copy of a plane with its margins.
    pub(super) spare: &'a mut [T],
    /// The output channel that `output` begins with.
    pub(super) first: usize,
    pub(super) output: &'a mut [T],
}

impl<T: Element> Planes<'_, T> {
    /// Computes them all.
    pub(super) fn compute(self) {
        pulp::Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn planes<S: Simd, const STRIDE: usize>(self, simd: S) {
        let Self { plan, input, filters, inside, spare, first, output } = self;
        let (before, beyond) = plan.margins();
        let [elems, out_elems] = [plan.input, plan.output].map(|[rows, columns]| rows * columns);
        for index in 0..output.len() / out_elems {
            let (group, channel) = ((first + index) / plan.multiplier, (first + index) % plan.multiplier);
            let begin = group * elems;
            let around = begin.checked_sub(before).and_then(|from| input.get(from..begin + elems + beyond));
            // The margins of the first planes and the last are not there.
            let source = if let Some(around) = around {
                around
            } else {
                spare[before..][..elems].copy_from_slice(&input[begin..][..elems]);
                &*spare
            };
            let width = filters.layout().width();
            let filter = filters.block(group, channel / width).part(channel % width, 1).weights;
            let weight = |row, tap| T::splat(simd, filter[(row * SIZE + tap) * width]);
            let weights = std::array::from_fn(|row| std::array::from_fn(|tap| weight(row, tap)));
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
    /// From its first element on, with the planes that are written after it.
    output: &'a mut [T],
}

impl<T: Element, S: Simd> Plane<'_, T, S> {
    const LANES: usize = size_of::<T::Vector<S>>() / size_of::<T>();

    /// The whole plane. Walks are short enough that what the next reads of the same lines is still near.
    #[inline(always)]
    fn walks<const STRIDE: usize>(&mut self, simd: S) {
        let [rows, columns] = self.plan.output;
        let step = (WALK_BYTES / size_of::<T>() / (STRIDE * STRIDE * columns)).max(LEAST_ROWS);
        for begin in (0..rows).step_by(step) {
            let end = (begin + step).min(rows);
            for x in (0..columns).step_by(Self::LANES) {
                // What would reach beyond the last column begins earlier instead: the values are the same.
                let x = x.min(columns.saturating_sub(Self::LANES));
                if self.plan.on_edge(x, Self::LANES) {
                    self.walk::<STRIDE, true>(simd, (begin, end), x);
                } else {
                    self.walk::<STRIDE, false>(simd, (begin, end), x);
                }
            }
        }
    }

    /// Output rows `begin..end` x one vector of points from column `x` on, down the input rows that they see.
    #[inline(always)]
    fn walk<const STRIDE: usize, const EDGE: bool>(
        &mut self,
        simd: S,
        (begin, end): (usize, usize),
        x: usize,
    ) {
        let Depthwise { above, input: [rows, row], output: [_, columns], .. } = *self.plan;
        let zero = T::splat(simd, T::default());
        let masks = if EDGE { seen::<T, S, STRIDE>(simd, &self.inside[x * STRIDE..]) } else { [zero; SIZE] };
        let source = &self.source[x * STRIDE..];
        let output = &mut self.output[x..];
        let values = |at: usize| {
            // Rows of padding add nothing.
            let at = at.checked_sub(above).filter(|at| *at < rows)?;
            let values = seen::<T, S, STRIDE>(simd, &source[at * row..]);
            Some(if EDGE {
                std::array::from_fn(|tap| T::keep(simd, masks[tap], values[tap]))
            } else {
                values
            })
        };
        let [first, second, third] = self.weights;
        // The sums of the output row in hand and of those below it, which see some of the same rows.
        let (mut here, mut next) = (zero, zero);
        if let Some(values) = values(begin * STRIDE) {
            here = add::<T, S>(simd, first, values, here);
        }
        if STRIDE == 1
            && let Some(values) = values(begin + 1)
        {
            here = add::<T, S>(simd, second, values, here);
            next = add::<T, S>(simd, first, values, next);
        }
        for y in begin..end {
            let mut last = zero;
            if STRIDE == 2
                && let Some(values) = values(y * STRIDE + 1)
            {
                here = add::<T, S>(simd, second, values, here);
            }
            if let Some(values) = values(y * STRIDE + 2) {
                here = add::<T, S>(simd, third, values, here);
                if STRIDE == 1 {
                    next = add::<T, S>(simd, second, values, next);
                }
                last = add::<T, S>(simd, first, values, last);
            }
            let to = &mut output[y * columns..];
            // What lies beyond a narrow row is written later; beyond the last plane is nothing.
            match to.get_mut(..Self::LANES) {
                Some(to) => to.copy_from_slice(bytemuck::cast_slice(from_ref(&here))),
                None => part::<T, S>(here, to),
            }
            (here, next) = if STRIDE == 1 { (next, last) } else { (last, zero) };
        }
    }
}

/// Fills `to` with the elements that `from` begins with. Out of line, as what it is called for would else stay in memory.
#[cold]
#[inline(never)]
fn part<T: Element, S: Simd>(from: T::Vector<S>, to: &mut [T]) {
    to.iter_mut().zip(bytemuck::cast_slice(from_ref(&from))).for_each(|(to, from)| *to = *from);
}

/// Adds what the taps of a filter row contribute, one after the other.
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

/// What the taps of a filter row see under one vector of points, the first of which sees the beginning of `row`.
#[inline(always)]
fn seen<T: Element, S: Simd, const STRIDE: usize>(simd: S, row: &[T]) -> [T::Vector<S>; SIZE] {
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    // One look at the length for all.
    let row = &row[..STRIDE * lanes + SIZE - STRIDE];
    if STRIDE == 1 {
        return std::array::from_fn(|tap| load::<S, T, 1>(simd, row, tap)[0]);
    }
    let pairs = load::<S, T, 2>(simd, row, 0);
    let pairs: &[T] = bytemuck::cast_slice(&pairs);
    let evens = vector::<T, S>(simd, |lane| pairs[2 * lane]);
    let odds = vector::<T, S>(simd, |lane| pairs[2 * lane + 1]);
    let next =
        vector::<T, S>(simd, |lane| if lane + 1 < lanes { pairs[2 * lane + 2] } else { row[2 * lanes] });
    [evens, odds, next]
}

/// A vector of what `element` gives for each lane: a permutation in registers once it is compiled.
#[inline(always)]
fn vector<T: Element, S: Simd>(simd: S, element: impl Fn(usize) -> T) -> T::Vector<S> {
    let mut all = T::splat(simd, T::default());
    let lanes: &mut [T] = bytemuck::cast_slice_mut(from_mut(&mut all));
    lanes.iter_mut().enumerate().for_each(|(lane, to)| *to = element(lane));
    all
}
