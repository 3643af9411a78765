//! Slabs and sub-results as 16-bit numbers: half of the bytes, and errors within the reported bounds.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; what was measured is told"
)]

use fcdcc::array::{DType, WireFormat};
use fcdcc::cluster::{Cluster, WorkerServer};
use fcdcc::engine::WindowwiseLimit;
use fcdcc::testing::check_worker;
use fcdcc::{CodeKind, CodedConv, Completion, ConvParams, LayerOptions, LayerReport, Pool};
use fcdcc_test_support::fleet::{SOON, endpoint, master, pool_of, server, workers, workers_sending};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, options};
use fcdcc_test_support::uneven::{Kind, Measured, Wild, measure};
use ndarray::{ArrayD, ArrayView1, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const NARROW: [WireFormat; 2] = [WireFormat::F16, WireFormat::Bf16];

/// Six devices of one machine.
fn machine() -> (WorkerServer, Cluster) {
    let at = endpoint();
    let cluster = master(&at);
    (server("alpha", &at, 6), cluster)
}

/// Payload bytes that the machine received and sent during `run`.
fn bytes_of<R>(server: &WorkerServer, run: impl FnOnce() -> R) -> (R, u64, u64) {
    let before = server.traffic();
    let result = run();
    let after = server.traffic();
    (result, after.received_bytes - before.received_bytes, after.sent_bytes - before.sent_bytes)
}

#[test]
fn messages_of_16_bits_halve_the_bytes_and_stay_within_the_bounds() {
    let (server, cluster) = machine();
    let layer = Layer::<f32>::new(&[1, 16, 40, 40], &[32, 16, 3, 3], ConvParams::default().padding([1]));
    // As many subtasks as are needed, so that each run sends and receives the same.
    let run = |wire, k_a, k_b| {
        let pool = pool_of(workers_sending(&cluster, 4, wire));
        let options = fail(k_a, k_b).subtasks(4).audit(fcdcc::Audit::Off).hedge(None);
        let prepared = layer.prepare(&pool, options).unwrap();
        let run = bytes_of(&server, || prepared.run(layer.input.view()).unwrap());
        assert!(pool.wait_idle(SOON));
        run
    };
    for (k_a, k_b) in [(4, 4), (1, 8)] {
        let (full, up, down) = run(WireFormat::Full, k_a, k_b);
        assert!(layer.error(&full.output) < EXACT_F32);
        assert_eq!(full.report.wire.as_deref(), Some("f32"));
        for wire in NARROW {
            let (narrow, less_up, less_down) = run(wire, k_a, k_b);
            let error = layer.error(&narrow.output);
            assert_eq!(narrow.report.wire.as_deref(), Some(wire.name()));
            assert_eq!(narrow.report.completion, Completion::Exact, "{:#?}", narrow.report);
            assert!(error <= narrow.report.error_bound, "{error} with {wire}");
            // Negative control: a run in full width has a bound that these results exceed.
            assert!(error > full.report.error_bound, "{error} with {wire}: nothing was rounded");
            assert_eq!(2 * less_up, up, "{wire} with k_A = {k_a}");
            // The last results may not be needed any more, and are then not sent.
            let share = less_down as f64 / down as f64;
            assert!((0.4..0.6).contains(&share), "{wire} with k_A = {k_a}: {less_down} of {down} bytes");
        }
    }
}

#[test]
fn a_worker_behind_narrow_messages_keeps_the_contract() {
    let (_server, cluster) = machine();
    for wire in NARROW {
        let findings = check_worker(SOON, || Ok(workers_sending(&cluster, 1, wire).remove(0)));
        assert!(findings.is_empty(), "{wire}: {findings:#?}");
    }
}

#[test]
fn integers_and_f64_travel_in_full_width() {
    let (_server, cluster) = machine();
    let pool = pool_of(workers_sending(&cluster, 6, WireFormat::Bf16));
    let mut layer = Layer::<f32>::without_truth(&[1, 8, 20, 20], &[8, 8, 3, 3], ConvParams::default());
    layer.input.mapv_inplace(|v| (v * 10.0).round().clamp(-31.0, 31.0));
    layer.weight.mapv_inplace(|v| (v * 4.0).round());
    layer.bias.iter_mut().for_each(|v| *v = v.round());
    let (x, w) = (layer.input.as_slice().unwrap(), layer.weight.as_slice().unwrap());
    let truth = fcdcc::conv::reference(&layer.shape(), x, w, Some(&layer.bias)).unwrap();
    let exact = |options: LayerOptions| {
        let run = layer.prepare(&pool, options).unwrap().run(layer.input.view()).unwrap();
        assert!(matches!(run.report.completion, Completion::Exact), "{:#?}", run.report);
        (run.output.as_slice().unwrap() == truth, run.report.wire)
    };
    assert_eq!(exact(fail(4, 4).integers(31.0)), (true, Some("f32".to_owned())));
    // Negative control: without the declaration they are rounded.
    assert_eq!(exact(fail(4, 4)), (false, Some("bf16".to_owned())));
    let wide = Layer::<f64>::new(&[1, 4, 20, 20], &[8, 4, 3, 3], ConvParams::default());
    let run = wide.prepare(&pool, fail(4, 4)).unwrap().run(wide.input.view()).unwrap();
    assert!(wide.error(&run.output) < 1e-12);
    assert_eq!(run.report.wire.as_deref(), Some("f64"));
}

/// Runs a layer of wild data; the errors and the report, or `None` where the run is refused.
fn try_wild(pool: &Pool, wild: &Wild, options: LayerOptions) -> Option<(Measured, LayerReport)> {
    let array = |values: &[f64], shape: Vec<usize>| {
        let values = values.iter().map(|v| fcdcc::Element::from_f64(*v)).collect();
        ArrayD::<f32>::from_shape_vec(IxDyn(&shape), values).unwrap()
    };
    let input = array(&wild.input, wild.shape.input_shape());
    let weight = array(&wild.weight, wild.shape.weight_shape());
    let bias: Vec<f32> = wild.bias.iter().map(|v| fcdcc::Element::from_f64(*v)).collect();
    let builder = CodedConv::builder(pool, input.shape(), weight.view()).params(wild.params.clone());
    let bias = (!bias.is_empty()).then(|| ArrayView1::from(&bias));
    let prepared = builder.bias(bias).options(options).prepare().ok()?;
    let run = prepared.run(input.view()).ok()?;
    let output: Vec<f64> = run.output.iter().map(|v| f64::from(*v)).collect();
    Some((measure::<f32>(wild, &output), run.report))
}

/// How far the errors of random wild layers are below their bounds: the largest ratios, windowwise and normwise, and the
/// number of layers decoded from narrow messages.
fn ratios(pool: &Pool, wire: WireFormat, layers: u64, seed: u64) -> ([f64; 2], usize) {
    let (mut largest, mut decoded) = ([0.0_f64; 2], 0);
    for seed in seed..seed + layers {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let wild = Wild::random(DType::F32, &mut random);
        let (k_a, k_b, code) = [(4, 4, CodeKind::Crme), (2, 4, CodeKind::Crme), (1, 4, CodeKind::Crme)]
            [random.random_range(0..3)];
        // Any condition number and amplification: the bounds must hold for all of them.
        let limit = if random.random_bool(0.5) { WindowwiseLimit::Off } else { WindowwiseLimit::Automatic };
        let options = options(k_a, k_b).code(code).max_windowwise(limit).audit(fcdcc::Audit::Off);
        let Some((measured, report)) = try_wild(pool, &wild, options) else { continue };
        let ratio = [measured.windowwise / report.windowwise_bound, measured.normwise / report.error_bound];
        decoded += usize::from(report.completion == Completion::Exact);
        assert!(
            measured.windowwise <= report.windowwise_bound && measured.normwise <= report.error_bound,
            "layer {seed} over {wire}: {ratio:?} {measured:?}\n{wild:?}\n{report:#?}"
        );
        for (largest, ratio) in largest.iter_mut().zip(ratio) {
            *largest = largest.max(if ratio.is_nan() { 0.0 } else { ratio });
        }
    }
    (largest, decoded)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap())
}

