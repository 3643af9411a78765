//! The same coded layers on CPU and GPU workers: every responder set is exact, and both backends agree.
//!
//! Without a GPU adapter the tests are shown as ignored; with `CI=true` they fail instead.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support;
use fcdcc::conv::{conv_uncoded, reference};
use fcdcc::engine::WindowwiseLimit;
use fcdcc::scheduler::State;
use fcdcc::worker::{CpuWorker, FaultSpec, GpuOptions, GpuWorker, inject, intercept};
use fcdcc::{
    CodeKind, CodedConv, Completion, ConvParams, ConvShape, Element, Error, LayerOptions, OnShortfall,
    Outcome, Pool, SubtaskId, Worker, WorkerId,
};
use fcdcc_test_support::uneven::{Kind, Measured, Wild, measure};
use fcdcc_test_support::{every_row, normal, relative_l2, subsets, subtasks};
use libtest_mimic::Trial;
use ndarray::{ArrayD, IxDyn};

/// f32 workers at the condition numbers of these small codes (below 30).
const EXACT_F32: f64 = 3e-5;
/// f64 workers at the same condition numbers.
const EXACT_F64: f64 = 1e-12;
/// Two f32 backends on one well conditioned set: only the order of their sums differs.
const AGREEMENT: f64 = 1e-5;

/// A worker that answers only while its bit is set, so that one pool can test every responder set.
fn switched(inner: Box<dyn Worker>, bit: usize, responders: &Arc<AtomicU64>) -> Box<dyn Worker> {
    let (worker, responders) = (inner.info().name, Arc::clone(responders));
    let switched = intercept(inner).on_execute(move |inner, task, emit| {
        if responders.load(Ordering::SeqCst) >> bit & 1 == 0 {
            return Err(Error::WorkerFailed { worker: worker.clone(), cause: "switched off".to_owned() });
        }
        inner.execute(task, emit)
    });
    switched.never_respawned().boxed()
}

fn gpu(n: usize) -> Vec<Box<dyn Worker>> {
    GpuWorker::fleet(n, None).unwrap()
}

fn options(k_a: usize, k_b: usize) -> LayerOptions {
    LayerOptions::default()
        .partitions(k_a, k_b)
        .on_shortfall(OnShortfall::Fail)
        .deadline(Duration::from_mins(1))
}

fn array<T: Element>(shape: &[usize], seed: u64) -> ArrayD<T> {
    ArrayD::from_shape_vec(IxDyn(shape), normal(shape.iter().product(), seed)).unwrap()
}

fn every_responder_set<T: Element>(make: fn(usize) -> Vec<Box<dyn Worker>>, tolerance: f64) {
    let params = ConvParams::default().padding([1]);
    let (x, w) = (array::<T>(&[1, 3, 12, 10], 1), array::<T>(&[8, 3, 3, 3], 2));
    let shape = ConvShape::new(x.shape(), w.shape(), &params).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    every_row([(6, 4, 4, 4), (10, 4, 8, 8)], |(n, k_a, k_b, delta)| {
        let responders = Arc::new(AtomicU64::new(0));
        let workers = make(n).into_iter().enumerate();
        let switched = workers.map(|(bit, inner)| switched(inner, bit, &responders));
        let pool = Pool::new(switched.collect()).unwrap();
        let layer = CodedConv::builder(&pool, x.shape(), w.view())
            .params(params.clone())
            .options(options(k_a, k_b))
            .prepare()
            .unwrap();
        for set in subsets(n, delta) {
            responders.store(set.iter().map(|i| 1 << i).sum(), Ordering::SeqCst);
            let run = layer.run(x.view()).unwrap();
            let error = relative_l2(run.output.as_slice().unwrap(), &truth);
            assert!(error < tolerance, "{set:?}: {error:e}");
            assert_eq!(run.report.used, subtasks(&set));
        }
        // One responder fewer is a named error, so the runs above depend on exactly these responders.
        for set in subsets(n, delta - 1).into_iter().step_by(7) {
            responders.store(set.iter().map(|i| 1 << i).sum(), Ordering::SeqCst);
            let error = layer.run(x.view()).unwrap_err();
            assert!(matches!(error, Error::Shortfall { .. }), "{error}");
        }
    });
}

