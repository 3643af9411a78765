//! Monitoring: metrics for Prometheus, and whether inference works.
//!
//! Relevant if you want to monitor a service. An [`Exporter`] answers `/metrics`, `/readyz` and `/healthz` over HTTP from a
//! [`Source`]: a [`Master`] counts what its layers report, a [`WorkerProcess`] shows a worker server's counters.
//!
//! Invariant: monitoring costs a layer a few counters; a client that reads slowly, or never, blocks nothing.

mod http;
#[cfg(feature = "cluster")]
mod links;
mod master;
#[cfg(feature = "cluster")]
mod process;

pub use http::{Exporter, Source};
pub use master::Master;
#[cfg(feature = "cluster")]
pub use process::WorkerProcess;