#[test]
fn errors_of_wild_data_in_narrow_messages_never_exceed_either_bound() {
    let (_server, cluster) = machine();
    let (layers, mut reached) = (number("FCDCC_TRIALS", 60), 0.0_f64);
    for wire in NARROW {
        let pool = pool_of(workers_sending(&cluster, 6, wire));
        let (largest, decoded) = ratios(&pool, wire, layers, number("FCDCC_SEED", 1));
        println!("{wire}: largest errors {largest:.3?} of their bounds, {decoded} of {layers} decoded");
        assert!(decoded as u64 * 3 > layers, "{decoded} of {layers} were decoded from narrow messages");
        reached = reached.max(largest[0]);
    }
    // Negative control: with three bits fewer, as bf16 has beside f16, errors would exceed the bounds.
    assert!(8.0 * reached > 1.0, "{reached}");
}

#[test]
fn windows_of_zeros_among_tiny_numbers_give_exactly_the_bias() {
    let (_server, cluster) = machine();
    let pool = pool_of(workers_sending(&cluster, 6, WireFormat::F16));
    // Layers in which a window of zeros is mixed with numbers below the range of f16.
    for seed in [1031, 2545, 2760, 3232, 3487, 3530, 3609, 3806] {
        ratios(&pool, WireFormat::F16, 1, seed);
    }
}

