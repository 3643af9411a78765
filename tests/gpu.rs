//! The GPU kernels and worker against the reference, on whatever adapter there is.
//!
//! Without an adapter every test is shown as ignored, never as passed; where `CI=true`, a missing adapter fails
//! them. Runs on the adapter that `WGPU_ADAPTER_NAME` names, or the preferred one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, here as under the usual harness")]
#![expect(clippy::unnecessary_wraps, reason = "all tests have one signature")]

use std::cell::Cell;
use std::time::Instant;

use fcdcc::Error;
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape, reference};
use fcdcc::gpu::{AdapterSelector, Candidate, ConvEngine, ConvPlan, GpuDevice, Kernel, adapters, select};
use fcdcc::worker::{
    CancelToken, Fault, FaultyWorker, FilterKey, GpuOptions, GpuWorker, Order, Probe, SubtaskShape, Worker,
    WorkerKind,
};
use libtest_mimic::{Arguments, Failed, Trial};

type Outcome = Result<(), Failed>;

/// Relative L2 error that rounding may cause. Each sum of K products, rounded at every step, is off by a random walk
/// of about sqrt(K) * eps/2 relative to the root of the sum of squares, which for random data is the sum's own size;
/// K reaches 73,728 here: 270 * 6e-8 = 1.6e-5 in the worst case, and most cases stay near 1e-6. A wrong element in
/// the largest output compared (34,848 elements) moves the error by at least 5e-3.
const TOLERANCE_F32: f64 = 2e-5;
/// The same with eps = 2.2e-16 (270 * 1.1e-16 = 3e-14), with room for the reference rounding likewise.
const TOLERANCE_F64: f64 = 1e-12;

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => TOLERANCE_F32,
        DType::F64 => TOLERANCE_F64,
    }
}

/// Uniform in [-1, 1), the same on every machine, exact in f32.
fn random(elems: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..elems)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 41) as f64 / f64::from(1 << 22) - 1.0
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the numbers are exact in f32")]
fn values(numbers: &[f64], dtype: DType) -> Values {
    match dtype {
        DType::F32 => Values::F32(numbers.iter().map(|n| *n as f32).collect()),
        DType::F64 => Values::F64(numbers.to_vec()),
    }
}

fn widened(values: &Values) -> Vec<f64> {
    match values {
        Values::F32(v) => v.iter().copied().map(f64::from).collect(),
        Values::F64(v) => v.clone(),
    }
}

/// NaN anywhere makes it NaN, which no tolerance admits.
fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| (g - e).powi(2)).sum();
    let size: f64 = expected.iter().map(|e| e.powi(2)).sum();
    (difference / size).sqrt()
}

fn shape(input: &[usize], weight: &[usize], params: &ConvParams) -> ConvShape {
    ConvShape::new(input, weight, params).unwrap()
}

fn engine() -> Result<ConvEngine, Error> {
    Ok(ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?))
}

/// Layers small enough for the reference: name, input, weight, parameters.
fn layers() -> Vec<(&'static str, ConvShape)> {
    let p = ConvParams::default;
    vec![
        ("1-D", shape(&[1, 3, 40], &[5, 3, 4], &p())),
        ("2-D, odd channels", shape(&[1, 5, 9, 11], &[17, 5, 3, 3], &p())),
        (
            "3-D, stride and dilation",
            shape(&[1, 3, 7, 8, 9], &[5, 3, 2, 3, 2], &p().stride([1, 2, 3]).dilation([2, 2, 1])),
        ),
        (
            "asymmetric stride and dilation",
            shape(&[2, 4, 17, 19], &[6, 4, 3, 2], &p().stride([2, 3]).dilation([3, 4])),
        ),
        ("groups", shape(&[1, 6, 8, 8], &[15, 2, 3, 3], &p().groups(3))),
        ("groups wider than a block", shape(&[2, 4, 6, 6], &[80, 2, 2, 2], &p().groups(2))),
        ("depthwise", shape(&[2, 7, 9, 9], &[7, 1, 3, 3], &p().groups(7))),
        ("depthwise with multiplier", shape(&[1, 5, 9, 9], &[15, 1, 3, 3], &p().groups(5).stride([2]))),
        ("batch 2", shape(&[2, 3, 10, 10], &[9, 3, 3, 3], &p())),
        ("one channel in and out", shape(&[1, 1, 5, 5], &[1, 1, 2, 2], &p())),
        ("pointwise", shape(&[1, 33, 7, 7], &[65, 33, 1, 1], &p())),
        ("one pixel", shape(&[1, 16, 3, 3], &[16, 16, 3, 3], &p())),
        ("11x11 stride 4", shape(&[1, 3, 47, 47], &[33, 3, 11, 11], &p().stride([4]))),
        ("many columns", shape(&[1, 2, 68, 68], &[8, 2, 3, 3], &p())),
        ("large tiles of the tiled kernel", shape(&[1, 9, 65, 65], &[65, 9, 1, 1], &p())),
        ("split reduction", shape(&[1, 115, 6, 5], &[37, 115, 3, 3], &p())),
        ("split reduction of groups", shape(&[2, 130, 7, 7], &[10, 65, 3, 3], &p().groups(2).stride([2]))),
    ]
}

