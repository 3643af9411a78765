//! Partitions of a layer: APCP splits the input, KCCP splits the filters, and the products of their parts tile the
//! output.
//!
//! This is advanced API: not needed for ordinary use.
//!
//! Pure functions of shapes. Invariant: the parts `Y[a, b] = conv(X_a, K_b)` have equal shapes and tile the output (a
//! along the split axis, b along the output channels of each group); [`OutputTiling`] crops the elements beyond it.
//! Both maps are linear, as a code requires.

mod apcp;
mod kccp;
mod tiling;

pub use apcp::InputPartition;
pub use kccp::FilterPartition;
pub use tiling::OutputTiling;
