//! What happened, in the shape of `report.json`.

use serde::Serialize;

use crate::scheduler::Outcome;

/// A whole command's report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this structure.
    pub schema: u32,
    /// The subcommand.
    pub command: String,
    /// Wall-clock time of the coded work, without preparation.
    pub total_ms: f64,
    /// One entry a layer.
    pub layers: Vec<LayerReport>,
}

/// One run of one layer. Times are wall-clock milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// The layer's name.
    pub name: String,
    /// What the layer is in its model: `Conv` or `Gemm`.
    pub op: String,
    /// Code family, or `local` for a layer of a model that was left on the host; then every number is 0, and its
    /// time is part of the host's.
    pub code: String,
    /// Why it was left on the host, if it was.
    pub why_local: Option<String>,
    /// Coded subtasks.
    pub n: usize,
    /// delta.
    pub recovery_threshold: usize,
    /// Input partitions.
    pub k_a: usize,
    /// Filter partitions.
    pub k_b: usize,
    /// `cpu`, `gpu`, `remote` or `mixed`.
    pub backend: String,
    /// One entry for each attempt at a subtask and each worker without one.
    pub workers: Vec<WorkerReport>,
    /// Subtasks the output was decoded from; none when it was computed locally.
    pub used: Vec<usize>,
    /// How the output came about when not from the workers: `local`.
    pub fallback: Option<String>,
    /// 2-norm condition number of the recovery matrix.
    pub condition_number: f64,
    /// Estimated relative L2 error.
    pub error_bound: f64,
    /// Padding, cutting and encoding the input.
    pub encode_ms: f64,
    /// From first dispatch to the result that made decoding possible.
    pub wait_ms: f64,
    /// Decoding and merging, or the local computation.
    pub decode_ms: f64,
    /// All of it.
    pub total_ms: f64,
    /// Coded slabs sent to workers.
    pub bytes_up: usize,
    /// Sub-results received before decoding.
    pub bytes_down: usize,
    /// Subtasks that were handed out again.
    pub redispatched: usize,
    /// Subtasks whose results cannot be right.
    pub flagged: Vec<usize>,
}

impl LayerReport {
    /// A layer that was left on the host because of `why`.
    #[must_use]
    pub fn local(name: &str, op: &str, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            op: op.to_owned(),
            code: "local".to_owned(),
            why_local: Some(why.to_owned()),
            n: 0,
            recovery_threshold: 0,
            k_a: 0,
            k_b: 0,
            backend: "host".to_owned(),
            workers: Vec::new(),
            used: Vec::new(),
            fallback: None,
            condition_number: 0.0,
            error_bound: 0.0,
            encode_ms: 0.0,
            wait_ms: 0.0,
            decode_ms: 0.0,
            total_ms: 0.0,
            bytes_up: 0,
            bytes_down: 0,
            redispatched: 0,
            flagged: Vec::new(),
        }
    }
}

/// One attempt of one worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerReport {
    /// The subtask; `null` for an idle worker.
    pub subtask: Option<usize>,
    /// The worker's name.
    pub worker: String,
    /// What became of it.
    pub outcome: Outcome,
    /// From dispatch to the last word of the attempt; `null` when there was none.
    pub latency_ms: Option<f64>,
}
