//! Properties of filters: installing, replacing and removing them.
//!
//! Relevant if you want to know exactly what a check does. Invariant: each function checks one
//! [`Property`](super::Property) and drops the worker when it returns.

use super::cases::Case;
use super::properties::{KEY, dtypes};
use super::session::{Held, Verdict, execute, failure, refusal, success, wrong};
use crate::array::DType;
use crate::error::Error;
use crate::ids::SubtaskId;
use crate::worker::{CancelToken, FilterKey, Task, Worker};

/// Another subtask of the layer of [`KEY`], and another layer.
const NEIGHBOUR: FilterKey = FilterKey { layer: KEY.layer, subtask: SubtaskId(KEY.subtask.0 + 1) };
const OTHER_LAYER: FilterKey = FilterKey { layer: KEY.layer + 1, subtask: KEY.subtask };

/// Whether a task for `key` is refused, without a sub-result.
fn not_held(worker: &mut dyn Worker, key: FilterKey, what: &str) -> Verdict {
    let (slabs, token) = (Case::small(1).slabs(DType::F32), CancelToken::new());
    let answer = execute(worker, Task::new(key, &slabs, &token));
    refusal(what, &answer.end)?;
    if answer.results.is_empty() {
        return Ok(());
    }
    wrong(format!("no sub-result of {what}"), format!("{} sub-results", answer.results.len()))
}

pub(super) fn wrong_filters(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let case = Case::small(5);
    let end = worker.install(NEIGHBOUR, &case.shape, case.too_few_banks(DType::F32));
    let right = |error: &Error| matches!(error, Error::Mismatch { .. });
    failure("installing filters of one element less", "Error::Mismatch", &end, right)?;
    not_held(worker.as_mut(), NEIGHBOUR, "a task for filters that were refused")?;
    held.works(worker.as_mut(), "after filters that were refused")
}

pub(super) fn unknown_key(mut worker: Box<dyn Worker>) -> Verdict {
    not_held(worker.as_mut(), KEY, "a task of a worker without filters")?;
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    for key in [NEIGHBOUR, OTHER_LAYER] {
        not_held(worker.as_mut(), key, &format!("a task for {key:?}, which was never installed"))?;
    }
    held.works(worker.as_mut(), "after one without filters")
}

pub(super) fn removed_filters(mut worker: Box<dyn Worker>) -> Verdict {
    worker.remove(KEY);
    let removed = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let kept = Held::install(worker.as_mut(), Case::other(), NEIGHBOUR)?;
    worker.remove(OTHER_LAYER);
    removed.works(worker.as_mut(), "after unknown filters were removed")?;
    for _ in 0..2 {
        worker.remove(KEY);
        not_held(worker.as_mut(), KEY, "a task for removed filters")?;
    }
    kept.works(worker.as_mut(), "after other filters were removed")?;
    removed.install_again(worker.as_mut())?;
    removed.works(worker.as_mut(), "after removed filters were installed again")
}

pub(super) fn replaced_filters(mut worker: Box<dyn Worker>) -> Verdict {
    let first = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    for case in [Case::small(5), Case::other()] {
        // Elsewhere first, to know what the worker makes of them.
        let mut next = Held::install(worker.as_mut(), case, NEIGHBOUR)?;
        worker.remove(NEIGHBOUR);
        next.key = KEY;
        next.install_again(worker.as_mut())?;
        next.works(worker.as_mut(), "with filters that replaced others")?;
    }
    first.install_again(worker.as_mut())?;
    first.works(worker.as_mut(), "with filters that replaced others")
}

pub(super) fn shared_filters(mut worker: Box<dyn Worker>) -> Verdict {
    let worker = worker.as_mut();
    // What a task for a key says that was never installed is another property.
    let unused = |worker: &mut dyn Worker, case: &Case, what: &str| {
        let (slabs, token) = (case.slabs(DType::F32), CancelToken::new());
        let answer = execute(worker, Task::new(NEIGHBOUR, &slabs, &token));
        if answer.results.is_empty() {
            return Ok(());
        }
        wrong(format!("no sub-result of {what}"), format!("{} sub-results", answer.results.len()))
    };
    let refused = |worker: &mut dyn Worker, case: &Case, what: &str| {
        let shared = worker.share(NEIGHBOUR, KEY, &case.shape);
        success(&format!("sharing {what}"), &shared)?;
        if shared.unwrap_or_default() {
            return wrong("false", format!("true from sharing {what}"));
        }
        unused(worker, case, &format!("a task after sharing {what}"))
    };
    refused(worker, &Case::small(1), "filters that it does not hold")?;
    let held = Held::install(worker, Case::small(1), KEY)?;
    refused(worker, &Case::other(), "filters of another size")?;
    held.works(worker, "after filters of another size were not shared")?;
    // Installed first, to know what the worker makes of them.
    let mut larger = Held::install(worker, Case::larger(1), OTHER_LAYER)?;
    let shared = worker.share(NEIGHBOUR, KEY, &larger.case.shape);
    success("sharing filters for larger inputs", &shared)?;
    if !shared.unwrap_or_default() {
        return unused(worker, &larger.case, "a task for filters that were not shared");
    }
    larger.key = NEIGHBOUR;
    larger.works(worker, "with shared filters")?;
    held.works(worker, "after its filters were shared")?;
    worker.remove(OTHER_LAYER);
    worker.remove(KEY);
    larger.works(worker, "with shared filters, of which the first were removed")?;
    worker.remove(NEIGHBOUR);
    not_held(worker, NEIGHBOUR, "a task for removed filters that were shared")
}

pub(super) fn separate_filters(mut worker: Box<dyn Worker>) -> Verdict {
    let mut all = vec![
        Held::install(worker.as_mut(), Case::small(1), KEY)?,
        Held::install(worker.as_mut(), Case::small(5), NEIGHBOUR)?,
        Held::install(worker.as_mut(), Case::other(), OTHER_LAYER)?,
    ];
    for dtype in dtypes(worker.as_ref()) {
        let key = FilterKey { layer: 9, subtask: SubtaskId(all.len()) };
        all.push(Held::install_as(worker.as_mut(), Case::small(7), key, *dtype)?);
    }
    for _ in 0..2 {
        for held in &all {
            held.works(worker.as_mut(), &format!("for {:?} of {} filters", held.key, all.len()))?;
        }
    }
    Ok(())
}
