//! The scheduler with workers that are slow, late, unfinished, wrong, lost or hung, over real pools.
//!
//! Scripts define the order of events. Loops wait for events up to a limit that only a defect reaches.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod audits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::scripted::{self, Call, counted};
use crossbeam_channel::bounded;
use fcdcc::array::Values;
use fcdcc::coding::{Code, Decoder, error_bound};
use fcdcc::conv::reference;
use fcdcc::engine::WindowwiseLimit;
use fcdcc::scheduler::{HealthOptions, State};
use fcdcc::worker::{CpuWorker, FaultSpec, WorkerInfo, inject, intercept};
use fcdcc::{
    Audit, CodeKind, CodedConv, Completion, ConvParams, Error, ErrorKind, LayerOptions, OnShortfall, Outcome,
    Pool, PoolOptions, Result, Run, SubtaskId, Worker, WorkerId,
};
use fcdcc_test_support::layer::{Layer, fail, options, pool, small};
use fcdcc_test_support::{relative_l2, subtasks};
use ndarray::ArrayD;

/// A limit that only a defect reaches.
const LIMIT: Duration = Duration::from_mins(1);

/// Repeats until the condition holds.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Runs the layer; the output must be within its error bound.
fn exact(layer: &Layer<f32>, prepared: &CodedConv<f32>) -> Run<f32> {
    let run = prepared.run(layer.input.view()).unwrap();
    let (error, bound) = (layer.error(&run.output), run.report.error_bound);
    assert!(error < bound && bound < 1e-2, "off by {error:e} of {bound:e}: {:#?}", run.report);
    let mut off = run.output.as_slice().unwrap().to_vec();
    off[7] += 1.0;
    assert!(relative_l2(&off, &layer.truth) > bound, "a wrong element must show");
    run
}

fn outcome(run: &Run<f32>, subtask: usize) -> Outcome {
    run.report.workers.iter().find(|row| row.subtask == Some(SubtaskId(subtask))).unwrap().outcome
}

fn count(homes: &[WorkerId], worker: usize) -> usize {
    homes.iter().filter(|home| home.0 == worker).count()
}

fn state(pool: &Pool, worker: usize) -> State {
    pool.health(WorkerId(worker)).unwrap().state
}

fn failed(worker: &dyn Worker) -> Result<()> {
    Err(Error::WorkerFailed { worker: worker.info().name, cause: "scripted".to_owned() })
}

fn silent(call: &Call<'_>) -> Result<()> {
    call.task.cancel.wait();
    Err(Error::Cancelled)
}

