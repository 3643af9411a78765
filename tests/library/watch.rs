//! The default audit checks the first run of a layer and one in 32, and locates a worker that computes wrongly.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::scripted::{self, Call};
use fcdcc::array::Values;
use fcdcc::scheduler::{HealthOptions, PoolOptions, State};
use fcdcc::{
    Audit, CodeKind, Completion, ConvParams, Error, OnShortfall, Outcome, Pool, Result, SubtaskId, WorkerId,
};
use fcdcc_test_support::layer::{EXACT_F32, Layer, options, small};
use fcdcc_test_support::{every_row, relative_l2};

/// Quarantine that outlasts the test.
const AWAY: Duration = Duration::from_mins(10);

/// Longest time for which workers wait for another one to answer first.
const HEAD_START: Duration = Duration::from_millis(20);

/// Results with every element wrong by 1 %.
fn off(mut values: Values) -> Values {
    if let Values::F32(values) = &mut values {
        for value in values {
            *value *= 1.01;
        }
    }
    values
}

/// A pool of `n` workers; `script` handles the tasks of each.
fn pool<S>(n: usize, backoff: Duration, script: S) -> Pool
where
    S: Fn(usize, &mut dyn fcdcc::Worker, Call<'_>) -> Result<()> + Send + Sync + 'static,
{
    let script = Arc::new(script);
    let worker = |i: usize| {
        let script = Arc::clone(&script);
        scripted::worker(format!("cpu-{i}"), move |worker, call| script(i, worker, call)).boxed()
    };
    let health = HealthOptions { backoff, max_backoff: backoff, ..HealthOptions::default() };
    Pool::with_options((0..n).map(worker).collect(), PoolOptions { health, ..PoolOptions::default() })
        .unwrap()
}

/// `n` workers; `leader` answers the first run first, with results modified by `change`.
fn led_by(n: usize, leader: usize, change: fn(Values) -> Values) -> Pool {
    let answered = Arc::new(AtomicBool::new(false));
    pool(n, AWAY, move |i, worker, call| {
        if i == leader {
            let result = call.answer_with(worker, change);
            answered.store(true, Ordering::SeqCst);
            return result;
        }
        let started = std::time::Instant::now();
        while !answered.load(Ordering::SeqCst) && started.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        call.answer(worker)
    })
}

fn lost(i: usize) -> Result<()> {
    Err(Error::WorkerLost { worker: format!("cpu-{i}"), cause: "it is dead".to_owned() })
}

#[test]
fn the_first_run_is_audited_and_right_whoever_is_wrong() {
    let layer = small();
    let mut caught = 0;
    for (partitions, code) in [
        ((4, 4), CodeKind::Crme),
        ((1, 8), CodeKind::Crme),
        ((8, 1), CodeKind::Crme),
        ((2, 2), CodeKind::Chebyshev),
    ] {
        for liar in 0..6 {
            let pool = led_by(6, liar, off);
            let options = fcdcc::LayerOptions { code, ..options(partitions.0, partitions.1) };
            assert_eq!(options.policy.audit, Audit::Watch, "the default");
            let prepared = layer.prepare(&pool, options).unwrap();
            for round in 0..3 {
                let run = prepared.run(layer.input.view()).unwrap();
                let report = &run.report;
                let name = format!("{partitions:?} {code}, {liar}, round {round}: {report:?}");
                assert!(report.audited || round > 0, "{name}");
                assert!(!report.audited || layer.error(&run.output) < EXACT_F32, "{name}");
                let wrong = |w: &&fcdcc::engine::WorkerReport| w.outcome == Outcome::Corrupt;
                assert!(
                    report.workers.iter().filter(wrong).all(|w| w.worker == format!("cpu-{liar}")),
                    "{name}"
                );
            }
            caught += usize::from(pool.health(WorkerId(liar)).unwrap().state == State::Quarantined);
        }
    }
    // The first result is compared with others.
    assert!(caught >= 20, "{caught} of 24");
}

#[test]
fn two_dead_and_one_lying_of_six_are_right_in_every_element() {
    let layer = small();
    every_row([([0, 1], 2), ([1, 4], 0), ([2, 5], 3), ([3, 4], 5)], |(dead, liar)| {
        let pool = pool(6, AWAY, move |i, worker, call| {
            if dead.contains(&i) {
                return lost(i);
            }
            call.answer_with(worker, |values| if i == liar { off(values) } else { values })
        });
        let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
        for round in 0..40 {
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "round {round}: {:?}", run.report);
        }
        assert_eq!(pool.health(WorkerId(liar)).unwrap().state, State::Quarantined);
    });
}

#[test]
fn whoever_begins_to_lie_slips_in_at_most_31_results_of_a_layer() {
    every_row([1, 7, 31], |begin| {
        // An audit whose workers owe the spare result in time computes one here, so that none is left out.
        let wrong = wrong_after(begin);
        assert!(wrong <= 31, "{wrong} wrong results");
    });
}

