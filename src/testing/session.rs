//! Tasks on a worker under check, and what is compared afterwards.
//!
//! Relevant if you want to add a property. Invariant: nothing here panics because of what a worker does.

use super::cases::Case;
use crate::array::{DType, Values};
use crate::error::{Error, Result};
use crate::worker::{CancelToken, FilterKey, Order, Task, Worker, distance, tolerance};

/// What the contract demands and what the worker did instead.
#[derive(Debug)]
pub(super) struct Mismatch {
    pub(super) expected: String,
    pub(super) came: String,
}

/// The outcome of a check.
pub(super) type Verdict = std::result::Result<(), Mismatch>;

pub(super) fn wrong<R>(
    expected: impl Into<String>,
    came: impl Into<String>,
) -> std::result::Result<R, Mismatch> {
    Err(Mismatch { expected: expected.into(), came: came.into() })
}

/// The end of a call, for messages.
fn told<R>(end: &Result<R>) -> String {
    end.as_ref().map_or_else(|error| format!("the error {error:?}"), |_| "success".to_owned())
}

/// A call of which success is demanded.
pub(super) fn success<R>(what: &str, end: &Result<R>) -> Verdict {
    if end.is_ok() { Ok(()) } else { wrong(format!("success of {what}"), told(end)) }
}

/// A call of which a certain error is demanded.
pub(super) fn failure(
    what: &str,
    error: &str,
    end: &Result<()>,
    right: impl FnOnce(&Error) -> bool,
) -> Verdict {
    match end {
        Err(error) if right(error) => Ok(()),
        _ => wrong(format!("{error} from {what}"), told(end)),
    }
}

/// The error of a task without filters: any that lets the worker live on.
pub(super) fn refusal(what: &str, end: &Result<()>) -> Verdict {
    let lives = |error: &Error| !matches!(error, Error::WorkerLost { .. } | Error::Cancelled);
    failure(what, "an error of a worker that is not lost", end, lives)
}

/// Sub-results in the order in which they came, and how the call ended.
pub(super) struct Answer {
    pub(super) results: Vec<(usize, Values)>,
    pub(super) end: Result<()>,
}

pub(super) fn execute(worker: &mut dyn Worker, task: Task<'_>) -> Answer {
    let mut results = Vec::new();
    let end = worker.execute(task, &mut |index, values| results.push((index, values)));
    Answer { results, end }
}

/// Whether a sub-result is `expected`, as exactly as this worker computes.
pub(super) fn close(got: &Values, expected: &[f64], tolerance: f64) -> Verdict {
    if got.len() != expected.len() {
        return wrong(format!("{} elements", expected.len()), format!("{} elements", got.len()));
    }
    let off = distance(got, expected);
    // In this form a NaN counts as wrong.
    if off <= tolerance {
        return Ok(());
    }
    wrong(format!("a relative L2 error of at most {tolerance:.1e}"), format!("{off:.1e}"))
}

/// A case whose filters the worker holds, with the results that it gave at first.
pub(super) struct Held {
    pub(super) case: Case,
    pub(super) key: FilterKey,
    dtype: DType,
    slabs: Values,
    first: Vec<(usize, Vec<f64>)>,
    tolerance: f64,
}

impl Held {
    /// Installs `case` in f32 and computes it once.
    pub(super) fn install(
        worker: &mut dyn Worker,
        case: Case,
        key: FilterKey,
    ) -> std::result::Result<Self, Mismatch> {
        Self::install_as(worker, case, key, DType::F32)
    }

    pub(super) fn install_as(
        worker: &mut dyn Worker,
        case: Case,
        key: FilterKey,
        dtype: DType,
    ) -> std::result::Result<Self, Mismatch> {
        let (name, slabs) = (case.name(dtype), case.slabs(dtype));
        // Twice the tolerance of one result, because both sides are inexact.
        let info = worker.info();
        let tolerance = 2.0 * tolerance(case.shape.conv.reduction(), dtype, info.half, info.wire);
        success(&format!("installing {name}"), &worker.install(key, &case.shape, case.banks(dtype)))?;
        let answer = execute(worker, Task::new(key, &slabs, &CancelToken::new()));
        success(&format!("computing {name}"), &answer.end)?;
        let mut first: Vec<_> =
            answer.results.into_iter().map(|(index, got)| (index, widened(&got))).collect();
        first.sort_by_key(|(index, _)| *index);
        Ok(Self { case, key, dtype, slabs, first, tolerance })
    }

    pub(super) fn task<'a>(&'a self, cancel: &'a CancelToken) -> Task<'a> {
        Task::new(self.key, &self.slabs, cancel)
    }

    /// Computes these sub-results.
    pub(super) fn each(&self, worker: &mut dyn Worker, order: &[usize]) -> Answer {
        execute(worker, self.task(&CancelToken::new()).with_order(Order::Each(order)))
    }

    /// Installs the filters again, e.g. on another worker.
    pub(super) fn install_again(&self, worker: &mut dyn Worker) -> Verdict {
        let end = worker.install(self.key, &self.case.shape, self.case.banks(self.dtype));
        success("installing the filters again", &end)
    }

    /// Whether the worker gives what it gave at first; `when` is said in messages.
    pub(super) fn works(&self, worker: &mut dyn Worker, when: &str) -> Verdict {
        let answer = execute(worker, self.task(&CancelToken::new()));
        success(&format!("a task {when}"), &answer.end)?;
        let mut results = answer.results;
        results.sort_by_key(|(index, _)| *index);
        let indices = |came: Vec<usize>| format!("sub-results {came:?} {when}");
        let expected: Vec<usize> = self.first.iter().map(|(index, _)| *index).collect();
        let came: Vec<usize> = results.iter().map(|(index, _)| *index).collect();
        if expected != came {
            return wrong(indices(expected), indices(came));
        }
        results.iter().try_for_each(|(index, got)| self.same(*index, got, when))
    }

    /// Whether a sub-result is what the worker gave at first, if it gave it then.
    pub(super) fn same(&self, index: usize, got: &Values, when: &str) -> Verdict {
        let Some((_, first)) = self.first.iter().find(|(of, _)| *of == index) else { return Ok(()) };
        close(got, first, self.tolerance).map_err(|off| Mismatch {
            expected: format!("sub-result {index} {when} as before, with {}", off.expected),
            came: off.came,
        })
    }
}

fn widened(values: &Values) -> Vec<f64> {
    match values {
        Values::F32(values) => values.iter().copied().map(f64::from).collect(),
        Values::F64(values) => values.clone(),
    }
}