/// Delays a task until something else has happened.
fn after(call: &Call<'_>, happened: impl Fn() -> bool) -> Result<()> {
    while !happened() {
        if call.task.cancel.sleep(Duration::from_millis(1)) {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

/// `n` workers; `script` handles the tasks of the i-th one.
fn scripted(
    n: usize,
    script: impl Fn(usize, &mut dyn Worker, Call<'_>) -> Result<()> + Clone + Send + 'static,
) -> Vec<Box<dyn Worker>> {
    let worker = |i: usize| {
        let script = script.clone();
        scripted::worker(format!("w{i}"), move |worker, call| script(i, worker, call)).boxed()
    };
    (0..n).map(worker).collect()
}

/// A layer with sixteen rows and eight channels, for k_A = k_B = 8.
fn wide() -> Layer<f32> {
    Layer::new(&[1, 3, 16, 10], &[8, 3, 3, 3], ConvParams::default().padding([1]))
}

#[test]
fn subtasks_are_not_workers_and_move_away_from_one_that_is_lost() {
    let layer = wide();
    let prepare = |faults: &[&str]| {
        let pool = pool(5, faults);
        let prepared = layer.prepare(&pool, LayerOptions { subtasks: Some(20), ..options(8, 8) }).unwrap();
        assert_eq!(prepared.assignment(), (0..20).map(|i| WorkerId(i % 5)).collect::<Vec<_>>());
        (pool, prepared)
    };
    let (pool, prepared) = prepare(&["2:crash"]);
    let mut runs = 0;
    until("the subtasks of the lost worker move", || {
        exact(&layer, &prepared);
        runs += 1;
        !prepared.assignment().contains(&WorkerId(2))
    });
    assert_eq!(state(&pool, 2), State::Lost);
    let homes = prepared.assignment();
    assert!([0, 1, 3, 4].iter().all(|worker| count(&homes, *worker) > 0), "{homes:?}");
    // From now on the worker gets no tasks.
    let run = exact(&layer, &prepared);
    assert!(run.report.workers.iter().all(|row| row.outcome != Outcome::Failed), "{:#?}", run.report);
    // Without the loss it keeps its work.
    let (_pool, prepared) = prepare(&[]);
    for _ in 0..runs {
        exact(&layer, &prepared);
    }
    assert!(prepared.assignment().contains(&WorkerId(2)));
}

#[test]
fn a_lost_host_is_spread_over_the_circle() {
    let layer = wide();
    // Five hosts of four workers, listed host by host; one host fails.
    let condition = |lost: usize, host: fn(usize) -> String| {
        let worker = |i: usize| {
            let script = move |worker: &mut dyn Worker, call: Call<'_>| {
                if i / 4 == lost { failed(worker) } else { call.answer(worker) }
            };
            let on_host = move |info: &mut WorkerInfo| info.host = host(i);
            scripted::worker(format!("w{i}"), script).with_info(on_host).boxed()
        };
        let pool = Pool::new((0..20).map(worker).collect()).unwrap();
        let any = LayerOptions { max_windowwise: WindowwiseLimit::Off, ..fail(8, 8) };
        let prepared = layer.prepare(&pool, any).unwrap();
        let run = exact(&layer, &prepared);
        assert_eq!(run.report.used.len(), 16);
        run.report.condition_number
    };
    for lost in 0..5 {
        let spread = condition(lost, |i| format!("host {}", i / 4));
        assert!(spread < 8.0, "host {lost}: {spread}");
    }
    // With a host name per worker the lost workers hold adjacent subtasks.
    let naive = condition(0, |i| format!("host {i}"));
    assert!((naive / 1551.0 - 1.0).abs() < 0.01, "{naive}");
}

#[test]
fn fast_workers_get_more_subtasks() {
    let layer = small();
    let prepare = |slow: u64| {
        let pace = move |i: usize| Duration::from_millis(if i < 2 { 2 } else { slow });
        let pool = Pool::new(scripted(4, move |i, worker, mut call| {
            for index in call.wanted() {
                if call.task.cancel.sleep(pace(i)) {
                    return Err(Error::Cancelled);
                }
                call.answer_one(worker, index)?;
            }
            Ok(())
        }));
        layer.prepare(&pool.unwrap(), LayerOptions { subtasks: Some(10), ..options(4, 8) }).unwrap()
    };
    let shares = |prepared: &CodedConv<f32>| [0, 1, 2, 3].map(|worker| count(&prepared.assignment(), worker));
    let prepared = prepare(8);
    assert_eq!(shares(&prepared), [3, 3, 2, 2]);
    let mut runs = 0;
    until("the fast ones have four times as many", || {
        exact(&layer, &prepared);
        runs += 1;
        shares(&prepared) == [4, 4, 1, 1]
    });
    // Equal workers keep about the work they have.
    let prepared = prepare(2);
    for _ in 0..runs {
        exact(&layer, &prepared);
    }
    let [a, b, c, d] = shares(&prepared);
    assert!(a + b < 3 * (c + d), "{:?}", prepared.assignment());
}

#[test]
fn unfinished_subtasks_are_decoded_from() {
    let layer = small();
    let run = |options: LayerOptions| {
        let pool = Pool::new(scripted(6, |_, worker, mut call| {
            let wanted = call.wanted();
            assert_eq!(wanted.len(), 4);
            for index in &wanted[..3] {
                call.answer_one(worker, *index)?;
            }
            silent(&call)
        }));
        exact(&layer, &layer.prepare(&pool.unwrap(), options).unwrap())
    };
    // Three of four sub-results of each worker: 18 where 16 are needed, and no subtask is complete.
    let report = run(options(4, 4)).report;
    assert_eq!((report.completion, report.fallback), (Completion::Exact, None));
    assert_eq!(report.used, [0, 1, 2, 3, 4, 5].map(SubtaskId));
    assert!(report.workers.iter().all(|row| row.outcome == Outcome::Used && row.sub_results <= 3));
    assert!(report.workers.iter().map(|row| row.sub_results).sum::<usize>() >= 16);
    // With whole subtasks only, the same pool cannot decode.
    let whole = options(4, 4).partial(false);
    let report = run(whole.on_shortfall(OnShortfall::Local).deadline(Duration::from_secs(1))).report;
    assert_eq!((report.completion, report.used.len()), (Completion::ExactLocally, 0));
    assert_eq!(report.workers.iter().map(|row| row.sub_results).collect::<Vec<_>>(), [3; 6]);
}

#[test]
fn overdue_subtasks_are_hedged_long_before_they_are_given_up() {
    let layer = small();
    let run = |options: LayerOptions| {
        // With three of six workers silent one copy is needed.
        let silent = |i, worker: &mut dyn Worker, call: Call<'_>| {
            if i % 2 == 1 { silent(&call) } else { call.answer(worker) }
        };
        let pool = Pool::new(scripted(6, silent)).unwrap();
        let prepared = layer.prepare(&pool, options).unwrap();
        let started = Instant::now();
        (exact(&layer, &prepared).report, started.elapsed())
    };
    let (report, took) = run(options(4, 4).deadline(LIMIT));
    assert_eq!((report.completion, report.redispatched), (Completion::ExactAfterRedispatch, 0));
    assert!(report.hedged > 0 && took < LIMIT / 4, "{} hedged in {took:?}", report.hedged);
    // Without hedging half of the deadline passes.
    let deadline = Duration::from_secs(3);
    let (report, took) = run(options(4, 4).deadline(deadline).hedge(None));
    assert_eq!((report.completion, report.hedged), (Completion::ExactAfterRedispatch, 0));
    assert!(report.redispatched > 0 && took >= deadline / 2, "{} in {took:?}", report.redispatched);
}

/// Behaviour of the four workers with the adjacent subtasks 0 to 3 of 20.
#[derive(Clone, Copy, PartialEq)]
enum Withheld {
    /// Number 1 answers after all others, with enough time to decode in between; the rest never answer.
    One,
    All,
    Fail,
}

fn badly_placed(layer: &Layer<f32>, withheld: Withheld, options: LayerOptions) -> Result<Run<f32>> {
    let answered = Arc::new(AtomicUsize::new(0));
    let workers = scripted(20, move |i, worker, call| {
        match (i, withheld) {
            (1, Withheld::One) => {
                after(&call, || answered.load(Ordering::SeqCst) == 16)?;
                // A run that does not wait for it decodes meanwhile, and cancels it.
                if call.task.cancel.sleep(Duration::from_millis(30)) {
                    return Err(Error::Cancelled);
                }
            }
            (0..4, Withheld::Fail) => return failed(worker),
            (0..4, _) => return silent(&call),
            _ => {}
        }
        let result = call.answer(worker);
        answered.fetch_add(1, Ordering::SeqCst);
        result
    });
    layer.prepare(&Pool::new(workers).unwrap(), options)?.run(layer.input.view())
}

#[test]
fn a_set_that_would_be_refused_waits_for_a_better_one() {
    let layer = wide();
    let code = Code::new(CodeKind::Crme, 8, 8, 20).unwrap();
    let bound = |subtasks: &[usize]| {
        let decoder = Decoder::for_subtasks(&code, subtasks).unwrap();
        decoder.error_bound(f32::EPSILON.into(), layer.shape().reduction())
    };
    let first: Vec<usize> = (4..20).collect();
    let better: Vec<usize> = [1].into_iter().chain(4..20).collect();
    let limit = (bound(&first) * bound(&better)).sqrt();
    assert!(bound(&better) * 1.5 < limit && limit * 1.5 < bound(&first), "one more must make a difference");
    // The windowwise bound is not under test.
    let any = |options: LayerOptions| LayerOptions { max_windowwise: WindowwiseLimit::Off, ..options };
    let strict = |options: LayerOptions| LayerOptions { max_error: Some(limit), ..any(options) };

    let run = badly_placed(&layer, Withheld::One, strict(fail(8, 8))).unwrap();
    assert_eq!(run.report.used, subtasks(&better));
    assert!(run.report.error_bound < limit && layer.error(&run.output) < run.report.error_bound);
    // With patience 0 the run does not wait.
    let lax = any(fail(8, 8)).patience(0.0);
    let run = badly_placed(&layer, Withheld::All, lax).unwrap();
    assert_eq!(run.report.used, subtasks(&first));
    assert!(run.report.condition_number > 1000.0 && run.report.error_bound > limit);

    // No more results can come: computed locally at once, or at the deadline.
    let started = Instant::now();
    let run = badly_placed(&layer, Withheld::Fail, strict(fail(8, 8).deadline(LIMIT))).unwrap();
    assert_eq!(run.report.completion, Completion::ExactLocally);
    assert!(run.report.error_bound < limit && started.elapsed() < LIMIT / 4);
    let (started, deadline) = (Instant::now(), Duration::from_secs(2));
    let run = badly_placed(&layer, Withheld::All, strict(fail(8, 8).deadline(deadline))).unwrap();
    assert_eq!(run.report.completion, Completion::ExactLocally);
    assert!(started.elapsed() >= deadline / 4 * 3, "{:?}", started.elapsed());
    // If local computation is not accurate enough either, the layer is refused.
    let nothing = LayerOptions { max_error: Some(1e-9), ..fail(8, 8).deadline(deadline) };
    let error = badly_placed(&layer, Withheld::Fail, nothing).unwrap_err();
    assert!(matches!(error, Error::ErrorBound { .. }), "{error}");
}

/// Results that are wrong by 1 %.
fn scaled(mut values: Values) -> Values {
    if let Values::F32(values) = &mut values {
        for value in values {
            *value *= 1.01;
        }
    }
    values
}

/// A worker that computes everything wrongly, even its probe. Counts the tasks of layers.
fn biased(tasks: &Arc<AtomicUsize>) -> Box<dyn Worker> {
    let tasks = Arc::clone(tasks);
    let worker = intercept(CpuWorker::new("biased", 1)).including_probes();
    let biased = worker.on_execute(move |inner, task, emit| {
        tasks.fetch_add(usize::from(!task.key.is_probe()), Ordering::SeqCst);
        inner.execute(task, &mut |index, values| emit(index, scaled(values)))
    });
    biased.boxed()
}

#[test]
fn who_fails_the_probe_gets_no_task() {
    let layer = small();
    let tasks = Arc::new(AtomicUsize::new(0));
    let mut workers = CpuWorker::fleet(6);
    workers[0] = biased(&tasks);
    let pool = Pool::new(workers).unwrap();
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    for _ in 0..10 {
        let run = exact(&layer, &prepared);
        assert_eq!(outcome(&run, 0), Outcome::Failed);
        assert_eq!(state(&pool, 0), State::Quarantined);
    }
    let cause = pool.health(WorkerId(0)).unwrap().cause.unwrap();
    assert!(cause.contains("biased") && cause.contains("off by"), "{cause}");
    assert_eq!(tasks.load(Ordering::SeqCst), 0);
}

#[test]
fn a_worker_whose_device_was_lost_comes_back_with_its_filters() {
    let layer = small();
    let made = Arc::new(AtomicUsize::new(0));
    let mut workers = CpuWorker::fleet(6);
    workers[1] =
        scripted::worker("cpu-1", |worker, call| call.answer(worker)).respawned(counted(&made)).boxed();
    let faults: [FaultSpec; 1] = ["1:device-lost".parse().unwrap()];
    let pool = Pool::new(inject(workers, &faults, 0).unwrap()).unwrap();
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    let back = || made.load(Ordering::SeqCst) > 0 && state(&pool, 1) != State::Lost;
    until("it is lost at its first task, and made anew", || {
        exact(&layer, &prepared);
        back()
    });
    until("it works again", || {
        let run = exact(&layer, &prepared);
        assert!(
            matches!(outcome(&run, 1), Outcome::Used | Outcome::Late | Outcome::Cancelled),
            "{:#?}",
            run.report
        );
        assert!(matches!(state(&pool, 1), State::Healthy | State::Probation | State::Straggling));
        outcome(&run, 1) == Outcome::Used
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

/// Six workers; number 0 ignores cancellation: its tasks end when the sender is dropped, as the flag shows. It gets the
/// first task and gives the first answer.
fn with_hung(
    comes_back: Option<&Arc<AtomicUsize>>,
) -> (Pool, crossbeam_channel::Sender<()>, Arc<AtomicBool>) {
    let (release, held) = bounded::<()>(0);
    let released = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&released);
    let hung = scripted::worker("hung", move |worker, call| {
        let _ = held.recv();
        told.store(true, Ordering::SeqCst);
        // This late answer is discarded.
        call.answer_with(worker, scaled)
    });
    let mut workers = CpuWorker::fleet(6);
    workers[0] = match comes_back {
        Some(made) => hung.respawned(counted(made)).boxed(),
        None => hung.boxed(),
    };
    let options = PoolOptions { hang_grace: Duration::from_millis(50), ..PoolOptions::default() };
    (Pool::with_options(workers, options).unwrap(), release, released)
}

#[test]
fn a_hung_worker_is_given_up() {
    let layer = small();
    let (pool, release, released) = with_hung(None);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    until("it is given up", || {
        exact(&layer, &prepared);
        pool.lost(WorkerId(0)).is_some()
    });
    assert!(pool.lost(WorkerId(0)).unwrap().contains("hung"), "{:?}", pool.lost(WorkerId(0)));
    // No run waits for the hung worker any more: its subtask fails at once.
    for _ in 0..10 {
        assert_eq!(outcome(&exact(&layer, &prepared), 0), Outcome::Failed);
    }
    let started = Instant::now();
    drop((prepared, pool));
    assert!(started.elapsed() < LIMIT / 4, "{:?}", started.elapsed());
    assert!(!released.load(Ordering::SeqCst));
    drop(release);
    until("its call ends", || released.load(Ordering::SeqCst));
}

#[test]
fn a_hung_worker_is_replaced_while_its_call_still_hangs() {
    let layer = small();
    let made = Arc::new(AtomicUsize::new(0));
    let (pool, release, released) = with_hung(Some(&made));
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    until("another takes its place", || outcome(&exact(&layer, &prepared), 0) == Outcome::Used);
    assert_eq!((made.load(Ordering::SeqCst), released.load(Ordering::SeqCst)), (1, false));
    drop(release);
    until("the old call ends", || {
        exact(&layer, &prepared);
        released.load(Ordering::SeqCst)
    });
    // This changes nothing.
    for _ in 0..10 {
        assert_ne!(outcome(&exact(&layer, &prepared), 0), Outcome::Failed);
    }
    assert_eq!((made.load(Ordering::SeqCst), pool.lost(WorkerId(0))), (1, None));
    let started = Instant::now();
    drop((prepared, pool));
    assert!(started.elapsed() < LIMIT / 4, "{:?}", started.elapsed());
}
