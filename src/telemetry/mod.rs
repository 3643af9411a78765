//! What goes on, for those who watch: metrics for Prometheus, and whether inference works.
//!
//! Whoever runs a model once can skip this. An [`Exporter`] answers `/metrics`, `/readyz` and `/healthz` over HTTP from a
//! [`Source`]: a [`Master`] counts what its layers report, a [`WorkerProcess`] shows a worker server's counters.
//!
//! Invariant: watching costs a layer a few counters; whoever reads slowly, or never, holds up nothing.

mod http;
mod master;
#[cfg(feature = "cluster")]
mod process;

pub use http::{Exporter, Source};
pub use master::Master;
#[cfg(feature = "cluster")]
pub use process::WorkerProcess;
