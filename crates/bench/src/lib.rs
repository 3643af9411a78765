//! The benchmark harness: compares coded execution with uncoded, replicated and hedged execution under the same faults.
//!
//! Relevant if you want to measure; to run layers or models you do not need this crate. [`layers`] is the catalogue of
//! shapes, [`Scenario`] describes the faults, [`Method`] the methods, and [`Comparison`] runs them in turns into a
//! [`schema`] (`bench.json`). [`stats`] turns trials into numbers with intervals. [`page`] turns reports into HTML files,
//! with the charts of [`chart`] and the wording of [`mod@format`]. [`mod@load`] is the report of a
//! load on a server. [`convexity`] checks the planner's predictions, and
//! [`stability`] studies digits instead of time: condition numbers and errors of the code families. Everything is
//! measured by the library's own scheduler, on real workers or in virtual time.
//!
//! Invariant: compared methods meet the same inputs, the same number of workers and the same faults, in turns.

pub mod chart;
mod codec;
pub mod coding_errors;
mod compare;
pub mod conditions;
pub mod convexity;
mod findings;
mod flags;
pub mod format;
pub mod layers;
pub mod load;
pub mod machine;
mod meter;
mod methods;
#[cfg(feature = "onnx")]
mod models;
pub mod page;
pub mod page_bench;
pub mod page_load;
pub mod page_plan;
pub mod page_stability;
pub mod page_under_load;
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
pub mod under_load;

pub use codec::{affordable_conditions, codec_cost};
pub use compare::Comparison;
pub use findings::findings;
pub use flags::with_flags;
pub use methods::Method;
#[cfg(feature = "onnx")]
pub use models::random_inputs;
pub use real_workers::{LayerCase, Workers, layer_contestants};
pub use runner::{Contestants, MethodRunner, Plan, Progress, Trial, study};
pub use scenario::{Scenario, Trace, TrialFault, straggler_delay};
pub use simulated::SimulatedSetting;
