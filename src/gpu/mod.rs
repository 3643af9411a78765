//! Convolutions on GPU adapters through wgpu: devices, WGSL kernels, buffers, and the engine that drives them.
//!
//! Three steps: [`adapters`] lists what there is, [`GpuDevice::open`] opens a queue on one of them, and a
//! [`ConvEngine`] on that queue holds filters ([`ConvEngine::install`]) and convolves slabs
//! ([`ConvEngine::run`]). What runs where is decided beforehand, by a pure function of the layer's shape and the
//! device's abilities ([`ConvPlan`]); [`Candidate`] lists the alternatives, and a [`Tuner`] finds out which is fastest.
//! Who uses the library through workers
//! ([`GpuWorker`](crate::worker::GpuWorker)) can skip this module, except for [`AdapterSelector`].
//!
//! Invariant: a result reaches the caller only after the device confirmed, without an error or a loss recorded in
//! between, the submission that wrote it; every wait has a limit. Failures are values ([`crate::Error::Gpu`]),
//! never panics, and never zeros that look like a result.

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