/// Layers whose plan splits: over the loop limit of lavapipe, over one submission, over one dimension of a grid.
fn split_layers() -> Vec<(&'static str, ConvShape)> {
    let p = ConvParams::default;
    vec![
        ("reduction of 73,728", shape(&[1, 8192, 3, 4], &[3, 8192, 3, 3], &p())),
        ("kernel of 70,000 taps", shape(&[1, 2, 70_001], &[4, 2, 70_000], &p())),
    ]
}

/// The largest error of all ways to run `kernel` on a layer.
fn error_of(
    engine: &mut ConvEngine,
    kernel: Kernel,
    shape: &ConvShape,
    dtype: DType,
    corruption: f64,
) -> Result<f64, Error> {
    let mut worst = 0.0_f64;
    for way in Candidate::of(kernel, shape, engine.device().caps(), dtype) {
        let error = error_as(engine, way, shape, dtype, corruption)?;
        worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
    }
    Ok(worst)
}

/// The error of one way to run a layer, with one weight of the reference's copy off by `corruption`.
fn error_as(
    engine: &mut ConvEngine,
    way: Candidate,
    shape: &ConvShape,
    dtype: DType,
    corruption: f64,
) -> Result<f64, Error> {
    let (slabs, banks) = (2, 2);
    let (x, w) = (random(slabs * shape.input_elems(), 1), random(banks * shape.weight_elems(), 2));
    engine.poison_outputs(true);
    let filters = engine.install_as(shape, slabs, banks, &values(&w, dtype), way)?;
    let mut results = Vec::new();
    engine.run(&filters, slabs, &values(&x, dtype), None, &|| false, &mut |i, v| results.push((i, v)))?;
    assert_eq!(results.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let mut worst = 0.0_f64;
    let mut w = w;
    w[shape.weight_elems() / 2] += corruption;
    for (i, result) in &results {
        let x = &x[i / banks * shape.input_elems()..][..shape.input_elems()];
        let w = &w[i % banks * shape.weight_elems()..][..shape.weight_elems()];
        let error = relative_error(&widened(result), &reference(shape, x, w, None)?);
        worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
    }
    Ok(worst)
}

fn kernel_matches(kernel: Kernel, dtype: DType, layers: &[(&str, ConvShape)]) -> Outcome {
    let mut engine = engine()?;
    for (name, shape) in layers {
        let error = error_of(&mut engine, kernel, shape, dtype, 0.0)?;
        if error.is_nan() || error > tolerance(dtype) {
            return Err(format!("{kernel} {dtype} {name}: relative error {error:.2e}").into());
        }
    }
    Ok(())
}

fn corrupted_weight_is_noticed() -> Outcome {
    let mut engine = engine()?;
    let shape = shape(&[1, 16, 12, 12], &[17, 16, 3, 3], &ConvParams::default());
    for kernel in Kernel::ALL {
        if kernel.runs_on(engine.device().caps(), DType::F32) {
            for way in Candidate::of(kernel, &shape, engine.device().caps(), DType::F32) {
                let error = error_as(&mut engine, way, &shape, DType::F32, 0.01)?;
                assert!(error > 2.0 * TOLERANCE_F32, "{way}: {error:.2e}");
            }
        }
    }
    Ok(())
}

/// Each way to run `tiled` on the deep, small layers whose reduction it splits: as accurate as sums of short runs are,
/// the same bits every time, whatever the submissions, and nothing left of another layer's sums.
fn split_reductions_are_accurate_and_repeatable() -> Outcome {
    let shape = shape(&[1, 512, 7, 6], &[70, 512, 3, 3], &ConvParams::default());
    let (x, w) = (random(shape.input_elems(), 1), random(shape.weight_elems(), 2));
    let expected = reference(&shape, &x, &w, None)?;
    let gpu = || GpuDevice::open(&select(None)?[0], "test");
    let mut engines = [ConvEngine::new(gpu()?), ConvEngine::new(gpu()?.with_submission_macs(1_000_000))];
    let ways = Candidate::of(Kernel::Tiled, &shape, engines[0].device().caps(), DType::F32);
    assert!(ways[0].to_string().ends_with("splits") && ways.len() > 3, "{ways:?}");
    // A sum less would be noticed: the tolerance is far below a single product's share.
    let mut off = w.clone();
    off[4607] += 0.5;
    let missing = relative_error(&reference(&shape, &x, &off, None)?, &expected);
    assert!(missing > 1e-5, "{missing:.2e}");
    for way in ways {
        let mut results: Vec<Values> = Vec::new();
        for engine in &mut engines {
            engine.poison_outputs(true);
            let filters = engine.install_as(&shape, 1, 1, &values(&w, DType::F32), way)?;
            for _ in 0..2 {
                let slabs = values(&x, DType::F32);
                engine.run(&filters, 1, &slabs, None, &|| false, &mut |_, v| results.push(v))?;
            }
        }
        let error = relative_error(&widened(&results[0]), &expected);
        assert!(error < 1e-6, "{way}: {error:.2e}");
        assert!(results.len() == 4 && results.iter().all(|r| *r == results[0]), "{way}");
    }
    Ok(())
}

/// Nearly normal with variance 1, exact in f32: sums of twelve uniform numbers.
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 on purpose")]
fn normal(elems: usize, seed: u64) -> Vec<f64> {
    let uniform = random(12 * elems, seed);
    uniform.chunks_exact(12).map(|u| f64::from((u.iter().sum::<f64>() / 2.0) as f32)).collect()
}

/// Normal data of variance 1: what the bound on the rounding of an f32 worker is stated for.
fn every_candidate_is_accurate_at_512_channels() -> Outcome {
    const BOUND: f64 = 1e-5;
    let mut engine = engine()?;
    let shape = shape(&[1, 512, 13, 12], &[130, 512, 3, 3], &ConvParams::default());
    let (x, mut w) = (normal(shape.input_elems(), 1), normal(shape.weight_elems(), 2));
    let expected = reference(&shape, &x, &w, None)?;
    let (slab, bank) = (values(&x, DType::F32), values(&w, DType::F32));
    // A reference that lacks one product of each sum: what a kernel that drops a term would look like.
    let reduction = 512 * 9;
    w.chunks_exact_mut(reduction).for_each(|filter| filter[reduction - 1] = 0.0);
    let dropped = reference(&shape, &x, &w, None)?;
    engine.poison_outputs(true);
    let caps = *engine.device().caps();
    let able = Kernel::ALL.into_iter().filter(|kernel| kernel.runs_on(&caps, DType::F32));
    for candidate in able.flat_map(|kernel| Candidate::of(kernel, &shape, &caps, DType::F32)) {
        let filters = engine.install_as(&shape, 1, 1, &bank, candidate)?;
        let mut got = Vec::new();
        engine.run(&filters, 1, &slab, None, &|| false, &mut |_, v| got = widened(&v))?;
        let error = relative_error(&got, &expected);
        assert!(error <= BOUND, "{candidate}: {error:.2e}");
        let error = relative_error(&got, &dropped);
        assert!(error > 100.0 * BOUND, "{candidate}, one term less: {error:.2e}");
    }
    Ok(())
}

fn more_workgroups_than_a_dimension_holds() -> Outcome {
    let mut engine = engine()?;
    // One column block, 70,000 channels: as many workgroups. Small numbers, so that sums are exact.
    let shape = shape(&[1, 1, 2], &[70_000, 1, 2], &ConvParams::default());
    let w: Vec<f64> = (0..140_000).map(|i| f64::from(i % 1009)).collect();
    let filters = engine.install(&shape, 1, 1, &values(&w, DType::F32), Some(Kernel::Naive))?;
    engine.poison_outputs(true);
    let expected = reference(&shape, &[1.0, 3.0], &w, None)?;
    let mut got = Vec::new();
    engine
        .run(&filters, 1, &values(&[1.0, 3.0], DType::F32), None, &|| false, &mut |_, v| got = widened(&v))?;
    assert_eq!(got, expected);
    Ok(())
}

/// Submissions of 5,000 multiply-adds: every plan has several, and results must not depend on it.
fn many_submissions_give_the_same() -> Outcome {
    let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(5_000);
    let mut engine = ConvEngine::new(gpu);
    let shape = shape(&[2, 6, 20, 21], &[34, 3, 3, 3], &ConvParams::default().groups(2));
    for kernel in Kernel::ALL {
        if kernel.runs_on(engine.device().caps(), DType::F32) {
            let error = error_of(&mut engine, kernel, &shape, DType::F32, 0.0)?;
            assert!(error <= TOLERANCE_F32, "{kernel}: {error:.2e}");
        }
    }
    // Cancelled in the middle of the second sub-result: the first has come, and the next run is right.
    let (x, w) = (random(shape.input_elems(), 1), random(2 * shape.weight_elems(), 2));
    let filters = engine.install(&shape, 1, 2, &values(&w, DType::F32), None)?;
    let emitted = Cell::new(0);
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + usize::from(emitted.get() > 0));
        asked.get() > 2
    };
    let outcome = engine
        .run(&filters, 1, &values(&x, DType::F32), None, &stop, &mut |_, _| emitted.set(emitted.get() + 1));
    assert!(matches!(outcome, Err(Error::Cancelled)));
    assert_eq!(emitted.get(), 1);
    assert!(error_of(&mut engine, filters.plan().kernel(), &shape, DType::F32, 0.0)? <= TOLERANCE_F32);
    Ok(())
}

