//! Rank and condition number of a growing set of sub-results, updated with every arrival.
//!
//! Relevant if you want to decode from unfinished subtasks. Any recovery threshold of whole subtasks suffices; an
//! arbitrary set of sub-results has no such guarantee and must be tested after each arrival.
//!
//! Invariant: with G the matrix of the columns added so far, `G = Q T W` up to a relative [`DEPENDENT`]. The columns of
//! Q and the rows of W are orthonormal (W is not stored); T is square, upper triangular and as large as the rank.

/// A column adds no rank if its part outside the span of the earlier ones is relatively smaller than this (over the
/// square root of the number of parts). `1 / DEPENDENT` then bounds the condition number of every rank-deficient set
/// from below, so that reporting infinity for such a set is adequate.
const DEPENDENT: f64 = 1e-7;

/// Least and greatest number of rounds of power iteration. Between them, iteration continues while a round brings
/// [`GROWTH`]. The minimum covers starts nearly orthogonal to the wanted direction, which grow slowly at first.
const ROUNDS: std::ops::Range<usize> = 6..16;
const GROWTH: f64 = 1.01;

/// The span of the recovery columns that have arrived.
///
/// Gives an estimate for deciding when to stop waiting. Error bounds use the exact condition number,
/// [`Decoder::condition`](super::Decoder::condition).
#[derive(Clone, Debug)]
pub struct Basis {
    parts: usize,
    len: usize,
    /// Columns of Q, `parts` values each, one after the other.
    q: Vec<f64>,
    /// Columns of T, each stored with stride `parts`: column j has j + 1 values.
    t: Vec<f64>,
}

impl Basis {
    /// The empty set over `parts` = k_A k_B parts.
    #[must_use]
    pub fn new(parts: usize) -> Self {
        Self { parts, len: 0, q: Vec::new(), t: Vec::new() }
    }

    /// Adds the recovery column of one more sub-result
    /// ([`Code::recovery_column`](super::Code::recovery_column)). O(parts^2).
    ///
    /// # Panics
    /// When `column` does not give `parts` values.
    pub fn add(&mut self, column: impl Iterator<Item = f64>) {
        let mut rest: Vec<f64> = column.collect();
        assert_eq!(rest.len(), self.parts, "a recovery column has one value a part");
        self.len += 1;
        let rank = self.rank();
        let mut coordinates = vec![0.0; self.parts];
        if rank == self.parts {
            for (q, coordinate) in self.q.chunks_exact(self.parts).zip(&mut coordinates) {
                *coordinate = dot(q, &rest);
            }
            return self.rotate_in(&mut coordinates);
        }
        let size = dot(&rest, &rest).sqrt();
        // Two passes suffice: the second removes what cancellation in the first one left of the span.
        for _ in 0..2 {
            for (q, coordinate) in self.q.chunks_exact(self.parts).zip(&mut coordinates) {
                let along = dot(q, &rest);
                *coordinate += along;
                subtract(&mut rest, along, q);
            }
        }
        let outside = dot(&rest, &rest).sqrt();
        if outside * (self.parts as f64).sqrt() > DEPENDENT * size {
            coordinates[rank] = outside;
            self.q.extend(rest.iter().map(|value| value / outside));
            self.t.extend(coordinates);
        } else {
            self.rotate_in(&mut coordinates[..rank]);
        }
    }

    /// `T T^T += c c^T`, by rotating c against the columns of T from the last to the first. Backward stable even if T
    /// is singular before or after.
    fn rotate_in(&mut self, c: &mut [f64]) {
        for (j, column) in self.t.chunks_exact_mut(self.parts).enumerate().rev() {
            let radius = (column[j] * column[j] + c[j] * c[j]).sqrt();
            if c[j] == 0.0 || radius == 0.0 {
                continue;
            }
            let (cos, sin) = (column[j] / radius, c[j] / radius);
            for (t, c) in column[..=j].iter_mut().zip(&mut c[..=j]) {
                (*t, *c) = (cos * *t + sin * *c, cos * *c - sin * *t);
            }
        }
    }

    /// The number of sub-results added so far, dependent ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no sub-result has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rank: the number of independent sub-results (up to a relative 1e-7).
    #[must_use]
    pub fn rank(&self) -> usize {
        self.q.len() / self.parts.max(1)
    }

    /// Estimate of the 2-norm condition number of the recovery matrix of all sub-results added. Infinite below full
    /// rank; otherwise at most the true value and, for true values up to 1e6, more than half of it. Above 1e7 the
    /// estimate is at least 1e6. O(parts^2).
    #[must_use]
    pub fn condition(&self) -> f64 {
        if self.rank() < self.parts {
            return f64::INFINITY;
        }
        let least = grow(self.towards_least(), |x| {
            self.solve_transposed(x);
            self.solve(x);
        });
        // Fixed signs without a pattern are orthogonal to the largest singular direction only by coincidence.
        let sign = |i: usize| f64::from((i * i / 3 + i).is_multiple_of(2)) - 0.5;
        let greatest = grow((0..self.parts).map(sign).collect(), |x| {
            self.multiply_transposed(x);
            self.multiply(x);
        });
        (least * greatest).sqrt()
    }

