//! The engines of this process: our kernels and tract.

use std::sync::Arc;

use anyhow::{Context, Result};
use fcdcc::conv::{ConvKernel, Filters, Scratch};
use tract_core::internal::{DatumType, SpecialOps, Tensor, TypedModel, TypedSimplePlan, tvec};
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::nn::DataFormat;
use tract_core::prelude::{DatumExt, IntoRunnable, TValue};
use tract_linalg::multithread::{Executor, multithread_tract_scope};

use crate::engine::{Clock, Engine, Job, Span, each_call};

/// Our kernels.
#[derive(Default)]
pub(crate) struct Ours(Option<OurLayer>);

struct OurLayer {
    kernel: ConvKernel,
    scratch: Scratch<f32>,
    input: Vec<f32>,
    weight: Filters<f32>,
    output: Vec<f32>,
    threads: usize,
    /// With several threads only.
    pool: Option<rayon::ThreadPool>,
    clock: Clock,
}

impl OurLayer {
    fn new(job: &Job<'_>) -> Result<Self> {
        let shape = &job.layer.shape;
        let kernel = ConvKernel::with_filtering(shape);
        Ok(Self {
            weight: kernel.pack(&job.data.weight)?,
            kernel,
            scratch: Scratch::new(),
            input: job.data.input.clone(),
            output: vec![f32::NAN; shape.output_elems()],
            threads: job.threads,
            pool: job.pool()?,
            clock: job.clock,
        })
    }

    /// The one place that knows how our kernels are called.
    fn convolve(&mut self) -> Result<()> {
        let banks = &[&self.weight];
        let outputs = &mut [&mut self.output[..]];
        self.kernel.run(&mut self.scratch, &self.input, banks, outputs, self.threads, &|| false)?;
        Ok(())
    }

    /// Runs `work` where `threads` threads are at hand.
    fn inside<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        match self.pool.take() {
            None => work(self),
            Some(pool) => {
                let result = pool.install(|| work(self));
                self.pool = Some(pool);
                result
            }
        }
    }
}

impl Engine for Ours {
    fn name(&self) -> &'static str {
        "fcdcc"
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        let layer = self.0.insert(OurLayer::new(job)?);
        Ok(format!("{:?}", layer.kernel.path()))
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        let layer = self.0.as_mut().context("no layer is loaded")?;
        layer.inside(OurLayer::convolve)?;
        Ok(layer.output.clone())
    }

    fn time(&mut self, _: Span, calls: usize) -> Result<f64> {
        let layer = self.0.as_mut().context("no layer is loaded")?;
        layer.inside(|layer| each_call(layer.clock, calls, || layer.convolve()))
    }
}

/// tract: a graph of one convolution with constant filters, optimised as whole models are.
#[derive(Default)]
pub(crate) struct Tract(Option<TractLayer>);

struct TractLayer {
    plan: Arc<TypedSimplePlan>,
    input: TValue,
    executor: Executor,
    clock: Clock,
}

impl TractLayer {
    fn new(job: &Job<'_>) -> Result<Self> {
        let (layer, shape) = (job.layer, &job.layer.shape);
        let mut model = TypedModel::default();
        let source = model.add_source("x", f32::fact(shape.input_shape()))?;
        let kernel = model.add_const("w", Tensor::from_shape(&shape.weight_shape(), &job.data.weight)?)?;
        let bias = model.add_const("b", Tensor::zero_scalar_dt(DatumType::F32)?)?;
        let op = Conv {
            pool_spec: PoolSpec {
                data_format: DataFormat::NCHW,
                kernel_shape: tvec![layer.kernel, layer.kernel],
                padding: PaddingSpec::Explicit(
                    tvec![layer.padding, layer.padding],
                    tvec![layer.padding, layer.padding],
                ),
                dilations: None,
                strides: Some(tvec![layer.stride, layer.stride]),
                input_channels: shape.in_channels,
                output_channels: shape.out_channels,
            },
            kernel_fmt: KernelFormat::OIHW,
            group: shape.groups,
            q_params: None,
        };
        let output = model.wire_node("conv", op, &[source, kernel, bias])?;
        model.select_output_outlets(&output)?;
        let plan = model.into_optimized()?.into_runnable()?;
        let input = Tensor::from_shape(&shape.input_shape(), &job.data.input)?.into();
        let pool = job.pool()?;
        let executor = pool.map_or(Executor::SingleThread, |pool| Executor::MultiThread(Arc::new(pool)));
        Ok(Self { plan, input, executor, clock: job.clock })
    }

    fn convolve(&self) -> Result<TValue> {
        Ok(self.plan.run(tvec![self.input.clone()])?.remove(0))
    }
}

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        let layer = self.0.insert(TractLayer::new(job)?);
        let ops: Vec<_> = layer.plan.model().nodes().iter().map(|node| node.op.name().into_owned()).collect();
        Ok(ops.join(", "))
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        let layer = self.0.as_ref().context("no layer is loaded")?;
        let output = multithread_tract_scope(layer.executor.clone(), || layer.convolve())?;
        Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect())
    }

    fn time(&mut self, _: Span, calls: usize) -> Result<f64> {
        let layer = self.0.as_ref().context("no layer is loaded")?;
        multithread_tract_scope(layer.executor.clone(), || {
            each_call(layer.clock, calls, || {
                std::hint::black_box(layer.convolve()?);
                Ok(())
            })
        })
    }
}
