//! Our engine on a GPU queue.

use anyhow::{Context, Result};
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::gpu::{AdapterSummary, ConvEngine, ConvFilters, GpuDevice, TuneMode, Tuner};

use crate::engine::{Clock, Engine, Job, Span, each_call};

/// Convolutions of one upload in the span "compute".
const BANKS: usize = 4;

pub(crate) struct Ours {
    engine: ConvEngine,
    /// Measures, as burn does, and keeps nothing beyond this process.
    tuner: Tuner,
    layer: Option<OurLayer>,
}

struct OurLayer {
    shape: ConvShape,
    filters: ConvFilters,
    input: Vec<f32>,
    /// The input with its padding, which stays zero: what a worker is sent.
    slab: Values,
}

impl Ours {
    pub(crate) fn open(adapter: &AdapterSummary) -> Result<Self> {
        let engine = ConvEngine::new(GpuDevice::open(adapter, "peers")?);
        Ok(Self { engine, tuner: Tuner::with_file(TuneMode::Measure, None), layer: None })
    }

    /// The one place that knows how our engine is called: convolves the input, padded here, with the first `banks`
    /// copies of the filters, and answers the last output.
    fn convolve(&mut self, banks: usize) -> Result<Vec<f32>> {
        let layer = self.layer.as_mut().context("no layer is loaded")?;
        layer.pad();
        let order: Vec<usize> = (0..banks).collect();
        let mut output = None;
        let mut emit = |_, values| output = Some(values);
        self.engine.run(&layer.filters, 1, &layer.slab, Some(&order), &|| false, &mut emit)?;
        match output {
            Some(Values::F32(output)) => Ok(output),
            _ => anyhow::bail!("no output in f32"),
        }
    }
}

impl OurLayer {
    fn pad(&mut self) {
        let Values::F32(slab) = &mut self.slab else { return };
        let [_, height, width] = self.shape.input;
        let [_, top, left] = self.shape.pad_begin;
        let [_, padded_height, padded_width] = self.shape.padded();
        for (row, line) in self.input.chunks_exact(width).enumerate() {
            let at = (row / height * padded_height + row % height + top) * padded_width + left;
            slab[at..at + width].copy_from_slice(line);
        }
    }
}

impl Engine for Ours {
    fn name(&self) -> &'static str {
        "fcdcc"
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        self.layer = None;
        let (layer, shape) = (job.layer, &job.layer.shape);
        let [_, height, width] = shape.padded();
        let params = ConvParams::default().stride([layer.stride]).groups(shape.groups);
        let padded =
            ConvShape::new(&[shape.batch, shape.in_channels, height, width], &shape.weight_shape(), &params)?;
        let weights = Values::F32(job.data.weight.repeat(BANKS));
        let candidate = self.tuner.pick(&mut self.engine, &padded, DType::F32)?;
        let filters = self.engine.install_as(&padded, 1, BANKS, &weights, candidate)?;
        let note = candidate.to_string();
        let slab = Values::F32(vec![0.0; padded.input_elems()]);
        self.layer = Some(OurLayer { shape: shape.clone(), filters, input: job.data.input.clone(), slab });
        Ok(note)
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        self.convolve(1)
    }

    /// In the span "compute" the input is uploaded once for [`BANKS`] convolutions, but each output is read back.
    fn time(&mut self, span: Span, calls: usize) -> Result<f64> {
        let banks = if span == Span::Whole { 1 } else { BANKS };
        let seconds = each_call(Clock::Wall, calls, || self.convolve(banks).map(drop))?;
        Ok(seconds / banks as f64)
    }
}
