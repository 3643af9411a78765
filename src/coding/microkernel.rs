//! The inner loop of encoding and decoding: many linear combinations of the same few source rows.
//!
//! Relevant if you want to change how encoding or decoding computes. Sums of a block of [`ROWS`] combinations over a
//! few vectors of columns stay in registers while these columns of all source rows are read; then they are finished
//! with bias and bounds and written to their targets. The next block reads the same columns from the innermost cache.
//! So every row is streamed once and every target written once. Rows that are not in the arithmetic type are first
//! converted into a [`Panel`](super::panel::Panel).
//!
//! Everything is inlined into a caller that is compiled for each instruction set ([`pulp::WithSimd`]).
//!
//! Invariant: every element of every target is written and none is read. A column depends on the same column of the
//! sources alone, so splitting a run changes no bit.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]
#![expect(clippy::needless_range_loop, reason = "loops of fixed length over registers, several at once")]
#![expect(clippy::manual_memcpy, reason = "vectors that are copied as bytes do not stay in registers")]

use std::ops::Range;

use pulp::Simd;

use super::panel::{Packed, PackedPairs, ROWS, Sources, VECTORS};
use crate::array::{DType, Element, load};

/// Vectors of columns for pairs of combinations: a pair holds two sums, so there are half as many registers for each.
const PAIR_VECTORS: usize = 2;

/// The destination of a combination: its value times `scale` plus `bias`, clamped to the bounds.
#[derive(Debug)]
pub(super) struct Target<'a, T, A> {
    /// At most as many elements as the sources have; further columns are dropped.
    pub(super) to: &'a mut [T],
    pub(super) scale: A,
    pub(super) bias: A,
}

/// Applied to all targets. Without it, combinations are written as they are, without scale and bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish<A> {
    /// The bounds.
    pub(super) low: A,
    pub(super) high: A,
    /// Unit of the summed squares: values times `unit` are at most near 1.
    pub(super) unit: A,
}

/// `to = from`, converted.
#[inline(always)]
pub(super) fn convert<T: Element, A: Element>(from: &[T], to: &mut [A]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = A::from_f64(from.to_f64());
    }
}

/// Visits all columns in runs of `$vectors * $lanes` and then of `$lanes`. The last run overlaps the one before it
/// instead of being cut, which recomputes the same values. `fresh` is the first column not visited before.
macro_rules! sweep {
    ($columns:expr, $lanes:expr, $vectors:ident, |$at:ident, $fresh:ident, $n:ident| $body:expr) => {{
        let (columns, lanes) = ($columns, $lanes);
        let mut begin = 0;
        while begin + $vectors * lanes <= columns {
            let ($at, $fresh) = (begin, begin);
            {
                const $n: usize = $vectors;
                $body
            }
            begin += $vectors * lanes;
        }
        while begin < columns {
            let ($at, $fresh) = (begin.min(columns - lanes), begin);
            {
                const $n: usize = 1;
                $body
            }
            begin += lanes;
        }
    }};
}

