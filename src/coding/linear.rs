//! Dense linear algebra of recovery matrices: condition numbers, pseudo-inverses and null spaces.
//!
//! Relevant if you want to change how a decoder or a parity check is derived from a code. Everything is computed by
//! Householder reflections. Singular values are never computed one by one: a condition number needs the largest and the
//! smallest, which bisection finds in the bidiagonal form of the matrix.
//!
//! Invariant: every matrix that is decomposed has at least as many rows as columns.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use std::ops::{Add, Index, IndexMut, Mul, Neg, Sub};

use num_complex::Complex64;
use pulp::{Arch, NullaryFnOnce};

/// Sums that a long sum is split into, so that the processor computes them side by side.
const LANES: usize = 8;
/// Magnitude that a vanishing pivot is replaced by.
const TINY: f64 = 1e-290;
/// The smallest singular value that is told from zero, relative to the largest.
const SMALLEST: f64 = 1e-60;

/// Real or complex numbers.
pub(super) trait Scalar:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Neg<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    fn conj(self) -> Self;
    /// The sum of the magnitudes of its parts.
    fn magnitude(self) -> f64;
    /// The square of the absolute value.
    fn square(self) -> f64;
    /// The product with a real number.
    fn scaled(self, by: f64) -> Self;
}

impl Scalar for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn conj(self) -> Self {
        self
    }
    fn magnitude(self) -> f64 {
        self.abs()
    }
    #[inline(always)]
    fn square(self) -> f64 {
        self * self
    }
    #[inline(always)]
    fn scaled(self, by: f64) -> Self {
        self * by
    }
}

impl Scalar for Complex64 {
    const ZERO: Self = Self::new(0.0, 0.0);
    const ONE: Self = Self::new(1.0, 0.0);

    #[inline(always)]
    fn conj(self) -> Self {
        Self::conj(&self)
    }
    fn magnitude(self) -> f64 {
        self.l1_norm()
    }
    #[inline(always)]
    fn square(self) -> f64 {
        self.norm_sqr()
    }
    #[inline(always)]
    fn scaled(self, by: f64) -> Self {
        self * by
    }
}

/// A dense matrix; its columns lie one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dense<T> {
    rows: usize,
    columns: usize,
    values: Vec<T>,
}

impl<T> Index<(usize, usize)> for Dense<T> {
    type Output = T;

    fn index(&self, (row, column): (usize, usize)) -> &T {
        &self.values[column * self.rows + row]
    }
}

impl<T> IndexMut<(usize, usize)> for Dense<T> {
    fn index_mut(&mut self, (row, column): (usize, usize)) -> &mut T {
        &mut self.values[column * self.rows + row]
    }
}

impl<T: Scalar> Dense<T> {
    pub(super) fn from_fn(rows: usize, columns: usize, at: impl Fn(usize, usize) -> T) -> Self {
        let values = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
        Self { rows, columns, values: values.map(|(row, column)| at(row, column)).collect() }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows `from..` of a column.
    #[inline(always)]
    fn column(&mut self, column: usize, from: usize) -> &mut [T] {
        &mut self.values[column * self.rows + from..(column + 1) * self.rows]
    }

    /// The matrix product.
    #[inline(always)]
    pub(super) fn times(&self, right: &Self) -> Self {
        assert_eq!(self.columns, right.rows, "matrix product of incompatible sizes");
        let mut product = Self::from_fn(self.rows, right.columns, |_, _| T::ZERO);
        for column in 0..right.columns {
            let sums = product.column(column, 0);
            let factors = &right.values[column * right.rows..][..right.rows];
            let (of_four, last) = factors.as_chunks::<4>();
            let mut left = self.values.chunks_exact(self.rows.max(1));
            for factors in of_four {
                let [a, b, c, d] = [(); 4].map(|()| left.next().unwrap_or(&[]));
                for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *sum = *sum + (factors[0] * *a + factors[1] * *b) + (factors[2] * *c + factors[3] * *d);
                }
            }
            for (factor, column) in last.iter().zip(left) {
                add(sums, *factor, column);
            }
        }
        product
    }

    /// 2-norm condition number; infinite if columns are dependent or a value is not finite.
    pub(super) fn condition(&self) -> f64 {
        let magnitudes = || self.values.iter().map(|value| value.magnitude());
        let greatest = magnitudes().fold(0.0, f64::max);
        if greatest == 0.0 || !magnitudes().all(f64::is_finite) {
            return f64::INFINITY;
        }
        // A power of two: squares of extreme values would overflow or underflow.
        let unit = f64::from_bits(greatest.to_bits() & f64::INFINITY.to_bits()).max(f64::MIN_POSITIVE);
        let values = self.values.iter().map(|value| value.scaled(1.0 / unit)).collect();
        let squares = Arch::new().dispatch(Bidiagonal(Self { values, ..*self }));
        let [least, greatest] = [1, self.columns].map(|rank| singular_value(&squares, rank));
        if least > 0.0 { greatest / least } else { f64::INFINITY }
    }