fn staging_buffers_carry_the_same() -> Outcome {
    let mut engine = ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?.with_staging());
    for (name, shape) in layers() {
        let error = error_of(&mut engine, Kernel::Naive, &shape, DType::F32, 0.0)?;
        assert!(error <= TOLERANCE_F32, "{name}: {error:.2e}");
    }
    Ok(())
}

/// Seconds, far below the minute a submission may take: whoever is back by then did not wait for that.
const SOON: u64 = 20;

/// A subtask of two slabs and two banks with its data and results.
struct Subtask {
    shape: SubtaskShape,
    slabs: Vec<f64>,
    banks: Vec<f64>,
    expected: Vec<Vec<f64>>,
}

fn subtask(conv: ConvShape, seed: u64) -> Subtask {
    let shape = SubtaskShape { conv, slabs: 2, banks: 2 };
    let (slabs, banks) = (random(shape.upload_elems(), seed), random(shape.filter_elems(), seed + 100));
    let (input, weight) = (shape.conv.input_elems(), shape.conv.weight_elems());
    let expected = (0..4)
        .map(|i| {
            let (x, w) = (&slabs[i / 2 * input..][..input], &banks[i % 2 * weight..][..weight]);
            reference(&shape.conv, x, w, None).unwrap()
        })
        .collect();
    Subtask { shape, slabs, banks, expected }
}

