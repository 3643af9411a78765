//! What a run cost: the time of its phases, the bytes it moved, and what each worker did.
//!
//! Relevant if you want to show a person, a log or a histogram where the time of a request went. Everything is computed from
//! the report of the run; `parameters.report` gives that report itself.
//!
//! Invariant: the phases of a run are disjoint parts of its time, so their sum never exceeds it by more than rounding.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fcdcc::Report;
use fcdcc::engine::WorkerReport;
use fcdcc::scheduler::Outcome;
use serde::Serialize;

/// The times of one request, from its place in the queue to its outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunTimes {
    /// From the arrival in the queue to the start of the run.
    pub(crate) queue: Duration,
    /// Joining the items of the requests that share the run.
    pub(crate) input: Duration,
    /// Padding, cutting and encoding, over all layers.
    pub(crate) encode: Duration,
    /// Waiting for results of workers.
    pub(crate) wait: Duration,
    /// Decoding, or computing a layer on this machine after a shortfall.
    pub(crate) decode: Duration,
    /// Everything else that the run computed on this machine: layers that are not coded, other operators.
    pub(crate) host: Duration,
    /// Dividing the outputs among the requests.
    pub(crate) output: Duration,
    /// When the run began.
    pub(crate) began: Option<Instant>,
}

impl RunTimes {
    /// The phases of `report`; queue, input and output are left at zero.
    pub(crate) fn of(report: &Report) -> Self {
        let sum = |part: fn(&fcdcc::LayerReport) -> f64| seconds(report.layers.iter().map(part).sum());
        let (encode, wait, decode) =
            (sum(|layer| layer.encode_ms), sum(|layer| layer.wait_ms), sum(|layer| layer.decode_ms));
        let host = seconds(report.total_ms).saturating_sub(encode + wait + decode);
        Self { encode, wait, decode, host, ..Self::default() }
    }

    /// The time of the whole run.
    #[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "the end of a span"))]
    pub(crate) fn run(&self) -> Duration {
        self.phases().iter().map(|(_, time)| *time).sum()
    }

    /// Names and times of the phases of a run, in their order. The queue is no part of a run.
    pub(crate) fn phases(&self) -> [(&'static str, Duration); 6] {
        [
            ("input", self.input),
            ("encode", self.encode),
            ("wait", self.wait),
            ("decode", self.decode),
            ("host", self.host),
            ("output", self.output),
        ]
    }
}

/// A duration of milliseconds; zero for what is none.
fn seconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}

/// What a run cost, as clients see it. Times are milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    queue_ms: f64,
    input_ms: f64,
    encode_ms: f64,
    wait_ms: f64,
    decode_ms: f64,
    host_ms: f64,
    output_ms: f64,
    /// Coded slabs sent to workers, and sub-results received, at full width.
    bytes_up: usize,
    bytes_down: usize,
    /// Layers computed by workers, and convolutions left on this machine.
    coded_layers: usize,
    local_layers: usize,
    /// Subtasks sent to workers, copies included, and how many would have been enough.
    subtasks: usize,
    needed: usize,
    /// Subtasks sent a second time: copies of overdue ones, and replacements of failed ones.
    hedged: usize,
    redispatched: usize,
    workers: Vec<WorkerCost>,
}

/// What one worker did in the layers of a run.
#[derive(Debug, Default, PartialEq, Serialize)]
struct WorkerCost {
    name: String,
    /// After the run: healthy, straggling, probation, quarantined or lost.
    state: String,
    /// Subtasks by outcome. `spare` ones were not needed any more when they would have come.
    used: usize,
    spare: usize,
    failed: usize,
    wrong: usize,
    /// The longest time from a dispatch to its last reply; `null` without a reply.
    latest_ms: Option<f64>,
    /// Why an attempt failed, if one did.
    cause: Option<String>,
}

impl Cost {
    /// The cost of the run of `report`.
    pub(crate) fn of(report: &Report, times: &RunTimes) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let coded = || report.layers.iter().filter(|layer| layer.why_local.is_none());
        let sum = |part: fn(&fcdcc::LayerReport) -> usize| coded().map(part).sum::<usize>();
        let mut workers: BTreeMap<&str, WorkerCost> = BTreeMap::new();
        for row in coded().flat_map(|layer| &layer.workers) {
            workers.entry(&row.worker).or_default().add(row);
        }
        let sent = |worker: &WorkerCost| worker.used + worker.spare + worker.failed + worker.wrong;
        let mut workers: Vec<WorkerCost> = workers.into_values().collect();
        workers.sort_by_key(|worker| natural(&worker.name));
        Self {
            queue_ms: ms(times.queue),
            input_ms: ms(times.input),
            encode_ms: ms(times.encode),
            wait_ms: ms(times.wait),
            decode_ms: ms(times.decode),
            host_ms: ms(times.host),
            output_ms: ms(times.output),
            bytes_up: sum(|layer| layer.bytes_up),
            bytes_down: sum(|layer| layer.bytes_down),
            coded_layers: coded().count(),
            local_layers: report.layers.len() - coded().count(),
            subtasks: workers.iter().map(sent).sum(),
            needed: sum(|layer| layer.recovery_threshold),
            hedged: sum(|layer| layer.hedged),
            redispatched: sum(|layer| layer.redispatched),
            workers,
        }
    }
}

