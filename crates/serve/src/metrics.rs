//! Counters and histograms of requests, beside those of the pool.
//!
//! Relevant if you want to monitor a server. Times are histograms, so that quantiles can be computed over any period.
//!
//! Invariant: labels hold names of loaded models and statuses only, never what a client sent, so their number is bounded.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::cost::RunTimes;
use crate::scrape::Scrape;

/// The end of a text of metrics.
const END: &str = "# EOF\n";

/// The metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    queue: Family<ModelLabel, Histogram>,
    compute: Family<ModelLabel, Histogram>,
    phases: Family<PhaseLabels, Histogram>,
    total: Family<ModelLabel, Histogram>,
    items: Family<ModelLabel, Histogram>,
    waiting: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    model: String,
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    status: u16,
}

/// From 50 us to 100 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(5e-5, 2.0, 22))
}

/// From 1 to 1024 items.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("fcdcc_serve"),
            requests: Family::default(),
            queue: Family::new_with_constructor(seconds),
            compute: Family::new_with_constructor(seconds),
            phases: Family::new_with_constructor(seconds),
            total: Family::new_with_constructor(seconds),
            items: Family::new_with_constructor(sizes),
            waiting: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("requests", "Inference requests by model and HTTP status", self.requests.clone());
        let help = "From the arrival of a request to the start of its run";
        registry.register_with_unit("queue", help, Unit::Seconds, self.queue.clone());
        registry.register_with_unit("compute", "Time of a run", Unit::Seconds, self.compute.clone());
        let help = "Time of a run by phase: input, encode, wait, decode, host, output";
        registry.register_with_unit("phase", help, Unit::Seconds, self.phases.clone());
        let help = "From the arrival of a request to its answer, or to its failure";
        registry.register_with_unit("request", help, Unit::Seconds, self.total.clone());
        registry.register("run_items", "Items computed in one run", self.items.clone());
        registry.register("waiting", "Requests that wait for a run", self.waiting.clone());
        self
    }

    /// Counts a request of a model, or of none that is loaded, `time` after its arrival.
    pub(crate) fn answered(&self, model: Option<&str>, status: u16, time: Duration) {
        if let Some(model) = model {
            self.total.get_or_create(&ModelLabel { model: model.to_owned() }).observe(time.as_secs_f64());
        }
        let model = model.unwrap_or_default().to_owned();
        self.requests.get_or_create(&RequestLabels { model, status }).inc();
    }

    pub(crate) fn queued(&self, model: &str, time: Duration) {
        self.queue.get_or_create(&ModelLabel { model: model.to_owned() }).observe(time.as_secs_f64());
    }

    pub(crate) fn computed(&self, model: &str, items: usize, time: Duration) {
        let label = ModelLabel { model: model.to_owned() };
        self.compute.get_or_create(&label).observe(time.as_secs_f64());
        self.items.get_or_create(&label).observe(items as f64);
    }

    /// Counts the phases of a run that succeeded.
    pub(crate) fn phases(&self, model: &str, times: &RunTimes) {
        for (phase, time) in times.phases() {
            let labels = PhaseLabels { model: model.to_owned(), phase };
            self.phases.get_or_create(&labels).observe(time.as_secs_f64());
        }
    }

    /// All metrics in Prometheus' text format, after those of `pool` in the same format, and before those of `scrape`.
    pub(crate) fn text(&self, pool: &str, waiting: usize, scrape: Scrape) -> String {
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let mut text = pool.strip_suffix(END).unwrap_or(pool).to_owned();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text.truncate(text.strip_suffix(END).unwrap_or(&text).len());
        let mut read = Registry::default();
        read.register_collector(Box::new(scrape));
        let _ = encode(&mut text, &read);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_one_end_and_every_series() {
        let metrics = Metrics::new();
        metrics.answered(Some("m"), 200, Duration::from_millis(40));
        metrics.answered(None, 404, Duration::ZERO);
        metrics.phases("m", &RunTimes { wait: Duration::from_millis(20), ..RunTimes::default() });
        metrics.queued("m", Duration::from_millis(3));
        metrics.computed("m", 4, Duration::from_millis(30));
        let text = metrics.text("fcdcc_x 1\n# EOF\n", 2, Scrape::of(&[]));
        for line in [
            "fcdcc_x 1\n",
            "fcdcc_serve_requests_total{model=\"m\",status=\"200\"} 1",
            "fcdcc_serve_requests_total{model=\"\",status=\"404\"} 1",
            "fcdcc_serve_queue_seconds_count{model=\"m\"} 1",
            "fcdcc_serve_run_items_sum{model=\"m\"} 4",
            "fcdcc_serve_request_seconds_count{model=\"m\"} 1",
            "fcdcc_serve_phase_seconds_sum{model=\"m\",phase=\"wait\"} 0.02",
            "fcdcc_serve_phase_seconds_count{model=\"m\",phase=\"host\"} 1",
            "fcdcc_serve_waiting 2",
            "fcdcc_serve_credentials_reloads_total{outcome=\"taken\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with(END));
    }
}
