//! This is advanced API: not needed for ordinary use.
//!
//! Relevant if you want to: drive the scheduler's state machine with events of your own, assign subtasks to workers,
//! follow the state of a worker, code and decode tensors without workers, or simulate runs in virtual time. The same items
//! are in the modules that define them; their interfaces may change in any version.

pub use crate::coding::{
    Basis, Code, Decoder, DecoderCache, Epilogue, ParityCheck, ParityCheckCache, Rounding, Sketch, Sketcher,
    SubResult, decode, encode_distinct, encode_filters, encode_input, error_bound, locate_errors,
};
pub use crate::engine::{SimulatedCosts, SimulatedLayer, SimulatedRun};
#[cfg(feature = "gpu")]
pub use crate::gpu::{Candidate, ConvEngine, ConvPlan, GpuDevice, Kernel, Tuner};
pub use crate::partition::{FilterPartition, InputPartition, OutputTiling};
pub use crate::scaling::{FilterScales, InputScan, ScanPlan};
pub use crate::scheduler::{
    Action, Arrival, Arrivals, Event, Expected, Gather, Health, HealthOptions, Latencies, MessageFaults,
    Recovery, RunEstimates, SimulatedFleet, Speed, Verdict, assign, rebalance,
};
