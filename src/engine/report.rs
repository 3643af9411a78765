//! What happened, in the shape of `report.json`.

use std::time::Duration;

use serde::Serialize;

use super::responses::Responses;
use crate::coding::Decoder;
use crate::error::{ErrorKind, Result};
use crate::scheduler::{Fleet, Gathered, Outcome, Pool, State};

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

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Completion {
    /// Decoded from what the workers gave, each at the first attempt.
    Exact,
    /// Likewise, after subtasks were hedged or handed out again.
    ExactAfterRedispatch,
    /// Computed on this machine for want of results.
    ExactLocally,
    /// There was a result, but not one to be trusted.
    Refused,
    /// There was none.
    Failed,
}

impl Completion {
    pub(super) fn of<T>(result: &Result<T>, local: bool, again: bool) -> Self {
        match result {
            Ok(_) if local => Self::ExactLocally,
            Ok(_) if again => Self::ExactAfterRedispatch,
            Ok(_) => Self::Exact,
            Err(error) if error.kind() == ErrorKind::Refused => Self::Refused,
            Err(_) => Self::Failed,
        }
    }

    /// The name it has in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ExactAfterRedispatch => "exact-after-redispatch",
            Self::ExactLocally => "exact-locally",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
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
    /// Subtasks the output was decoded from, all of each or some of its sub-results; none when it was computed locally.
    pub used: Vec<usize>,
    /// How it ended.
    pub completion: Completion,
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
    /// Subtasks of which an idle worker was given a copy.
    pub hedged: usize,
    /// Subtasks whose results cannot be right.
    pub flagged: Vec<usize>,
    /// Smallest relative error of a subtask's results that the audit was certain to find; `None` without an audit.
    pub audit_floor: Option<f64>,
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
            completion: Completion::Exact,
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
            hedged: 0,
            flagged: Vec::new(),
            audit_floor: None,
        }
    }

    /// Who did what in a run; the rest is for the caller to fill in.
    pub(super) fn of(
        name: &str,
        pool: &Pool,
        gathered: &Gathered<Responses<'_>>,
        decoder: Option<&Decoder>,
        quality: [f64; 2],
        times: [Duration; 3],
    ) -> Self {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let state = |worker| pool.health(worker).map_or(State::Lost, |health| health.state);
        let mut workers: Vec<WorkerReport> = gathered
            .attempts
            .iter()
            .map(|a| WorkerReport {
                subtask: Some(a.subtask),
                worker: pool.name(a.worker).to_owned(),
                outcome: a.outcome,
                latency_ms: a.latency.map(ms),
                sub_results: a.arrived,
                state: state(a.worker),
            })
            .collect();
        let idle = (0..pool.len()).filter(|w| gathered.attempts.iter().all(|a| a.worker != *w));
        workers.extend(idle.map(|w| WorkerReport {
            subtask: None,
            worker: pool.name(w).to_owned(),
            outcome: Outcome::Idle,
            latency_ms: None,
            sub_results: 0,
            state: state(w),
        }));
        let mut used: Vec<usize> =
            decoder.map_or(&[][..], Decoder::inputs).iter().map(|of| of.subtask).collect();
        used.sort_unstable();
        used.dedup();
        let mut flagged: Vec<usize> =
            gathered.attempts.iter().filter(|a| a.outcome == Outcome::Corrupt).map(|a| a.subtask).collect();
        flagged.extend(gathered.recovery.flagged());
        flagged.sort_unstable();
        flagged.dedup();
        Self {
            op: "Conv".to_owned(),
            why_local: None,
            backend: pool.backend().to_owned(),
            workers,
            used,
            fallback: matches!(gathered.end, crate::scheduler::End::Local).then(|| "local".to_owned()),
            condition_number: quality[0],
            error_bound: quality[1],
            encode_ms: ms(times[0]),
            wait_ms: ms(gathered.wait),
            decode_ms: ms(times[1]),
            total_ms: ms(times[2]),
            bytes_up: gathered.bytes_up,
            bytes_down: gathered.bytes_down,
            redispatched: gathered.redispatched,
            hedged: gathered.hedged,
            flagged,
            audit_floor: gathered.recovery.floor(),
            ..Self::local(name, "Conv", "")
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
    /// Sub-results it delivered in time.
    pub sub_results: usize,
    /// The worker's state after the run.
    pub state: State,
}
