//! The structure of `bench.json`: the results of a comparison.
//!
//! Plain data. All times are in milliseconds, all sizes in bytes.

use serde::{Deserialize, Serialize};

/// Version of [`BenchReport`].
pub const SCHEMA: u32 = 1;

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where, when and how it was measured.
    pub setting: Environment,
    /// One entry for each layer or model.
    pub studies: Vec<Study>,
    /// Cost of encoding and decoding, by layer.
    pub codec: Vec<CodecCost>,
    /// Condition numbers of the codes in use.
    pub conditions: Vec<Conditions>,
    /// The main findings as sentences, above all where coding loses.
    pub findings: Vec<String>,
}

/// Where, when and how something was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this crate.
    pub version: String,
    /// The command line.
    pub command: String,
    /// UTC, as in `2026-11-22T10:00:00Z`.
    pub date: String,
    /// Processor and number of cores.
    pub hardware: String,
    /// Operating system and architecture.
    pub system: String,
    /// `real`, or `virtual` for simulated workers in virtual time.
    pub mode: String,
    /// The workers, in readable form: `6 x CPU thread`.
    pub workers: String,
    /// Arithmetic of the workers: `f32` or `f64`.
    pub precision: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Trials of each method in each scenario.
    pub trials: usize,
}

/// One layer or model under every scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// `vgg16/conv3_2`, or the model's file name.
    pub name: String,
    /// `layer` or `model`.
    pub kind: String,
    /// In readable form: `256x56x56, 256 3x3`.
    pub shape: String,
    /// Multiply-adds of the uncoded computation.
    pub macs: f64,
    /// Number of workers of every method.
    pub workers: usize,
    /// gamma: the number of stragglers that the coded methods are to survive.
    pub tolerate: usize,
    /// The division of the layer by each method.
    pub plans: Vec<MethodPlan>,
    /// The results, in the order of the scenarios.
    pub scenarios: Vec<ScenarioResult>,
    /// Straggler delays from which on the coded method (the last of [`Study::plans`]) wins.
    pub break_even: Vec<BreakEven>,
}

/// The division of a layer by one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodPlan {
    /// `uncoded`, `hedged`, `replication`, `mds`, `crme` or another code's name.
    pub method: String,
    /// A description in a few words.
    pub about: String,
    /// Code family.
    pub code: String,
    /// Subtasks.
    pub n: usize,
    /// delta.
    pub recovery_threshold: usize,
    /// Input partitions.
    pub k_a: usize,
    /// Filter partitions.
    pub k_b: usize,
    /// Subtasks that may be missing.
    pub tolerated: usize,
    /// Multiply-adds of all subtasks over those of the layer.
    pub work: f64,
    /// Bytes of coded slabs sent in a run.
    pub upload_bytes: f64,
    /// Bytes of all sub-results.
    pub download_bytes: f64,
    /// Bytes of coded filters that a worker holds for one subtask.
    pub filter_bytes: f64,
    /// The planner's prediction for a run without stragglers.
    pub predicted_ms: Option<f64>,
}

/// The results of all methods in one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// In readable form: `2 of 6 workers 100 ms late`.
    pub name: String,
    /// The faults as on the command line: `random:2:delay=100ms`.
    pub faults: Vec<String>,
    /// Number of stragglers in a trial; `None` if it is random or all workers.
    pub stragglers: Option<usize>,
    /// The delay of the stragglers; `None` if it is not fixed.
    pub delay_ms: Option<f64>,
    /// In the order of [`Study::plans`].
    pub methods: Vec<MethodResult>,
}

/// A statistic with its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The statistic of the sample.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The results of one method in one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodResult {
    /// The name in [`MethodPlan::method`].
    pub method: String,
    /// Latency of each trial, encoding and decoding included, in the order of the trials, which is the same for all
    /// methods. For a failed run, the time until it failed.
    pub latencies_ms: Vec<f64>,
    /// Runs without an output.
    pub failed: usize,
    /// Median latency.
    pub median: Estimate,
    /// 90th percentile.
    pub p90: Estimate,
    /// 99th percentile.
    pub p99: Estimate,
    /// 99.9th percentile; with fewer than a thousand trials, practically the greatest latency.
    pub p999: Estimate,
    /// Mean latency.
    pub mean: Estimate,
    /// Median over trials of the ratio of this method's latency to the first method's in the same trial.
    pub to_first: Estimate,
    /// Median time of padding, cutting and encoding.
    pub encode_ms: f64,
    /// Median time from the first dispatch to the result that made decoding possible.
    pub wait_ms: f64,
    /// Median time of decoding.
    pub decode_ms: f64,
    /// Mean bytes sent to workers.
    pub bytes_up: f64,
    /// Mean bytes received from workers.
    pub bytes_down: f64,
    /// Mean multiply-adds begun on workers, unused ones included, over those of the layer.
    pub work: f64,
    /// Mean share of that work whose results were not used.
    pub wasted: f64,
    /// Mean number of subtasks dispatched again.
    pub redispatched: f64,
    /// Mean number of subtasks copied to idle workers.
    pub hedged: f64,
    /// Greatest relative L2 error against the uncoded reference; `None` if no numbers were computed.
    pub max_error: Option<f64>,
    /// Median condition number.
    pub condition: f64,
}

/// The straggler delay from which on coding is faster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakEven {
    /// The method that coding is compared with.
    pub against: String,
    /// Number of stragglers in a trial.
    pub stragglers: usize,
    /// Measured points (delay in ms, median of the coded method, median of the other).
    pub points: Vec<[f64; 3]>,
    /// The delay at which the medians cross; 0 if coding always wins, `None` if it never does.
    pub delay_ms: Option<f64>,
}

/// Processor time of encoding and decoding, measured apart from the trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodecCost {
    /// The name in [`Study::name`].
    pub name: String,
    /// CPU time of encoding one input.
    pub encode_cpu_ms: f64,
    /// CPU time of decoding one output.
    pub decode_cpu_ms: f64,
    /// CPU time of a whole run in which every worker computes its subtask.
    pub total_cpu_ms: f64,
}

impl CodecCost {
    /// Share of encoding and decoding in the total.
    #[must_use]
    pub fn share(&self) -> f64 {
        (self.encode_cpu_ms + self.decode_cpu_ms) / self.total_cpu_ms
    }
}

/// Condition numbers over the responder sets of one code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Code family.
    pub code: String,
    /// Subtasks.
    pub n: usize,
    /// delta.
    pub recovery_threshold: usize,
    /// Input partitions.
    pub k_a: usize,
    /// Filter partitions.
    pub k_b: usize,
    /// Number of responder sets examined.
    pub sets: usize,
    /// Whether every responder set was examined.
    pub exhaustive: bool,
    /// Median.
    #[serde(with = "infinite")]
    pub median: f64,
    /// 90th percentile.
    #[serde(with = "infinite")]
    pub p90: f64,
    /// 99th percentile.
    #[serde(with = "infinite")]
    pub p99: f64,
    /// The worst condition number found; infinite for a set that cannot be decoded.
    #[serde(with = "infinite")]
    pub worst: f64,
}

/// Writes infinity as `null`, because JSON has no infinity.
pub(super) mod infinite {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in super::super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { to.serialize_some(value) } else { to.serialize_none() }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
    }
}
