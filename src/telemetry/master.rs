//! The metrics of a master, updated once for each run of a layer.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::http::Source;
#[cfg(feature = "cluster")]
use super::links::LinkGauges;
use crate::engine::{LayerReport, ReportObserver, SelfTest, WorkerReport};
use crate::error::Result;
use crate::ids::WorkerId;
use crate::scheduler::{Outcome, Pool};

/// The counters of a master, and its readiness: whether its pool computes a small coded convolution correctly.
pub struct Master {
    registry: Registry,
    counters: Arc<Counters>,
    pool: Pool,
    workers: Family<StateLabel, Gauge>,
    #[cfg(feature = "cluster")]
    clusters: Mutex<Vec<crate::cluster::Cluster>>,
    #[cfg(feature = "cluster")]
    links: LinkGauges,
    refused: Gauge,
    /// Prepared at the first readiness check.
    test: Mutex<Option<SelfTest>>,
}

struct Counters {
    layers: Family<CompletionLabel, Counter>,
    results: Family<ResultLabels, Counter>,
    bytes: Family<DirectionLabel, Counter>,
    handed_out_again: Family<ReasonLabel, Counter>,
    task_seconds: Family<PhaseLabel, Histogram>,
    seconds: Family<PhaseLabel, Histogram>,
    latency: Histogram,
    condition: Histogram,
    error_bound: Gauge<f64, std::sync::atomic::AtomicU64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CompletionLabel {
    completion: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    outcome: &'static str,
    worker: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

/// A histogram from 50 us to 100 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(5e-5, 2.0, 22))
}

impl Counters {
    fn registered(registry: &mut Registry) -> Self {
        let counters = Self {
            layers: Family::default(),
            results: Family::default(),
            bytes: Family::default(),
            handed_out_again: Family::default(),
            task_seconds: Family::new_with_constructor(seconds),
            seconds: Family::new_with_constructor(seconds),
            latency: seconds(),
            condition: Histogram::new(exponential_buckets(1.0, 4.0, 12)),
            error_bound: Gauge::default(),
        };
        registry.register("layers", "Runs of coded layers by how they ended", counters.layers.clone());
        registry.register("results", "Attempts at subtasks by outcome and worker", counters.results.clone());
        registry.register_with_unit(
            "payload",
            "Slabs sent and sub-results used",
            Unit::Bytes,
            counters.bytes.clone(),
        );
        registry.register(
            "handed_out_again",
            "Subtasks given to a second worker, because they were overdue or their worker failed",
            counters.handed_out_again.clone(),
        );
        registry.register_with_unit(
            "layer",
            "Time of a layer by phase",
            Unit::Seconds,
            counters.seconds.clone(),
        );
        registry.register_with_unit(
            "task",
            "Time of an attempt at a subtask by phase",
            Unit::Seconds,
            counters.task_seconds.clone(),
        );
        registry.register_with_unit(
            "result_latency",
            "From the dispatch of a subtask to its last result",
            Unit::Seconds,
            counters.latency.clone(),
        );
        registry.register("condition_number", "Of the sets decoded from", counters.condition.clone());
        registry.register(
            "error_bound",
            "Of the last layer decoded (relative L2)",
            counters.error_bound.clone(),
        );
        counters
    }

    fn observe(&self, report: &LayerReport) {
        if report.why_local.is_some() {
            return;
        }
        self.layers.get_or_create(&CompletionLabel { completion: report.completion.name() }).inc();
        for row in report.workers.iter().filter(|row| row.outcome != Outcome::Idle) {
            let labels = ResultLabels { outcome: outcome(row.outcome), worker: row.worker.clone() };
            self.results.get_or_create(&labels).inc();
            if let Some(ms) = row.latency_ms {
                self.latency.observe(ms / 1e3);
            }
            self.observe_phases(row);
        }
        for (direction, bytes) in [("up", report.bytes_up), ("down", report.bytes_down)] {
            self.bytes.get_or_create(&DirectionLabel { direction }).inc_by(bytes as u64);
        }
        for (reason, count) in [("hedged", report.hedged), ("redispatched", report.redispatched)] {
            self.handed_out_again.get_or_create(&ReasonLabel { reason }).inc_by(count as u64);
        }
        let phases = [
            ("encode", report.encode_ms),
            ("wait", report.wait_ms),
            ("decode", report.decode_ms),
            ("total", report.total_ms),
        ];
        for (phase, ms) in phases {
            self.seconds.get_or_create(&PhaseLabel { phase }).observe(ms / 1e3);
        }
        // Only decoded layers have a condition number.
        if report.condition_number >= 1.0 {
            self.condition.observe(report.condition_number);
            self.error_bound.set(report.error_bound);
        }
    }

