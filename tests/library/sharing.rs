//! Layers and models for inputs of several sizes, whose workers share coded filters.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fcdcc::array::Values;
use fcdcc::engine::SharedWeight;
use fcdcc::worker::{FilterKey, Respawn, SubtaskShape, Task, WorkerInfo};
use fcdcc::{
    Audit, CodedConv, ConvParams, ConvShape, CpuWorker, Error, LayerOptions, OnShortfall, Pool, Result,
    Worker,
};
use ndarray::{ArrayD, Dimension, IxDyn};

use crate::scheduling::until;

/// What the workers of a pool were asked for.
#[derive(Default)]
struct Calls {
    installed: AtomicUsize,
    shared: AtomicUsize,
    /// The next task of a worker finds it lost.
    lose: AtomicBool,
    /// Whether filters may be shared.
    refuse: AtomicBool,
}

impl Calls {
    /// Filters installed and shared since the last call.
    fn take(&self) -> (usize, usize) {
        (self.installed.swap(0, Ordering::SeqCst), self.shared.swap(0, Ordering::SeqCst))
    }
}

/// A CPU worker that counts.
struct Counting {
    inner: CpuWorker,
    calls: Arc<Calls>,
}

impl Worker for Counting {
    fn info(&self) -> WorkerInfo {
        self.inner.info()
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        if !key.is_probe() {
            self.calls.installed.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.install(key, shape, banks)
    }

    fn remove(&mut self, key: FilterKey) {
        self.inner.remove(key);
    }

    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        if self.calls.refuse.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let shared = self.inner.share(key, from, shape)?;
        self.calls.shared.fetch_add(usize::from(shared), Ordering::SeqCst);
        Ok(shared)
    }

    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
        if !task.key.is_probe() && self.calls.lose.swap(false, Ordering::SeqCst) {
            return Err(Error::WorkerLost { worker: "counting".to_owned(), cause: "told to".to_owned() });
        }
        self.inner.execute(task, emit)
    }

    fn respawn(&self) -> Option<Respawn> {
        let (name, calls) = (self.info().name, Arc::clone(&self.calls));
        Some(Arc::new(move |_| {
            Ok(Box::new(Counting { inner: CpuWorker::new(name.clone(), 1), calls: Arc::clone(&calls) }))
        }))
    }
}

fn pool() -> (Pool, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let worker = |i| -> Box<dyn Worker> {
        Box::new(Counting { inner: CpuWorker::new(format!("counting-{i}"), 1), calls: Arc::clone(&calls) })
    };
    (Pool::new((0..6).map(worker).collect()).unwrap(), calls)
}

fn numbers(shape: &[usize], seed: usize) -> ArrayD<f32> {
    ArrayD::from_shape_fn(shape.to_vec(), |i: IxDyn| {
        let at = i.slice().iter().fold(seed, |sum, index| sum * 31 + index);
        (at % 251) as f32 / 251.0 - 0.5
    })
}

/// The filters of every layer here.
const FILTERS: [usize; 4] = [16, 8, 3, 3];

fn layer(
    pool: &Pool,
    input: &[usize],
    seed: usize,
    audit: Audit,
    other: Option<&CodedConv<f32>>,
) -> CodedConv<f32> {
    let params = ConvParams::default().padding([1]);
    let shape = ConvShape::new(input, &FILTERS, &params).unwrap();
    let weight: SharedWeight<f32> = Arc::new(numbers(&FILTERS, seed).into_raw_vec_and_offset().0);
    // Workers that take over subtasks would be sent filters, too.
    let options =
        LayerOptions::default().partitions(4, 4).audit(audit).hedge(None).on_shortfall(OnShortfall::Fail);
    CodedConv::prepare_beside(pool, shape, weight, None, options, other).unwrap()
}

/// The distance of a run's output from that of the definition.
fn error(layer: &CodedConv<f32>, seed: usize) -> f32 {
    let shape = layer.shape();
    let input = numbers(&shape.input_shape(), 3);
    let weight = numbers(&FILTERS, seed);
    let want =
        fcdcc::conv::reference(shape, input.as_slice().unwrap(), weight.as_slice().unwrap(), None).unwrap();
    let got = layer.run(input.view()).unwrap().output;
    got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
}

#[test]
fn layers_of_other_sizes_share_their_coded_filters() {
    for audit in [Audit::Off, Audit::Detect] {
        let (pool, calls) = pool();
        let first = layer(&pool, &[1, 8, 20, 20], 1, audit, None);
        assert_eq!(calls.take(), (6, 0));
        for (batch, side) in [(3, 20), (1, 33), (2, 9)] {
            let second = layer(&pool, &[batch, 8, side, side], 1, audit, Some(&first));
            assert_eq!(calls.take(), (0, 6), "batch {batch}, {side} wide");
            assert!(error(&second, 1) < 1e-4 && error(&first, 1) < 1e-4);
        }
        // What is left when the first is gone still works, and is shared further.
        let second = layer(&pool, &[2, 8, 20, 20], 1, audit, Some(&first));
        drop(first);
        calls.take();
        assert!(error(&second, 1) < 1e-4);
        let third = layer(&pool, &[4, 8, 20, 20], 1, audit, Some(&second));
        assert_eq!(calls.take(), (0, 6));
        drop(second);
        assert!(error(&third, 1) < 1e-4);
    }
}

