//! What a worker process says of itself and of its devices.
//!
//! Invariant: what [`HostInfo::check`] accepts has names, texts and counts within their limits.

use serde::{Deserialize, Serialize};

use super::{MAX_DEVICES, MAX_NAME_BYTES, MAX_TEXT_BYTES, WireError};
use crate::worker::WorkerKind;

/// Description of a worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The machine's name in the cluster.
    pub name: String,
    /// Drawn at random when the process started.
    pub boot: u64,
    /// Version of fcdcc.
    pub version: String,
    /// Seconds since the process started.
    pub uptime_s: u64,
    /// Devices that it lends.
    pub devices: Vec<DeviceInfo>,
    /// Limit for filters, slabs and results together, in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes in use.
    pub memory_used_bytes: u64,
    /// Number of masters that it works for.
    pub masters: u32,
    /// Its clock, in milliseconds since 1970.
    pub clock_unix_ms: u64,
    /// A clock of the process that never goes back, in microseconds, when this was said.
    pub clock_us: u64,
    /// When its certificate ends, in seconds since 1970, if it has one.
    pub certificate_until_unix_s: Option<i64>,
}

/// Description of one device of a worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name within the process.
    pub name: String,
    /// Whether it is a GPU queue; otherwise it is threads.
    pub gpu: bool,
    /// Readable: adapter and driver, or number of threads.
    pub device: String,
    /// Whether it computes in f64.
    pub f64: bool,
    /// The adapter that it shares with other devices, which are lost together with it.
    pub adapter: Option<String>,
    /// Why the device is lost at present; `None` while it works.
    pub lost: Option<String>,
    /// Number of tasks queued or running.
    pub load: u32,
    /// Number of filter sets held.
    pub filters: u32,
    /// Size of these filters in bytes.
    pub filter_bytes: u64,
    /// Tasks completed since the start.
    pub done: u64,
    /// Tasks cancelled since the start.
    pub cancelled: u64,
    /// Tasks failed since the start.
    pub failed: u64,
}

impl DeviceInfo {
    /// Kind of the device on its own machine.
    #[must_use]
    pub fn kind(&self) -> WorkerKind {
        if self.gpu { WorkerKind::Gpu } else { WorkerKind::Cpu }
    }
}

impl HostInfo {
    /// Checks that every name, text and count is within its limit.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for the first that is not.
    pub fn check(&self) -> Result<(), WireError> {
        let long = |what: &str, text: &str, limit: usize| {
            if text.len() <= limit { Ok(()) } else { Err(WireError::Malformed(format!("{what} too long"))) }
        };
        if self.devices.len() > MAX_DEVICES {
            return Err(WireError::Malformed(format!("{} devices", self.devices.len())));
        }
        long("name", &self.name, MAX_NAME_BYTES)?;
        long("version", &self.version, MAX_NAME_BYTES)?;
        for device in &self.devices {
            long("name of a device", &device.name, MAX_NAME_BYTES)?;
            long("description of a device", &device.device, MAX_TEXT_BYTES)?;
            long("adapter", device.adapter.as_deref().unwrap_or_default(), MAX_TEXT_BYTES)?;
            long("state", device.lost.as_deref().unwrap_or_default(), MAX_TEXT_BYTES)?;
        }
        Ok(())
    }
}
