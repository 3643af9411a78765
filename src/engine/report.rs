//! What happened, in the shape of `report.json`.

use std::time::Duration;

use serde::Serialize;

use super::tracker::DecodingTracker;
use crate::coding::{Code, Decoder};
use crate::error::{ErrorKind, Result};
use crate::scheduler::{Fleet, Outcome, Pool, RunOutcome, State};

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
    /// Computed on this machine: for want of results, or because none decoded well enough.
    ExactLocally,
    /// Decoded, from subtasks that split the filters instead of mixing the input, since its elements are of uneven size.
    ExactFiltersSplit,
    /// Likewise, from copies of parts.
    ExactReplicated,
    /// Likewise, from workers that kept operands in full width and computed every output from its own window.
    ExactPlain,
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

    /// That of a layer whose code was to be `first`, and which was decoded from `then`.
    pub(super) fn by(first: &Code, then: &Code) -> Self {
        if then.part_of(0).is_some() && first.part_of(0).is_none() {
            Self::ExactReplicated
        } else if then.k_a() != first.k_a() {
            Self::ExactFiltersSplit
        } else {
            Self::ExactPlain
        }
    }

    /// The name it has in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ExactAfterRedispatch => "exact-after-redispatch",
            Self::ExactLocally => "exact-locally",
            Self::ExactFiltersSplit => "exact-filters-split",
            Self::ExactReplicated => "exact-replicated",
            Self::ExactPlain => "exact-plain",
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
    /// One entry for each attempt at a subtask and each worker without one. Attempts that were made for an audit alone are left
    /// out unless they were wrong.
    pub workers: Vec<WorkerReport>,
    /// Subtasks the output was decoded from, all of each or some of its sub-results; none when it was computed locally.
    pub used: Vec<usize>,
    /// How it ended.
    pub completion: Completion,
    /// How the output came about when not from the workers: `local`.
    pub fallback: Option<String>,
    /// 2-norm condition number of the recovery matrix.
    pub condition_number: f64,
    /// Bound of the relative L2 error of the output before its activation; large where outputs cancel.
    pub error_bound: f64,
    /// Bound of the error of every output, relative to the largest magnitude in its window times the sum of magnitudes of its
    /// filter; beside this only the rounding of the output itself.
    pub windowwise_bound: f64,
    /// How many times larger windows that were mixed with a window are than that, at most: what the windowwise bound is
    /// proportional to.
    pub amplification: f64,
    /// Outputs of larger windows that were computed on this machine instead.
    pub recomputed: usize,
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
    /// Whether spare results agreed with those that the output was decoded from, or it was computed on this machine.
    pub audited: bool,
    /// Smallest relative error of a subtask's results (L2) that the audit was certain to find; `None` without an audit. What a
    /// worker does wrong below it is in no bound.
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
            windowwise_bound: 0.0,
            amplification: 0.0,
            recomputed: 0,
            encode_ms: 0.0,
            wait_ms: 0.0,
            decode_ms: 0.0,
            total_ms: 0.0,
            bytes_up: 0,
            bytes_down: 0,
            redispatched: 0,
            hedged: 0,
            flagged: Vec::new(),
            audited: false,
            audit_floor: None,
        }
    }

    /// A run in which no worker was given anything, after `total`.
    pub(super) fn without_workers(name: &str, pool: &Pool, total: Duration) -> Self {
        let workers = (0..pool.len()).map(|worker| WorkerReport::idle(pool, worker)).collect();
        let ms = total.as_secs_f64() * 1e3;
        Self {
            why_local: None,
            backend: pool.backend().to_owned(),
            workers,
            fallback: Some("local".to_owned()),
            decode_ms: ms,
            total_ms: ms,
            audited: true,
            ..Self::local(name, "Conv", "")
        }
    }

    /// Who did what in a run; the rest is for the caller to fill in.
    pub(super) fn of(
        name: &str,
        pool: &Pool,
        gathered: &RunOutcome<DecodingTracker<'_>>,
        decoder: Option<&Decoder>,
        times: [Duration; 3],
    ) -> Self {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let mut workers: Vec<WorkerReport> = gathered
            .attempts
            .iter()
            // What was computed for an audit alone is of interest only where it was wrong.
            .filter(|a| !a.spare || a.outcome == Outcome::Corrupt)
            .map(|a| WorkerReport {
                subtask: Some(a.subtask),
                worker: pool.name(a.worker).to_owned(),
                outcome: a.outcome,
                latency_ms: a.latency.map(ms),
                sub_results: a.arrived,
                state: state_of(pool, a.worker),
                cause: a.cause.clone(),
            })
            .collect();
        let idle = (0..pool.len()).filter(|w| gathered.attempts.iter().all(|a| a.worker != *w));
        workers.extend(idle.map(|w| WorkerReport::idle(pool, w)));
        let mut used: Vec<usize> =
            decoder.map_or(&[][..], Decoder::inputs).iter().map(|of| of.subtask).collect();
        used.sort_unstable();
        used.dedup();
        let mut flagged: Vec<usize> =
            gathered.attempts.iter().filter(|a| a.outcome == Outcome::Corrupt).map(|a| a.subtask).collect();
        flagged.extend(gathered.recovery.flagged());
        flagged.sort_unstable();
        flagged.dedup();
        let local = matches!(gathered.end, crate::scheduler::Decision::Local);
        Self {
            op: "Conv".to_owned(),
            why_local: None,
            backend: pool.backend().to_owned(),
            workers,
            used,
            fallback: local.then(|| "local".to_owned()),
            encode_ms: ms(times[0]),
            wait_ms: ms(gathered.wait),
            decode_ms: ms(times[1]),
            total_ms: ms(times[2]),
            bytes_up: gathered.bytes_up,
            bytes_down: gathered.bytes_down,
            redispatched: gathered.redispatched,
            hedged: gathered.hedged,
            flagged,
            audited: local || gathered.recovery.audited(),
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
    /// Why the attempt failed, if it did.
    pub cause: Option<String>,
}

impl WorkerReport {
    fn idle(pool: &Pool, worker: usize) -> Self {
        Self {
            subtask: None,
            worker: pool.name(worker).to_owned(),
            outcome: Outcome::Idle,
            latency_ms: None,
            sub_results: 0,
            state: state_of(pool, worker),
            cause: None,
        }
    }
}

fn state_of(pool: &Pool, worker: usize) -> State {
    pool.health(worker).map_or(State::Lost, |health| health.state)
}