fn backends_agree() {
    let params = ConvParams::default().padding([1]);
    let (x, w) = (array::<f32>(&[1, 64, 56, 56], 3), array::<f32>(&[64, 64, 3, 3], 4));
    let run = |workers| {
        let pool =
            Pool::new(inject(workers, &["0,3:drop".parse::<FaultSpec>().unwrap()], 0).unwrap()).unwrap();
        CodedConv::builder(&pool, x.shape(), w.view())
            .params(params.clone())
            .options(options(4, 4))
            .prepare()
            .unwrap()
            .run(x.view())
            .unwrap()
    };
    let (on_cpu, on_gpu) = (run(CpuWorker::fleet(6)), run(gpu(6)));
    assert_eq!((on_cpu.report.backend.as_str(), on_gpu.report.backend.as_str()), ("cpu", "gpu"));
    assert_eq!(on_cpu.report.used, on_gpu.report.used);
    let difference = relative_l2(on_gpu.output.as_slice().unwrap(), on_cpu.output.as_slice().unwrap());
    assert!(difference < AGREEMENT, "{difference:e}");
    let mut off = on_gpu.output.clone();
    off[[0, 5, 6, 7]] += 1.0;
    assert!(relative_l2(off.as_slice().unwrap(), on_cpu.output.as_slice().unwrap()) > AGREEMENT);
}

/// Workers with 16-bit storage: the error bound includes the loss of precision and holds; one such worker in a pool
/// determines the bound.
fn half_storage_is_within_its_bound() {
    let params = ConvParams::default().padding([1]);
    let (x, w) = (array::<f32>(&[1, 24, 20, 18], 3), array::<f32>(&[16, 24, 3, 3], 4));
    let shape = ConvShape::new(x.shape(), w.shape(), &params).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    let half = |count| {
        let options = GpuOptions { half_storage: true, ..GpuOptions::default() };
        GpuWorker::fleet_with(count, &options).unwrap()
    };
    let run = |workers: Vec<Box<dyn Worker>>| {
        let pool = Pool::new(inject(workers, &["1:drop".parse::<FaultSpec>().unwrap()], 0).unwrap()).unwrap();
        let options = LayerOptions { max_error: Some(10.0), ..options(4, 4).tolerate(1) };
        let layer = CodedConv::builder(&pool, x.shape(), w.view())
            .params(params.clone())
            .options(options)
            .prepare()
            .unwrap();
        let run = layer.run(x.view()).unwrap();
        (relative_l2(run.output.as_slice().unwrap(), &truth), run.report)
    };
    let (error, report) = run(half(6));
    assert!((1e-4..report.error_bound).contains(&error), "{error:e}, bound {:e}", report.error_bound);
    assert!(half(1)[0].info().device.ends_with("f16 storage"));
    let (exact, full) = run(gpu(6));
    // Responder sets differ in their condition number, 1.4 to 18.4, and both bounds go with it.
    assert!(exact < full.error_bound && full.error_bound < report.error_bound / 20.0, "{exact:e}, {full:?}");
    // Four results are needed and only two of these workers are exact, so some results are not.
    let mut mixed = half(4);
    mixed.extend(CpuWorker::fleet(2));
    let (error, report) = run(mixed);
    assert!((1e-5..report.error_bound).contains(&error), "{error:e}, bound {:e}", report.error_bound);
    // These workers do not support f64.
    let pool = Pool::new(half(2)).unwrap();
    let (x, w) = (array::<f64>(&[1, 3, 8, 8], 1), array::<f64>(&[4, 3, 3, 3], 2));
    let refused = CodedConv::builder(&pool, x.shape(), w.view())
        .params(params.clone())
        .options(options(1, 1))
        .prepare();
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
}

