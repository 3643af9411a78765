//! Layers over pools of CPU workers, for the tests of the engine.

use std::time::Duration;

use fcdcc::conv::{conv_uncoded, reference};
use fcdcc::worker::{CpuWorker, FaultSpec, inject};
use fcdcc::{CodedConv, ConvParams, ConvShape, Element, LayerOptions, OnShortfall, Pool, Result};
use ndarray::{ArrayD, ArrayView1, IxDyn};

use super::{normal, relative_l2};

/// f32 workers at condition numbers below 100.
pub const EXACT_F32: f64 = 3e-5;

/// A layer with data and, if affordable, its true output.
pub struct Layer<T> {
    pub input: ArrayD<T>,
    pub weight: ArrayD<T>,
    pub bias: Vec<T>,
    pub params: ConvParams,
    pub truth: Vec<T>,
}

impl<T: Element> Layer<T> {
    /// Unit-normal data; the true output comes from the naive reference.
    pub fn new(input: &[usize], weight: &[usize], params: ConvParams) -> Self {
        let mut layer = Self::without_truth(input, weight, params);
        let (x, w) = (layer.input.as_slice().unwrap(), layer.weight.as_slice().unwrap());
        layer.truth = reference(&layer.shape(), x, w, Some(&layer.bias)).unwrap();
        layer
    }

    /// For layers on which the naive reference would take minutes; uses the local kernel in f64, which is tested against the
    /// reference elsewhere.
    pub fn large(input: &[usize], weight: &[usize], params: ConvParams) -> (Self, Vec<f64>) {
        let layer = Self::without_truth(input, weight, params);
        let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
        let (x, w) = (wide(layer.input.as_slice().unwrap()), wide(layer.weight.as_slice().unwrap()));
        let truth = conv_uncoded(&layer.shape(), &x, &w, Some(&wide(&layer.bias)), 2, &|| false).unwrap();
        (layer, truth)
    }

    pub fn without_truth(input: &[usize], weight: &[usize], params: ConvParams) -> Self {
        let shape = ConvShape::new(input, weight, &params).unwrap();
        Self {
            input: ArrayD::from_shape_vec(IxDyn(input), normal(shape.input_elems(), 1)).unwrap(),
            weight: ArrayD::from_shape_vec(IxDyn(weight), normal(shape.weight_elems(), 2)).unwrap(),
            bias: normal(shape.out_channels, 3),
            params,
            truth: Vec::new(),
        }
    }

    pub fn shape(&self) -> ConvShape {
        ConvShape::new(self.input.shape(), self.weight.shape(), &self.params).unwrap()
    }

    pub fn prepare(&self, pool: &Pool, options: LayerOptions) -> Result<CodedConv<T>> {
        let bias = ArrayView1::from(&self.bias);
        CodedConv::builder(pool, self.input.shape(), self.weight.view())
            .bias(bias)
            .params(self.params.clone())
            .options(options)
            .prepare()
    }

    pub fn error(&self, output: &ArrayD<T>) -> f64 {
        relative_l2(output.as_slice().unwrap(), &self.truth)
    }
}

pub fn small() -> Layer<f32> {
    Layer::new(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default().padding([1]))
}

pub fn options(k_a: usize, k_b: usize) -> LayerOptions {
    LayerOptions::default().partitions(k_a, k_b).deadline(Duration::from_secs(20))
}

pub fn fail(k_a: usize, k_b: usize) -> LayerOptions {
    options(k_a, k_b).on_shortfall(OnShortfall::Fail)
}

/// `n` CPU workers with faults given as on the command line.
pub fn pool(n: usize, faults: &[&str]) -> Pool {
    let faults: Vec<FaultSpec> = faults.iter().map(|f| f.parse().unwrap()).collect();
    Pool::new(inject(CpuWorker::fleet(n), &faults, 5).unwrap()).unwrap()
}

pub fn list(indices: &[usize]) -> String {
    indices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
