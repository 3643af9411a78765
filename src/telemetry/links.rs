//! The measured rates of the links to machines.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::cluster::Cluster;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    machine: String,
    direction: &'static str,
}

/// A gauge for each direction of each link that was measured.
pub(super) struct LinkGauges(Family<Labels, Gauge<f64, AtomicU64>>);

impl LinkGauges {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let gauges = Family::default();
        let help = "Measured rate of the link to a machine";
        registry.register("link_bytes_per_second", help, gauges.clone());
        Self(gauges)
    }

    /// Sets the gauges to the present rates; machines that have left have none.
    pub(super) fn update(&self, clusters: &[Cluster]) {
        self.0.clear();
        for (machine, rates) in clusters.iter().flat_map(Cluster::link_speeds) {
            for (direction, rate) in [("up", rates.up_bytes_per_s), ("down", rates.down_bytes_per_s)] {
                if let Some(rate) = rate {
                    self.0.get_or_create(&Labels { machine: machine.clone(), direction }).set(rate);
                }
            }
        }
    }
}