/// A device that is really lost in the middle of a run costs that run one spare result; a new one replaces it, filters
/// included.
fn a_lost_device_is_replaced() {
    let params = ConvParams::default().padding([1]);
    let (x, w) = (array::<f32>(&[1, 3, 12, 10], 1), array::<f32>(&[8, 3, 3, 3], 2));
    let shape = ConvShape::new(x.shape(), w.shape(), &params).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    let made = Arc::new(AtomicU64::new(0));
    let counted = |inner: Box<dyn Worker>| {
        let made = Arc::clone(&made);
        let counting = intercept(inner).respawned(move |again| {
            made.fetch_add(1, Ordering::SeqCst);
            again
        });
        counting.boxed()
    };
    let workers: Vec<_> = gpu(6).into_iter().map(counted).collect();
    let fault: FaultSpec = "1:device-lost".parse().unwrap();
    let pool = Pool::new(inject(workers, &[fault], 0).unwrap()).unwrap();
    let layer = CodedConv::builder(&pool, x.shape(), w.view())
        .params(params.clone())
        .options(options(4, 4))
        .prepare()
        .unwrap();
    let started = Instant::now();
    // The outcome of subtask 1 in one more run.
    let outcome = || {
        assert!(started.elapsed() < Duration::from_mins(2), "in vain: {:?}", pool.health(WorkerId(1)));
        let run = layer.run(x.view()).unwrap();
        assert!(relative_l2(run.output.as_slice().unwrap(), &truth) < EXACT_F32);
        run.report.workers.iter().find(|row| row.subtask == Some(SubtaskId(1))).unwrap().outcome
    };
    while made.load(Ordering::SeqCst) == 0 || pool.health(WorkerId(1)).unwrap().state == State::Lost {
        outcome();
    }
    let mut last = Outcome::Idle;
    while last != Outcome::Used {
        last = outcome();
        assert!(matches!(last, Outcome::Used | Outcome::Late | Outcome::Cancelled), "{last:?}");
    }
    assert_eq!((made.load(Ordering::SeqCst), pool.lost(WorkerId(1))), (1, None));
}

/// AlexNet conv1 with the worst set of a code of twenty: f32 rounding times a condition number of 1551.
fn alexnet_conv1_survives_the_worst_loss() {
    let params = ConvParams::default().stride([4]);
    let (x, w) = (array::<f32>(&[1, 3, 227, 227], 5), array::<f32>(&[96, 3, 11, 11], 6));
    let shape = ConvShape::new(x.shape(), w.shape(), &params).unwrap();
    let wide = |a: &ArrayD<f32>| a.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let truth = conv_uncoded(&shape, &wide(&x), &wide(&w), None, 2, &|| false).unwrap();
    for make in [gpu, CpuWorker::fleet] {
        let workers = inject(make(20), &["0,1,2,3:crash".parse::<FaultSpec>().unwrap()], 0).unwrap();
        let pool = Pool::new(workers).unwrap();
        let any = LayerOptions { max_windowwise: WindowwiseLimit::Off, ..options(8, 8) };
        let layer = CodedConv::builder(&pool, x.shape(), w.view())
            .params(params.clone())
            .options(any)
            .prepare()
            .unwrap();
        let run = layer.run(x.view()).unwrap();
        let error = relative_l2(run.output.as_slice().unwrap(), &truth);
        assert!(error < 1e-4, "{}: {error:e}", run.report.backend);
        assert!((run.report.condition_number / 1551.0 - 1.0).abs() < 0.01);
        // By default such a loss is computed locally instead.
        let workers = inject(make(20), &["0,1,2,3:crash".parse::<FaultSpec>().unwrap()], 0).unwrap();
        let pool = Pool::new(workers).unwrap();
        let layer = CodedConv::builder(&pool, x.shape(), w.view())
            .params(params.clone())
            .options(options(8, 8))
            .prepare()
            .unwrap();
        let run = layer.run(x.view()).unwrap();
        assert_eq!(run.report.completion, Completion::ExactLocally);
        assert!(relative_l2(run.output.as_slice().unwrap(), &truth) < 1e-6);
    }
}

