//! The metrics of a worker process: its server's counters, read at each request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::http::Source;
use crate::cluster::WorkerServer;
use crate::error::Result;

/// Time limit for a device to pass a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The counters of a worker process, and its readiness: whether every device computes correctly.
pub struct WorkerProcess {
    registry: Registry,
    server: Arc<WorkerServer>,
}

#[derive(Clone)]
struct Reader(Arc<WorkerServer>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl WorkerProcess {
    /// Exports the counters of `server`.
    #[must_use]
    pub fn new(server: &Arc<WorkerServer>) -> Arc<Self> {
        let mut registry = Registry::with_prefix("fcdcc_worker");
        registry.register_collector(Box::new(Reader(Arc::clone(server))));
        Arc::new(Self { registry, server: Arc::clone(server) })
    }
}

impl Source for WorkerProcess {
    fn metrics(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn ready(&self) -> Result<()> {
        self.server.check_ready(PROBE_LIMIT)
    }
}

/// A metric with one value for each set of labels.
fn family<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: impl Iterator<Item = (Vec<(&'static str, String)>, M)>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    let Some((_, first)) = rows.peek() else { return Ok(()) };
    let kind = first.metric_type();
    let mut metric = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in rows {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        value.encode(metric.encode_family(&labels.as_slice())?)?;
    }
    Ok(())
}

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (info, traffic) = (self.0.info(), self.0.traffic());
        let none = Vec::new;
        let device = |name: &str| vec![("device", name.to_owned())];
        let encoder = &mut encoder;
        let version = vec![("machine", info.name.clone()), ("version", info.version.clone())];
        family(
            encoder,
            "build",
            "Machine and release",
            None,
            std::iter::once((version, ConstGauge::new(1i64))),
        )?;
        let gauges = [
            ("memory_used", "Filters, slabs and results", info.memory_used_bytes),
            ("memory_limit", "What they may take", info.memory_limit_bytes),
        ];
        for (name, help, bytes) in gauges {
            let row = (none(), ConstGauge::new(bytes as f64));
            family(encoder, name, help, Some(&Unit::Bytes), std::iter::once(row))?;
        }
        let masters = std::iter::once((none(), ConstGauge::new(i64::from(info.masters))));
        family(encoder, "masters", "Masters it works for", None, masters)?;
        let directions = [("received", traffic.received_bytes), ("sent", traffic.sent_bytes)];
        let rows =
            directions.map(|(name, bytes)| (vec![("direction", name.to_owned())], ConstCounter::new(bytes)));
        family(
            encoder,
            "payload",
            "Filters and slabs in, results out",
            Some(&Unit::Bytes),
            rows.into_iter(),
        )?;
        let failures = std::iter::once((none(), ConstCounter::new(traffic.cache_failures)));
        family(encoder, "cache_failures", "Filters not written to disk", None, failures)?;
        let refusals = std::iter::once((none(), ConstCounter::new(traffic.memory_refusals)));
        family(encoder, "memory_refusals", "Filters, slabs and results without room", None, refusals)?;
        let masters = std::iter::once((none(), ConstCounter::new(traffic.master_refusals)));
        family(encoder, "master_refusals", "Masters that may not use it", None, masters)?;
        let refused = i64::try_from(self.0.refused().len()).unwrap_or(i64::MAX);
        let refused = std::iter::once((none(), ConstGauge::new(refused)));
        family(encoder, "refused", "Endpoints whose other side does not take it", None, refused)?;
        let tasks = info.devices.iter().flat_map(|d| {
            [("done", d.done), ("cancelled", d.cancelled), ("failed", d.failed)].map(|(outcome, count)| {
                let labels = vec![("device", d.name.clone()), ("outcome", outcome.to_owned())];
                (labels, ConstCounter::new(count))
            })
        });
        family(encoder, "tasks", "Tasks by outcome", None, tasks)?;
        let busy = info.devices.iter().zip(&traffic.busy);
        let busy = busy.map(|(d, busy)| (device(&d.name), ConstCounter::new(busy.as_secs_f64())));
        family(encoder, "busy", "Time spent on tasks", Some(&Unit::Seconds), busy)?;
        let up = info.devices.iter().map(|d| (device(&d.name), ConstGauge::new(i64::from(d.lost.is_none()))));
        family(encoder, "up", "Whether the device works", None, up)?;
        let load = info.devices.iter().map(|d| (device(&d.name), ConstGauge::new(i64::from(d.load))));
        family(encoder, "load", "Tasks queued or running", None, load)?;
        let filters = info.devices.iter().map(|d| (device(&d.name), ConstGauge::new(i64::from(d.filters))));
        family(encoder, "filters", "Filters held", None, filters)?;
        let bytes = info.devices.iter().map(|d| (device(&d.name), ConstGauge::new(d.filter_bytes as f64)));
        family(encoder, "filter", "Size of the filters held", Some(&Unit::Bytes), bytes)
    }
}
