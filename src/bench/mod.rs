//! The benchmark harness: coded execution against uncoded, replicated and hedged, under the same faults in one run.
//!
//! [`layers`] is the catalogue of shapes, [`Scenario`] what goes wrong, [`Method`] who is compared; [`Comparison`] runs them
//! in turns into a [`schema`] (`bench.json`). [`stats`] is how trials become numbers with intervals, [`page`] how reports
//! become HTML files, with what [`chart`] draws and [`mod@format`] words. [`convexity`] measures what the planner predicts, and
//! [`stability`] is about digits instead of time: condition numbers and errors of the code families. Everything is measured by the library's own scheduler,
//! on real workers or in virtual time. Who only runs layers or models can skip this module.
//!
//! Invariant: methods that are compared met the same inputs, the same number of workers and the same faults, in turns.

pub mod chart;
mod codec;
pub mod coding_errors;
mod compare;
pub mod conditions;
pub mod convexity;
mod findings;
pub mod format;
pub mod layers;
pub mod machine;
mod meter;
mod methods;
#[cfg(feature = "onnx")]
mod models;
pub mod page;
pub mod page_bench;
pub mod page_plan;
pub mod page_stability;
mod real_workers;
pub mod responder_sets;
mod runner;
mod scenario;
pub mod schema;
mod simulated;
pub mod stability;
pub mod stability_findings;
pub mod stability_record;
pub mod stats;

pub use codec::{affordable_conditions, codec_cost};
pub use compare::Comparison;
pub use findings::findings;
pub use methods::Method;
#[cfg(feature = "onnx")]
pub use models::random_inputs;
pub use real_workers::{LayerCase, Workers, layer_contestants};
pub use runner::{Contestants, MethodRunner, Plan, Progress, Trial, study};
pub use scenario::{Scenario, Trace, TrialFault, straggler_delay};
pub use simulated::SimulatedSetting;