    /// Reduces to bidiagonal form, which has the same singular values. Returns the squares of its entries: the
    /// diagonal, and between two of its entries the one beside them.
    #[inline(always)]
    fn bidiagonal(mut self) -> Vec<f64> {
        assert!(self.rows >= self.columns, "more unknowns than equations");
        let mut squares = Vec::with_capacity(2 * self.columns);
        let mut sums = vec![T::ZERO; self.rows];
        for k in 0..self.columns {
            let (left, right) = self.values.split_at_mut((k + 1) * self.rows);
            let vector = &mut left[k * self.rows + k..];
            let (entry, factor) = reflector(vector);
            squares.push(entry.square());
            for column in right.chunks_exact_mut(self.rows) {
                reflect(vector, factor, &mut column[k..]);
            }
            if k + 1 == self.columns {
                break;
            }
            // The same for row k: a reflection of the columns behind the diagonal.
            let mut vector: Vec<T> = right[k..].iter().step_by(self.rows).map(|value| value.conj()).collect();
            let (entry, factor) = reflector(&mut vector);
            squares.push(entry.square());
            let sums = &mut sums[k + 1..];
            sums.fill(T::ZERO);
            for (column, value) in right.chunks_exact(self.rows).zip(&vector) {
                add(sums, *value, &column[k + 1..]);
            }
            for (column, value) in right.chunks_exact_mut(self.rows).zip(&vector) {
                add(&mut column[k + 1..], value.conj().scaled(-factor), sums);
            }
        }
        squares
    }

    /// The pseudo-inverse of a matrix whose columns are independent: `R^-1 Q^H`, improved by one step of Newton's
    /// iteration. The decomposition leaves an error of tens of roundings, which f64 results would show.
    pub(super) fn pseudo_inverse(&self) -> Self {
        Arch::new().dispatch(PseudoInverse(self))
    }

    /// Orthonormal basis of the complement of the columns: the last columns of Q in the QR decomposition. If the matrix
    /// lacks rank, the basis omits a part of the complement but is still orthogonal to the matrix.
    pub(super) fn complement(self) -> Self {
        Arch::new().dispatch(Complement(self))
    }
}

/// [`Dense::bidiagonal`], compiled for each instruction set.
struct Bidiagonal<T>(Dense<T>);

impl<T: Scalar> NullaryFnOnce for Bidiagonal<T> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn call(self) -> Vec<f64> {
        self.0.bidiagonal()
    }
}

/// [`Dense::pseudo_inverse`], compiled for each instruction set.
struct PseudoInverse<'a, T>(&'a Dense<T>);

impl<T: Scalar> NullaryFnOnce for PseudoInverse<'_, T> {
    type Output = Dense<T>;

    #[inline(always)]
    fn call(self) -> Dense<T> {
        let Dense { rows, columns, .. } = *self.0;
        let decomposed = Reflections::of(self.0.clone());
        let q = decomposed.q(0, columns);
        let mut inverse = Dense::from_fn(columns, rows, |row, column| q[(column, row)].conj());
        for column in 0..rows {
            decomposed.solve(inverse.column(column, 0));
        }
        let mut rest = inverse.times(self.0);
        for (at, value) in rest.values.iter_mut().enumerate() {
            let two = if at % (columns + 1) == 0 { T::ONE + T::ONE } else { T::ZERO };
            *value = two - *value;
        }
        rest.times(&inverse)
    }
}

/// [`Dense::complement`], compiled for each instruction set.
struct Complement<T>(Dense<T>);

impl<T: Scalar> NullaryFnOnce for Complement<T> {
    type Output = Dense<T>;

    #[inline(always)]
    fn call(self) -> Dense<T> {
        let Dense { rows, columns, .. } = self.0;
        Reflections::of(self.0).q(columns, rows)
    }
}

/// A QR decomposition: R above the diagonal of `matrix`, the vectors of the reflections from the diagonal on.
struct Reflections<T> {
    matrix: Dense<T>,
    /// The diagonal of R.
    diagonal: Vec<T>,
    factors: Vec<f64>,
}

impl<T: Scalar> Reflections<T> {
    #[inline(always)]
    fn of(mut matrix: Dense<T>) -> Self {
        assert!(matrix.rows >= matrix.columns, "more unknowns than equations");
        let (mut diagonal, mut factors) = (Vec::new(), Vec::new());
        for k in 0..matrix.columns {
            let (left, right) = matrix.values.split_at_mut((k + 1) * matrix.rows);
            let vector = &mut left[k * matrix.rows + k..];
            let (entry, factor) = reflector(vector);
            for column in right.chunks_exact_mut(matrix.rows) {
                reflect(vector, factor, &mut column[k..]);
            }
            diagonal.push(entry);
            factors.push(factor);
        }
        Self { matrix, diagonal, factors }
    }