/// Writes the combinations `map` of `columns` columns of the sources, at least [`LANES`](super::panel::LANES), to
/// `targets`, one for each row. With `finish`, returns the sum of squares of what is written, before the bounds, in the
/// square of its unit.
#[inline(always)]
pub(super) fn combine<S: Simd, A: Element, T: Element>(
    simd: S,
    map: &Packed<A>,
    sources: &impl Sources<A>,
    columns: usize,
    targets: &mut [Target<'_, T, A>],
    finish: Option<Finish<A>>,
) -> f64 {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    let mut squares = A::splat(simd, A::default());
    sweep!(columns, lanes, VECTORS, |at, fresh, N| {
        for (block, targets) in map.blocks().zip(targets.chunks_mut(ROWS)) {
            let mut sums = [[A::splat(simd, A::default()); N]; ROWS];
            for (source, coefficients) in block.chunks_exact(ROWS).enumerate() {
                let values = load::<S, A, N>(simd, sources.row(source), at);
                add::<S, A, N>(simd, coefficients, values, &mut sums);
            }
            store::<S, A, T, N, ROWS>(simd, sums, (at, fresh), targets, finish, &mut squares);
        }
    });
    total::<S, A>(squares)
}

/// Writes u + v of each pair of combinations to the first of two targets and v - u to the second; otherwise as
/// [`combine`].
#[inline(always)]
pub(super) fn combine_pairs<S: Simd, A: Element, T: Element>(
    simd: S,
    map: &PackedPairs<A>,
    sources: &impl Sources<A>,
    columns: usize,
    targets: &mut [Target<'_, T, A>],
    finish: Option<Finish<A>>,
) -> f64 {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    let mut squares = A::splat(simd, A::default());
    sweep!(columns, lanes, PAIR_VECTORS, |at, fresh, N| {
        for (block, targets) in map.blocks().zip(targets.chunks_mut(2 * ROWS)) {
            let zero = A::splat(simd, A::default());
            let (mut u, mut v) = ([[zero; N]; ROWS], [[zero; N]; ROWS]);
            for (i, coefficients) in block.chunks_exact(4 * ROWS).enumerate() {
                let z00 = load::<S, A, N>(simd, sources.row(4 * i), at);
                let z01 = load::<S, A, N>(simd, sources.row(4 * i + 1), at);
                let z10 = load::<S, A, N>(simd, sources.row(4 * i + 2), at);
                let z11 = load::<S, A, N>(simd, sources.row(4 * i + 3), at);
                let (mut p, mut q) = ([[zero; N]; 2], [[zero; N]; 2]);
                for n in 0..N {
                    (p[0][n], p[1][n]) = (A::minus(simd, z00[n], z11[n]), A::plus(simd, z01[n], z10[n]));
                    (q[0][n], q[1][n]) = (A::plus(simd, z00[n], z11[n]), A::minus(simd, z10[n], z01[n]));
                }
                add::<S, A, N>(simd, &coefficients[..ROWS], p[0], &mut u);
                add::<S, A, N>(simd, &coefficients[ROWS..2 * ROWS], p[1], &mut u);
                add::<S, A, N>(simd, &coefficients[2 * ROWS..3 * ROWS], q[0], &mut v);
                add::<S, A, N>(simd, &coefficients[3 * ROWS..], q[1], &mut v);
            }
            let mut pairs = [[zero; N]; 2 * ROWS];
            for row in 0..ROWS {
                for n in 0..N {
                    pairs[2 * row][n] = A::plus(simd, u[row][n], v[row][n]);
                    pairs[2 * row + 1][n] = A::minus(simd, v[row][n], u[row][n]);
                }
            }
            store::<S, A, T, N, { 2 * ROWS }>(simd, pairs, (at, fresh), targets, finish, &mut squares);
        }
    });
    total::<S, A>(squares)
}

/// Writes one source, finished, to one target. The source has as many columns as the target, at least those of a vector.
/// Returns the sum of squares in the unit.
#[inline(always)]
pub(super) fn finish_one<S: Simd, A: Element, T: Element>(
    simd: S,
    source: &[A],
    target: Target<'_, T, A>,
    finish: Finish<A>,
) -> f64 {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    let mut squares = A::splat(simd, A::default());
    let (columns, targets) = (source.len(), &mut [target]);
    sweep!(columns, lanes, VECTORS, |at, fresh, N| {
        let values = load::<S, A, N>(simd, source, at);
        store::<S, A, T, N, 1>(simd, [values], (at, fresh), targets, Some(finish), &mut squares);
    });
    total::<S, A>(squares)
}

/// The sum of the lanes.
#[inline(always)]
fn total<S: Simd, A: Element>(lanes: A::Vector<S>) -> f64 {
    let lanes: &[A] = bytemuck::cast_slice(std::slice::from_ref(&lanes));
    lanes.iter().map(|lane| lane.to_f64()).sum()
}

/// `sums += coefficients * values`
#[inline(always)]
fn add<S: Simd, A: Element, const N: usize>(
    simd: S,
    coefficients: &[A],
    values: [A::Vector<S>; N],
    sums: &mut [[A::Vector<S>; N]; ROWS],
) {
    for (sums, coefficient) in sums.iter_mut().zip(coefficients) {
        let coefficient = A::splat(simd, *coefficient);
        for n in 0..N {
            sums[n] = A::mul_add(simd, coefficient, values[n], sums[n]);
        }
    }
}

/// The lanes of `vector` whose elements, from number `first` on, are among `kept`; zeros in the others.
#[inline(always)]
fn within<S: Simd, A: Element>(mut vector: A::Vector<S>, first: usize, kept: Range<usize>) -> A::Vector<S> {
    let lanes: &mut [A] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector));
    for (at, lane) in (first..).zip(lanes) {
        if !kept.contains(&at) {
            *lane = A::default();
        }
    }
    vector
}

