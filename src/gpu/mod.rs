//! Convolutions on GPU adapters through wgpu: devices, WGSL kernels, buffers, and the engine that drives them.
//!
//! Relevant if you want to convolve on a GPU without workers; with workers ([`GpuWorker`](crate::worker::GpuWorker))
//! only [`AdapterSelector`] is needed. It takes three steps: [`adapters`] lists the adapters, [`GpuDevice::open`] opens
//! a queue on one of them, and a [`ConvEngine`] on that queue holds filters ([`ConvEngine::install`]) and convolves
//! slabs ([`ConvEngine::run`]). The plan is a pure function of the shape of the layer and the capabilities of the
//! device ([`ConvPlan`]); [`Candidate`] lists the alternatives, and a [`Tuner`] finds the fastest.
//!
//! Invariant: a result is returned only after the device confirmed the submission that wrote it, without an error or
//! loss recorded in between; every wait has a limit. Failures are values ([`crate::Error::Gpu`]), never panics, and
//! never zeros that look like a result.

mod adapter;
mod buffers;
mod candidate;
mod conv;
mod device;
mod dispatch;
mod f16;
mod kernel;
mod measure;
mod pack;
mod params;
mod pipeline;
mod plan;
mod run;
mod shaders;
mod tile;
mod timing;
mod tuner;
mod tuning_cache;
mod winograd;

pub use adapter::{AdapterFeatures, AdapterLimits, AdapterSelector, AdapterSummary, adapters, select};
pub use candidate::Candidate;
pub use conv::{ConvEngine, ConvFilters};
pub use device::{Caps, GpuDevice};
pub use kernel::Kernel;
pub use measure::TuneMode;
pub use plan::ConvPlan;
pub use timing::RunTiming;
pub use tuner::{Tuner, kept_kernels};
