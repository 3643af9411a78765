//! A safe interface to the `gemm` kernels: strided matrix views over slices, with bounds checked once per product.

#![expect(unsafe_code, reason = "the gemm kernels take raw pointers; every extent is checked here first")]

use gemm_common::Parallelism;

use super::element::{DType, Element};

/// A read-only strided matrix over a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A writable strided matrix over a slice.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Panics unless the last element of a `rows` x `cols` view lies inside `len` elements. A failure is a bug of the
/// caller, since shapes are validated before any product is formed.
fn check_extent(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) {
    if rows == 0 || cols == 0 {
        return;
    }
    let last = (rows - 1)
        .checked_mul(row_stride)
        .and_then(|r| (cols - 1).checked_mul(col_stride).and_then(|c| r.checked_add(c)));
    assert!(
        last.is_some_and(|last| last < len),
        "a {rows} x {cols} view with strides {row_stride}, {col_stride} does not fit in {len} elements"
    );
}

impl<'a, T> Matrix<'a, T> {
    /// A view of `rows` x `cols` elements of `data`; element (r, c) lies at `r * row_stride + c * col_stride`.
    #[must_use]
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride, col_stride);
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// A dense row-major matrix.
    #[must_use]
    pub fn dense(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The view with rows and columns exchanged.
    fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Columns `from..to`, inside this view.
    fn columns(self, from: usize, to: usize) -> Self {
        let data = &self.data[(from * self.col_stride).min(self.data.len())..];
        Self::new(data, self.rows, to - from, self.row_stride, self.col_stride)
    }

    /// Rows `from..to`, inside this view.
    fn rows(self, from: usize, to: usize) -> Self {
        let data = &self.data[(from * self.row_stride).min(self.data.len())..];
        Self::new(data, to - from, self.cols, self.row_stride, self.col_stride)
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// A writable view; see [`Matrix::new`]. Distinct (row, column) pairs must be distinct elements, so one
    /// stride must step over the whole of the other axis.
    #[must_use]
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride, col_stride);
        let apart = |inner: usize, count: usize, outer: usize, outer_count: usize| {
            (inner > 0 || count <= 1) && (outer_count <= 1 || outer > inner * count.saturating_sub(1))
        };
        assert!(
            apart(col_stride, cols, row_stride, rows) || apart(row_stride, rows, col_stride, cols),
            "a writable {rows} x {cols} view with strides {row_stride}, {col_stride} overlaps itself"
        );
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// A dense row-major matrix.
    #[must_use]
    pub fn dense(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }
}

/// Longest run of f32 terms summed in one accumulator. Rounding grows with the square root of its length, and a decoder
/// multiplies rounding errors by its condition number; adding up partial sums of 128 terms halves the error of a sum of
/// a few hundred.
pub(crate) const F32_RUN: usize = 128;

/// `dst = lhs * rhs`, or `dst += lhs * rhs` with `accumulate`, on the calling thread.
///
/// # Panics
/// When the inner or outer sizes disagree (a bug of the caller).
pub fn matmul<T: Element>(
    dst: &mut MatrixMut<'_, T>,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    accumulate: bool,
) {
    matmul_on(dst, lhs, rhs, accumulate, 1);
}

/// [`matmul`] on `threads` threads of the current rayon pool.
///
/// # Panics
/// When the inner or outer sizes disagree (a bug of the caller).
pub fn matmul_on<T: Element>(
    dst: &mut MatrixMut<'_, T>,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    accumulate: bool,
    threads: usize,
) {
    assert_eq!(
        (dst.rows, dst.cols, lhs.cols),
        (lhs.rows, rhs.cols, rhs.rows),
        "matrix product of incompatible sizes"
    );
    let run = match T::DTYPE {
        DType::F32 => lhs.cols.div_ceil(lhs.cols.div_ceil(F32_RUN).max(1)).max(1),
        DType::F64 => lhs.cols.max(1),
    };
    let mut from = 0;
    loop {
        let to = (from + run).min(lhs.cols);
        product(dst, lhs.columns(from, to), rhs.rows(from, to), accumulate || from > 0, threads);
        if to == lhs.cols {
            return;
        }
        from = to;
    }
}