fn mixed_pools_and_uncoded_layers_work() {
    let params = ConvParams::default().groups(2).stride([2]).padding([2, 1]);
    let (x, w) = (array::<f32>(&[2, 6, 15, 13], 7), array::<f32>(&[10, 3, 3, 3], 8));
    let shape = ConvShape::new(x.shape(), w.shape(), &params).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    let mut workers = CpuWorker::fleet(4);
    workers.extend(gpu(2));
    let pool = Pool::new(inject(workers, &["1:nan".parse::<FaultSpec>().unwrap()], 0).unwrap()).unwrap();
    let layer = CodedConv::builder(&pool, x.shape(), w.view()).params(params.clone()).prepare().unwrap();
    let run = layer.run(x.view()).unwrap();
    assert_eq!(run.report.backend, "mixed");
    assert!(relative_l2(run.output.as_slice().unwrap(), &truth) < EXACT_F32);
    let uncoded = LayerOptions { code: CodeKind::Uncoded, ..LayerOptions::default() };
    let pool = Pool::new(gpu(3)).unwrap();
    let layer = CodedConv::builder(&pool, x.shape(), w.view())
        .params(params.clone())
        .options(uncoded)
        .prepare()
        .unwrap();
    let run = layer.run(x.view()).unwrap();
    assert_eq!(run.report.used.len(), 3);
    assert!(relative_l2(run.output.as_slice().unwrap(), &truth) < EXACT_F32);
}

/// LeNet-5 gives the same on GPU workers, two of which hang, as on CPU workers, and on a pool of both.
#[cfg(feature = "onnx")]
fn a_model_runs_on_gpu_workers() {
    use fcdcc::model::{GemmChoice, Model, ModelOptions, Tensor};
    let model = Model::from_bytes("lenet5.onnx", include_bytes!("../../assets/digits/lenet5.onnx")).unwrap();
    let model = model.with_input_shape("image", &[8, 1, 32, 32]).unwrap();
    let images = ArrayD::from_shape_vec(vec![8, 1, 32, 32], normal::<f32>(8 * 1024, 5)).unwrap();
    let images = [Tensor::from(images)];
    let options = ModelOptions { gemm: GemmChoice::On, ..ModelOptions::default() };
    let logits = |workers: Vec<Box<dyn Worker>>, fault: &str| {
        let workers = inject(workers, &[fault.parse::<FaultSpec>().unwrap()], 0).unwrap();
        let prepared = model.prepare(&Pool::new(workers).unwrap(), &options).unwrap();
        let runs = [prepared.run(&images).unwrap(), prepared.run(&images).unwrap()];
        assert!(runs[1].layers.iter().all(|l| l.used.len() >= 4 && l.fallback.is_none()));
        runs[1].outputs[0].tensor.to_f64()
    };
    let truth = logits(CpuWorker::fleet(6), "0:delay=0ms");
    let error = relative_l2(&logits(gpu(6), "1,4:drop"), &truth);
    assert!(error < EXACT_F32, "{error:e}");
    let mut mixed = CpuWorker::fleet(3);
    mixed.extend(gpu(3));
    let error = relative_l2(&logits(mixed, "0,5:crash"), &truth);
    assert!(error < EXACT_F32, "{error:e}");
}

fn half(n: usize) -> Vec<Box<dyn Worker>> {
    let options = GpuOptions { half_storage: true, ..GpuOptions::default() };
    GpuWorker::fleet_with(n, &options).unwrap()
}

