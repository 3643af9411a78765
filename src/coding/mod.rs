#![doc = include_str!("algorithm.md")]

mod basis;
mod cache;
mod code;
mod combine;
mod crme;
mod decode;
mod decoder;
mod encode;
mod generators;
mod uncoded;

pub use basis::Basis;
pub use cache::DecoderCache;
pub use code::{Code, CodeKind, SubResult};
pub use decode::{Clamp, Epilogue, decode};
pub use decoder::{Decoder, error_bound};
pub use encode::{encode_filters, encode_input};