/// The negative control: neither other filters nor another code or pool are taken for the same.
#[test]
fn layers_that_differ_in_more_than_size_share_nothing() {
    let (pool_one, calls) = pool();
    let first = layer(&pool_one, &[1, 8, 20, 20], 1, Audit::Off, None);
    calls.take();
    let other_filters = layer(&pool_one, &[2, 8, 20, 20], 2, Audit::Off, Some(&first));
    assert_eq!(calls.take(), (6, 0));
    assert!(error(&other_filters, 2) < 1e-4 && error(&other_filters, 1) > 0.1);
    let (pool_two, calls_two) = pool();
    let elsewhere = layer(&pool_two, &[2, 8, 20, 20], 1, Audit::Off, Some(&first));
    assert_eq!((calls_two.take(), calls.take()), ((6, 0), (0, 0)));
    assert!(error(&elsewhere, 1) < 1e-4);
    let shape = ConvShape::new(&[2, 8, 20, 20], &FILTERS, &ConvParams::default()).unwrap();
    let weight: SharedWeight<f32> = Arc::new(numbers(&FILTERS, 1).into_raw_vec_and_offset().0);
    let options = LayerOptions::default().partitions(2, 8);
    let other_code =
        CodedConv::prepare_beside(&pool_one, shape, weight, None, options, Some(&first)).unwrap();
    assert_eq!(calls.take(), (6, 0));
    assert!(error(&other_code, 1) < 1e-4);
    // Workers that cannot share get the filters once more.
    calls.refuse.store(true, Ordering::SeqCst);
    let second = layer(&pool_one, &[2, 8, 20, 20], 1, Audit::Off, Some(&first));
    assert_eq!(calls.take(), (6, 0));
    assert!(error(&second, 1) < 1e-4);
}

#[test]
fn a_worker_that_comes_back_shares_again() {
    let (pool, calls) = pool();
    let first = layer(&pool, &[1, 8, 20, 20], 1, Audit::Off, None);
    let second = layer(&pool, &[2, 8, 20, 20], 1, Audit::Off, Some(&first));
    assert_eq!(calls.take(), (6, 6));
    calls.lose.store(true, Ordering::SeqCst);
    assert!(error(&first, 1) < 1e-4);
    // One is lost; it may be a subtask that others took over meanwhile, for which they were sent filters.
    until("the lost worker comes back", || calls.shared.load(Ordering::SeqCst) > 0);
    assert_eq!(calls.shared.load(Ordering::SeqCst), 1);
    assert!(error(&second, 1) < 1e-4 && error(&first, 1) < 1e-4);
}

#[cfg(feature = "onnx")]
#[test]
fn a_model_shares_the_filters_of_its_plans() {
    use std::num::NonZeroUsize;

    use fcdcc::model::{ModelShapes, Tensor};
    use fcdcc::{Model, ModelOptions};

    let digits = |batch: usize| -> Tensor { numbers(&[batch, 1, 32, 32], 5).into() };
    let load = || Model::load("assets/digits/lenet5.onnx").unwrap();
    let (pool, calls) = pool();
    let layer = LayerOptions::default().hedge(None).on_shortfall(OnShortfall::Fail);
    let options = ModelOptions { layer, ..ModelOptions::default() };
    let shapes = ModelShapes::new(load(), &pool, options, NonZeroUsize::new(3).unwrap());
    shapes.run(&[digits(1)]).unwrap();
    let (first, shared) = calls.take();
    assert!(first >= 12 && first % 6 == 0 && shared == 0, "{first}");
    for batch in [2, 5, 1, 7, 3] {
        let got = shapes.run(&[digits(batch)]).unwrap().outputs;
        let want = load()
            .with_input_shape("image", &[batch, 1, 32, 32])
            .unwrap()
            .on_host()
            .unwrap()
            .run(&[digits(batch)])
            .unwrap();
        let pairs = got[0].tensor.to_f64().into_iter().zip(want[0].tensor.to_f64());
        assert!(pairs.into_iter().all(|(got, want)| (got - want).abs() < 1e-4), "batch {batch}");
    }
    // The plan for one digit is kept, or prepared again, beside others.
    let (installed, shared) = calls.take();
    assert_eq!(installed, 0);
    assert_eq!(shared % first, 0);
    assert!(shared >= 4 * first, "{shared} of {first}");
}