impl Subtask {
    fn small(seed: u64) -> Self {
        subtask(shape(&[1, 6, 10, 10], &[12, 6, 3, 3], &ConvParams::default()), seed)
    }

    fn install(&self, worker: &mut dyn Worker, key: FilterKey, dtype: DType) -> fcdcc::Result<()> {
        worker.install(key, &self.shape, values(&self.banks, dtype))
    }

    /// Executes and compares; true if everything matches.
    fn matches(&self, worker: &mut dyn Worker, key: FilterKey, dtype: DType) -> fcdcc::Result<bool> {
        let mut good = Vec::new();
        worker.execute(key, &values(&self.slabs, dtype), Order::All, &CancelToken::new(), &mut |i, v| {
            good.push((i, relative_error(&widened(&v), &self.expected[i]) <= tolerance(dtype)));
        })?;
        Ok(good == [(0, true), (1, true), (2, true), (3, true)])
    }
}

const KEY: FilterKey = FilterKey { layer: 7, subtask: 3 };

fn worker() -> Result<GpuWorker, Error> {
    GpuWorker::open(&GpuOptions::default())
}

fn worker_computes_in_both_types() -> Outcome {
    let mut worker = worker()?;
    let info = worker.info();
    assert_eq!((info.kind, info.name.as_str()), (WorkerKind::Gpu, "gpu-0"));
    let task = Subtask::small(1);
    for dtype in [DType::F32, DType::F64] {
        if dtype == DType::F32 || info.f64 {
            task.install(&mut worker, KEY, dtype)?;
            assert!(task.matches(&mut worker, KEY, dtype)?);
        } else {
            let refused = task.install(&mut worker, KEY, dtype);
            assert!(matches!(refused, Err(Error::Unavailable { .. })));
        }
    }
    Ok(())
}

