//! Reports of runs, in the layout of `report.json`.

use std::time::Duration;

use serde::Serialize;

use super::tracker::DecodingTracker;
use crate::coding::{Code, Decoder};
use crate::error::{ErrorKind, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{Fleet, Outcome, Pool, RunOutcome, State};

/// The report of a whole command.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this structure.
    pub schema: u32,
    /// The subcommand.
    pub command: String,
    /// Wall-clock time of the coded work, without preparation.
    pub total_ms: f64,
    /// One entry for each layer.
    pub layers: Vec<LayerReport>,
}

impl Report {
    /// The report of `command`, whose coded work took `total_ms`.
    #[must_use]
    pub fn new(command: impl Into<String>, total_ms: f64, layers: Vec<LayerReport>) -> Self {
        Self { schema: 1, command: command.into(), total_ms, layers }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Completion {
    /// Decoded from the workers' results, all from first attempts.
    Exact,
    /// Decoded after subtasks were hedged or redispatched.
    ExactAfterRedispatch,
    /// Computed on this machine, because too few results came or none decoded well enough.
    ExactLocally,
    /// Decoded from subtasks that split the filters instead of mixing the input, since the input was uneven.
    ExactFiltersSplit,
    /// Decoded from copies of parts, since the input was uneven.
    ExactReplicated,
    /// Decoded from workers that kept operands in full width and computed every output from its own window, since the input
    /// was uneven.
    ExactPlain,
    /// A result was computed, but refused as untrustworthy.
    Refused,
    /// No result was computed.
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

    /// The completion of a layer decoded under the code `then` instead of `first`.
    pub(super) fn by(first: &Code, then: &Code) -> Self {
        if then.part_of(SubtaskId(0)).is_some() && first.part_of(SubtaskId(0)).is_none() {
            Self::ExactReplicated
        } else if then.k_a() != first.k_a() {
            Self::ExactFiltersSplit
        } else {
            Self::ExactPlain
        }
    }

    /// The name used in reports.
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
///
/// # Examples
///
/// ```
/// # use fcdcc::{CodedConv, CpuWorker, Pool};
/// # use ndarray::ArrayD;
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let (input, weight) = (ArrayD::<f32>::ones(vec![1, 2, 8, 8]), ArrayD::<f32>::ones(vec![4, 2, 3, 3]));
/// use fcdcc::Completion;
///
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view()).prepare()?;
/// let report = layer.run(input.view())?.report;
/// assert!(matches!(report.completion, Completion::Exact | Completion::ExactAfterRedispatch));
/// println!("{} of {} needed, bound {:.1e}", report.recovery_threshold, report.n, report.error_bound);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// A run without output has a report too:
///
/// ```
/// # use fcdcc::{CodedConv, Completion, CpuWorker, OnShortfall, Pool};
/// # use ndarray::ArrayD;
/// use fcdcc::worker::inject;
///
/// # let (input, weight) = (ArrayD::<f32>::ones(vec![1, 2, 8, 8]), ArrayD::<f32>::ones(vec![4, 2, 3, 3]));
/// let workers = inject(CpuWorker::fleet(6), &["0,1,2:crash".parse()?], 0)?;
/// let pool = Pool::new(workers)?;
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view())
///     .partitions(2, 4)
///     .on_shortfall(OnShortfall::Fail)
///     .prepare()?;
/// let outcome = layer.try_run(input.view())?;
/// assert!(outcome.output.is_ok() || outcome.report.completion == Completion::Failed);
/// assert_eq!(outcome.report.n, 6);
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// The layer's name.
    pub name: String,
    /// The layer's operator in its model: `Conv`, `ConvTranspose` or `Gemm`.
    pub op: String,
    /// Code family, or `local` for a layer of a model that was left on the host; then every number is 0, and its
    /// time is part of the host's.
    pub code: String,
    /// Why it was left on the host, if it was.
    pub why_local: Option<String>,
    /// Coded subtasks [n](crate::glossary#symbols).
    pub n: usize,
    /// Recovery threshold [delta](crate::glossary#symbols).
    pub recovery_threshold: usize,
    /// Input partitions [k_A](crate::glossary#symbols).
    pub k_a: usize,
    /// Filter partitions [k_B](crate::glossary#symbols).
    pub k_b: usize,
    /// `cpu`, `gpu`, `remote` or `mixed`.
    pub backend: String,
    /// One entry for each attempt at a subtask and for each worker without an attempt. Attempts made only for an audit are
    /// left out unless they were wrong.
    pub workers: Vec<WorkerReport>,
    /// Subtasks from which the output was decoded, by all or some of their sub-results; empty if it was computed locally.
    pub used: Vec<SubtaskId>,
    /// How it ended.
    pub completion: Completion,
    /// `local` if the output was computed on this machine.
    pub fallback: Option<String>,
    /// 2-norm condition number of the recovery matrix.
    pub condition_number: f64,
    /// Bound of the relative L2 error of the output before its activation; large where outputs cancel.
    pub error_bound: f64,
    /// Bound of the error of every output, relative to the largest magnitude in its window times the sum of magnitudes of
    /// its filter. The rounding of the output itself comes on top.
    pub windowwise_bound: f64,
    /// The largest amplification of a decoded window: how many times larger the windows mixed with it are. The windowwise
    /// bound is proportional to it.
    pub amplification: f64,
    /// Outputs computed on this machine because the amplification of their windows was too large.
    pub recomputed: usize,
    /// Time to pad, partition and encode the input.
    pub encode_ms: f64,
    /// Time from the first dispatch to the decision.
    pub wait_ms: f64,
    /// Time to decode and merge, or to compute locally.
    pub decode_ms: f64,
    /// Total time of the run.
    pub total_ms: f64,
    /// Format in which slabs and sub-results may have travelled to and from other machines: `f16`, `bf16`, or the layer's
    /// element type; `null` for a layer left on the host.
    pub wire: Option<String>,
    /// Bytes of coded slabs handed to workers, at full width. Messages in 16 bits, and slabs that tasks share, put fewer on the
    /// wire.
    pub bytes_up: usize,
    /// Bytes of sub-results received before decoding, at full width.
    pub bytes_down: usize,
    /// Subtasks that were redispatched.
    pub redispatched: usize,
    /// Subtasks of which an idle worker got a copy.
    pub hedged: usize,
    /// Subtasks whose results were wrong.
    pub flagged: Vec<SubtaskId>,
    /// Whether spare results agreed with those used for decoding, or the layer was computed on this machine.
    pub audited: bool,
    /// Smallest relative L2 error of a subtask's results that the audit was certain to find; `None` without an audit.
    /// Smaller errors of a faulty worker are not covered by the error bounds.
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
            wire: None,
            bytes_up: 0,
            bytes_down: 0,
            redispatched: 0,
            hedged: 0,
            flagged: Vec::new(),
            audited: false,
            audit_floor: None,
        }
    }

    /// A run of duration `total` in which no worker got a task.
    pub(super) fn without_workers(name: &str, pool: &Pool, total: Duration) -> Self {
        let workers = pool.ids().map(|worker| WorkerReport::idle(pool, worker)).collect();
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

    /// The report of a run on workers. The caller fills in code, completion and quality.
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
            // Results computed only for an audit are reported only where they were wrong.
            .filter(|a| !a.spare || a.outcome == Outcome::Corrupt)
            .map(|a| WorkerReport {
                subtask: Some(a.subtask),
                worker: pool.name(a.worker).to_owned(),
                outcome: a.outcome,
                latency_ms: a.latency.map(ms),
                queue_ms: Some(ms(a.phases.queue)),
                send_ms: Some(ms(a.phases.send)),
                compute_ms: Some(ms(a.phases.compute)),
                receive_ms: Some(ms(a.phases.receive)),
                sub_results: a.arrived,
                state: state_of(pool, a.worker),
                cause: a.cause.clone(),
            })
            .collect();
        let idle = pool.ids().filter(|w| gathered.attempts.iter().all(|a| a.worker != *w));
        workers.extend(idle.map(|w| WorkerReport::idle(pool, w)));
        let mut used: Vec<SubtaskId> =
            decoder.map_or(&[][..], Decoder::inputs).iter().map(|of| of.subtask).collect();
        used.sort_unstable();
        used.dedup();
        let mut flagged: Vec<SubtaskId> =
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
            bytes_up: gathered.traffic.bytes_up,
            bytes_down: gathered.traffic.bytes_down,
            redispatched: gathered.traffic.redispatched,
            hedged: gathered.traffic.hedged,
            flagged,
            audited: local || gathered.recovery.audited(),
            audit_floor: gathered.recovery.floor(),
            ..Self::local(name, "Conv", "")
        }
    }
}

