//! burn's `conv2d` on its wgpu backend: kernels in WGSL, chosen by its autotuner at the first call of a shape, without
//! fusion.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow};
use burn_backend::ops::{ConvOptions, FloatTensorOps, ModuleOps};
use burn_backend::{Backend, BackendTypes, TensorData};
use burn_wgpu::graphics::AutoGraphicsApi;
use burn_wgpu::{RuntimeOptions, Wgpu, WgpuDevice, try_init_setup};

use crate::engine::{Clock, Engine, Job, Span, each_call};

type Device = <Wgpu as BackendTypes>::Device;
type Tensor = <Wgpu as BackendTypes>::FloatTensorPrimitive;

pub(crate) struct Burn {
    device: Device,
    adapter: String,
    layer: Option<BurnLayer>,
}

struct BurnLayer {
    input: TensorData,
    device_input: Tensor,
    weight: Tensor,
    options: ConvOptions<2>,
}

impl BurnLayer {
    fn convolve(&self, input: Tensor) -> Tensor {
        Wgpu::conv2d(input, self.weight.clone(), None, self.options.clone())
    }

    fn whole(&self, device: &Device) -> Result<TensorData> {
        let input = Wgpu::float_from_data(self.input.clone(), device);
        let output = pollster::block_on(Wgpu::float_into_data(self.convolve(input)));
        let output = output.map_err(|error| anyhow!("{error}"))?;
        // Data is read back only when somebody looks at it.
        numbers(&output)?;
        Ok(output)
    }
}

fn numbers(data: &TensorData) -> Result<&[f32]> {
    data.as_slice().map_err(|error| anyhow!("{error:?}"))
}

/// burn panics where others return errors.
fn caught<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no stated reason");
        Err(anyhow!("burn panicked: {}", text.chars().take(300).collect::<String>()))
    })
}

impl Burn {
    /// Opens the device that burn takes by default.
    pub(crate) fn open() -> Result<Self> {
        caught(|| {
            let device = WgpuDevice::default();
            let setup = try_init_setup::<AutoGraphicsApi>(&device, RuntimeOptions::default())
                .map_err(|error| anyhow!("{error}"))?;
            let device = Device::Wgpu(device);
            let adapter = setup.adapter.get_info().name;
            eprintln!("burn: {} on {adapter}", Wgpu::name(&device));
            Ok(Self { device, adapter, layer: None })
        })
    }

    /// The name of its adapter.
    pub(crate) fn adapter(&self) -> &str {
        &self.adapter
    }

    fn sync(&self) -> Result<()> {
        Wgpu::sync(&self.device).map_err(|error| anyhow!("{error}"))
    }

    fn loaded(&self) -> Result<&BurnLayer> {
        self.layer.as_ref().context("no layer is loaded")
    }
}

impl Engine for Burn {
    fn name(&self) -> &'static str {
        super::BURN
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        self.layer = None;
        let (layer, shape) = (job.layer, &job.layer.shape);
        let pad = [layer.padding; 2];
        let options = ConvOptions::new([layer.stride; 2], pad, [1; 2], shape.groups);
        let tensor = |numbers: &[f32], shape: Vec<usize>| TensorData::new(numbers.to_vec(), shape);
        let input = tensor(&job.data.input, shape.input_shape());
        let weight = tensor(&job.data.weight, shape.weight_shape());
        self.layer = Some(caught(|| {
            Ok(BurnLayer {
                device_input: Wgpu::float_from_data(input.clone(), &self.device),
                weight: Wgpu::float_from_data(weight, &self.device),
                input,
                options,
            })
        })?);
        Ok(Wgpu::name(&self.device))
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        caught(|| {
            let output = self.loaded()?.whole(&self.device)?;
            Ok(numbers(&output)?.to_vec())
        })
    }

    fn time(&mut self, span: Span, calls: usize) -> Result<f64> {
        caught(|| {
            let layer = self.loaded()?;
            if span == Span::Whole {
                return each_call(Clock::Wall, calls, || layer.whole(&self.device).map(drop));
            }
            self.sync()?;
            let begin = Clock::Wall.now();
            for _ in 0..calls {
                drop(layer.convolve(layer.device_input.clone()));
            }
            self.sync()?;
            Ok((Clock::Wall.now() - begin) / calls as f64)
        })
    }
}
