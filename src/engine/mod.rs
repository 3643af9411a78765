//! Coded layers: prepare once, run many times, get the exact output and a report.
//!
//! [`CodedConv::builder`] begins a layer, and [`prepare`](CodedConvBuilder::prepare) partitions and encodes its filters and
//! installs them on the workers of a [`Pool`](crate::Pool). [`CodedConv::run`] pads, partitions and encodes an input,
//! gathers the first results that decode, and decodes them. Both take and return `ndarray` arrays.
//!
//! Invariant: the output of `run` is either exact to the error bound in its report, or an error.

mod accuracy;
mod builder;
mod common;
mod fitness;
mod history;
mod holdings;
mod integers;
mod layer;
mod options;
mod placement;
mod replicated;
mod report;
mod rules;
mod selftest;
mod simulated;
#[cfg(test)]
mod soak;
mod spare;
mod tracker;
mod variant;
mod watch;

pub use accuracy::WindowwiseLimit;
pub use builder::CodedConvBuilder;
pub use common::SharedWeight;
#[cfg(feature = "onnx")]
pub(crate) use integers::integers_fit;
pub use layer::{CodedConv, LayerOutcome, Run};
pub use options::{LayerOptions, ReportObserver};
pub use replicated::{PartRun, ReplicatedOptions, ReplicatedPart};
pub use report::{Completion, LayerReport, Report, WorkerReport};
pub use selftest::SelfTest;
pub use simulated::{SimulatedAttempt, SimulatedCosts, SimulatedLayer, SimulatedRun};
