//! Pools of scripted workers: tolerated misbehaviour, and its limits.
//!
//! Scripts order events by channels; no test sleeps.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use fcdcc::array::Values;
use fcdcc::worker::{CancelToken, CpuWorker, Fault, SubtaskShape, faulty, intercept};
use fcdcc::{ConvParams, Error, Pool, Result, SubtaskId, Worker, WorkerId};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, small};

/// A worker that does not compute: a script handles its tasks, and it counts the filters it holds. Probes are answered
/// correctly.
fn counting(
    name: &'static str,
    mut script: impl FnMut(&SubtaskShape, &CancelToken, &mut dyn FnMut(usize, Values)) -> Result<()>
    + Send
    + 'static,
    installed: &Arc<AtomicUsize>,
) -> Box<dyn Worker> {
    let shape = Arc::new(Mutex::new(None));
    let (newest, held, removed) = (Arc::clone(&shape), Arc::clone(installed), Arc::clone(installed));
    intercept(CpuWorker::new(name, 1))
        .with_info(|info| (info.device, info.f64) = ("script".to_owned(), false))
        .on_install(move |_, _, shape, _| {
            *newest.lock().unwrap() = Some(shape.clone());
            held.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .on_remove(move |_, _| {
            removed.fetch_sub(1, Ordering::SeqCst);
        })
        .on_execute(move |_, task, emit| {
            let shape = shape.lock().unwrap().clone().unwrap();
            script(&shape, task.cancel, emit)
        })
        .never_respawned()
        .boxed()
}

fn scripted(
    name: &'static str,
    script: impl FnMut(&SubtaskShape, &CancelToken, &mut dyn FnMut(usize, Values)) -> Result<()> + Send + 'static,
) -> Box<dyn Worker> {
    counting(name, script, &Arc::default())
}

/// Five CPU workers and a scripted one as number 5.
fn with_scripted(worker: Box<dyn Worker>) -> Pool {
    let mut workers = CpuWorker::fleet(5);
    workers.push(worker);
    Pool::new(workers).unwrap()
}

fn wrong_values(shape: &SubtaskShape, index: usize, emit: &mut dyn FnMut(usize, Values)) {
    emit(index, Values::F32(vec![1e6; shape.conv.output_elems()]));
}

#[test]
fn late_results_of_an_old_run_never_enter_a_new_one() {
    let (gate, opened): (_, Receiver<()>) = unbounded();
    let (entered, entries) = unbounded();
    // Ignores cancellation, and answers its first task with garbage when the gate opens.
    let stubborn = scripted("stubborn", move |shape, _, emit| {
        entered.send(()).unwrap();
        if opened.recv().is_err() {
            return Err(Error::Cancelled);
        }
        for index in 0..shape.sub_results() {
            wrong_values(shape, index, emit);
        }
        Ok(())
    });
    let layer = small();
    let pool = with_scripted(stubborn);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    let run = || {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        assert!(!run.report.used.contains(&SubtaskId(5)));
    };
    // The worker may begin only after the others have decoded; within some runs it begins earlier.
    let started = Instant::now();
    while entries.try_recv().is_err() {
        assert!(started.elapsed() < Duration::from_mins(1), "it never got to a task");
        run();
    }
    // The next runs take place while it still works for an old run, and while it delivers results for that.
    run();
    gate.send(()).unwrap();
    for _ in 0..10 {
        run();
    }
    drop(gate);
}

#[test]
fn a_hung_worker_neither_blocks_runs_nor_the_shutdown() {
    let (release, held): (_, Receiver<()>) = bounded(0);
    let hung = scripted("hung", move |_, _, _| {
        // Ends with the test, long after the pool has given up on it.
        let _ = held.recv();
        Ok(())
    });
    let layer = small();
    let pool = with_scripted(hung);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    for _ in 0..3 {
        assert!(layer.error(&prepared.run(layer.input.view()).unwrap().output) < EXACT_F32);
    }
    // A layer prepared during the hang does not wait for the worker either.
    let started = Instant::now();
    let second = layer.prepare(&pool, fail(4, 4)).unwrap();
    assert!(layer.error(&second.run(layer.input.view()).unwrap().output) < EXACT_F32);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let started = Instant::now();
    drop((prepared, second, pool));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(release);
}

#[test]
fn workers_that_panic_or_answer_nonsense_are_stragglers_not_disasters() {
    let layer = small();
    let nonsense: Vec<Box<dyn Worker>> = vec![
        scripted("panics", |_, _, _| panic!("scripted")),
        scripted("short", |_, _, emit| {
            emit(0, Values::F32(vec![0.0; 3]));
            Ok(())
        }),
        scripted("typed", |shape, _, emit| {
            emit(0, Values::F64(vec![0.0; shape.conv.output_elems()]));
            Ok(())
        }),
        scripted("numbers", |shape, _, emit| {
            wrong_values(shape, 99, emit);
            Ok(())
        }),
        scripted("lazy", |shape, _, emit| {
            wrong_values(shape, 0, emit);
            Ok(())
        }),
        scripted("repeats", |shape, _, emit| {
            for _ in 0..3 {
                wrong_values(shape, 1, emit);
            }
            Err(Error::WorkerFailed { worker: "repeats".to_owned(), cause: "scripted".to_owned() })
        }),
    ];
    for worker in nonsense {
        let name = worker.info().name;
        let pool = with_scripted(worker);
        // Whole subtasks only: a single finite sub-result of the worker would be accepted.
        let prepared = layer.prepare(&pool, fail(4, 4).partial(false)).unwrap();
        for _ in 0..2 {
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "{name}");
            assert!(!run.report.used.contains(&SubtaskId(5)), "{name}");
        }
        // The scripted worker may begin only after the others have decoded.
        let started = Instant::now();
        while name == "panics"
            && pool.lost(WorkerId(5)).is_none()
            && started.elapsed() < Duration::from_secs(20)
        {
            prepared.run(layer.input.view()).unwrap();
        }
        assert_eq!(pool.lost(WorkerId(5)).is_some(), name == "panics");
    }
}

#[test]
fn dropping_a_layer_frees_its_filters_and_cancels_its_work() {
    let layer = small();
    let installed = Arc::new(AtomicUsize::new(0));
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = {
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        let script = move |_: &SubtaskShape, cancel: &CancelToken, _: &mut dyn FnMut(usize, Values)| {
            begun.fetch_add(1, Ordering::SeqCst);
            cancel.wait();
            ended.fetch_add(1, Ordering::SeqCst);
            Err(Error::Cancelled)
        };
        counting("counts", script, &installed)
    };
    let pool = with_scripted(worker);
    let layers: Vec<_> = (0..3).map(|_| layer.prepare(&pool, fail(4, 4)).unwrap()).collect();
    assert_eq!(installed.load(Ordering::SeqCst), 3);
    for _ in 0..5 {
        layers[0].run(layer.input.view()).unwrap();
    }
    drop(layers);
    // The pool's threads end with it, so all removals have happened after the drop.
    drop(pool);
    assert_eq!(installed.load(Ordering::SeqCst), 0);
    // A task may begin before or after the end of its run; every task that began was cancelled.
    assert!(begun.load(Ordering::SeqCst) <= 5);
    assert_eq!(begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst));
}

#[test]
fn a_type_no_worker_computes_is_refused_before_anything_is_sent() {
    let layer = Layer::<f64>::new(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default());
    let pool = with_scripted(scripted("f32-only", |_, _, _| Ok(())));
    let error = layer.prepare(&pool, fail(4, 4)).err().unwrap();
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("f32-only"), "{error}");
}

#[test]
fn names_that_occur_twice_are_told_apart() {
    let twins: Vec<Box<dyn Worker>> =
        vec![Box::new(CpuWorker::new("twin", 1)), faulty(CpuWorker::new("twin", 1), Fault::Drop, 1).boxed()];
    let pool = Pool::new(twins).unwrap();
    let names: Vec<String> = pool.workers().map(|w| w.name.clone()).collect();
    assert_eq!(names, ["twin", "twin-1"]);
    assert_eq!((pool.len(), pool.is_empty()), (2, false));
}
