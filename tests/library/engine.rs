//! Coded layers over pools of CPU workers with injected faults: exact, in time, and correctly reported.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcdcc::coding::Clamp;
use fcdcc::worker::intercept;
use fcdcc::{
    CancelToken, CodeKind, CodedConv, Completion, ConvParams, CpuWorker, Error, LayerOptions, OnShortfall,
    Pool, SubtaskId, WorkerId,
};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, list, options, pool, small};
use fcdcc_test_support::{every_row, mean_squared_error, normal, relative_l2, subsets, subtasks};
use ndarray::{ArrayD, ArrayView1, IxDyn};

/// Names of the workers with an outcome.
fn with_outcome(report: &fcdcc::LayerReport, outcome: &str) -> Vec<usize> {
    let rows = report.workers.iter().filter(|w| format!("{:?}", w.outcome).to_lowercase() == outcome);
    rows.map(|w| w.subtask.unwrap().0).collect()
}

#[test]
fn every_responder_set_of_small_codes_is_exact_and_reported() {
    let layer = small();
    every_row([(6, 4, 4, 4), (10, 4, 8, 8)], |(n, k_a, k_b, delta)| {
        for survivors in subsets(n, delta) {
            let dead: Vec<usize> = (0..n).filter(|i| !survivors.contains(i)).collect();
            let pool = pool(n, &[&format!("{}:crash", list(&dead))]);
            let run = layer.prepare(&pool, fail(k_a, k_b)).unwrap().run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "{survivors:?}");
            assert_eq!(run.report.used, subtasks(&survivors));
            assert_eq!(with_outcome(&run.report, "used"), survivors);
            assert_eq!(run.report.recovery_threshold, delta);
        }
    });
}

#[test]
fn the_activation_comes_after_the_bias_however_the_output_came_about() {
    let layer = small();
    let truth = layer.prepare(&pool(6, &[]), fail(4, 4)).unwrap().run(layer.input.view()).unwrap().output;
    let clamp = Clamp { low: -0.25, high: 0.5 };
    let expected: Vec<f32> = truth.iter().map(|v| v.clamp(-0.25, 0.5)).collect();
    assert!(relative_l2(truth.as_slice().unwrap(), &expected) > 0.1, "the bounds must cut something");
    let with = |options: LayerOptions| LayerOptions { clamp: Some(clamp), ..options };
    let uncoded = LayerOptions { code: CodeKind::Uncoded, ..options(2, 3) };
    let rows = [
        // Both sides split, one side split, selected, computed locally.
        (6, fail(4, 4), "1,4:crash"),
        (6, fail(1, 8), "1,4:crash"),
        (6, fail(8, 1), "0,5:crash"),
        (6, uncoded, "0:delay=0ms"),
        (6, options(4, 4).on_shortfall(OnShortfall::Local), "0,1,2:crash"),
    ];
    every_row(rows, |(n, options, fault)| {
        let prepared = layer.prepare(&pool(n, &[fault]), with(options.clone())).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        let got = run.output.as_slice().unwrap();
        assert!(relative_l2(got, &expected) < EXACT_F32, "{options:?} {fault}");
        assert!(got.iter().all(|v| (-0.25..=0.5).contains(v)));
        assert_eq!(run.report.fallback.is_some(), fault.starts_with("0,1,2"));
    });
    every_row([(1.0, 0.0), (f64::NAN, 1.0), (0.0, f64::NAN)], |(low, high)| {
        let options = LayerOptions { clamp: Some(Clamp { low, high }), ..options(4, 4) };
        let Err(error) = layer.prepare(&pool(6, &[]), options) else { panic!("{low} to {high}") };
        assert!(error.to_string().contains("activation"), "{error}");
    });
}

