//! Properties of tasks: results, order, refusals, cancellation, buffers, respawning.
//!
//! Relevant if you want to know exactly what a check does. Invariant: each function checks one
//! [`Property`](super::Property) and drops the worker when it returns.

use super::cases::Case;
use super::session::{Held, Mismatch, Verdict, close, execute, failure, refusal, success, wrong};
use crate::array::{Buffers, DType, Values};
use crate::error::Error;
use crate::ids::SubtaskId;
use crate::worker::{CancelToken, FilterKey, Order, Task, Worker, WorkerKind, tolerance};

pub(super) const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(3) };

/// The element types in which a worker computes.
pub(super) fn dtypes(worker: &dyn Worker) -> &'static [DType] {
    if worker.info().f64 { &[DType::F32, DType::F64] } else { &[DType::F32] }
}

pub(super) fn constant_info(mut worker: Box<dyn Worker>) -> Verdict {
    let before = worker.info();
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let during = worker.info();
    held.works(worker.as_mut(), "after the first")?;
    worker.remove(KEY);
    for after in [during, worker.info()] {
        if after != before {
            return wrong(format!("{before:?}"), format!("{after:?}"));
        }
    }
    Ok(())
}

/// Computes all cases in all types that the worker takes, and passes each answer to `judge`.
fn every_case(
    worker: &mut dyn Worker,
    judge: impl Fn(&Case, DType, &[(usize, Values)]) -> Verdict,
) -> Verdict {
    for dtype in dtypes(worker) {
        for (number, case) in Case::shapes().iter().enumerate() {
            let (name, slabs) = (case.name(*dtype), case.slabs(*dtype));
            let installed = worker.install(KEY, &case.shape, case.banks(*dtype));
            let lost = matches!(installed, Err(Error::WorkerLost { .. }));
            if installed.is_err() && number > 0 && !lost {
                continue;
            }
            success(&format!("installing {name}"), &installed)?;
            let answer = execute(worker, Task::new(KEY, &slabs, &CancelToken::new()));
            success(&format!("computing {name}"), &answer.end)?;
            worker.remove(KEY);
            judge(case, *dtype, &answer.results)
                .map_err(|off| Mismatch { expected: format!("{} ({name})", off.expected), came: off.came })?;
        }
    }
    Ok(())
}

pub(super) fn complete_results(mut worker: Box<dyn Worker>) -> Verdict {
    every_case(worker.as_mut(), |case, dtype, results| {
        let mut indices: Vec<usize> = results.iter().map(|(index, _)| *index).collect();
        indices.sort_unstable();
        if indices != (0..case.shape.sub_results()).collect::<Vec<_>>() {
            return wrong(
                format!("each sub-result below {} once", case.shape.sub_results()),
                format!("{indices:?}"),
            );
        }
        let size = (case.shape.conv.output_elems(), dtype);
        match results.iter().find(|(_, got)| (got.len(), got.dtype()) != size) {
            None => Ok(()),
            Some((index, got)) => wrong(
                format!("{} {} elements", size.0, size.1),
                format!("{} {} elements in sub-result {index}", got.len(), got.dtype()),
            ),
        }
    })
}

pub(super) fn right_numbers(mut worker: Box<dyn Worker>) -> Verdict {
    let info = worker.info();
    every_case(worker.as_mut(), |case, dtype, results| {
        let size = (case.shape.conv.output_elems(), dtype);
        let tolerance = tolerance(case.shape.conv.reduction(), dtype, info.half, info.wire);
        // Sub-results of another size, and those that do not exist, are another property.
        let real = results
            .iter()
            .filter(|(index, got)| *index < case.shape.sub_results() && (got.len(), got.dtype()) == size);
        for (index, got) in real {
            close(got, &case.truth(*index), tolerance).map_err(|off| Mismatch {
                expected: format!("{} in sub-result {index}", off.expected),
                came: off.came,
            })?;
        }
        Ok(())
    })
}

pub(super) fn requested_order(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    // Neighbours of equal parity and repetitions are where a worker may confuse its buffers.
    for order in [&[3, 1, 0, 2][..], &[2, 0], &[1, 3, 1], &[2, 2], &[3], &[]] {
        let answer = held.each(worker.as_mut(), order);
        success(&format!("the order {order:?}"), &answer.end)?;
        let came: Vec<usize> = answer.results.iter().map(|(index, _)| *index).collect();
        if came != order {
            return wrong(format!("sub-results {order:?}"), format!("{came:?}"));
        }
        for (index, got) in &answer.results {
            held.same(*index, got, &format!("in the order {order:?}"))?;
        }
    }
    held.works(worker.as_mut(), "after tasks with an order")
}

