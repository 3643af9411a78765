//! The benchmark harness: coded execution against uncoded, replicated and hedged, under the same faults in one run.
//!
//! [`layers`] is the catalogue of shapes, [`record`] what a comparison measured (`bench.json`), [`stats`] how trials
//! become numbers with intervals, [`chart`] and [`text`] how those are shown. Everything is measured by the library's own
//! scheduler, on real workers or in virtual time. Who only runs layers or models can skip this module.
//!
//! Invariant: methods that are compared met the same inputs, the same number of workers and the same faults, in turns.

pub mod chart;
pub mod convexity;
pub mod layers;
pub mod machine;
pub mod page;
pub mod page_bench;
pub mod page_plan;
pub mod record;
pub mod stats;
pub mod text;
