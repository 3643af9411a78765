#![doc = include_str!("algorithm.md")]

mod audit;
mod basis;
mod cache;
mod code;
mod combine;
mod condition;
mod crme;
mod custom;
mod decode;
mod decoder;
mod encode;
mod generators;
mod khatri_rao;
mod kind;
mod linear;
mod microkernel;
mod panel;
mod parity;
mod polynomial;
mod rounding;
mod selection;
mod sketch;
#[cfg(test)]
mod synthetic;
mod work_split;

pub use audit::{ParityCheck, TARGET as AUDIT_TARGET, locate_errors};
pub use basis::Basis;
pub use cache::{DecoderCache, ParityCheckCache};
pub use code::{Code, SubResult};
pub(crate) use decode::decode_here;
pub use decode::{Clamp, Epilogue, decode};
pub use decoder::Decoder;
pub(crate) use decoder::SINGULAR;
pub use encode::{encode_distinct, encode_filters, encode_input};
pub use kind::CodeKind;
pub use rounding::{FILTERING, FILTERING_CPU, Rounding, error_bound, storage_epsilon};
pub use sketch::{Sketch, Sketcher};