/// For uneven data, every element is within the bounds of its report, and these are within `limit`.
fn uneven_data_are_exact(make: fn(usize) -> Vec<Box<dyn Worker>>, limit: f64) {
    let pool = Pool::new(make(6)).unwrap();
    // One layer that suits Winograd's filtering, and one that does not.
    let rows = [([1, 8, 32, 20], [16, 8, 3, 3]), ([1, 16, 20, 18], [16, 16, 3, 3])];
    every_row(rows, |(input, weight)| {
        for kind in Kind::ALL {
            let params = ConvParams::default().padding([1]);
            let shape = ConvShape::new(&input, &weight, &params).unwrap();
            let wild = Wild::of(kind, shape, params, 1);
            let array = |shape: &[usize], values: &[f64]| {
                let values = values.iter().map(|v| f32::from_f64(*v)).collect();
                ArrayD::<f32>::from_shape_vec(IxDyn(shape), values).unwrap()
            };
            let (x, w) = (array(&input, &wild.input), array(&weight, &wild.weight));
            for (k_a, k_b) in [(8, 1), (1, 8), (4, 4)] {
                let options = LayerOptions::default().partitions(k_a, k_b).deadline(Duration::from_mins(1));
                let layer = CodedConv::builder(&pool, x.shape(), w.view())
                    .params(wild.params.clone())
                    .options(options)
                    .prepare()
                    .unwrap();
                let run = layer.run(x.view()).unwrap();
                let got: Vec<f64> = run.output.iter().map(|v| f64::from(*v)).collect();
                let Measured { windowwise, normwise } = measure::<f32>(&wild, &got);
                let report = &run.report;
                let name = format!("{kind:?} {k_a},{k_b}: {windowwise:e} {normwise:e} {report:?}");
                assert!(windowwise <= report.windowwise_bound && report.windowwise_bound <= limit, "{name}");
                assert!(normwise <= report.error_bound, "{name}");
            }
        }
    });
}

pub(crate) fn trials() -> Vec<Trial> {
    let f64_there = fcdcc::gpu::select(None).is_ok_and(|a| a.iter().all(|a| a.features.f64));
    let f16_there = fcdcc::gpu::select(None).is_ok_and(|a| a.iter().all(|a| a.features.f16));
    let tests: Vec<(&str, bool, fn())> = vec![
        ("every_responder_set_is_exact_on_gpu_workers", true, || every_responder_set::<f32>(gpu, EXACT_F32)),
        ("every_responder_set_is_exact_on_gpu_workers_in_f64", f64_there, || {
            every_responder_set::<f64>(gpu, EXACT_F64);
        }),
        ("every_responder_set_is_exact_on_cpu_workers_in_f64", true, || {
            every_responder_set::<f64>(CpuWorker::fleet, EXACT_F64);
        }),
        ("backends_agree", true, backends_agree),
        ("half_storage_is_within_its_bound", f16_there, half_storage_is_within_its_bound),
        ("uneven_data_are_exact_on_gpu_workers", true, || uneven_data_are_exact(gpu, 1e-4)),
        ("uneven_data_are_within_their_bounds_in_half_storage", f16_there, || {
            uneven_data_are_exact(half, 2e-2);
        }),
        ("a_lost_device_is_replaced", true, a_lost_device_is_replaced),
        ("alexnet_conv1_survives_the_worst_loss", true, alexnet_conv1_survives_the_worst_loss),
        ("mixed_pools_and_uncoded_layers_work", true, mixed_pools_and_uncoded_layers_work),
        #[cfg(feature = "onnx")]
        ("a_model_runs_on_gpu_workers", true, a_model_runs_on_gpu_workers),
    ];
    let unable: Vec<String> =
        tests.iter().filter(|(_, able, _)| !able).map(|(name, ..)| (*name).to_owned()).collect();
    let boxed = |test: fn()| -> Box<dyn FnOnce() -> support::Outcome + Send> {
        Box::new(move || {
            test();
            Ok(())
        })
    };
    let tests = tests.into_iter().map(|(name, _, test)| (name.to_owned(), boxed(test))).collect();
    support::trials("backends", tests, &unable)
}
