//! Workers of this crate have every property of the contract, and a worker that lacks one is found to lack just that one.
//!
//! GPU workers and workers on other machines are checked in `tests/gpu` and `tests/cluster`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fcdcc::array::Values;
use fcdcc::testing::{Property, check_property, check_worker};
use fcdcc::worker::{Fault, FilterKey, Intercept, Order, SubtaskShape, Task, TaskFaults, faulty, intercept};
use fcdcc::{CancelToken, CpuWorker, Error, Result, Worker, WorkerId};
use fcdcc_test_support::every_row;

/// A limit that only a defect reaches.
const DEADLINE: Duration = Duration::from_mins(1);

fn cpu() -> CpuWorker {
    CpuWorker::new("cpu", 1)
}

fn keeps_the_contract(worker: impl Fn() -> Box<dyn Worker>) {
    let findings = check_worker(DEADLINE, || Ok(worker()));
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn cpu_workers_keep_the_contract() {
    keeps_the_contract(|| Box::new(cpu()));
    keeps_the_contract(|| Box::new(CpuWorker::new("both", 2)));
}

#[test]
fn wrapped_workers_keep_the_contract() {
    keeps_the_contract(|| intercept(cpu()).boxed());
    keeps_the_contract(|| intercept(cpu()).with_info(|info| info.f64 = false).boxed());
    keeps_the_contract(|| faulty(cpu(), "delay=0ms".parse::<Fault>().unwrap(), 1).boxed());
    keeps_the_contract(|| TaskFaults::new(1).around(cpu(), WorkerId(0)).boxed());
    keeps_the_contract(|| intercept(cpu()).never_respawned().boxed());
}

/// The keys under which a worker holds filters.
type Keys = Arc<Mutex<HashSet<FilterKey>>>;

/// A worker that keeps `keys` up to date.
fn tracked(keys: &Keys, ignores_replacements: bool) -> Intercept {
    let (held, removed) = (Arc::clone(keys), Arc::clone(keys));
    intercept(cpu())
        .on_install(move |inner, key, shape, banks| {
            if ignores_replacements && held.lock().unwrap().contains(&key) {
                return Ok(());
            }
            inner.install(key, shape, banks)?;
            held.lock().unwrap().insert(key);
            Ok(())
        })
        .on_remove(move |inner, key| {
            removed.lock().unwrap().remove(&key);
            inner.remove(key);
        })
}

fn failed<R>(cause: &str) -> Result<R> {
    Err(Error::WorkerFailed { worker: "cpu".to_owned(), cause: cause.to_owned() })
}

/// A change that no rounding explains.
fn spoil(values: &mut Values) {
    match values {
        Values::F32(values) => values.iter_mut().for_each(|v| *v *= 1.01),
        Values::F64(values) => values.iter_mut().for_each(|v| *v *= 1.01),
    }
}

/// A worker that lacks a property of its results.
fn lacking_results(property: Property) -> Intercept {
    match property {
        Property::CompleteResults => intercept(cpu()).on_execute(|inner, task, emit| {
            inner.execute(task, &mut |index, values| {
                if (task.order, index) == (Order::All, 0) {
                    emit(index, values.clone());
                }
                emit(index, values);
            })
        }),
        Property::RightNumbers => intercept(cpu()).on_execute(|inner, task, emit| {
            inner.execute(task, &mut |index, mut values| {
                spoil(&mut values);
                emit(index, values);
            })
        }),
        Property::RequestedOrder => intercept(cpu()).on_execute(|inner, task, emit| {
            let Order::Each(indices) = task.order else { return inner.execute(task, emit) };
            let mut sorted = indices.to_vec();
            sorted.sort_unstable();
            inner.execute(task.with_order(Order::Each(&sorted)), emit)
        }),
        Property::IndexOutOfRange => intercept(cpu()).on_execute(|inner, task, emit| {
            let Order::Each(indices) = task.order else { return inner.execute(task, emit) };
            let possible: Vec<usize> = indices.iter().copied().filter(|i| *i < usize::MAX).collect();
            inner.execute(task.with_order(Order::Each(&possible)), emit)
        }),
        Property::CancelledBefore | Property::CancelledDuring => {
            let before = property == Property::CancelledBefore;
            intercept(cpu()).on_execute(move |inner, task, emit| {
                let deaf = CancelToken::new();
                let cancel = if task.cancel.is_cancelled() == before { &deaf } else { task.cancel };
                inner.execute(Task { cancel, ..task }, emit)
            })
        }
        Property::UsedBuffers => intercept(cpu()).on_execute(|inner, task, emit| {
            let used = task.buffers.take::<f32>(1);
            inner.execute(task, &mut |index, mut values| {
                if used[0].is_nan() {
                    spoil(&mut values);
                }
                emit(index, values);
            })
        }),
        other => panic!("{other:?} is not about results"),
    }
}

/// A worker that lacks `property` and no other.
fn lacking(property: Property) -> Intercept {
    let keys = Keys::default();
    let held = Arc::clone(&keys);
    match property {
        Property::ConstantInfo => {
            let calls = AtomicUsize::new(0);
            intercept(cpu()).with_info(move |info| {
                info.device = format!("call {}", calls.fetch_add(1, Ordering::SeqCst));
            })
        }
        Property::WrongSlabs => intercept(cpu()).on_execute(|inner, task, emit| {
            inner.execute(task, emit).or_else(|error| match error {
                Error::Mismatch { .. } => failed("something does not fit"),
                other => Err(other),
            })
        }),
        Property::WrongFilters => intercept(cpu())
            .on_install(|inner, key, shape, banks| inner.install(key, shape, banks).or(Ok(()))),
        // A key is known once something was installed, or was to be installed, under it.
        Property::UnknownKey => intercept(cpu())
            .on_install(move |inner, key, shape, banks| {
                keys.lock().unwrap().insert(key);
                inner.install(key, shape, banks)
            })
            .on_execute(move |inner, task, emit| {
                if held.lock().unwrap().contains(&task.key) { inner.execute(task, emit) } else { Ok(()) }
            }),
        Property::SharedFilters => intercept(cpu()).on_share(|_, _, _, _| Ok(true)),
        Property::RemovedFilters => intercept(cpu()).on_remove(|_, _| {}),
        Property::ReplacedFilters => tracked(&keys, true),
        Property::SeparateFilters => tracked(&keys, false).on_execute(move |inner, task, emit| {
            if held.lock().unwrap().len() > 2 {
                failed("too many filters")
            } else {
                inner.execute(task, emit)
            }
        }),
        Property::Respawned => intercept(cpu()).respawned(|_| Box::new(CpuWorker::new("another", 1))),
        other => lacking_results(other),
    }
}

#[test]
fn a_lacking_property_is_found_and_no_other() {
    every_row(Property::ALL, |property| {
        let worker = || match lacking(property) {
            worker if property == Property::Respawned => worker,
            // Its replacement would give other results than it gave.
            worker => worker.never_respawned(),
        };
        let findings = check_worker(DEADLINE, || Ok(worker().boxed()));
        let found: Vec<Property> = findings.iter().map(|finding| finding.property).collect();
        assert_eq!(found, [property], "{findings:#?}");
    });
}

/// The finding on a worker that shares filters in this way.
fn sharing(
    share: impl FnMut(&mut dyn Worker, FilterKey, FilterKey, &SubtaskShape) -> Result<bool> + Send + 'static,
) -> String {
    let worker = intercept(cpu()).on_share(share).boxed();
    check_property(Property::SharedFilters, DEADLINE, worker)
        .map_or_else(|e| e.to_string(), |()| String::new())
}

#[test]
fn every_way_to_share_wrongly_is_a_finding() {
    assert_eq!(sharing(|inner, key, from, shape| inner.share(key, from, shape)), "");
    assert_eq!(sharing(|_, _, _, _| Ok(false)), "");
    // Says so without having done it.
    let mut first = true;
    let says = move |inner: &mut dyn Worker, key, from, shape: &SubtaskShape| {
        let shared = inner.share(key, from, shape)?;
        inner.remove(key);
        Ok(!std::mem::take(&mut first) && shared)
    };
    assert!(sharing(says).contains("success of a task with shared filters"));
    // Has done it without saying so.
    let hides = |inner: &mut dyn Worker, key, from, shape: &SubtaskShape| {
        inner.share(key, from, shape).map(|_| false)
    };
    assert!(sharing(hides).contains("a task for filters that were not shared"));
    // Fails for filters that cannot be shared.
    let fails = |inner: &mut dyn Worker, key, from, shape: &SubtaskShape| {
        if inner.share(key, from, shape)? { Ok(true) } else { failed("there is nothing to share") }
    };
    assert!(sharing(fails).contains("success of sharing filters that it does not hold"));
}

#[test]
fn findings_name_what_was_expected_and_what_came() {
    let finding =
        check_property(Property::WrongSlabs, DEADLINE, lacking(Property::WrongSlabs).boxed()).unwrap_err();
    let text = finding.to_string();
    assert!(
        text.starts_with("WrongSlabs: expected Error::Mismatch from slabs of one element less"),
        "{text}"
    );
    assert!(text.contains("came the error WorkerFailed"), "{text}");
}

#[test]
fn a_worker_that_hangs_or_panics_or_does_not_open_is_a_finding() {
    // Ends with the test, long after the check.
    let (_open, closed) = channel::<()>();
    let hung = intercept(cpu()).on_execute(move |_, _, _| closed.recv().map_err(|_| Error::Cancelled));
    let finding =
        check_property(Property::RightNumbers, Duration::from_millis(100), hung.boxed()).unwrap_err();
    assert_eq!((finding.expected.as_str(), finding.came.as_str()), ("an end within 100ms", "no end"));
    let panics = intercept(cpu()).on_execute(|_, _, _| panic!("scripted"));
    let finding = check_property(Property::UnknownKey, DEADLINE, panics.boxed()).unwrap_err();
    assert_eq!(finding.came, "a panic: scripted");
    let findings = check_worker(DEADLINE, || failed("is not there"));
    assert_eq!(findings.len(), Property::ALL.len());
    assert!(findings.iter().all(|finding| finding.came.contains("is not there")), "{findings:#?}");
}
