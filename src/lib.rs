#![doc = include_str!("../README.md")]

pub mod array;
pub mod cache;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod coding;
pub mod conv;
pub mod dates;
pub mod engine;
pub mod error;
pub mod files;
#[cfg(feature = "gpu")]
pub mod gpu;
#[doc = include_str!("../docs/glossary.md")]
pub mod glossary {}
pub mod ids;
#[doc(hidden)]
pub mod internal;
pub mod low_level;
pub mod memory;
#[cfg(feature = "onnx")]
pub mod model;
pub mod ops;
pub mod partition;
pub mod planner;
pub mod scaling;
pub mod scheduler;
mod share;
mod sync;
#[cfg(feature = "metrics")]
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod worker;

pub use array::{DType, Element};
pub use coding::CodeKind;
pub use conv::{ConvParams, ConvShape};
pub use engine::{
    CodedConv, CodedConvBuilder, Completion, LayerOptions, LayerOutcome, LayerReport, Report, Run,
};
pub use error::{Error, ErrorKind, Result};
pub use ids::{SubtaskId, WorkerId};
#[cfg(feature = "onnx")]
pub use model::{Model, ModelOptions, PreparedModel};
pub use scheduler::{Audit, OnShortfall, Outcome, Policy, Pool, PoolOptions};
pub use worker::{CancelToken, CpuWorker, Worker};