#[test]
fn every_kind_of_uneven_data_is_within_its_bounds_and_not_within_those_of_f32() {
    let (_server, cluster) = machine();
    let params = ConvParams::default().padding([1]);
    let shape = fcdcc::ConvShape::new(&[1, 8, 32, 20], &[16, 8, 3, 3], &params).unwrap();
    let pools = [WireFormat::Full, WireFormat::F16, WireFormat::Bf16]
        .map(|wire| pool_of(workers_sending(&cluster, 6, wire)));
    let mut exceeded = [0; 2];
    for kind in Kind::ALL {
        let wild = Wild::of(kind, shape.clone(), params.clone(), 3);
        let runs: Vec<_> =
            pools.iter().map(|pool| try_wild(pool, &wild, options(2, 4)).expect("it runs")).collect();
        for (measured, report) in &runs {
            assert!(measured.windowwise <= report.windowwise_bound, "{kind:?}: {measured:?} {report:#?}");
            assert!(measured.normwise <= report.error_bound, "{kind:?}: {measured:?} {report:#?}");
        }
        // Negative control: the bounds of f32 do not hold for data that travelled in 16 bits.
        for narrow in 1..3 {
            exceeded[narrow - 1] += usize::from(runs[narrow].0.windowwise > runs[0].1.windowwise_bound);
        }
    }
    // Some kinds are so uneven that they travel in full width.
    assert!(exceeded[0] > 2 && exceeded[1] > 2, "{exceeded:?}");
}

#[test]
fn what_does_not_fit_into_16_bits_travels_in_full_width() {
    let (server, cluster) = machine();
    let run = |wire, scale: f32| {
        let pool = pool_of(workers_sending(&cluster, 4, wire));
        let mut layer = Layer::<f32>::without_truth(&[1, 8, 24, 24], &[16, 8, 3, 3], ConvParams::default());
        // An outlier so large that no scale brings it and the others into the range of f16. Nothing is mixed with it.
        layer.input.as_slice_mut().unwrap()[300] = scale;
        let options = fail(1, 4).subtasks(4).audit(fcdcc::Audit::Off).max_windowwise(WindowwiseLimit::Off);
        let prepared = layer.prepare(&pool, options).unwrap();
        let (run, up, _) = bytes_of(&server, || prepared.run(layer.input.view()).unwrap());
        assert!(run.output.iter().all(|v| v.is_finite()));
        up
    };
    let full = run(WireFormat::Full, 1.0);
    assert_eq!(run(WireFormat::F16, 1.0) * 2, full);
    assert_eq!(run(WireFormat::F16, 1e9), full);
    // It fits into bf16.
    assert_eq!(run(WireFormat::Bf16, 1e9) * 2, full);
    drop(workers(&cluster, 1));
}
