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

/// Writes `rows`, finished, to the targets' elements from `at` on. Adds the squares of the elements from `fresh` on,
/// before the bounds.
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
                let mut sized = A::mul_add(simd, value, unit, zero);
                if !all {
                    // Elements that are not written may be large, since rows below the output see what lies above them.
                    let (first, end) = (at + n * lanes, target.to.len());
                    let lane_values: &mut [A] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut sized));
                    for (lane, value) in lane_values.iter_mut().enumerate() {
                        if !(fresh..end).contains(&(first + lane)) {
                            *value = A::default();
                        }
                    }
                }
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
                for n in 0..N {
                    let value = std::slice::from_ref(&rows[row][n]);
                    to[n * lanes..(n + 1) * lanes].copy_from_slice(bytemuck::cast_slice(value));
                }
            } else if let Some(to) = to.get_mut(at..) {
                let values: &[A] = bytemuck::cast_slice(&rows[row]);
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
        let values: &[A] = bytemuck::cast_slice(&rows[row]);
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
mod tests {
    use super::*;

    struct Slices<A>(Vec<Vec<A>>);

    impl<A> Sources<A> for Slices<A> {
        fn row(&self, row: usize) -> &[A] {
            &self.0[row]
        }
    }

    /// One call, compiled for the detected instruction set or for none.
    struct Call<'a, 'o, A, T> {
        map: Result<&'a Packed<A>, &'a PackedPairs<A>>,
        sources: &'a Slices<A>,
        columns: usize,
        targets: &'a mut [Target<'o, T, A>],
        finish: Option<Finish<A>>,
    }

    impl<A: Element, T: Element> pulp::WithSimd for Call<'_, '_, A, T> {
        type Output = f64;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f64 {
            let Self { map, sources, columns, targets, finish } = self;
            match map {
                Ok(map) => combine(simd, map, sources, columns, targets, finish),
                Err(map) => combine_pairs(simd, map, sources, columns, targets, finish),
            }
        }
    }

    fn wave(i: usize) -> f64 {
        (i as f64 * 0.37).sin()
    }

    fn coefficient(row: usize, source: usize) -> f64 {
        ((row * 31 + source * 7) as f64).cos()
    }

    /// The coefficients of row `row` for the quadruple `i`.
    fn quadruple(row: usize, i: usize) -> [f64; 4] {
        std::array::from_fn(|which| coefficient(row, 4 * i + which))
    }

    /// The value of a combination by its definition.
    fn naive(sources: &[Vec<f64>], row: usize, column: usize, pairs: bool) -> f64 {
        if !pairs {
            return sources.iter().enumerate().map(|(s, of)| coefficient(row, s) * of[column]).sum();
        }
        let (mut u, mut v) = (0.0, 0.0);
        for (i, z) in sources.chunks(4).enumerate() {
            let c = quadruple(row / 2, i);
            let z = [0, 1, 2, 3].map(|which| z[which][column]);
            u += c[0] * (z[0] - z[3]) + c[1] * (z[1] + z[2]);
            v += c[2] * (z[0] + z[3]) + c[3] * (z[2] - z[1]);
        }
        if row.is_multiple_of(2) { u + v } else { v - u }
    }

    /// Compares with the naive sums for sizes around every limit and targets of several lengths; `spoil` is added to
    /// one source.
    fn check<A: Element, T: Element>(pairs: bool, tolerance: f64, spoil: f64) -> bool {
        let mut same = true;
        for (rows, inputs) in [(1, 4), (4, 8), (5, 12), (8, 16), (13, 4), (16, 20)] {
            for columns in [16, 17, 31, 33, 64, 65, 100, 131] {
                let at = |s: usize, c: usize| wave(s * 1000 + c);
                let exact: Vec<Vec<f64>> = (0..inputs)
                    .map(|s| (0..columns).map(|c| A::from_f64(at(s, c)).to_f64()).collect())
                    .collect();
                let as_sources = |row: &Vec<f64>| row.iter().map(|v| A::from_f64(*v + spoil)).collect();
                let sources = Slices(exact.iter().map(as_sources).collect());
                let (packed, packed_pairs) =
                    (Packed::new(rows, inputs, coefficient), PackedPairs::new(rows, inputs / 4, quadruple));
                let map = if pairs { Err(&packed_pairs) } else { Ok(&packed) };
                let count = if pairs { 2 * rows } else { rows };
                let bounds =
                    Finish { low: A::from_f64(-0.5), high: A::from_f64(0.7), unit: A::from_f64(0.5) };
                for finish in [None, Some(bounds)] {
                    let length = |row: usize| [columns, columns - 3, 5, 0][row % 4];
                    let mut got: Vec<Vec<T>> = (0..count).map(|row| vec![T::ONE; length(row)]).collect();
                    let mut targets: Vec<_> = got
                        .iter_mut()
                        .enumerate()
                        .map(|(row, to)| Target {
                            to,
                            scale: A::from_f64(if row % 3 == 0 { -1.0 } else { 1.0 }),
                            bias: A::from_f64(row as f64 * 0.1),
                        })
                        .collect();
                    let targets = &mut targets[..];
                    let call = Call { map, sources: &sources, columns, targets, finish };
                    let squares = pulp::Arch::new().dispatch(call);
                    let mut written = 0.0;
                    for (row, got) in got.iter().enumerate() {
                        for (column, got) in got.iter().enumerate() {
                            let mut want = naive(&exact, row, column, pairs);
                            if finish.is_some() {
                                let scale = if row % 3 == 0 { -1.0 } else { 1.0 };
                                let whole = scale * want + row as f64 * 0.1;
                                written += (0.5 * whole).powi(2);
                                want = whole.clamp(-0.5, 0.7);
                            }
                            same &= (got.to_f64() - want).abs() <= tolerance;
                        }
                    }
                    // Squares of the written elements, each counted once.
                    same &= if finish.is_some() {
                        (squares - written).abs() <= 1e-3 * written
                    } else {
                        squares == 0.0
                    };
                }
            }
        }
        same
    }

    #[test]
    fn combinations_are_the_naive_sums_whatever_the_type_and_the_size() {
        for pairs in [false, true] {
            assert!(check::<f32, f32>(pairs, 2e-5, 0.0));
            assert!(check::<f64, f64>(pairs, 1e-13, 0.0));
            assert!(check::<f64, f32>(pairs, 1e-6, 0.0));
            // Negative control.
            assert!(!check::<f64, f64>(pairs, 1e-13, 1e-9));
        }
    }

    #[test]
    fn every_instruction_set_and_every_cut_give_the_same_columns() {
        let sources = Slices((0..8).map(|s| (0..200).map(|c| wave(s * 300 + c)).collect()).collect());
        let packed = Packed::<f64>::new(6, 8, coefficient);
        let run = |from: usize, columns: usize| {
            let cut =
                Slices(sources.0.iter().map(|row: &Vec<f64>| row[from..from + columns].to_vec()).collect());
            let mut got = vec![vec![0.0_f64; columns]; 6];
            let mut targets: Vec<_> = got.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.0 }).collect();
            let targets = &mut targets[..];
            pulp::Arch::new().dispatch(Call {
                map: Ok(&packed),
                sources: &cut,
                columns,
                targets,
                finish: None,
            });
            got
        };
        let whole = run(0, 200);
        for (from, columns) in [(0, 16), (1, 17), (60, 90), (184, 16)] {
            for (row, got) in run(from, columns).iter().enumerate() {
                assert_eq!(got[..], whole[row][from..from + columns]);
            }
        }
        let mut plain = vec![vec![0.0_f64; 200]; 6];
        let mut targets: Vec<_> = plain.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.0 }).collect();
        let targets = &mut targets[..];
        let call = Call { map: Ok(&packed), sources: &sources, columns: 200, targets, finish: None };
        pulp::WithSimd::with_simd(call, pulp::Scalar);
        // Without a fused multiply-add each term is rounded once more.
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-14;
        assert!(plain.iter().flatten().zip(whole.iter().flatten()).all(close));
    }

    #[test]
    fn a_nan_passes_the_bounds_and_stays_in_its_column() {
        let mut rows = vec![vec![1.0_f32; 40]; 4];
        rows[2][33] = f32::NAN;
        let sources = Slices(rows);
        let packed = Packed::<f32>::new(3, 4, |_, _| 1.0);
        let mut got = vec![vec![0.0_f32; 40]; 3];
        let mut targets: Vec<_> = got.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.5 }).collect();
        let bounds = Finish { low: 0.0, high: 4.0, unit: 1.0 };
        let (targets, finish) = (&mut targets[..], Some(bounds));
        pulp::Arch::new().dispatch(Call {
            map: Ok(&packed),
            sources: &sources,
            columns: 40,
            targets,
            finish,
        });
        for row in got {
            assert!(row.iter().enumerate().all(|(c, v)| if c == 33 { v.is_nan() } else { *v == 4.0 }));
        }
    }
}