    /// A vector with a large component along the smallest singular direction: `T^-1 T^-T d`, where each sign in d is
    /// chosen so that the solution grows (the condition estimator of LINPACK).
    fn towards_least(&self) -> Vec<f64> {
        let mut x = vec![0.0; self.parts];
        for (j, column) in self.t.chunks_exact(self.parts).enumerate() {
            let known = dot(&column[..j], &x[..j]);
            x[j] = (-known - 1.0_f64.copysign(known)) / column[j];
        }
        self.solve(&mut x);
        x
    }

    /// `x = T^-1 x`
    fn solve(&self, x: &mut [f64]) {
        for (j, column) in self.t.chunks_exact(self.parts).enumerate().rev() {
            x[j] /= column[j];
            let known = x[j];
            subtract(&mut x[..j], known, &column[..j]);
        }
    }

    /// `x = T^-T x`
    fn solve_transposed(&self, x: &mut [f64]) {
        for (j, column) in self.t.chunks_exact(self.parts).enumerate() {
            x[j] = (x[j] - dot(&column[..j], &x[..j])) / column[j];
        }
    }

    /// `x = T x`
    fn multiply(&self, x: &mut [f64]) {
        for (j, column) in self.t.chunks_exact(self.parts).enumerate() {
            let factor = x[j];
            subtract(&mut x[..j], -factor, &column[..j]);
            x[j] = factor * column[j];
        }
    }

    /// `x = T^T x`
    fn multiply_transposed(&self, x: &mut [f64]) {
        for (j, column) in self.t.chunks_exact(self.parts).enumerate().rev() {
            x[j] = dot(&column[..=j], &x[..=j]);
        }
    }
}

/// Norm of the symmetric `map`, estimated from below by power iteration.
fn grow(mut x: Vec<f64>, map: impl Fn(&mut [f64])) -> f64 {
    let mut best = 0.0_f64;
    for round in 1..=ROUNDS.end {
        let size = dot(&x, &x).sqrt();
        for value in &mut x {
            *value /= size;
        }
        map(&mut x);
        let grown = dot(&x, &x).sqrt();
        // A NaN (values outside the range of f64) ends the iteration too and is returned as NaN.
        if !grown.is_finite() {
            return f64::INFINITY;
        }
        let before = best;
        best = best.max(grown);
        if round >= ROUNDS.start && best < before * GROWTH {
            break;
        }
    }
    best
}

