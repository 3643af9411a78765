//! How a layer is cut into parts: APCP for the input, KCCP for the filters, and how their products tile the
//! output.
//!
//! Pure functions of shapes. The invariant: `Y[a, b] = conv(X_a, K_b)` for all a, b are equally shaped, tile the
//! output (a along the split axis, b along the output channels of each group) and what they hold beyond it is
//! cropped by [`OutputTiling`]. Both maps are linear, which is all a code needs.

mod apcp;
mod kccp;
mod tiling;

pub use apcp::InputPartition;
pub use kccp::FilterPartition;
pub use tiling::OutputTiling;
