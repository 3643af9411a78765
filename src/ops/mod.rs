//! Operators of CNNs beside convolution: pooling, normalisation, elementwise chains and functions, softmax, dense layers,
//! copies.
//!
//! All work on slices of [`Element`](crate::array::Element) in row-major order, write every element of their output, use
//! all cores of the current rayon pool where the work is large enough, and allocate nothing. Sizes are checked by the
//! caller; a wrong one panics.
//!
//! Relevant if you want to add or speed up an operator that runs on the CPU.
//!
//! Invariant: no element of an output depends on the number of threads.

mod arrange;
mod dense;
mod elementwise;
mod interleave;
mod lrn;
mod pooling;
mod sampling;
mod share;
mod softmax;
mod unary;

pub use arrange::{Permutation, concat};
pub use dense::{Dense, sum_rows};
pub use elementwise::{BinaryOp, Step, chain, chain_in_place};
pub use interleave::{Interleave, PhaseRun};
pub use lrn::Lrn;
pub use pooling::{PoolKind, Pooling};
pub use sampling::Sampling;
pub use softmax::Softmax;
pub use unary::Unary;