fn filters_can_be_replaced_and_removed() -> Outcome {
    let mut worker = worker()?;
    let (first, second) = (Subtask::small(1), Subtask::small(2));
    first.install(&mut worker, KEY, DType::F32)?;
    assert!(first.matches(&mut worker, KEY, DType::F32)?);
    second.install(&mut worker, KEY, DType::F32)?;
    assert!(second.matches(&mut worker, KEY, DType::F32)?);
    assert!(!first.matches(&mut worker, KEY, DType::F32)?, "the replaced filters are still in use");
    let other = FilterKey { subtask: 4, ..KEY };
    first.install(&mut worker, other, DType::F32)?;
    worker.remove(KEY);
    worker.remove(KEY);
    assert!(matches!(second.matches(&mut worker, KEY, DType::F32), Err(Error::WorkerFailed { .. })));
    assert!(first.matches(&mut worker, other, DType::F32)?);
    Ok(())
}

fn a_larger_layer_after_a_smaller_one() -> Outcome {
    let mut worker = worker()?;
    let small = Subtask::small(1);
    let large = subtask(shape(&[2, 4, 30, 31], &[9, 4, 3, 3], &ConvParams::default()), 5);
    let large_key = FilterKey { layer: 8, ..KEY };
    small.install(&mut worker, KEY, DType::F32)?;
    large.install(&mut worker, large_key, DType::F32)?;
    for _ in 0..2 {
        assert!(small.matches(&mut worker, KEY, DType::F32)?);
        assert!(large.matches(&mut worker, large_key, DType::F32)?);
    }
    Ok(())
}

fn cancelled_work_ends_and_the_next_is_right() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(1);
    task.install(&mut worker, KEY, DType::F32)?;
    let slabs = values(&task.slabs, DType::F32);
    let cancelled = CancelToken::new();
    cancelled.cancel();
    let before =
        worker.execute(KEY, &slabs, Order::All, &cancelled, &mut |_, _| panic!("nothing may be emitted"));
    assert!(matches!(before, Err(Error::Cancelled)));
    assert!(task.matches(&mut worker, KEY, DType::F32)?);
    let token = CancelToken::new();
    let mut emitted = 0;
    let during = worker.execute(KEY, &slabs, Order::All, &token, &mut |_, _| {
        emitted += 1;
        token.cancel();
    });
    assert!(matches!(during, Err(Error::Cancelled)));
    assert_eq!(emitted, 1);
    assert!(task.matches(&mut worker, KEY, DType::F32)?);
    Ok(())
}

fn sub_results_come_in_the_order_asked_for() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(3);
    task.install(&mut worker, KEY, DType::F32)?;
    let slabs = values(&task.slabs, DType::F32);
    let mut run = |order: &[usize]| {
        let mut seen = Vec::new();
        worker
            .execute(KEY, &slabs, Order::Each(order), &CancelToken::new(), &mut |i, v| {
                assert!(relative_error(&widened(&v), &task.expected[i]) <= TOLERANCE_F32, "sub-result {i}");
                seen.push(i);
            })
            .map(|()| seen)
    };
    // Neighbours with indices of one parity must not share an output buffer.
    for order in [&[3, 1, 0, 2][..], &[2, 0], &[1, 3, 1], &[2, 2], &[3], &[]] {
        assert_eq!(run(order)?, order);
    }
    for beyond in [4, usize::MAX] {
        assert!(matches!(run(&[0, beyond]), Err(Error::InvalidParameter { .. })));
    }
    // The same where every sub-result takes several submissions.
    let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(1_000);
    let mut engine = ConvEngine::new(gpu);
    let filters = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None)?;
    engine.poison_outputs(true);
    let mut seen = Vec::new();
    engine.run(&filters, 2, &slabs, Some(&[3, 1, 0]), &|| false, &mut |i, v| {
        assert!(relative_error(&widened(&v), &task.expected[i]) <= TOLERANCE_F32, "sub-result {i}");
        seen.push(i);
    })?;
    assert_eq!(seen, [3, 1, 0]);
    let beyond = engine.run(&filters, 2, &slabs, Some(&[4]), &|| false, &mut |_, _| {});
    assert!(matches!(beyond, Err(Error::InvalidParameter { .. })));
    Ok(())
}

