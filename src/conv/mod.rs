//! Convolution: the operation itself, without coding.
//!
//! Semantics are those of ONNX `Conv` (a cross-correlation): input `[N, C, spatial...]`, weight
//! `[O, C/groups, kernel...]`, output `[N, O, spatial...]`, with 1, 2 or 3 spatial axes, any stride, asymmetric zero
//! padding, dilation and groups. [`ConvShape`] alone validates shapes and computes output sizes; [`reference()`] is the
//! naive definition that every other path is tested against.

mod compute;
mod depthwise;
mod filtered;
mod filters;
mod geometry;
mod kernel;
mod micro;
mod panels;
mod params;
mod planes;
mod points;
mod reference;
mod staging;
mod transposed;
mod winograd;

pub use filters::Filters;
pub use kernel::{ConvKernel, ConvPath, OneInput, Scratch, conv_uncoded, conv_uncoded_into};
pub use params::{AXES, ConvParams, ConvShape};
pub use points::outputs_at;
pub use reference::reference;
pub use transposed::{Phases, TransposedShape};
#[cfg(feature = "gpu")]
pub(crate) use winograd::{PRODUCTS, transform_filters};