/// Writes `rows`, finished, to the targets' elements from `at` on. Adds the squares of the elements from `fresh` on,
/// before the bounds. Only copies of vectors are indexed by lane: what is indexed at run time does not stay in registers.
#[inline(always)]
fn store<S: Simd, A: Element, T: Element, const N: usize, const R: usize>(
    simd: S,
    mut rows: [[A::Vector<S>; N]; R],
    (at, fresh): (usize, usize),
    targets: &mut [Target<'_, T, A>],
    finish: Option<Finish<A>>,
    squares: &mut A::Vector<S>,
) {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    if let Some(Finish { low, high, unit }) = finish {
        let (low, high, unit) = (A::splat(simd, low), A::splat(simd, high), A::splat(simd, unit));
        let zero = A::splat(simd, A::default());
        // The number of rounds is constant, because sums indexed at run time would not stay in registers.
        for row in 0..R {
            let Some(target) = targets.get(row) else { continue };
            let (scale, bias) = (A::splat(simd, target.scale), A::splat(simd, target.bias));
            let all = fresh == at && target.to.len() >= at + N * lanes;
            for n in 0..N {
                let value = A::mul_add(simd, scale, rows[row][n], bias);
                let sized = A::mul_add(simd, value, unit, zero);
                // Elements that are not written may be large, since rows below the output see what lies above them.
                let sized =
                    if all { sized } else { within::<S, A>(sized, at + n * lanes, fresh..target.to.len()) };
                *squares = A::mul_add(simd, sized, sized, *squares);
                rows[row][n] = A::clamp(simd, value, low, high);
            }
        }
    }
    if A::DTYPE == T::DTYPE {
        for row in 0..R {
            let Some(target) = targets.get_mut(row) else { continue };
            let to: &mut [A] = bytemuck::cast_slice_mut(target.to);
            if let Some(to) = to.get_mut(at..at + N * lanes) {
                // Vectors are aligned like their elements.
                let to: &mut [A::Vector<S>] = bytemuck::cast_slice_mut(to);
                for n in 0..N {
                    to[n] = rows[row][n];
                }
            } else if let Some(to) = to.get_mut(at..) {
                let copied = rows[row];
                let values: &[A] = bytemuck::cast_slice(&copied);
                to.copy_from_slice(&values[..to.len()]);
            }
        }
        return;
    }
    for row in 0..R {
        let Some(to) = targets.get_mut(row).and_then(|target| target.to.get_mut(at..)) else { continue };
        if let Some(to) = to.get_mut(..N * lanes)
            && narrow(simd, &rows[row], to)
        {
            continue;
        }
        // The compiler vectorizes a loop of unknown length.
        let copied = rows[row];
        let values: &[A] = bytemuck::cast_slice(&copied);
        convert(&values[..values.len().min(to.len())], to);
    }
}

/// Rounds vectors of f64 to f32 with the conversion instruction of a known instruction set; returns false if there is
/// none.
#[inline(always)]
fn narrow<S: Simd, V: bytemuck::Pod, T: Element, const N: usize>(
    simd: S,
    values: &[V; N],
    to: &mut [T],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::x86::V4>() && T::DTYPE == DType::F32 {
        let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V4>() else { return false };
        for n in 0..N {
            let value: pulp::f64x8 = bytemuck::cast(values[n]);
            let value: pulp::f32x8 = pulp::cast(simd.avx512f._mm512_cvtpd_ps(pulp::cast(value)));
            let to: &mut [f32] = bytemuck::cast_slice_mut(&mut to[n * 8..n * 8 + 8]);
            to.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&value)));
        }
        return true;
    }
    let _ = (simd, values, to);
    false
}

#[cfg(test)]
mod tests;