#[test]
fn shared_filters_are_checked_and_used_as_they_are() {
    let layer = small();
    let shape = layer.shape();
    let weight: Arc<Vec<f32>> = Arc::new(layer.weight.iter().copied().collect());
    let shared =
        CodedConv::prepare_shared(&pool(6, &[]), shape.clone(), weight.clone(), None, fail(4, 4)).unwrap();
    assert_eq!(Arc::strong_count(&weight), 3, "no copy was made");
    let plain = CodedConv::builder(&pool(6, &[]), layer.input.shape(), layer.weight.view())
        .params(layer.params.clone())
        .options(fail(4, 4))
        .prepare();
    let (a, b) = (shared.run(layer.input.view()).unwrap(), plain.unwrap().run(layer.input.view()).unwrap());
    assert!(relative_l2(a.output.as_slice().unwrap(), b.output.as_slice().unwrap()) < EXACT_F32);
    let few = CodedConv::prepare_shared(&pool(6, &[]), shape, Arc::new(vec![0.0f32; 3]), None, fail(4, 4));
    let Err(few) = few else { panic!("three elements are no filters") };
    assert!(few.to_string().contains("elements of the weight is 3"), "{few}");
}

#[test]
fn one_fewer_than_the_threshold_fails_when_the_dead_are_known_not_at_the_deadline() {
    let layer = small();
    for dead in subsets(6, 3) {
        let pool = pool(6, &[&format!("{}:crash", list(&dead))]);
        let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
        let started = Instant::now();
        let error = prepared.run(layer.input.view()).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(10), "waited for the dead");
        let Error::Shortfall { needed: 4, total: 6, arrived, .. } = &error else { panic!("{error}") };
        assert!(*arrived <= 3);
        let text = error.to_string();
        for subtask in dead {
            assert!(text.contains(&format!("subtask {subtask} on cpu-{subtask}")), "{text}");
        }
        // Lost workers stay lost: the next run knows at once.
        assert!(matches!(prepared.run(layer.input.view()), Err(Error::Shortfall { .. })));
    }
}