    /// Columns `from..to` of Q.
    #[inline(always)]
    fn q(&self, from: usize, to: usize) -> Dense<T> {
        let rows = self.matrix.rows;
        let unit = |row, column| if row == column + from { T::ONE } else { T::ZERO };
        let mut q = Dense::from_fn(rows, to - from, unit);
        for column in 0..to - from {
            // Later reflections leave the unit vector as it is.
            for k in (0..self.factors.len().min(column + from + 1)).rev() {
                reflect(
                    &self.matrix.values[k * rows + k..][..rows - k],
                    self.factors[k],
                    q.column(column, k),
                );
            }
        }
        q
    }

    /// `right := R^-1 right`
    #[inline(always)]
    fn solve(&self, right: &mut [T]) {
        for k in (0..self.diagonal.len()).rev() {
            let entry = self.diagonal[k];
            let value = right[k] * entry.conj().scaled(1.0 / entry.square());
            right[k] = value;
            add(&mut right[..k], -value, &self.matrix.values[k * self.matrix.rows..][..k]);
        }
    }
}

/// Replaces `x` by the vector v and returns the entry e and the factor f of the reflection `I - f v v^H` that maps x to
/// (e, 0, ..., 0).
#[inline(always)]
fn reflector<T: Scalar>(x: &mut [T]) -> (T, f64) {
    let first = x[0];
    let rest = dot(&x[1..], &x[1..]);
    let (own, norm) = (first.square().sqrt(), (first.square() + rest.square().sqrt()).sqrt());
    if own == norm {
        return (first, 0.0);
    }
    let entry = if own > 0.0 { first.scaled(-norm / own) } else { T::ONE.scaled(-norm) };
    x[0] = first - entry;
    (entry, 1.0 / (norm * (norm + own)))
}

/// `x -= f v (v^H x)`
#[inline(always)]
fn reflect<T: Scalar>(v: &[T], factor: f64, x: &mut [T]) {
    if factor > 0.0 {
        let along = dot(v, x).scaled(-factor);
        add(x, along, v);
    }
}

/// `a^H b`
#[inline(always)]
fn dot<T: Scalar>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = sums[lane] + a[lane].conj() * b[lane];
        }
    }
    for (lane, (a, b)) in last_a.iter().zip(last_b).enumerate() {
        sums[lane] = sums[lane] + a.conj() * *b;
    }
    sums.into_iter().fold(T::ZERO, |sum, lane| sum + lane)
}

/// `sums += factor * x`
#[inline(always)]
fn add<T: Scalar>(sums: &mut [T], factor: T, x: &[T]) {
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum = *sum + factor * *x;
    }
}

/// The singular value of this `rank`, 1 for the smallest, of the bidiagonal matrix with these squared entries.
///
/// Bisection finds it to a few roundings, as it is in the bidiagonal matrix, however small it is.
fn singular_value(squares: &[f64], rank: usize) -> f64 {
    let greatest = squares.iter().fold(0.0_f64, |greatest, square| greatest.max(*square)).sqrt();
    // No row of the symmetric form with these entries beside its diagonal has a larger sum.
    let (mut low, mut high) = (SMALLEST * greatest, 2.01 * greatest);
    if below(squares, &[low; LANES])[0] >= rank {
        return 0.0;
    }
    while high - low > 4.0 * f64::EPSILON * high {
        let far = high > 4.0 * low;
        let steps = (LANES + 1) as f64;
        let (ratio, step) =
            if far { ((high / low).powf(1.0 / steps), 0.0) } else { (1.0, (high - low) / steps) };
        let mut number = low;
        let numbers: [f64; LANES] = std::array::from_fn(|_| {
            number = number * ratio + step;
            number
        });
        let counts = below(squares, &numbers);
        let first = counts.iter().position(|count| *count >= rank).unwrap_or(LANES);
        if first > 0 {
            low = numbers[first - 1];
        }
        if first < LANES {
            high = numbers[first];
        }
    }
    f64::midpoint(low, high)
}

/// How many singular values of the bidiagonal matrix are below each of `numbers`.
///
/// With the squared entries beside a diagonal of zeros, they are the positive eigenvalues of a tridiagonal matrix; its
/// other eigenvalues are their negatives. As many eigenvalues are below a number as pivots of the shifted matrix are
/// negative.
#[inline(always)]
fn below(squares: &[f64], numbers: &[f64; LANES]) -> [usize; LANES] {
    let mut pivots = numbers.map(|number| -number);
    let mut negative = [1.0_f64; LANES];
    for square in squares {
        for lane in 0..LANES {
            let pivot = -numbers[lane] - square / pivots[lane];
            let pivot = if pivot.abs() < TINY { -TINY } else { pivot };
            negative[lane] += if pivot < 0.0 { 1.0 } else { 0.0 };
            pivots[lane] = pivot;
        }
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
    let count = |negative: f64| (negative as usize).saturating_sub(squares.len().div_ceil(2));
    negative.map(count)
}

#[cfg(test)]
mod tests;