fn wrong_sizes_and_types_are_refused() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(1);
    let mut few = task.banks.clone();
    few.pop();
    let refused = worker.install(KEY, &task.shape, values(&few, DType::F32));
    assert!(matches!(refused, Err(Error::Mismatch { .. })));
    task.install(&mut worker, KEY, DType::F32)?;
    let mut run =
        |slabs: &Values| worker.execute(KEY, slabs, Order::All, &CancelToken::new(), &mut |_, _| {});
    assert!(matches!(run(&values(&task.slabs[1..], DType::F32)), Err(Error::Mismatch { .. })));
    assert!(matches!(run(&values(&task.slabs, DType::F64)), Err(Error::Mismatch { .. })));
    assert!(task.matches(&mut worker, KEY, DType::F32)?);
    Ok(())
}

fn layers_larger_than_a_binding_are_refused() -> Outcome {
    let engine = engine()?;
    let limit = engine.device().caps().max_binding_bytes;
    let elems = usize::try_from(limit / 4 + 1)?;
    let shape = shape(&[1, 1, elems], &[1, 1, 1], &ConvParams::default());
    let error = ConvPlan::new(&shape, DType::F32, engine.device().caps(), None).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }));
    assert!(error.to_string().contains(&(elems * 4).to_string()), "{error}");
    Ok(())
}

fn an_unknown_adapter_is_unavailable() -> Outcome {
    for adapter in [AdapterSelector::from("no such adapter"), AdapterSelector::from("4711")] {
        let options = GpuOptions { adapter: Some(adapter), ..GpuOptions::default() };
        let Err(error) = GpuWorker::open(&options) else { panic!("opened {options:?}") };
        assert!(matches!(error, Error::Unavailable { .. }));
        assert!(error.to_string().contains(&adapters()[0].name), "{error}");
    }
    Ok(())
}

fn adapters_are_found_by_number_and_part_of_the_name() -> Outcome {
    let first = &adapters()[0];
    let name = first.name.to_uppercase();
    let part: String = name.chars().take(4).collect();
    for selector in ["0", name.as_str(), part.as_str()] {
        assert_eq!(&select(Some(&AdapterSelector::from(selector)))?[0], first);
    }
    let json = serde_json::to_value(first)?;
    assert_eq!(json["index"], 0);
    assert!(json["limits"]["max_buffer_bytes"].as_u64().is_some());
    Ok(())
}

fn workers_run_side_by_side() -> Outcome {
    let fleet = GpuWorker::fleet(3, None)?;
    let names: Vec<_> = fleet.iter().map(|w| w.info().name).collect();
    assert_eq!(names, ["gpu-0", "gpu-1", "gpu-2"]);
    let threads: Vec<_> = (1..)
        .zip(fleet)
        .map(|(seed, mut worker)| {
            std::thread::spawn(move || {
                let task = Subtask::small(seed);
                task.install(worker.as_mut(), KEY, DType::F32).unwrap();
                (0..5).all(|_| task.matches(worker.as_mut(), KEY, DType::F32).unwrap())
            })
        })
        .collect();
    assert!(threads.into_iter().all(|t| t.join().unwrap()));
    Ok(())
}

fn a_lost_device_is_a_lost_worker() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(1);
    task.install(&mut worker, KEY, DType::F32)?;
    worker.lose_device();
    let started = Instant::now();
    for _ in 0..2 {
        let lost = task.matches(&mut worker, KEY, DType::F32);
        assert!(matches!(lost, Err(Error::WorkerLost { .. })), "{lost:?}");
    }
    assert!(matches!(task.install(&mut worker, KEY, DType::F32), Err(Error::WorkerLost { .. })));
    assert!(started.elapsed().as_secs() < 30);
    // A new worker on the same adapter is what recovery looks like.
    let mut next = self::worker()?;
    task.install(&mut next, KEY, DType::F32)?;
    assert!(task.matches(&mut next, KEY, DType::F32)?);
    Ok(())
}