#[test]
fn a_caller_can_cancel_a_run_and_run_the_layer_again() {
    let layer = small();
    let (begun, waits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let worker = |i: usize| {
        let (begun, waits) = (Arc::clone(&begun), Arc::clone(&waits));
        let worker = intercept(CpuWorker::new(format!("cpu-{i}"), 1)).on_execute(move |inner, task, emit| {
            begun.fetch_add(1, Ordering::SeqCst);
            if waits.load(Ordering::SeqCst) {
                task.cancel.wait();
                return Err(Error::Cancelled);
            }
            inner.execute(task, emit)
        });
        worker.boxed()
    };
    let pool = Pool::new((0..6).map(worker).collect()).unwrap();
    // Without the token the run would last until its deadline.
    let prepared = layer.prepare(&pool, fail(4, 4).deadline(Duration::from_mins(5))).unwrap();
    let cancel = CancelToken::new();
    let started = Instant::now();
    let end = std::thread::scope(|scope| {
        let run = scope.spawn(|| prepared.run_cancellable(layer.input.view(), &cancel));
        while begun.load(Ordering::SeqCst) < 6 && started.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        cancel.cancel();
        run.join().unwrap()
    });
    assert!(matches!(end, Err(Error::Cancelled)));
    assert!(pool.wait_idle(Duration::from_secs(10)), "the workers stop");
    // A token that is cancelled already ends a run before it waits.
    assert!(matches!(prepared.run_cancellable(layer.input.view(), &cancel), Err(Error::Cancelled)));
    assert!(started.elapsed() < Duration::from_mins(1));
    // Negative control: another token does not end a run, and no worker is lost by the cancelled ones.
    waits.store(false, Ordering::SeqCst);
    let run = prepared.run_cancellable(layer.input.view(), &CancelToken::new()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert!((0..6).all(|worker| pool.lost(WorkerId(worker)).is_none()));
}

#[test]
fn silent_workers_cost_the_deadline_and_no_more() {
    let layer = small();
    let pool = pool(6, &["0,1,2:drop"]);
    let prepared = layer.prepare(&pool, fail(4, 4).deadline(Duration::from_millis(200))).unwrap();
    let started = Instant::now();
    let error = prepared.run(layer.input.view()).unwrap_err().to_string();
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(
        error.contains("3 came") && error.contains("(no answer)") && error.contains("Policy::deadline"),
        "{error}"
    );
}

#[test]
fn missing_subtasks_are_redispatched_to_the_living_and_computed_locally_when_nobody_lives() {
    let layer = small();
    let pool3 = pool(6, &["1,3,5:crash"]);
    let prepared = layer.prepare(&pool3, options(4, 4)).unwrap();
    for round in 0..3 {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        assert_eq!((run.report.used.len(), run.report.fallback), (4, None));
        // From then on other workers may hold the subtasks of the lost ones permanently.
        assert!(run.report.redispatched == 1 || round > 0 && run.report.redispatched == 0);
        assert!(round > 0 || run.report.completion == Completion::ExactAfterRedispatch);
    }
    every_row([OnShortfall::Redispatch, OnShortfall::Local], |how| {
        let dead = pool(6, &["all:crash"]);
        let prepared = layer.prepare(&dead, options(4, 4).on_shortfall(how)).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < 1e-5);
        assert_eq!(run.report.fallback.as_deref(), Some("local"));
        assert!(run.report.used.is_empty());
    });
}

#[test]
fn two_of_six_delayed_cost_nothing_and_do_not_slow_the_next_run() {
    let (layer, truth) =
        Layer::<f32>::large(&[1, 64, 56, 56], &[64, 64, 3, 3], ConvParams::default().padding([1]));
    let pool = pool(6, &["1,4:delay=5s"]);
    let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
    let started = Instant::now();
    for _ in 0..3 {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(relative_l2(run.output.as_slice().unwrap(), &truth) < EXACT_F32);
        assert_eq!(run.report.used, [0, 2, 3, 5].map(SubtaskId));
        assert_eq!(with_outcome(&run.report, "cancelled"), [1, 4]);
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?} for three runs", started.elapsed());
}

#[test]
fn dead_in_the_middle_stays_dead_and_costs_only_its_share() {
    let layer = small();
    let pool = pool(6, &["2:crash"]);
    let (first, second) =
        (layer.prepare(&pool, fail(4, 4)).unwrap(), layer.prepare(&pool, fail(4, 4)).unwrap());
    // The others may decode before this worker gets its first task; within some runs it gets one.
    let started = Instant::now();
    while pool.lost(WorkerId(2)).is_none() && started.elapsed() < Duration::from_secs(20) {
        first.run(layer.input.view()).unwrap();
    }
    assert!(pool.lost(WorkerId(2)).unwrap().contains("crash"), "{:?}", pool.lost(WorkerId(2)));
    let run = second.run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert!(!run.report.used.contains(&SubtaskId(2)));
    // A layer prepared after the loss is not affected.
    let third = layer.prepare(&pool, fail(4, 4)).unwrap();
    assert!(layer.error(&third.run(layer.input.view()).unwrap().output) < EXACT_F32);
}

#[test]
fn alexnet_conv1_survives_any_four_of_twenty() {
    let (layer, truth) =
        Layer::<f32>::large(&[1, 3, 227, 227], &[96, 3, 11, 11], ConvParams::default().stride([4]));
    every_row([[0, 5, 10, 15], [0, 1, 2, 3], [3, 8, 11, 19], [16, 17, 18, 19]], |dead| {
        let pool = pool(20, &[&format!("{}:crash", list(&dead))]);
        let run = layer.prepare(&pool, fail(8, 8)).unwrap().run(layer.input.view()).unwrap();
        let error = relative_l2(run.output.as_slice().unwrap(), &truth);
        assert!(error < 1e-4, "{dead:?}: {error:e} at cond {:.0}", run.report.condition_number);
        assert!(error < run.report.error_bound);
    });
    let (layer, truth) =
        Layer::<f64>::large(&[1, 3, 227, 227], &[96, 3, 11, 11], ConvParams::default().stride([4]));
    let pool = pool(20, &["0,5,10,15:crash"]);
    let run = layer.prepare(&pool, fail(8, 8)).unwrap().run(layer.input.view()).unwrap();
    assert!(run.report.condition_number < 20.0);
    let mse = mean_squared_error(run.output.as_slice().unwrap(), &truth);
    assert!(mse < 1e-26, "{mse:e}");
}

#[test]
fn vgg16_layers_survive_two_of_six() {
    // (C, O, H = W) of the distinct convolutions; all are 3x3 with padding 1.
    let layers = [
        (3, 64, 224),
        (64, 64, 224),
        (64, 128, 112),
        (128, 128, 112),
        (128, 256, 56),
        (256, 256, 56),
        (256, 512, 28),
        (512, 512, 28),
        (512, 512, 14),
    ];
    every_row(layers.into_iter().enumerate(), |(i, (c, o, size))| {
        let (layer, truth) =
            Layer::<f32>::large(&[1, c, size, size], &[o, c, 3, 3], ConvParams::default().padding([1]));
        let pool = pool(6, &[&format!("{},{}:crash", i % 6, (i + 1 + i / 2 % 4) % 6)]);
        let run = layer.prepare(&pool, fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
        let error = relative_l2(run.output.as_slice().unwrap(), &truth);
        assert!(error < 1e-4 && error < run.report.error_bound, "{c} -> {o} at {size}: {error:e}");
    });
}

#[test]
fn shapes_of_every_rank_groups_and_batch_run_coded() {
    let p = ConvParams::default;
    let cases: Vec<(Vec<usize>, Vec<usize>, ConvParams)> = vec![
        (vec![2, 3, 31], vec![9, 3, 5], p().stride([2]).padding([2, 1])),
        (vec![1, 2, 9, 6, 5], vec![4, 2, 3, 2, 1], p().padding([1, 0, 0, 1, 1, 0]).stride([1, 2, 1])),
        (vec![3, 8, 14, 13], vec![12, 2, 3, 3], p().groups(4).dilation([2, 1])),
        (vec![1, 8, 14, 14], vec![8, 1, 3, 3], p().groups(8).padding([1])),
        (vec![1, 64, 1, 1], vec![100, 64, 1, 1], p()),
    ];
    every_row(cases, |(input, weight, params)| {
        let layer = Layer::<f32>::new(&input, &weight, params);
        let pool = pool(7, &["random:2:crash"]);
        let prepared = layer.prepare(&pool, LayerOptions::default().on_shortfall(OnShortfall::Fail)).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32, "{input:?}");
    });
}

#[test]
fn corrupt_and_nan_results() {
    let layer = small();
    // NaN results are rejected on arrival, flagged, and replaced by a spare.
    let nan = pool(6, &["0,3:nan"]);
    let run = layer.prepare(&nan, fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert_eq!(run.report.used, [1, 2, 4, 5].map(SubtaskId));
    assert!(run.report.flagged.iter().all(|s| [0, 3].contains(&s.0)));
    // One NaN too many is a refusal, not a shortfall; a healthy worker can still take over.
    let prepared = |on| layer.prepare(&pool(6, &["0,1,3:nan"]), options(4, 4).on_shortfall(on)).unwrap();
    assert!(matches!(
        prepared(OnShortfall::Fail).run(layer.input.view()),
        Err(Error::NonFiniteResults { .. })
    ));
    let run = prepared(OnShortfall::Redispatch).run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32 && run.report.redispatched == 1);
    // Without an audit, relative corruption is not detected: it shows in the output, which proves that these comparisons can
    // fail.
    let corrupt = pool(4, &["2:corrupt=1e-2"]);
    let run = layer.prepare(&corrupt, fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) > 1e-3);
}