/// Inner product as eight independent sums, which fit vector units.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0_f64; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `to -= factor * from`
fn subtract(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to -= factor * from;
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::coding::linear::Dense;
    use crate::coding::{Code, CodeKind, SubResult};

    type Columns = Vec<Vec<f64>>;

    fn basis(parts: usize, columns: &Columns) -> Basis {
        let mut basis = Basis::new(parts);
        for column in columns {
            basis.add(column.iter().copied());
        }
        assert_eq!((basis.len(), basis.is_empty()), (columns.len(), columns.is_empty()));
        basis
    }

    /// The reference: condition number by singular values.
    fn truth(parts: usize, columns: &Columns) -> f64 {
        if columns.len() < parts {
            return f64::INFINITY;
        }
        Dense::from_fn(columns.len(), parts, |m, part| columns[m][part]).condition()
    }

    /// The guarantee of [`Basis::condition`]; between 1e6 and 1e7 the only guarantee is a large value.
    fn promised(estimate: f64, truth: f64) -> bool {
        let honest = if truth > 1e7 { estimate >= 1e6 } else { estimate >= 0.5 * truth.min(1e6) };
        honest && (estimate <= 1.001 * truth || truth > 1e6)
    }

    fn columns(code: &Code, of: &[SubResult]) -> Columns {
        of.iter().map(|of| code.recovery_column(*of).collect()).collect()
    }

    /// The first `count` sub-results of every subtask, in the order that starts at `first(i)`.
    fn begun(code: &Code, count: usize, first: impl Fn(usize) -> usize) -> Vec<SubResult> {
        let of = |i: usize| code.sub_results_of(&[i]);
        let each = code.l_a() * code.l_b();
        (0..code.n())
            .flat_map(|i| (0..count).map(move |c| (i, c)))
            .map(|(i, c)| of(i)[(first(i) + c) % each])
            .collect()
    }

    #[test]
    fn agrees_with_singular_values_whatever_arrives() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (mut usable, mut singular) = (0, 0);
        for (k_a, k_b, n, rounds) in
            [(4, 4, 6, 400), (4, 8, 10, 120), (8, 8, 20, 25), (1, 8, 6, 100), (2, 2, 3, 50)]
        {
            let code = Code::new(CodeKind::Crme, k_a, k_b, n).unwrap();
            let (parts, mut all) = (k_a * k_b, code.sub_results_of(&(0..n).collect::<Vec<_>>()));
            for round in 0..rounds {
                all.shuffle(&mut random);
                if round % 3 == 0 {
                    // All subtasks in the same order, in lockstep: often singular.
                    all.sort_by_key(|of| (of.slab, of.bank));
                }
                // Duplicate sub-results add no rank but have weight in the least squares.
                let take = random.random_range(parts..=all.len().min(parts + 8));
                let mut columns = columns(&code, &all[..take]);
                for _ in 0..random.random_range(0..3) {
                    columns
                        .insert(random.random_range(0..take), columns[random.random_range(0..take)].clone());
                }
                let (basis, truth) = (basis(parts, &columns), truth(parts, &columns));
                let estimate = basis.condition();
                assert!(promised(estimate, truth), "{k_a},{k_b},{n}: {estimate:.3e} for {truth:.3e}");
                assert_eq!(basis.rank() == parts, truth < 1e7, "rank {} at {truth:.3e}", basis.rank());
                if truth < 1e6 { usable += 1 } else { singular += 1 }
            }
        }
        assert!(usable > 200 && singular > 20, "{usable} usable and {singular} singular sets prove little");
    }

    #[test]
    fn a_nearly_singular_set_never_looks_harmless_and_later_results_mend_it() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut vector =
            |parts: usize| (0..parts).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f64>>();
        for parts in [2, 7, 16, 64] {
            for exponent in 0..14 {
                let mut columns: Columns = (1..parts).map(|_| vector(parts)).collect();
                // Almost in the span of the others, with a shrinking remainder.
                let mut last = vec![0.0; parts];
                for (column, weight) in columns.iter().zip(vector(parts)) {
                    subtract(&mut last, weight, column);
                }
                subtract(&mut last, 0.1_f64.powi(exponent), &vector(parts));
                columns.insert(parts / 2, last);
                let check = |columns: &Columns| {
                    let (estimate, truth) = (basis(parts, columns).condition(), truth(parts, columns));
                    assert!(promised(estimate, truth), "{parts} parts: {estimate:.3e} for {truth:.3e}");
                    truth
                };
                let bad = check(&columns);
                columns.extend([vector(parts), vector(parts)]);
                assert!(exponent < 6 || check(&columns) < bad);
            }
        }
    }

    #[test]
    fn where_each_subtask_begins_decides() {
        let code = Code::new(CodeKind::Crme, 8, 8, 20).unwrap();
        let condition = |of: &[SubResult]| basis(64, &columns(&code, of)).condition();
        // The first three of every subtask in the fixed order: 60 sub-results for 64 parts. With the fourth there are
        // 80.
        assert_eq!(basis(64, &columns(&code, &begun(&code, 3, |_| 0))).condition(), f64::INFINITY);
        assert!(condition(&begun(&code, 4, |_| 0)) < 4.0);
        let code = Code::new(CodeKind::Crme, 4, 8, 16).unwrap();
        let fixed = basis(32, &columns(&code, &begun(&code, 2, |_| 0)));
        let turned = basis(32, &columns(&code, &begun(&code, 2, |i| i % 4)));
        assert_eq!((fixed.rank() < 32, fixed.condition()), (true, f64::INFINITY));
        assert!(turned.rank() == 32 && turned.condition() < 1e4, "{}", turned.condition());
    }

    #[test]
    fn grows_monotonically_in_rank_and_stays_infinite_until_full() {
        let code = Code::new(CodeKind::Crme, 4, 4, 6).unwrap();
        let (mut growing, mut rank) = (Basis::new(16), 0);
        for of in code.sub_results_of(&[0, 0, 1, 2, 3, 4, 5]) {
            assert!(growing.rank() == 16 || growing.condition() == f64::INFINITY);
            growing.add(code.recovery_column(of));
            assert!(growing.rank() == rank || growing.rank() == rank + 1);
            rank = growing.rank();
        }
        assert_eq!((growing.len(), rank), (28, 16));
        let uncoded = Code::new(CodeKind::Uncoded, 2, 3, 6).unwrap();
        let columns = columns(&uncoded, &uncoded.sub_results_of(&[5, 0, 3, 1, 2, 4]));
        assert!((basis(6, &columns).condition() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_comparison_sees_what_is_wrong() {
        assert!(promised(4.0, 4.0) && promised(f64::INFINITY, 1e8) && promised(1e6, 1e9));
        for (estimate, truth) in [(1.9, 4.0), (4.1, 4.0), (1e5, 1e8), (2.0, f64::INFINITY), (f64::NAN, 4.0)] {
            assert!(!promised(estimate, truth), "{estimate} for {truth}");
        }
        // Detects a basis that ignores the results beyond full rank.
        let code = Code::new(CodeKind::Crme, 8, 8, 20).unwrap();
        let all = columns(&code, &code.sub_results_of(&(0..20).collect::<Vec<_>>()));
        assert!(promised(basis(64, &all).condition(), truth(64, &all)));
        assert!(!promised(basis(64, &all[..64].to_vec()).condition(), truth(64, &all)));
    }
}
