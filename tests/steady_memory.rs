//! A layer or a model that runs repeatedly allocates no large blocks: slabs, results, outputs and what lies between layers
//! are recycled. It frees all small blocks: memory does not grow with the number of runs.
//!
//! It has a binary of its own, because the counting allocator counts for the whole process.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fcdcc::{CodeKind, CodedConv, ConvParams, CpuWorker, LayerOptions, LayerReport, Pool};
use fcdcc_test_support::counting::{Counting, large_blocks, live_blocks, live_bytes};
use ndarray::ArrayD;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Warm-up runs, after which caches and histories are filled.
const WARM: usize = 400;
/// Runs during which memory must not grow.
const RUNS: usize = 1200;
/// Tolerated fluctuation of blocks, from thread queues that are being emptied.
const BLOCKS: usize = 200;
const BYTES: usize = 64 << 10;

/// Serializes the tests, because the allocator counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_layer_in_use_allocates_no_large_block() {
    let _one = alone();
    let params = ConvParams::default().padding([1]);
    let input = ArrayD::from_shape_fn(vec![1, 32, 64, 64], |i| ((i[1] * 7 + i[2] * 3 + i[3]) as f32).sin());
    let weight = ArrayD::from_shape_fn(vec![32, 32, 3, 3], |i| ((i[0] * 5 + i[1] + i[2]) as f32).cos());
    for code in [CodeKind::Crme, CodeKind::Uncoded] {
        let pool = Pool::new(CpuWorker::fleet(4)).unwrap();
        // All results are needed: buffers still held by a straggler would have to be allocated again.
        let options = LayerOptions { code, tolerate: 0, ..LayerOptions::default() }.hedge(None);
        let layer = CodedConv::builder(&pool, input.shape(), weight.view())
            .params(params.clone())
            .options(options)
            .prepare()
            .unwrap();
        let mut output = ArrayD::default(vec![0]);
        let mut blocks = |fresh: bool| {
            let before = large_blocks();
            if fresh {
                output = layer.run(input.view()).unwrap().output;
            } else {
                layer.run_into(input.view(), &mut output).unwrap();
            }
            assert!(pool.wait_idle(Duration::from_secs(10)));
            large_blocks() - before
        };
        let first = blocks(false);
        assert!(first > 4, "{first}: at least the output and what is sent to each");
        for _ in 0..3 {
            blocks(false);
        }
        let later: Vec<usize> = (0..5).map(|_| blocks(false)).collect();
        assert_eq!(later, [0; 5], "{code}");
        // Negative control: a new output is a large block.
        assert!(blocks(true) >= 1);
    }
}

#[cfg(feature = "onnx")]
#[test]
fn a_model_in_use_allocates_no_large_block() {
    use fcdcc::model::{AutoChoices, GemmChoice};
    use fcdcc::{Model, ModelOptions};

    const BATCH: usize = 24;
    let _one = alone();
    let shape = [BATCH, 1, 32, 32];
    let model = Model::load("assets/digits/lenet5.onnx").unwrap().with_input_shape("image", &shape).unwrap();
    let input = [ArrayD::from_shape_fn(shape.to_vec(), |i| ((i[0] + i[2] * 3 + i[3]) as f32).sin()).into()];
    let layer = || LayerOptions { code: CodeKind::Crme, tolerate: 0, ..LayerOptions::default() }.hedge(None);
    let coded = ModelOptions { layer: layer(), gemm: GemmChoice::Off, ..ModelOptions::default() };
    let uncoded = ModelOptions { layer: layer().code(CodeKind::Uncoded), ..coded.clone() };
    let free =
        ModelOptions { freedom: AutoChoices { local: true, ..AutoChoices::default() }, ..uncoded.clone() };
    for (name, options) in [("coded", coded), ("uncoded", uncoded), ("free to stay on this machine", free)] {
        let pool = Pool::new(CpuWorker::fleet(4)).unwrap();
        let prepared = model.prepare(&pool, &options).unwrap();
        let blocks = || {
            let before = large_blocks();
            let run = prepared.run(&input).unwrap();
            assert!(pool.wait_idle(Duration::from_secs(10)));
            drop(run);
            large_blocks() - before
        };
        let first = blocks();
        assert!(first >= 2, "{name}: {first} blocks, at least the slots between layers");
        for _ in 0..3 {
            blocks();
        }
        let later: Vec<usize> = (0..5).map(|_| blocks()).collect();
        assert_eq!(later, [0; 5], "{name}");
    }
    // Negative control: the reference run allocates what lies between its layers.
    let host = model.on_host().unwrap();
    host.run(&input).unwrap();
    let before = large_blocks();
    host.run(&input).unwrap();
    assert!(large_blocks() - before > 4);
}

#[test]
fn nothing_of_any_size_grows_with_the_number_of_runs() {
    let _one = alone();
    let input = ArrayD::from_shape_fn(vec![1, 2, 16, 16], |i| ((i[1] * 7 + i[2] * 3 + i[3]) as f32).sin());
    let weight = ArrayD::from_shape_fn(vec![8, 2, 3, 3], |i| ((i[0] * 5 + i[1] + i[2]) as f32).cos());
    for code in [CodeKind::Crme, CodeKind::Uncoded] {
        let pool = Pool::new(CpuWorker::fleet(4)).unwrap();
        let options = LayerOptions { code, tolerate: 0, ..LayerOptions::default() };
        let params = ConvParams::default();
        let layer = CodedConv::builder(&pool, input.shape(), weight.view())
            .params(params.clone())
            .options(options)
            .prepare()
            .unwrap();
        let mut kept: Vec<LayerReport> = Vec::new();
        // Growth of blocks and bytes over this number of runs.
        let mut growth = |runs: usize, keep: bool| {
            let before = (live_blocks(), live_bytes());
            for _ in 0..runs {
                let run = layer.run(input.view()).unwrap();
                if keep {
                    kept.push(run.report);
                }
            }
            assert!(pool.wait_idle(Duration::from_secs(10)));
            (live_blocks().saturating_sub(before.0), live_bytes().saturating_sub(before.1))
        };
        growth(WARM, false);
        let (blocks, bytes) = growth(RUNS, false);
        assert!(blocks < BLOCKS && bytes < BYTES, "{code}: {blocks} blocks, {bytes} bytes in {RUNS} runs");
        // Negative control: kept reports are detected.
        let (blocks, bytes) = growth(RUNS, true);
        assert!(blocks >= RUNS && bytes >= BYTES, "{code}: {blocks} blocks, {bytes} bytes of {RUNS} reports");
    }
}
