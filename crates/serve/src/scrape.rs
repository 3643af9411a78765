//! Metrics that are read when they are asked for: those of loaded models under the names of Triton, and of credentials.
//!
//! Relevant if you have dashboards for another server of the protocol. A name is used only where the number means the same.
//! Their type is `unknown`, since counters of this format end in `_total`, which those names do not.
//!
//! Invariant: labels hold names and versions of loaded models only.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::served::Served;
use crate::stats::Totals;

/// What is read.
#[derive(Debug)]
pub(crate) struct Scrape {
    /// Names, versions and counts of loaded models.
    pub(crate) models: Vec<(String, String, Totals)>,
    /// The end of the certificate in seconds since 1970, where there is one.
    pub(crate) certificate_ends: Option<i64>,
    /// How often changed files of credentials were taken and refused.
    pub(crate) credentials: (u64, u64),
    /// Lines of the access log that were lost.
    pub(crate) lost_lines: Option<u64>,
}

impl Scrape {
    pub(crate) fn of(models: &[Arc<Served>]) -> Self {
        let row = |model: &Arc<Served>| (model.name.clone(), model.version.to_string(), model.stats.totals());
        Self {
            models: models.iter().map(row).collect(),
            certificate_ends: None,
            credentials: (0, 0),
            lost_lines: None,
        }
    }
}

type Count = fn(&Totals) -> u64;

/// Names of Triton, what they mean, and their values.
const KNOWN: [(&str, &str, Count); 9] = [
    ("nv_inference_request_success", "Requests that succeeded", |t| t.success.count),
    ("nv_inference_request_failure", "Requests that failed", |t| t.fail.count),
    ("nv_inference_count", "Items of requests that succeeded", |t| t.inferences),
    ("nv_inference_exec_count", "Runs", |t| t.executions),
    ("nv_inference_request_duration_us", "From the arrival of requests to their answers", |t| {
        t.success.ns / 1000
    }),
    ("nv_inference_queue_duration_us", "Time of requests in the queue", |t| t.requests.queue.ns / 1000),
    ("nv_inference_compute_input_duration_us", "Joining requests", |t| t.requests.input.ns / 1000),
    ("nv_inference_compute_infer_duration_us", "Computing", |t| t.requests.infer.ns / 1000),
    ("nv_inference_compute_output_duration_us", "Dividing outputs", |t| t.requests.output.ns / 1000),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in KNOWN {
            if self.models.is_empty() {
                break;
            }
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for (model, version, totals) in &self.models {
                let labels = [("model", model.as_str()), ("version", version.as_str())];
                let number = i64::try_from(value(totals)).unwrap_or(i64::MAX);
                metric.encode_family(&labels.as_slice())?.encode_gauge(&number)?;
            }
        }
        if let Some(ends) = self.certificate_ends {
            let help = "End of the server's certificate, in seconds since 1970";
            let gauge = ConstGauge::new(ends);
            let metric = encoder.encode_descriptor(
                "fcdcc_serve_certificate_end_seconds",
                help,
                None,
                gauge.metric_type(),
            )?;
            gauge.encode(metric)?;
        }
        let help = "Changed files of certificates and tokens, by what became of them";
        let name = "fcdcc_serve_credentials_reloads";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (outcome, count) in [("taken", self.credentials.0), ("refused", self.credentials.1)] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(count).encode(metric.encode_family(&labels.as_slice())?)?;
        }
        if let Some(lost) = self.lost_lines {
            let counter = ConstCounter::new(lost);
            let help = "Lines of the access log that were lost";
            let name = "fcdcc_serve_access_log_lost_lines";
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::stats::Total;

    #[test]
    fn models_have_the_known_names() {
        let totals = Totals {
            inferences: 7,
            executions: 3,
            success: Total { count: 5, ns: 9_000_000 },
            ..Totals::default()
        };
        let scrape = Scrape {
            models: vec![("m".to_owned(), "2".to_owned(), totals)],
            certificate_ends: Some(100),
            credentials: (1, 2),
            lost_lines: Some(4),
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(scrape));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "nv_inference_request_success{model=\"m\",version=\"2\"} 5\n",
            "nv_inference_count{model=\"m\",version=\"2\"} 7\n",
            "nv_inference_exec_count{model=\"m\",version=\"2\"} 3\n",
            "nv_inference_request_duration_us{model=\"m\",version=\"2\"} 9000\n",
            "fcdcc_serve_certificate_end_seconds 100\n",
            "fcdcc_serve_credentials_reloads_total{outcome=\"refused\"} 2\n",
            "fcdcc_serve_access_log_lost_lines_total 4\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