impl WorkerCost {
    fn add(&mut self, row: &WorkerReport) {
        self.name.clone_from(&row.worker);
        self.state = format!("{:?}", row.state).to_lowercase();
        match row.outcome {
            Outcome::Used => self.used += 1,
            Outcome::Late | Outcome::Cancelled => self.spare += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Corrupt => self.wrong += 1,
            Outcome::Idle => {}
        }
        self.latest_ms = match (self.latest_ms, row.latency_ms) {
            (Some(before), Some(now)) => Some(before.max(now)),
            (before, now) => before.or(now),
        };
        if row.cause.is_some() {
            self.cause.clone_from(&row.cause);
        }
    }
}

/// Orders names with numbers as people do: `cpu-2` before `cpu-10`.
fn natural(name: &str) -> (String, u64, String) {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (text, number) = name.split_at(name.len() - digits);
    (text.to_owned(), number.parse().unwrap_or(u64::MAX), number.to_owned())
}

#[cfg(test)]
mod tests {
    use fcdcc::LayerReport;

    use super::*;

    fn layer(times: [f64; 3], rows: &[(&str, Outcome)]) -> LayerReport {
        let mut layer = LayerReport::local("c", "Conv", "");
        layer.why_local = None;
        layer.recovery_threshold = 2;
        [layer.encode_ms, layer.wait_ms, layer.decode_ms] = times;
        (layer.bytes_up, layer.bytes_down) = (100, 10);
        layer.workers = rows.iter().map(|(name, outcome)| WorkerReport::new(*name, *outcome)).collect();
        layer
    }

    #[test]
    fn phases_are_the_parts_of_a_run() {
        let layers = vec![layer([1.0, 2.0, 3.0], &[]), layer([0.5, 0.5, 0.5], &[])];
        let times = RunTimes::of(&Report::new("serve", 10.0, layers.clone()));
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        assert_eq!(times.phases().map(|(_, time)| ms(time)), [0.0, 1.5, 2.5, 3.5, 2.5, 0.0]);
        // Clocks that disagree must not make a negative time.
        assert_eq!(RunTimes::of(&Report::new("serve", 1.0, layers)).host, Duration::ZERO);
    }

    #[test]
    fn workers_are_counted_over_the_layers_in_their_order() {
        let rows = [("cpu-10", Outcome::Used), ("cpu-2", Outcome::Cancelled), ("cpu-1", Outcome::Failed)];
        let again = [("cpu-10", Outcome::Late), ("cpu-2", Outcome::Used), ("cpu-1", Outcome::Idle)];
        let mut layers = vec![layer([0.0; 3], &rows), layer([0.0; 3], &again)];
        (layers[0].workers[0].latency_ms, layers[1].workers[0].latency_ms) = (Some(7.0), Some(3.0));
        layers[0].workers[2].cause = Some("gone".to_owned());
        layers.push(LayerReport::local("d", "Conv", "small"));
        let cost = Cost::of(&Report::new("serve", 1.0, layers), &RunTimes::default());
        let names: Vec<&str> = cost.workers.iter().map(|worker| worker.name.as_str()).collect();
        assert_eq!(names, ["cpu-1", "cpu-2", "cpu-10"]);
        let counts = |worker: &WorkerCost| [worker.used, worker.spare, worker.failed, worker.wrong];
        assert_eq!(
            cost.workers.iter().map(counts).collect::<Vec<_>>(),
            [[0, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
        );
        assert_eq!((cost.workers[0].latest_ms, cost.workers[2].latest_ms), (None, Some(7.0)));
        assert_eq!(cost.workers[0].cause.as_deref(), Some("gone"));
        assert_eq!((cost.subtasks, cost.needed, cost.coded_layers, cost.local_layers), (5, 4, 2, 1));
        assert_eq!((cost.bytes_up, cost.bytes_down), (200, 20));
    }
}
