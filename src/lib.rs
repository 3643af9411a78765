//! Coded distributed convolution. (The crate documentation follows.)

pub mod array;
pub mod coding;
pub mod conv;
pub mod error;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod partition;
pub mod worker;

pub use error::{Error, ErrorKind, Result};
