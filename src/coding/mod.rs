#![doc = include_str!("algorithm.md")]

mod audit;
mod basis;
mod cache;
mod code;
mod combine;
mod crme;
mod decode;
mod decoder;
mod encode;
mod generators;
mod relations;
mod sketch;
#[cfg(test)]
mod synthetic;
mod uncoded;

pub use audit::{Checker, TARGET as AUDIT_TARGET, identify};
pub use basis::Basis;
pub use cache::{CheckerCache, DecoderCache};
pub use code::{Code, CodeKind, SubResult};
pub use decode::{Clamp, Epilogue, decode};
pub use decoder::{Decoder, error_bound};
pub use encode::{encode_filters, encode_input};
pub use sketch::{Sketch, Sketcher};