#[test]
fn slow_workers_are_late_not_wrong() {
    let layer = small();
    let pool = pool(6, &["5:slow=50x", "all:delay=shifted-exp(1ms,2ms)"]);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    for _ in 0..20 {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        // Parts of more than four subtasks may have replaced four whole ones.
        assert!((4..=6).contains(&run.report.used.len()), "{:?}", run.report.used);
    }
}

#[test]
fn runs_from_several_threads_do_not_mix() {
    let pool = pool(6, &["all:delay=exp(1ms)"]);
    let layers: Vec<Layer<f32>> = (0..3)
        .map(|i| Layer::new(&[1, 2, 8 + i, 7], &[4 + i, 2, 3, 3], ConvParams::default().padding([1])))
        .collect();
    std::thread::scope(|scope| {
        for layer in &layers {
            let prepared = Arc::new(layer.prepare(&pool, fail(4, 4)).unwrap());
            for _ in 0..2 {
                let prepared = Arc::clone(&prepared);
                scope.spawn(move || {
                    for _ in 0..15 {
                        let run = prepared.run(layer.input.view()).unwrap();
                        assert!(layer.error(&run.output) < EXACT_F32);
                    }
                });
            }
        }
    });
}

#[test]
fn fewer_workers_than_subtasks_and_more_workers_than_parts() {
    let layer = small();
    let three = pool(3, &["1:crash"]);
    let run = layer
        .prepare(&three, LayerOptions { subtasks: Some(12), ..fail(4, 8) })
        .unwrap()
        .run(layer.input.view())
        .unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert!(run.report.used.iter().all(|subtask| subtask.0 % 3 != 1));
    // An uncoded layer of four parts leaves two of six workers idle.
    let six = pool(6, &["4,5:crash"]);
    let uncoded = LayerOptions { code: CodeKind::Uncoded, ..fail(2, 2) };
    let run = layer.prepare(&six, uncoded).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < 1e-6);
    assert_eq!(run.report.workers.iter().filter(|w| w.subtask.is_none()).count(), 2);
}

