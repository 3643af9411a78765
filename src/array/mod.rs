//! Numbers in memory: element types, dynamically typed buffers, and a safe GEMM.
//!
//! Everything above computes on flat row-major slices; shapes live in the plans ([`crate::conv::ConvShape`]),
//! never in the buffers. Who only calls the library can skip this module, except for [`DType`].

mod element;
mod lanes;
mod matmul;
mod random;

pub use element::{DType, Element, Values, first_non_finite};
pub(crate) use element::{HALF_EPSILON, check_elems, check_indices, sized};
pub(crate) use lanes::load;
pub(crate) use matmul::F32_RUN;
pub use matmul::{Matrix, MatrixMut, matmul, matmul_on};
pub(crate) use random::normal;
