//! A load on a server, as `bench.json` of `fcdcc bench --serve` holds it.
//!
//! Relevant if you want to read that file. Latencies count from the time at which a request was meant to start, so that a
//! server that stalls cannot hide the requests that would have come meanwhile (*coordinated omission*); `service` counts from
//! sending, which is what a client measures that waits for its answers.
//!
//! Invariant: every request is counted under exactly one outcome.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::{number, percent, time};
use super::schema::Environment;
use super::stats::{mean, quantile};

/// The version of [`LoadReport`].
pub const SCHEMA: u32 = 1;
/// A request that started later than this after its time had to wait for a connection: timers are more punctual.
const WAITED_MS: f64 = 5.0;

/// What one load found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where, when and how it was measured: of the client.
    pub setting: Environment,
    /// What was sent.
    pub load: Load,
    /// Requests by outcome.
    pub outcomes: Outcomes,
    /// Right answers a second, from the first arrival to the last answer.
    pub throughput: f64,
    /// Milliseconds from the intended start: what users see.
    pub latency: Percentiles,
    /// Milliseconds from sending; `latency` is above it where the server kept further requests from being sent.
    pub service: Percentiles,
    /// Requests that waited for a free connection.
    pub waited: usize,
    /// The largest relative L2 distance of an answer from the expected one; `null` if infinite.
    pub distance: Option<f64>,
    /// The latency of every request that counts in `latency`, in the order of arrival.
    pub latencies_ms: Vec<f64>,
    /// The main findings as sentences.
    pub findings: Vec<String>,
}

/// What was sent where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The address of the server.
    pub url: String,
    /// Name of the model.
    pub model: String,
    /// The version that answered first.
    pub version: String,
    /// Names and shapes of the inputs.
    pub inputs: String,
    /// `poisson` or `constant`.
    pub arrivals: String,
    /// Requests a second.
    pub rate: f64,
    /// Seconds during which requests arrived.
    pub seconds: f64,
    /// Most connections.
    pub connections: usize,
    /// The longest time for an answer.
    pub limit_ms: f64,
}

/// Requests by outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcomes {
    /// All requests.
    pub sent: usize,
    /// Answered with the expected outputs.
    pub right: usize,
    /// Answered with other outputs.
    pub wrong: usize,
    /// Without an answer within the limit.
    pub timed_out: usize,
    /// Without a connection, or with one that ended early.
    pub broken: usize,
    /// Answered with another status than 200.
    pub statuses: BTreeMap<u16, usize>,
}

/// Quantiles of times in milliseconds; `null` where there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// 99.9th percentile.
    pub p999: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
}

/// The times of a request in milliseconds, and whether they count: those of answers, and of requests that found none
/// within the limit. A refusal is fast and would make a server look better than it is.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From its intended start to its end.
    pub latency_ms: f64,
    /// From its sending to its end.
    pub service_ms: f64,
    /// Whether it counts.
    pub counts: bool,
}

impl LoadReport {
    /// The report of requests with these times, in the order of arrival; `seconds` passed until the last answer.
    #[must_use]
    pub fn new(
        setting: Environment,
        load: Load,
        outcomes: Outcomes,
        times: &[Times],
        seconds: f64,
        distance: f64,
    ) -> Self {
        let counting = || times.iter().filter(|times| times.counts);
        let latencies_ms: Vec<f64> = counting().map(|times| times.latency_ms).collect();
        let service: Vec<f64> = counting().map(|times| times.service_ms).collect();
        let waited = times.iter().filter(|times| times.latency_ms - times.service_ms > WAITED_MS).count();
        let mut report = Self {
            schema: SCHEMA,
            setting,
            load,
            throughput: outcomes.right as f64 / seconds,
            outcomes,
            latency: Percentiles::of(&latencies_ms),
            service: Percentiles::of(&service),
            waited,
            distance: Some(distance).filter(|distance| distance.is_finite()),
            latencies_ms,
            findings: Vec::new(),
        };
        report.findings = report.found();
        report
    }