/// Lost at every moment of a run, and from another thread while the run waits: an error soon, and no panic.
fn a_device_lost_in_the_middle_of_a_run_ends_it() -> Outcome {
    let task = subtask(shape(&[1, 32, 40, 40], &[32, 32, 3, 3], &ConvParams::default()), 1);
    let slabs = values(&task.slabs, DType::F32);
    let open = |staging: bool, macs: u64| -> Result<_, Error> {
        let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(macs);
        let mut engine = ConvEngine::new(if staging { gpu.with_staging() } else { gpu });
        let filters = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None)?;
        Ok((engine, filters))
    };
    for staging in [false, true] {
        // Before the n-th submission or retirement; some of these are between two submissions of a sub-result.
        for moment in 0..8 {
            let (mut engine, filters) = open(staging, 6_000_000)?;
            let lose = engine.device().destroyer();
            let asked = Cell::new(0);
            let stop = || {
                if asked.replace(asked.get() + 1) == moment {
                    lose();
                }
                false
            };
            let started = Instant::now();
            let end = engine.run(&filters, 2, &slabs, None, &stop, &mut |i, v| {
                assert!(relative_error(&widened(&v), &task.expected[i]) <= TOLERANCE_F32);
            });
            assert!(matches!(end, Err(Error::Gpu { .. })), "{moment}: {end:?}");
            assert!(engine.device().lost().is_some());
            let again = engine.run(&filters, 2, &slabs, None, &|| false, &mut |_, _| panic!("emitted"));
            assert!(matches!(again, Err(Error::Gpu { .. })), "{moment}: {again:?}");
            let install = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None);
            assert!(matches!(install, Err(Error::Gpu { .. })), "{moment}");
            assert!(started.elapsed().as_secs() < SOON, "{moment}: {:?}", started.elapsed());
        }
        // From another thread, at some time between beginning and end of a run: also inside a submission.
        let one_submission = 1 << 40;
        let (mut engine, filters) = open(staging, one_submission)?;
        let started = Instant::now();
        engine.run(&filters, 2, &slabs, None, &|| false, &mut |_, _| {})?;
        let one_run = started.elapsed();
        for eighths in 0..8 {
            let (mut engine, filters) = open(staging, one_submission)?;
            let lose = engine.device().destroyer();
            let started = Instant::now();
            let end = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while started.elapsed() < one_run * eighths / 8 {
                        std::thread::yield_now();
                    }
                    lose();
                });
                loop {
                    let end = engine.run(&filters, 2, &slabs, None, &|| false, &mut |i, v| {
                        assert!(relative_error(&widened(&v), &task.expected[i]) <= TOLERANCE_F32);
                    });
                    if end.is_err() || started.elapsed().as_secs() >= SOON {
                        return end;
                    }
                }
            });
            assert!(matches!(end, Err(Error::Gpu { .. })), "{end:?}");
            assert!(started.elapsed().as_secs() < SOON, "{:?}", started.elapsed());
        }
    }
    Ok(())
}

/// A worker is lost and made again, several times over, on a stack of faults as the pool sees it.
fn a_lost_worker_is_made_again_by_its_recipe() -> Outcome {
    let task = Subtask::small(4);
    let mut worker: Box<dyn Worker> = Box::new(worker()?);
    let info = worker.info();
    assert!(info.adapter.as_ref().is_some_and(|adapter| info.device.starts_with(&adapter[2..])), "{info:?}");
    for _ in 0..3 {
        worker = Box::new(FaultyWorker::new(worker, Fault::DeviceLost, 0));
        let recipe = worker.recipe().unwrap();
        task.install(worker.as_mut(), KEY, DType::F32)?;
        Probe::new(DType::F32).check(worker.as_mut(), &CancelToken::new())?;
        let Err(Error::WorkerLost { cause, .. }) = task.matches(worker.as_mut(), KEY, DType::F32) else {
            panic!("the device was not lost");
        };
        // In the words of the device, not of the fault.
        assert!(!cause.contains("injected"), "{cause}");
        let refused = task.install(worker.as_mut(), KEY, DType::F32);
        assert!(matches!(refused, Err(Error::WorkerLost { .. })));
        worker = recipe(&CancelToken::new())?;
        assert_eq!(worker.info(), info);
        let empty = task.matches(worker.as_mut(), KEY, DType::F32);
        assert!(matches!(empty, Err(Error::WorkerFailed { .. })), "{empty:?}");
        Probe::new(DType::F32).check(worker.as_mut(), &CancelToken::new())?;
        if info.f64 {
            Probe::new(DType::F64).check(worker.as_mut(), &CancelToken::new())?;
        }
        task.install(worker.as_mut(), KEY, DType::F32)?;
        assert!(task.matches(worker.as_mut(), KEY, DType::F32)?);
    }
    Ok(())
}