/// Wrong results of 100 runs in which a worker lies from run `begin` on: none after the first run of these that was
/// audited and had its result.
fn wrong_after(begin: usize) -> usize {
    const LIAR: usize = 3;
    let layer = small();
    // The run at hand, and the runs that the liar has answered. The others wait for it, so that its result is used.
    let (round, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let away = Arc::new(AtomicBool::new(false));
    let script = {
        let (round, answers, away) = (Arc::clone(&round), Arc::clone(&answers), Arc::clone(&away));
        move |i: usize, worker: &mut dyn fcdcc::Worker, call: Call<'_>| {
            let now = round.load(Ordering::SeqCst);
            if i == LIAR {
                let result =
                    call.answer_with(worker, |values| if now >= begin { off(values) } else { values });
                answers.store(now + 1, Ordering::SeqCst);
                return result;
            }
            let started = std::time::Instant::now();
            while answers.load(Ordering::SeqCst) <= now
                && !away.load(Ordering::SeqCst)
                && started.elapsed() < Duration::from_secs(10)
            {
                std::thread::yield_now();
            }
            call.answer(worker)
        }
    };
    let pool = pool(6, AWAY, script);
    let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
    let (mut wrong, mut caught) = (0, false);
    for now in 0..100 {
        round.store(now, Ordering::SeqCst);
        let run = prepared.run(layer.input.view()).unwrap();
        let error = layer.error(&run.output);
        // An audit examines the results that have arrived, so it covers the liar where the run has its result; the
        // reports of other runs say that they were not audited.
        let had = |w: &fcdcc::engine::WorkerReport| {
            w.worker == format!("cpu-{LIAR}") && matches!(w.outcome, Outcome::Used | Outcome::Corrupt)
        };
        caught |= now >= begin && run.report.audited && run.report.workers.iter().any(had);
        assert!(error <= EXACT_F32 || !caught, "round {now}: {error:e}, {:?}", run.report);
        wrong += usize::from(error > EXACT_F32);
        let state = pool.health(WorkerId(LIAR)).unwrap().state;
        away.store(state == State::Quarantined, Ordering::SeqCst);
    }
    wrong
}

#[test]
fn an_audit_does_not_wait_for_late_workers() {
    let layer = small();
    // Late workers return nothing before the run is over, or for this long.
    let late = Duration::from_secs(10);
    every_row([None, Some(1), Some(3)], |liar| {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let pool = pool(6, AWAY, move |i, worker, call| {
            let since = std::time::Instant::now();
            while i % 3 == 2 && !ended.load(Ordering::SeqCst) && since.elapsed() < late {
                std::thread::yield_now();
            }
            call.answer_with(worker, |values| if Some(i) == liar { off(values) } else { values })
        });
        let prepared = layer.prepare(&pool, options(4, 4).hedge(None)).unwrap();
        let started = std::time::Instant::now();
        let run = prepared.run(layer.input.view()).unwrap();
        over.store(true, Ordering::SeqCst);
        let (took, report) = (started.elapsed(), &run.report);
        assert!(took < late * 3 / 4, "{took:?}, {report:?}");
        assert!(layer.error(&run.output) < EXACT_F32, "{report:?}");
        assert!(report.audited, "{report:?}");
        let state = |worker| pool.health(WorkerId(worker)).unwrap().state;
        if let Some(liar) = liar {
            assert_eq!(report.completion, Completion::ExactLocally, "{report:?}");
            assert_eq!(state(liar), State::Quarantined, "{report:?}");
            assert_eq!((0..6).filter(|i| state(*i) == State::Quarantined).count(), 1, "{report:?}");
        } else {
            assert_eq!(report.completion, Completion::Exact, "{report:?}");
            assert!(report.audit_floor.is_some_and(|floor| floor < 1e-2), "{report:?}");
        }
    });
}

#[test]
fn after_a_worker_was_caught_every_run_is_audited_for_a_while() {
    let layer = small();
    let lying = Arc::new(AtomicBool::new(true));
    let (lies, answers) = (Arc::clone(&lying), AtomicUsize::new(0));
    // The worker returns at once. While it lies, the others let it go first: only results that are there are compared.
    let pool = pool(6, Duration::from_millis(1), move |i, worker, call| {
        let lies = lies.load(Ordering::SeqCst);
        if i == 0 {
            let answered = call.answer_with(worker, |values| if lies { off(values) } else { values });
            answers.fetch_add(1, Ordering::SeqCst);
            return answered;
        }
        let (before, start) = (answers.load(Ordering::SeqCst), std::time::Instant::now());
        while lies && answers.load(Ordering::SeqCst) == before && start.elapsed() < HEAD_START {
            std::thread::yield_now();
        }
        call.answer(worker)
    });
    let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
    let run = || prepared.run(layer.input.view()).unwrap();
    // Results that come first are used, so some run detects the error: the first, or a later audited one.
    let caught = (0..400).any(|round| {
        let run = run();
        assert!(
            layer.error(&run.output) < EXACT_F32 || !run.report.audited,
            "round {round}: {:?}",
            run.report
        );
        run.report.flagged.contains(&SubtaskId(0))
    });
    assert!(caught, "it was never among the first");
    lying.store(false, Ordering::SeqCst);
    let audited = |runs: usize| (0..runs).filter(|_| run().report.audited).count();
    let strict = audited(Audit::WATCH_EVERY as usize);
    // On a busy machine some runs may lack a timely spare result.
    assert!(strict >= 16, "{strict} of {}", Audit::WATCH_EVERY);
    // A late wrong result may be found in one of those runs, which then starts another series of audits.
    audited(Audit::WATCH_EVERY as usize);
    let after = audited(64);
    assert!(after < 32, "{after} of 64");
}