#[test]
fn unfit_inputs_are_refused_with_both_sides() {
    let layer = small();
    let pool = pool(6, &[]);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    let error = prepared.run(ArrayD::zeros(IxDyn(&[1, 3, 12, 11])).view()).unwrap_err().to_string();
    assert!(error.contains("[1, 3, 12, 11]") && error.contains("[1, 3, 12, 10]"), "{error}");
    let mut poisoned = layer.input.clone();
    poisoned[[0, 1, 2, 3]] = f32::NAN;
    let error = prepared.run(poisoned.view()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { what: "input", index: 143, .. }), "{error}");
    // Uncoded, a NaN stays in the windows that include it: 3 x 3 pixels of each of the 8 output channels.
    let uncoded = LayerOptions { code: CodeKind::Uncoded, ..options(6, 1) };
    let run = layer.prepare(&pool, uncoded).unwrap().run(poisoned.view()).unwrap();
    assert_eq!(run.output.iter().filter(|v| v.is_nan()).count(), 8 * 9);
    let refused = |options: LayerOptions| layer.prepare(&pool, options).err().unwrap().to_string();
    assert!(refused(fail(3, 4)).contains("k_A is 3"));
    assert!(refused(fail(8, 4)).contains("6 where at least 8"));
    assert!(refused(fail(24, 1)).contains("12 rows") || refused(fail(24, 1)).contains("at least 12"));
    assert!(refused(fail(4, 4).deadline(Duration::ZERO)).contains("deadline"));
    assert!(refused(LayerOptions { subtasks: Some(0), ..fail(4, 4) }).contains("number of subtasks"));
    assert!(refused(LayerOptions { max_error: Some(f64::NAN), ..fail(4, 4) }).contains("max_error"));
    let bias = normal::<f32>(7, 1);
    let wrong = CodedConv::builder(&pool, layer.input.shape(), layer.weight.view())
        .bias(ArrayView1::from(&bias))
        .params(layer.params.clone())
        .options(fail(4, 4))
        .prepare();
    assert!(wrong.err().unwrap().to_string().contains("7 where 8"));
    assert!(Pool::new(Vec::new()).unwrap_err().to_string().contains("at least one worker"));
}

#[test]
fn the_error_bound_refuses_and_overflow_is_named() {
    let layer = small();
    let pool = pool(6, &[]);
    let strict = LayerOptions { max_error: Some(1e-9), ..fail(4, 4) };
    let error = layer.prepare(&pool, strict).unwrap().run(layer.input.view()).unwrap_err();
    assert!(matches!(error, Error::ErrorBound { tolerance: 1e-9, .. }), "{error}");
    let lax = LayerOptions { max_error: Some(1e-2), ..fail(4, 4) };
    assert!(layer.prepare(&pool, lax).unwrap().run(layer.input.view()).is_ok());
    let huge = layer.input.mapv(|v| v * 3e37);
    every_row([OnShortfall::Fail, OnShortfall::Redispatch, OnShortfall::Local], |on| {
        let error =
            layer.prepare(&pool, options(4, 4).on_shortfall(on)).unwrap().run(huge.view()).unwrap_err();
        assert!(matches!(error, Error::NonFiniteResults { .. }), "{error}");
        assert!(error.to_string().contains("f64"), "{error}");
    });
}

#[test]
fn non_contiguous_views_are_as_good_as_contiguous_ones() {
    let layer = small();
    let pool = pool(6, &[]);
    let prepared = layer.prepare(&pool, fail(4, 4)).unwrap();
    let mut swapped = ArrayD::zeros(IxDyn(&[1, 3, 10, 12]));
    swapped.assign(&layer.input.view().permuted_axes(IxDyn(&[0, 1, 3, 2])));
    let run = prepared.run(swapped.view().permuted_axes(IxDyn(&[0, 1, 3, 2]))).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
}