pub(super) fn index_out_of_range(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    for beyond in [held.case.shape.sub_results(), usize::MAX] {
        let answer = held.each(worker.as_mut(), &[0, beyond]);
        let right = |error: &Error| matches!(error, Error::InvalidParameter { .. });
        failure(&format!("the order [0, {beyond}]"), "Error::InvalidParameter", &answer.end, right)?;
    }
    held.works(worker.as_mut(), "after an index out of range")
}

pub(super) fn wrong_slabs(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let wrong_ones = [
        ("slabs of one element less", held.case.too_few_slabs(DType::F32)),
        ("no slabs", Values::F32(Vec::new())),
        ("f64 slabs for f32 filters", held.case.slabs(DType::F64)),
    ];
    for (what, slabs) in &wrong_ones {
        let token = CancelToken::new();
        let answer = execute(worker.as_mut(), Task::new(KEY, slabs, &token));
        let right = |error: &Error| matches!(error, Error::Mismatch { .. });
        failure(what, "Error::Mismatch", &answer.end, right)?;
        held.works(worker.as_mut(), &format!("after {what}"))?;
    }
    Ok(())
}

pub(super) fn cancelled_before(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let token = CancelToken::new();
    token.cancel();
    for order in [Order::All, Order::Each(&[1, 0])] {
        let answer = execute(worker.as_mut(), held.task(&token).with_order(order));
        let what = format!("a cancelled task ({order:?})");
        failure(&what, "Error::Cancelled", &answer.end, |error| matches!(error, Error::Cancelled))?;
        if !answer.results.is_empty() {
            return wrong(
                format!("no sub-result of {what}"),
                format!("{} sub-results", answer.results.len()),
            );
        }
        held.works(worker.as_mut(), "after a cancelled one")?;
    }
    Ok(())
}

pub(super) fn cancelled_during(mut worker: Box<dyn Worker>) -> Verdict {
    // All results may have left another machine before it hears of the cancellation: then the task is tried again.
    const ATTEMPTS: usize = 5;
    let case = Case::long();
    let order: Vec<usize> = (0..case.shape.sub_results()).collect();
    let limit = if worker.info().kind == WorkerKind::Remote { order.len() - 1 } else { 2 };
    let (key, slabs) = (FilterKey { layer: 2, ..KEY }, case.slabs(DType::F32));
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    success("installing", &worker.install(key, &case.shape, case.banks(DType::F32)))?;
    let mut verdict = Ok(());
    for _ in 0..ATTEMPTS {
        let (token, mut emitted) = (CancelToken::new(), 0);
        let task = Task::new(key, &slabs, &token).with_order(Order::Each(&order));
        let end = worker.execute(task, &mut |_, _| {
            emitted += 1;
            token.cancel();
        });
        let what = "a task that is cancelled during its first sub-result";
        verdict = failure(what, "Error::Cancelled", &end, |error| matches!(error, Error::Cancelled));
        if verdict.is_ok() && emitted > limit {
            verdict = wrong(format!("at most {limit} sub-results of {what}"), emitted.to_string());
        }
        held.works(worker.as_mut(), "after a cancelled one")?;
        if verdict.is_ok() {
            break;
        }
    }
    verdict
}

pub(super) fn used_buffers(mut worker: Box<dyn Worker>) -> Verdict {
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let elems = held.case.shape.conv.output_elems();
    let buffers = Buffers::new(64, usize::MAX);
    let fill = || {
        for len in [1, elems - 1, elems, elems, elems + 1, 10 * elems] {
            drop(buffers.adopt(Values::F32(vec![f32::NAN; len])));
            drop(buffers.adopt(Values::F64(vec![f64::NAN; len])));
        }
    };
    for order in [Order::All, Order::Each(&[3, 1])] {
        fill();
        let token = CancelToken::new();
        let task = Task { buffers: &buffers, ..held.task(&token).with_order(order) };
        let answer = execute(worker.as_mut(), task);
        success("a task with used buffers", &answer.end)?;
        for (index, got) in answer.results {
            held.same(index, &got, "in used buffers")?;
        }
    }
    Ok(())
}

pub(super) fn respawned(mut worker: Box<dyn Worker>) -> Verdict {
    let Some(respawn) = worker.respawn() else { return Ok(()) };
    let held = Held::install(worker.as_mut(), Case::small(1), KEY)?;
    let name = worker.info().name;
    // The worker is lost, and its device is free.
    drop(worker);
    for _ in 0..2 {
        let mut worker = match respawn(&CancelToken::new()) {
            Ok(worker) => worker,
            Err(error) => return wrong("a respawned worker", format!("the error {error:?}")),
        };
        if worker.info().name != name {
            return wrong(format!("the name {name}"), worker.info().name);
        }
        let answer = execute(worker.as_mut(), held.task(&CancelToken::new()));
        refusal("a task of a respawned worker without filters", &answer.end)?;
        held.install_again(worker.as_mut())?;
        held.works(worker.as_mut(), "of a respawned worker")?;
    }
    Ok(())
}
