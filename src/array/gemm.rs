//! The kernels of the `gemm` packages for the two element types.
//!
//! Relevant if you want to multiply matrices by another library; callers use [`matmul`](super::matmul()).

use gemm_common::Parallelism;

/// `dst = alpha * dst + beta * lhs * rhs`: the three sizes; for each matrix the first element, the column stride and the
/// row stride; whether `dst` is read; alpha, beta; which matrices are conjugated; on how many threads.
pub(super) type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// Element types that `gemm` has kernels for.
pub trait Gemm: Sized {
    /// The kernel for this processor.
    fn kernel() -> Kernel<Self>;
}

impl Gemm for f32 {
    fn kernel() -> Kernel<Self> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Gemm for f64 {
    fn kernel() -> Kernel<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}