#[test]
fn runs_without_a_spare_result_say_that_they_were_not_checked() {
    let layer = small();
    let pool = pool(4, AWAY, |_, worker, call| call.answer(worker));
    let none = fcdcc::LayerOptions { tolerate: 0, ..options(4, 4) };
    let report = layer.prepare(&pool, none).unwrap().run(layer.input.view()).unwrap().report;
    assert!(!report.audited && report.audit_floor.is_none(), "{report:?}");
    assert_eq!(report.completion, Completion::Exact);
    // The audit does not change the output.
    let off = options(2, 4).audit(Audit::Off);
    let report = layer.prepare(&pool, off).unwrap().run(layer.input.view()).unwrap().report;
    assert!(!report.audited, "{report:?}");
}

#[test]
fn without_a_way_out_a_contradiction_is_refused() {
    let layer = small();
    // With one spare result and no other fallback, the faulty worker cannot be located. It answers the first run first:
    // the four others would suffice without it.
    let pool = led_by(5, 1, off);
    let strict = options(4, 4).on_shortfall(OnShortfall::Fail);
    let prepared = layer.prepare(&pool, strict).unwrap();
    let mut refused = 0;
    for _ in 0..5 {
        match prepared.run(layer.input.view()) {
            Err(error @ Error::Corrupted { .. }) => {
                assert_eq!(error.kind(), fcdcc::ErrorKind::Refused);
                refused += 1;
            }
            Ok(run) => assert!(!run.report.audited || layer.error(&run.output) < EXACT_F32),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused >= 1);
    // With local computation allowed, the result is computed locally and locates the faulty worker.
    let pool = led_by(5, 1, off);
    let free = layer.prepare(&pool, options(4, 4)).unwrap();
    let run = free.run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32, "{:?}", run.report);
    assert_eq!(run.report.completion, Completion::ExactLocally);
    assert!(run.report.audited);
    assert_eq!(pool.health(WorkerId(1)).unwrap().state, State::Quarantined, "{:?}", run.report);
}

#[test]
fn copies_of_small_parts_are_checked_as_well_as_large_ones() {
    // The upper half of the picture is a million times larger than the lower half. The faulty worker computes only the
    // lower half.
    let mut layer = Layer::<f32>::without_truth(&[1, 3, 12, 10], &[8, 3, 1, 1], ConvParams::default());
    layer.bias.fill(0.0);
    for (i, value) in layer.input.iter_mut().enumerate() {
        *value *= if i % 120 < 60 { 1e6 } else { 1.0 };
    }
    let (x, w) = (layer.input.as_slice().unwrap(), layer.weight.as_slice().unwrap());
    let truth = fcdcc::conv::reference(&layer.shape(), x, w, None).unwrap();
    // Twice the correct values: a part with an error of 100 %.
    let pool = led_by(6, 5, |mut values| {
        if let Values::F32(values) = &mut values {
            for value in values {
                *value *= 2.0;
            }
        }
        values
    });
    let replicated = fcdcc::LayerOptions {
        code: CodeKind::Replication,
        partitions: Some((2, 1)),
        ..options(2, 1).audit(Audit::Correct)
    };
    let run = layer.prepare(&pool, replicated).unwrap().run(layer.input.view()).unwrap();
    let lower = |values: &[f32]| -> Vec<f32> {
        values.iter().enumerate().filter(|(i, _)| i % 120 >= 60).map(|(_, v)| *v).collect()
    };
    let error = relative_l2(&lower(run.output.as_slice().unwrap()), &lower(&truth));
    assert!(error < EXACT_F32, "{error:e}, {:?}", run.report);
    assert_eq!(run.report.flagged, [SubtaskId(5)], "{:?}", run.report);
}

#[test]
fn a_liar_in_a_small_channel_is_found() {
    // Channels from 1e-4 to 1e4; the faulty worker is wrong only in the smallest.
    let mut layer =
        Layer::<f32>::without_truth(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default().padding([1]));
    layer.bias.fill(0.0);
    for (i, value) in layer.weight.iter_mut().enumerate() {
        *value *= 10.0_f32.powi(i32::try_from(i / 27).unwrap() - 4);
    }
    // One bank: the coded filters of a subtask are the filters, and its first channel is the smallest.
    let pool = led_by(6, 2, |mut values| {
        if let Values::F32(values) = &mut values {
            let channel = values.len() / 8;
            for value in &mut values[..channel] {
                *value *= 1.5;
            }
        }
        values
    });
    let prepared = layer.prepare(&pool, options(8, 1).audit(Audit::Correct)).unwrap();
    let run = prepared.run(layer.input.view()).unwrap();
    assert_eq!(run.report.flagged, [SubtaskId(2)], "{:?}", run.report);
}