    fn found(&self) -> Vec<String> {
        let of = &self.outcomes;
        let mut found = Vec::new();
        let share = |count: usize| percent(count as f64 / of.sent.max(1) as f64);
        found.push(format!(
            "{} of {} requests were answered rightly ({}), {} a second where {} arrived.",
            of.right,
            of.sent,
            share(of.right),
            number(self.throughput),
            number(self.load.rate)
        ));
        if let (Some(p50), Some(p99), Some(max)) = (self.latency.p50, self.latency.p99, self.latency.max) {
            found.push(format!(
                "Half of the answers came within {} of the time at which their request arrived, 99 of 100 within {}, \
                 the last within {}.",
                time(p50),
                time(p99),
                time(max)
            ));
        }
        if let (Some(seen), Some(sent)) = (self.latency.p99, self.service.p99)
            && seen > 1.5 * sent
            && seen - sent > WAITED_MS
        {
            found.push(format!(
                "A client that waits for each answer before it sends the next request would have measured a 99th percentile \
                 of {} where users see {}: {} requests ({}) waited for a connection.",
                time(sent),
                time(seen),
                self.waited,
                share(self.waited)
            ));
        }
        if of.wrong > 0 {
            found.push(format!("{} answers were wrong ({}).", of.wrong, share(of.wrong)));
        }
        for (status, count) in &of.statuses {
            found.push(format!("{count} requests were answered with status {status} ({}).", share(*count)));
        }
        for (count, what) in [(of.timed_out, "no answer in time"), (of.broken, "no connection, or lost it")] {
            if count > 0 {
                found.push(format!("{count} requests had {what} ({}).", share(count)));
            }
        }
        found
    }
}

impl Percentiles {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| Some(quantile(&sorted, q)).filter(|value| value.is_finite());
        Self {
            mean: Some(mean(&sorted)).filter(|value| value.is_finite()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }

    /// Names and values, in rising order.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("max", self.max),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;

    fn load() -> Load {
        Load {
            url: "http://h".to_owned(),
            model: "m".to_owned(),
            version: "1".to_owned(),
            inputs: "x [1]".to_owned(),
            arrivals: "constant".to_owned(),
            rate: 100.0,
            seconds: 1.0,
            connections: 1,
            limit_ms: 1e4,
        }
    }

    /// A server that answers in 1 ms but stalls once for a second, and a client on one connection: the requests of
    /// that second wait.
    #[test]
    fn a_stall_shows_in_latencies_and_hides_in_service_times() {
        let mut times: Vec<Times> = (0..100)
            .map(|i| Times { latency_ms: 1000.0 - 10.0 * f64::from(i), service_ms: 1.0, counts: true })
            .collect();
        times[0].service_ms = 1000.0;
        times.extend((0..100).map(|_| Times { latency_ms: 1.0, service_ms: 1.0, counts: true }));
        times.push(Times { latency_ms: 0.1, service_ms: 0.1, counts: false });
        let outcomes = Outcomes { sent: 201, right: 200, statuses: [(429, 1)].into(), ..Outcomes::default() };
        let setting = machine::setting("served", String::new(), String::new(), 1, 201);
        let report = LoadReport::new(setting, load(), outcomes, &times, 2.0, 0.0);
        assert_eq!((report.latencies_ms.len(), report.throughput), (200, 100.0));
        assert!(report.latency.p90.is_some_and(|p90| p90 > 700.0), "{:?}", report.latency);
        assert!(report.service.p99.is_some_and(|p99| p99 < 20.0), "{:?}", report.service);
        assert!(report.latency.p50.is_some_and(|p50| p50 < 20.0) && report.waited == 99);
        let found = report.findings.join("\n");
        assert!(found.contains("would have measured") && found.contains("status 429"), "{found}");
        // The same times without a stall.
        let even = vec![Times { latency_ms: 1.0, service_ms: 1.0, counts: true }; 10];
        let even = LoadReport::new(report.setting, load(), Outcomes::default(), &even, 1.0, f64::INFINITY);
        assert!(!even.findings.join("\n").contains("would have measured"));
        assert_eq!(even.distance, None);
    }

    #[test]
    fn a_load_without_answers_has_no_percentiles() {
        let setting = machine::setting("served", String::new(), String::new(), 1, 0);
        let none = LoadReport::new(
            setting,
            load(),
            Outcomes { broken: 2, sent: 2, ..Outcomes::default() },
            &[],
            1.0,
            0.0,
        );
        assert!(none.latency.rows().iter().all(|(_, value)| value.is_none()));
        let json = serde_json::to_string(&none).unwrap_or_default();
        assert_eq!(serde_json::from_str::<LoadReport>(&json).ok(), Some(none));
    }
}