/// One attempt of one worker.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkerReport {
    /// The subtask; `null` for an idle worker.
    pub subtask: Option<SubtaskId>,
    /// The worker's name.
    pub worker: String,
    /// Outcome of the attempt.
    pub outcome: Outcome,
    /// Time from the dispatch to the last reply of the attempt; `null` without a reply.
    pub latency_ms: Option<f64>,
    /// Time for which the subtask waited: for the worker, for a core, or for a device of another machine. The four phases do
    /// not overlap and add up to the latency, or without a reply to the time until the decision; `null` for an idle worker.
    pub queue_ms: Option<f64>,
    /// Time until another machine had acknowledged the slabs, from when the worker took the subtask; 0 for workers of this
    /// machine.
    pub send_ms: Option<f64>,
    /// Time for which it was computed. Another machine measures this itself.
    pub compute_ms: Option<f64>,
    /// Time for which results came from another machine while it computed nothing more of the subtask; 0 for workers of this
    /// machine. What arrives while further sub-results are computed takes no time of its own.
    pub receive_ms: Option<f64>,
    /// [Sub-results](crate::glossary#dividing-and-coding-a-layer) delivered in time.
    pub sub_results: usize,
    /// The worker's state after the run.
    pub state: State,
    /// Why the attempt failed, if it did.
    pub cause: Option<String>,
}

impl WorkerReport {
    /// A row of the worker called `worker`, healthy and without a subtask.
    #[must_use]
    pub fn new(worker: impl Into<String>, outcome: Outcome) -> Self {
        Self {
            subtask: None,
            worker: worker.into(),
            outcome,
            latency_ms: None,
            queue_ms: None,
            send_ms: None,
            compute_ms: None,
            receive_ms: None,
            sub_results: 0,
            state: State::Healthy,
            cause: None,
        }
    }

    fn idle(pool: &Pool, worker: WorkerId) -> Self {
        Self { state: state_of(pool, worker), ..Self::new(pool.name(worker), Outcome::Idle) }
    }
}

fn state_of(pool: &Pool, worker: WorkerId) -> State {
    pool.health(worker).map_or(State::Lost, |health| health.state)
}
