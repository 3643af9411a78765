//! Workers on other machines, here in one process: the protocol, foreign peers, metrics.

mod filters;
mod garbage;
mod measured;
mod narrow;
mod parts;
mod phases;
mod sharing;
#[cfg(feature = "metrics")]
mod telemetry;
mod wire;
mod wire_properties;
mod workers;