/// In a process of its own, for other tests' threads would be counted too.
fn losses_leave_no_threads_behind() -> Outcome {
    const ALONE: &str = "FCDCC_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let child = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", "losses_leave_no_threads_behind", "--test-threads", "1"])
            .env(ALONE, "1")
            .output()?;
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return Ok(());
    }
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
    let task = Subtask::small(5);
    let mut worker: Box<dyn Worker> = Box::new(worker()?);
    let recipe = worker.recipe().unwrap();
    let mut before = None;
    for round in 0..6 {
        task.install(worker.as_mut(), KEY, DType::F32)?;
        assert!(task.matches(worker.as_mut(), KEY, DType::F32)?);
        // The first round may start threads that stay for the life of the process.
        if round == 1 {
            before = Some(threads()?);
        }
        worker.lose_device();
        assert!(matches!(task.matches(worker.as_mut(), KEY, DType::F32), Err(Error::WorkerLost { .. })));
        worker = recipe(&CancelToken::new())?;
    }
    let (before, started) = (before.unwrap(), Instant::now());
    // A thread of its own drops each lost device.
    while threads()? > before {
        assert!(started.elapsed().as_secs() < SOON, "{} threads, {before} before the losses", threads()?);
        std::thread::yield_now();
    }
    Ok(())
}

fn main() {
    let mut tests: Vec<(String, Box<dyn FnOnce() -> Outcome + Send>)> = Vec::new();
    let device = select(None).ok().and_then(|found| GpuDevice::open(&found[0], "listing").ok());
    let mut unable = Vec::new();
    for kernel in Kernel::ALL {
        for dtype in [DType::F32, DType::F64] {
            let able = device.as_ref().is_none_or(|device| kernel.runs_on(device.caps(), dtype));
            let name = format!("{kernel}_{dtype}_matches_the_reference");
            unable.extend(
                (!able)
                    .then(|| [name.clone(), format!("{name}_where_the_plan_splits")])
                    .into_iter()
                    .flatten(),
            );
            tests.push((name, Box::new(move || kernel_matches(kernel, dtype, &layers()))));
            let name = format!("{kernel}_{dtype}_matches_the_reference_where_the_plan_splits");
            tests.push((name, Box::new(move || kernel_matches(kernel, dtype, &split_layers()))));
        }
    }
    macro_rules! add {
        ($($test:ident),* $(,)?) => {$(tests.push((stringify!($test).to_owned(), Box::new($test)));)*};
    }
    add!(
        corrupted_weight_is_noticed,
        every_candidate_is_accurate_at_512_channels,
        split_reductions_are_accurate_and_repeatable,
        more_workgroups_than_a_dimension_holds,
        many_submissions_give_the_same,
        staging_buffers_carry_the_same,
        worker_computes_in_both_types,
        filters_can_be_replaced_and_removed,
        a_larger_layer_after_a_smaller_one,
        cancelled_work_ends_and_the_next_is_right,
        sub_results_come_in_the_order_asked_for,
        wrong_sizes_and_types_are_refused,
        layers_larger_than_a_binding_are_refused,
        an_unknown_adapter_is_unavailable,
        adapters_are_found_by_number_and_part_of_the_name,
        workers_run_side_by_side,
        a_lost_device_is_a_lost_worker,
        a_device_lost_in_the_middle_of_a_run_ends_it,
        a_lost_worker_is_made_again_by_its_recipe,
    );
    if std::path::Path::new("/proc/self/task").exists() {
        add!(losses_leave_no_threads_behind);
    }

    let present = !adapters().is_empty();
    let required = std::env::var("CI").is_ok_and(|v| v == "true");
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let ignored = (!present && !required) || unable.contains(&name);
            let trial = Trial::test(name, move || {
                if present { test() } else { Err("there is no GPU adapter, and CI=true requires one".into()) }
            });
            // Marked when the tests are listed, so that every runner shows them as ignored.
            trial.with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
