//! Fully connected layers and sums of rows.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::{Element, F32_RUN, Matrix, MatrixMut, matmul_on};

/// Independent sums of a row: several vectors of any instruction set.
const SUMS: usize = 64;

/// Outputs of a matrix stored by inputs that are computed at a time.
const COLUMNS: usize = 1024;

/// Bytes of weights that stay in the cache: each row of data is multiplied with them separately. For larger ones, a product
/// of matrices reads them once for many rows; it allocates memory to pack them.
const CACHED_BYTES: usize = 256 << 10;

/// A product with a matrix of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Number of inputs of each output.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Whether the weights are `[inputs, outputs]` instead of `[outputs, inputs]`.
    pub by_inputs: bool,
}

impl Dense {
    /// Multiplies each row of `data` `[rows, inputs]` with `weights` into `output` `[rows, outputs]`.
    pub fn run<T: Element>(&self, data: &[T], weights: &[T], output: &mut [T]) {
        let Self { inputs, outputs, by_inputs } = *self;
        let rows = output.len() / outputs.max(1);
        assert_eq!((data.len(), weights.len()), (rows * inputs, inputs * outputs), "sizes of a dense layer");
        if rows > 1 && size_of_val(weights) > CACHED_BYTES {
            let weights = if by_inputs {
                Matrix::dense(weights, inputs, outputs)
            } else {
                Matrix::new(weights, inputs, outputs, 1, inputs)
            };
            let threads = crate::share::threads();
            let mut to = MatrixMut::dense(output, rows, outputs);
            return matmul_on(&mut to, Matrix::dense(data, rows, inputs), weights, false, threads);
        }
        if rows == 1 {
            return share(output, 1, inputs, |first, piece| self.row(data, weights, first, piece));
        }
        share(output, outputs, inputs, |first, piece| {
            for (index, to) in piece.chunks_exact_mut(outputs).enumerate() {
                self.row(&data[(first + index) * inputs..][..inputs], weights, 0, to);
            }
        });
    }

    /// The outputs from `first` on for one row of data.
    fn row<T: Element>(&self, data: &[T], weights: &[T], first: usize, output: &mut [T]) {
        let Self { inputs, outputs, by_inputs } = *self;
        if by_inputs {
            for (index, to) in output.chunks_mut(COLUMNS).enumerate() {
                vectorized(Columns { data, weights, outputs, first: first + index * COLUMNS, to });
            }
        } else {
            for (index, sum) in output.iter_mut().enumerate() {
                let row = &weights[(first + index) * inputs..][..inputs];
                vectorized(Row { values: row, factors: Some(data), sum });
            }
        }
    }
}

/// Sums each row of `data` `[outputs, length]`.
pub fn sum_rows<T: Element>(data: &[T], length: usize, output: &mut [T]) {
    assert_eq!(data.len(), output.len() * length, "rows to sum");
    share(output, 1, length, |first, piece| {
        for (index, sum) in piece.iter_mut().enumerate() {
            vectorized(Row { values: &data[(first + index) * length..][..length], factors: None, sum });
        }
    });
}

/// The sum of a row, whose elements are multiplied by `factors` if there are any.
struct Row<'a, T> {
    values: &'a [T],
    factors: Option<&'a [T]>,
    sum: &'a mut T,
}

impl<T: Element> Vectorized for Row<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { values: row, factors, sum } = self;
        let mut sums = [T::default(); SUMS];
        let whole = row.len() / SUMS * SUMS;
        if let Some(factors) = factors {
            for (a, b) in row[..whole].chunks_exact(SUMS).zip(factors.chunks_exact(SUMS)) {
                for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += *a * *b;
                }
            }
            for ((sum, a), b) in sums.iter_mut().zip(&row[whole..]).zip(&factors[whole..]) {
                *sum += *a * *b;
            }
        } else {
            for a in row[..whole].chunks_exact(SUMS) {
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum += *a;
                }
            }
            for (sum, a) in sums.iter_mut().zip(&row[whole..]) {
                *sum += *a;
            }
        }
        // Pairwise, which keeps the rounding of the last steps small.
        let mut width = SUMS;
        while width > 1 {
            width /= 2;
            let (low, high) = sums.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                *a += *b;
            }
        }
        *sum = sums[0];
    }
}

/// Successive outputs with weights stored by inputs.
struct Columns<'a, T> {
    data: &'a [T],
    weights: &'a [T],
    outputs: usize,
    /// The first output.
    first: usize,
    to: &'a mut [T],
}

impl<T: Element> Vectorized for Columns<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { data, weights, outputs, first, to: columns } = self;
        columns.fill(T::default());
        let mut partial = [T::default(); COLUMNS];
        let partial = &mut partial[..columns.len()];
        for (run, data) in data.chunks(F32_RUN).enumerate() {
            partial.fill(T::default());
            for (index, x) in data.iter().enumerate() {
                let weights = &weights[(run * F32_RUN + index) * outputs + first..];
                for (sum, w) in partial.iter_mut().zip(weights) {
                    *sum += *x * *w;
                }
            }
            for (sum, part) in columns.iter_mut().zip(&*partial) {
                *sum += *part;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, step: usize) -> Vec<f64> {
        (0..count).map(|i| f64::from(u32::try_from(i * step % 997).unwrap()) / 300.0 - 1.6).collect()
    }

    #[test]
    fn products_in_both_orders_are_those_of_the_definition() {
        for (rows, inputs, outputs) in
            [(1, 1, 1), (1, 63, 5), (1, 700, 2100), (1, 129, 1), (3, 70, 90), (90, 70, 7), (3, 300, 400)]
        {
            let (data, weights) = (values(rows * inputs, 7919), values(inputs * outputs, 6007));
            for by_inputs in [false, true] {
                let dense = Dense { inputs, outputs, by_inputs };
                let mut got = vec![f64::NAN; rows * outputs];
                dense.run(&data, &weights, &mut got);
                let narrow = |v: &[f64]| v.iter().map(|v| f32::from_f64(*v)).collect::<Vec<_>>();
                let mut single = vec![f32::NAN; rows * outputs];
                dense.run(&narrow(&data), &narrow(&weights), &mut single);
                for (i, (got, single)) in got.iter().zip(single).enumerate() {
                    let (row, o) = (i / outputs, i % outputs);
                    let weight = |c: usize| weights[if by_inputs { c * outputs + o } else { o * inputs + c }];
                    let terms = (0..inputs).map(|c| data[row * inputs + c] * weight(c));
                    let (want, size) =
                        terms.fold((0.0, 0.0), |(sum, size), t: f64| (sum + t, size + t.abs()));
                    assert!(
                        (got - want).abs() <= 1e-13 * size,
                        "{dense:?}: output {i} is {got} where {want} follows"
                    );
                    assert!((f64::from(single) - want).abs() <= 2e-6 * size, "{dense:?}: {single} {want}");
                }
            }
        }
    }

    #[test]
    fn rows_are_summed() {
        for length in [1, 49, 64, 200] {
            let data = values(501 * length, 7919);
            let mut got = vec![f64::NAN; 501];
            sum_rows(&data, length, &mut got);
            for (row, got) in data.chunks(length).zip(got) {
                assert!((got - row.iter().sum::<f64>()).abs() < 1e-12);
            }
        }
    }
}