    /// A task counts for the phases that it was in.
    fn observe_phases(&self, row: &WorkerReport) {
        let phases = [
            ("queue", row.queue_ms),
            ("send", row.send_ms),
            ("compute", row.compute_ms),
            ("receive", row.receive_ms),
        ];
        for (phase, ms) in phases {
            if let Some(ms) = ms.filter(|ms| *ms > 0.0) {
                self.task_seconds.get_or_create(&PhaseLabel { phase }).observe(ms / 1e3);
            }
        }
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Used => "used",
        Outcome::Late => "late",
        Outcome::Cancelled => "cancelled",
        Outcome::Failed => "failed",
        Outcome::Corrupt => "corrupt",
        Outcome::Idle => "idle",
    }
}

impl Master {
    /// Counts the runs of layers on `pool` whose options contain its [observer](Master::observer).
    #[must_use]
    pub fn new(pool: &Pool) -> Arc<Self> {
        let mut registry = Registry::with_prefix("fcdcc");
        let counters = Counters::registered(&mut registry);
        let workers = Family::<StateLabel, Gauge>::default();
        registry.register("workers", "Workers of the pool by state", workers.clone());
        let refused = Gauge::default();
        registry.register("refused", "Machines and masters that do not take one another", refused.clone());
        Arc::new(Self {
            #[cfg(feature = "cluster")]
            clusters: Mutex::default(),
            #[cfg(feature = "cluster")]
            links: LinkGauges::registered(&mut registry),
            refused,
            registry,
            counters: Arc::new(counters),
            pool: pool.clone(),
            workers,
            test: Mutex::default(),
        })
    }

    /// Counts the machines that `cluster` refuses, and those that refuse it.
    #[cfg(feature = "cluster")]
    pub fn watch(&self, cluster: &crate::cluster::Cluster) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).push(cluster.clone());
    }

    /// The observer for [`LayerOptions::observer`](crate::LayerOptions::observer).
    #[must_use]
    pub fn observer(&self) -> ReportObserver {
        let counters = Arc::clone(&self.counters);
        ReportObserver::new(move |report| counters.observe(report))
    }
}

impl Source for Master {
    fn metrics(&self) -> String {
        self.workers.clear();
        for health in (0..self.pool.len()).map(WorkerId).filter_map(|w| self.pool.health(w)) {
            let state = if health.silent {
                "suspected".to_owned()
            } else {
                format!("{:?}", health.state).to_lowercase()
            };
            self.workers.get_or_create(&StateLabel { state }).inc();
        }
        #[cfg(feature = "cluster")]
        {
            let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
            let refused = clusters.iter().map(|cluster| cluster.refused().len() + cluster.refused_by().len());
            self.refused.set(i64::try_from(refused.sum::<usize>()).unwrap_or(i64::MAX));
            self.links.update(&clusters);
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn ready(&self) -> Result<()> {
        let mut test = self.test.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = match test.take() {
            Some(prepared) => prepared,
            None => SelfTest::prepare(&self.pool)?,
        };
        let result = prepared.run();
        *test = Some(prepared);
        result
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;
    use crate::engine::{CodedConv, LayerOptions};
    use crate::worker::{CpuWorker, Fault, Worker, faulty};

    #[test]
    fn layers_are_counted_by_outcome_and_readiness_is_earned() {
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let master = Master::new(&pool);
        assert!(!master.metrics().contains("fcdcc_results_total{"));
        let (input, weight) =
            (ArrayD::<f32>::ones(vec![1, 4, 12, 12]), ArrayD::<f32>::ones(vec![8, 4, 3, 3]));
        let options = LayerOptions { observer: Some(master.observer()), ..LayerOptions::default() };
        let layer = CodedConv::builder(&pool, input.shape(), weight.view()).options(options).prepare();
        layer.unwrap().run(input.view()).unwrap();
        let text = master.metrics();
        for line in [
            "fcdcc_layers_total{completion=\"exact\"} 1",
            "fcdcc_layer_seconds_count{phase=\"wait\"} 1",
            "fcdcc_condition_number_count 1",
            "fcdcc_task_seconds_count{phase=\"compute\"} ",
            "fcdcc_payload_bytes_total{direction=\"up\"} ",
            "fcdcc_workers{state=\"healthy\"} ",
            "fcdcc_refused 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("outcome=\"used\",worker=\"cpu-"), "{text}");
        assert!(!text.contains("phase=\"send\"") && !text.contains("phase=\"receive\""), "{text}");
        master.ready().unwrap();
        master.ready().unwrap();
    }

    #[test]
    fn a_pool_that_computes_wrongly_or_not_at_all_is_not_ready() {
        for fault in [Fault::Crash, Fault::Corrupt(0.1)] {
            let faulty = |worker: Box<dyn Worker>| faulty(worker, fault, 1).boxed();
            let pool = Pool::new(CpuWorker::fleet(6).into_iter().map(faulty).collect()).unwrap();
            let error = Master::new(&pool).ready().unwrap_err();
            assert!(!error.to_string().is_empty(), "{fault}");
        }
    }
}
