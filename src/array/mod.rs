//! Arrays in memory: element types, dynamically typed buffers, and a safe GEMM.
//!
//! Relevant if you want to change how the library computes; callers need only [`DType`]. All modules compute on flat
//! row-major slices. Shapes are kept in the plans ([`crate::conv::ConvShape`]), never in the buffers.

mod buffers;
mod element;
mod exp;
mod gemm;
mod lanes;
mod matmul;
mod once;
mod random;
mod squares;
mod wire;

pub use buffers::{Buffers, Pooled};
pub use element::{DType, Element, Values, first_non_finite};
pub(crate) use element::{HALF_EPSILON, check_elems, check_indices, sized};
pub(crate) use lanes::load;
pub(crate) use matmul::F32_RUN;
pub use matmul::{Matrix, MatrixMut, matmul, matmul_on};
pub(crate) use once::{once, same, same_mut, same_ref};
pub(crate) use random::normal;
pub(crate) use squares::sum_of_squares;
pub use wire::WireFormat;