/// One call of a gemm kernel; the sizes have been compared.
fn product<T: Element>(
    dst: &mut MatrixMut<'_, T>,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    accumulate: bool,
    threads: usize,
) {
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let signed = |stride: usize| isize::try_from(stride).expect("a stride is below the slice length");
    let (mut column, mut row) = (signed(dst.col_stride), signed(dst.row_stride));
    let (mut lhs, mut rhs) = (lhs, rhs);
    // The kernels write columns. Where rows are closer together, they compute the transposed product.
    if column < row {
        (column, row) = (row, column);
        (lhs, rhs) = (rhs.transposed(), lhs.transposed());
    }
    // SAFETY: every (row, column) of the three views was checked to lie inside its slice when the view was made, and a
    // transposed view has the same elements. A `MatrixMut` does not overlap itself and, being a unique borrow, overlaps
    // neither operand. `dst` is initialised memory.
    unsafe {
        T::kernel()(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            dst.data.as_mut_ptr(),
            column,
            row,
            accumulate,
            lhs.data.as_ptr(),
            signed(lhs.col_stride),
            signed(lhs.row_stride),
            rhs.data.as_ptr(),
            signed(rhs.col_stride),
            signed(rhs.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
            }
        }
        c
    }

    #[test]
    fn agrees_with_the_triple_loop_for_dense_strided_and_transposed_views() {
        for (m, k, n) in [
            (1, 1, 1),
            (2, 8, 300),
            (17, 5, 3),
            (1, 64, 33),
            (33, 1, 65),
            (3, 0, 4),
            (3, 300, 5),
            (2, 128, 2),
            (2, 129, 2),
        ] {
            let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.37).sin()).collect();
            let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.11).cos()).collect();
            let want = naive(&a, &b, m, k, n);
            let mut c = vec![f64::NAN; m * n];
            matmul(
                &mut MatrixMut::dense(&mut c, m, n),
                Matrix::dense(&a, m, k),
                Matrix::dense(&b, k, n),
                false,
            );
            assert!(c.iter().zip(&want).all(|(x, y)| (x - y).abs() < 1e-12), "{m} {k} {n}");
            // A destination with a stride between rows, and an accumulating product.
            let pitch = n + 7;
            let mut wide = vec![1.0; m * pitch];
            matmul(
                &mut MatrixMut::new(&mut wide, m, n, pitch, 1),
                Matrix::dense(&a, m, k),
                Matrix::dense(&b, k, n),
                true,
            );
            for i in 0..m {
                for j in 0..pitch {
                    let expected = 1.0 + if j < n { want[i * n + j] } else { 0.0 };
                    assert!((wide[i * pitch + j] - expected).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn overlapping_source_rows_are_allowed() {
        // Slabs of one plane overlap by their halo: the same slice is read with a short row stride.
        let plane: Vec<f32> = (0..10).map(|v| v as f32).collect();
        let mut out = [0.0; 4];
        matmul(
            &mut MatrixMut::dense(&mut out, 1, 4),
            Matrix::dense(&[1.0, 1.0, 1.0], 1, 3),
            Matrix::new(&plane, 3, 4, 3, 1),
            false,
        );
        assert_eq!(out, [9.0, 12.0, 15.0, 18.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_view_past_the_end_is_refused() {
        let _ = Matrix::new(&[0.0_f32; 5], 2, 3, 3, 1);
    }

    #[test]
    #[should_panic(expected = "overlaps itself")]
    fn a_writable_view_that_overlaps_itself_is_refused() {
        let _ = MatrixMut::new(&mut [0.0_f32; 9], 2, 3, 1, 1);
    }
}
