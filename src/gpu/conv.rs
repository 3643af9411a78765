//! The engine: compiled kernels, and filters on the device.
//!
//! One [`ConvEngine`] drives one [`GpuDevice`]. Installing packs and uploads filters, and compiles and warms up their
//! kernel; `run.rs` contains the loop that convolves slabs with them.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use half::f16;

use super::buffers::{Readback, Upload, grow};
use super::candidate::Candidate;
use super::device::{Caps, GpuDevice};
use super::f16::narrow;
use super::kernel::Kernel;
use super::params::Params;
use super::pipeline::Pipeline;
use super::plan::ConvPlan;
use super::shaders::{Stage, Variant};
use super::timing::{DeviceClock, RunTiming};
use crate::array::{DType, Element, Values, check_elems};
use crate::conv::ConvShape;
use crate::error::Result;
use crate::sync::locked;

/// Maximum number of cached bind groups of filters; beyond it the cache is cleared.
const KEPT_BINDINGS: usize = 1024;

/// Bind groups of filters, by sub-result and output buffer. They reference the engine's transfer buffers, so replacing
/// a transfer buffer must clear all of them.
type Bindings = Mutex<HashMap<(usize, usize), Bound>>;

/// The bind groups of a sub-result, one for each pass of its plan.
pub(super) type Bound = Arc<[wgpu::BindGroup]>;

/// Filter banks of one convolution on a device, packed for the kernel that reads them.
///
/// Owns the device memory; dropping it frees that memory.
#[derive(Debug)]
pub struct ConvFilters {
    plan: ConvPlan,
    /// The pipeline of each pass of the plan.
    passes: Vec<(Stage, Arc<Pipeline>)>,
    banks: Vec<wgpu::Buffer>,
    /// For `tiled` only: see its shader.
    offsets: Option<wgpu::Buffer>,
    /// The uniform block of each step, `uniform_stride` apart, followed by the block of an empty dispatch.
    uniforms: wgpu::Buffer,
    uniform_stride: u64,
    bindings: Arc<Bindings>,
}

impl ConvFilters {
    /// The plan these filters were packed for.
    #[must_use]
    pub fn plan(&self) -> &ConvPlan {
        &self.plan
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.plan.variant.dtype
    }

    /// Number of filter banks.
    #[must_use]
    pub fn banks(&self) -> usize {
        self.banks.len()
    }
}

/// Runs convolutions on one device. See the module documentation.
#[derive(Debug)]
pub struct ConvEngine {
    pub(super) gpu: GpuDevice,
    pipelines: HashMap<Variant, Arc<Pipeline>>,
    pub(super) slabs: Vec<Upload>,
    pub(super) outputs: Vec<Readback>,
    /// Buffers between the passes, shared by all sub-results: the transformed slab, and sums or products.
    pub(super) transformed: Option<wgpu::Buffer>,
    pub(super) sums: Option<wgpu::Buffer>,
    /// Scratch for a slab converted to 16 bits.
    pub(super) narrowed: Vec<f16>,
    pub(super) poison: bool,
    /// Candidates that get wrong filters, for tests.
    spoiled: Vec<Candidate>,
    pub(super) clock: Option<DeviceClock>,
    pub(super) timing: RunTiming,
    /// The bind groups of all filters installed here.
    bindings: Vec<Weak<Bindings>>,
}

impl ConvEngine {
    /// An engine without filters.
    #[must_use]
    pub fn new(gpu: GpuDevice) -> Self {
        Self {
            gpu,
            pipelines: HashMap::new(),
            slabs: Vec::new(),
            outputs: Vec::new(),
            transformed: None,
            sums: None,
            narrowed: Vec::new(),
            poison: false,
            spoiled: Vec::new(),
            clock: None,
            timing: RunTiming::default(),
            bindings: Vec::new(),
        }
    }

    /// The device this engine drives.
    #[must_use]
    pub fn device(&self) -> &GpuDevice {
        &self.gpu
    }

    /// Fills each output with NaN before it is computed, from now on, so that an element that no thread writes is
    /// visible. For tests; costs an upload for each sub-result.
    pub fn poison_outputs(&mut self, poison: bool) {
        self.poison = poison;
    }

    /// Omits a weight from the filters of these candidates from now on, to test that verification detects it.
    #[doc(hidden)]
    pub fn spoil(&mut self, candidates: &[Candidate]) {
        self.spoiled = candidates.to_vec();
    }

    /// Enables or disables measuring the computing time of the device ([`RunTiming::device_s`]). Costs two timestamps
    /// for each submission and a readback for each run. Returns whether the time will be measured, which takes support
    /// by the adapter.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) when the device is lost.
    pub fn time_device(&mut self, time: bool) -> Result<bool> {
        self.clock = if time { DeviceClock::new(&self.gpu)? } else { None };
        Ok(self.clock.is_some())
    }

    /// Timing of the last successful run; all zero before the first.
    #[must_use]
    pub fn last_timing(&self) -> RunTiming {
        self.timing
    }

    /// Packs and uploads `banks` filter banks of `[O, C/g, kernel...]`, one after the other, for convolutions of
    /// `shape` with up to `slabs` slabs for each call. Compiles the kernel ([`Kernel::choose`] picks it when `kernel`
    /// is `None`) and runs an empty dispatch, so that the first real dispatch does not wait for compilation.
    ///
    /// # Errors
    /// Those of [`ConvPlan::new`]; [`Error::Mismatch`](crate::Error::Mismatch) for a wrong number of elements;
    /// [`Error::Gpu`](crate::Error::Gpu) when the device is out of memory, refuses the kernel, or is lost.
    pub fn install(
        &mut self,
        shape: &ConvShape,
        slabs: usize,
        banks: usize,
        filters: &Values,
        kernel: Option<Kernel>,
    ) -> Result<ConvFilters> {
        let candidate = Candidate::best(kernel, shape, self.gpu.caps(), filters.dtype());
        self.install_as(shape, slabs, banks, filters, candidate)
    }

    /// As [`Self::install`], but without 16-bit storage, even if the device uses it for others, and without Winograd's
    /// filtering.
    ///
    /// # Errors
    /// Those of [`Self::install`].
    pub fn install_plain(
        &mut self,
        shape: &ConvShape,
        slabs: usize,
        banks: usize,
        filters: &Values,
        kernel: Option<Kernel>,
    ) -> Result<ConvFilters> {
        let caps = Caps { half: false, ..*self.gpu.caps() };
        let candidate = Candidate::best(kernel, shape, &caps, filters.dtype());
        self.install_on(&caps, shape, slabs, banks, filters, candidate)
    }

    /// As [`Self::install`], with one of the candidates that [`Candidate::all`] and [`Candidate::of`] list.
    ///
    /// # Errors
    /// Those of [`Self::install`].
    pub fn install_as(
        &mut self,
        shape: &ConvShape,
        slabs: usize,
        banks: usize,
        filters: &Values,
        candidate: Candidate,
    ) -> Result<ConvFilters> {
        let caps = *self.gpu.caps();
        self.install_on(&caps, shape, slabs, banks, filters, candidate)
    }

    /// As [`Self::install_as`], with the capabilities of the device or a subset of them.
    fn install_on(
        &mut self,
        caps: &Caps,
        shape: &ConvShape,
        slabs: usize,
        banks: usize,
        filters: &Values,
        candidate: Candidate,
    ) -> Result<ConvFilters> {
        check_elems("elements of the coded filters", filters.len(), banks * shape.weight_elems())?;
        let plan = ConvPlan::of(shape, filters.dtype(), caps, candidate)?;
        self.gpu.check()?;
        let spoiled = self.spoiled.contains(&candidate);
        let banks = match filters {
            Values::F32(values) => self.upload_banks(&plan, values, spoiled),
            Values::F64(values) => self.upload_banks(&plan, values, spoiled),
        }?;
        self.warmed_up(plan, slabs, banks)
    }

    /// The filters of `from` for convolutions of another input size, in the same device memory, with the kernel that
    /// [`Self::install`] takes. `None` if that kernel reads another layout for `shape`.
    ///
    /// # Errors
    /// Those of [`Self::install`].
    pub fn share(
        &mut self,
        from: &ConvFilters,
        shape: &ConvShape,
        slabs: usize,
        kernel: Option<Kernel>,
    ) -> Result<Option<ConvFilters>> {
        let caps = Caps { half: from.plan.variant.half, ..*self.gpu.caps() };
        let candidate = Candidate::best(kernel, shape, &caps, from.dtype());
        self.share_as(from, shape, slabs, candidate)
    }

    /// As [`Self::share`], with one of the candidates that [`Candidate::all`] and [`Candidate::of`] list.
    ///
    /// # Errors
    /// Those of [`Self::install`].
    pub fn share_as(
        &mut self,
        from: &ConvFilters,
        shape: &ConvShape,
        slabs: usize,
        candidate: Candidate,
    ) -> Result<Option<ConvFilters>> {
        let caps = Caps { half: from.plan.variant.half, ..*self.gpu.caps() };
        let plan = ConvPlan::of(shape, from.dtype(), &caps, candidate)?;
        if !plan.reads_filters_of(&from.plan) {
            return Ok(None);
        }
        self.gpu.check()?;
        self.warmed_up(plan, slabs, from.banks.clone()).map(Some)
    }

    /// Compiles the kernels of a plan, reserves buffers, and runs an empty dispatch.
    fn warmed_up(&mut self, plan: ConvPlan, slabs: usize, banks: Vec<wgpu::Buffer>) -> Result<ConvFilters> {
        let passes = plan
            .variants()
            .into_iter()
            .map(|variant| Ok((variant.stage, self.pipeline(variant)?)))
            .collect::<Result<Vec<_>>>()?;
        let offsets = match plan.kernel() {
            Kernel::Tiled => {
                let offsets = plan.offsets();
                Some(self.constant_buffer("offsets", &[bytemuck::cast_slice(&offsets)], 0)?)
            }
            _ => None,
        };
        let alignment = self.gpu.device.limits().min_uniform_buffer_offset_alignment;
        let uniform_stride = (size_of::<Params>() as u64).next_multiple_of(u64::from(alignment.max(1)));
        let nothing = Params { first_workgroup: 0, end_workgroup: 0, grid_x: 1, ..plan.steps[0].params };
        let blocks: Vec<Params> = plan.steps.iter().map(|s| s.params).chain([nothing]).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(bytemuck::bytes_of).collect();
        let uniforms = self.constant_buffer("uniforms", &blocks, uniform_stride)?;
        let bindings = Arc::default();
        self.bindings.retain(|kept| kept.strong_count() > 0);
        self.bindings.push(Arc::downgrade(&bindings));
        let filters = ConvFilters { plan, passes, banks, offsets, uniforms, uniform_stride, bindings };

        // Sufficient for results requested one by one; a run that needs more reserves more.
        self.reserve(&filters.plan, slabs, 2)?;
        self.slabs[0].release();
        let nothing = filters.plan.steps.len();
        let bindings = self.bind(&filters, 0, 0);
        let mut encoder = self.encoder("warm-up");
        encode(&mut encoder, &filters, &[(bindings, nothing..nothing + 1)], None);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.wait(Some(submission))?;
        Ok(filters)
    }

    /// Reserves buffers for `slabs` slabs of `plan` and `outputs` outputs.
    pub(super) fn reserve(&mut self, plan: &ConvPlan, slabs: usize, outputs: usize) -> Result<()> {
        let gpu = &self.gpu;
        let (slab, output) = (plan.slab_bytes, plan.output_bytes);
        // Clears the bind groups before allocating, so that replaced buffers are freed first.
        let small = self.slabs.iter().any(|b| b.buffer().size() < slab)
            || self.outputs.iter().any(|b| b.buffer().size() < output)
            || [(&self.transformed, plan.transformed_bytes), (&self.sums, plan.sums_bytes)]
                .iter()
                .any(|(kept, bytes)| kept.as_ref().is_some_and(|b| b.size() < *bytes));
        if small {
            for bindings in self.bindings.iter().filter_map(Weak::upgrade) {
                locked(&bindings).clear();
            }
        }
        for (kept, bytes, label) in [
            (&mut self.transformed, plan.transformed_bytes, "transformed slab"),
            (&mut self.sums, plan.sums_bytes, "sums or products"),
        ] {
            if bytes > kept.as_ref().map_or(0, wgpu::Buffer::size) {
                *kept = None;
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
                *kept = Some(gpu.buffer(label, bytes, usage, false)?);
            }
        }
        grow(&mut self.slabs, slabs.max(1), slab, |b| b.buffer().size(), || Upload::new(gpu, slab))?;
        grow(&mut self.outputs, outputs, output, |b| b.buffer().size(), || Readback::new(gpu, output))
    }

    pub(super) fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
    }

    fn upload_banks<T: Element>(
        &self,
        plan: &ConvPlan,
        filters: &[T],
        spoiled: bool,
    ) -> Result<Vec<wgpu::Buffer>> {
        filters
            .chunks_exact(plan.shape.weight_elems())
            .map(|bank| {
                let mut packed = plan.pack(bank);
                if spoiled {
                    packed[0] = T::default();
                }
                if plan.variant.half {
                    let mut narrowed = Vec::new();
                    narrow("the coded filters", bytemuck::cast_slice(&packed), &mut narrowed)?;
                    return self.constant_buffer("coded filters", &[bytemuck::cast_slice(&narrowed)], 0);
                }
                self.constant_buffer("coded filters", &[bytemuck::cast_slice(&packed)], 0)
            })
            .collect()
    }

    /// A read-only buffer for shaders that holds `parts`, each at a multiple of `stride`.
    fn constant_buffer(&self, label: &str, parts: &[&[u8]], stride: u64) -> Result<wgpu::Buffer> {
        let last = parts.last().map_or(0, |p| p.len() as u64);
        let size = (stride * (parts.len() as u64 - 1) + last).next_multiple_of(4);
        let usage = if stride > 0 { wgpu::BufferUsages::UNIFORM } else { wgpu::BufferUsages::STORAGE };
        let usage = usage | wgpu::BufferUsages::COPY_DST;
        let buffer = self.gpu.buffer(label, size, usage, false)?;
        for (index, part) in parts.iter().enumerate() {
            self.gpu.queue.write_buffer(&buffer, index as u64 * stride, part);
        }
        self.gpu.check()?;
        Ok(buffer)
    }

    fn pipeline(&mut self, variant: Variant) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.pipelines.get(&variant) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(Pipeline::compile(&self.gpu, variant)?);
        self.pipelines.insert(variant, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// The bind groups of sub-result `index` (slab * banks + bank) with output buffer number `output`.
    pub(super) fn bind(&self, filters: &ConvFilters, index: usize, output: usize) -> Bound {
        let mut kept = locked(&filters.bindings);
        if let Some(bindings) = kept.get(&(index, output)) {
            return Arc::clone(bindings);
        }
        let (slab, bank) = (index / filters.banks(), index % filters.banks());
        let plan = &filters.plan;
        let uniform = || bound(&filters.uniforms, size_of::<Params>() as u64);
        let slab = bound(self.slabs[slab].buffer(), plan.slab_bytes);
        let output_buffer = bound(self.outputs[output].buffer(), plan.output_bytes);
        // The input and output of the main pass, if other passes precede and follow it.
        let source = between(self.transformed.as_ref(), plan.transformed_bytes).unwrap_or(slab.clone());
        let sink = between(self.sums.as_ref(), plan.sums_bytes).unwrap_or(output_buffer.clone());
        let group = |(stage, pipeline): &(Stage, Arc<Pipeline>)| {
            let mut resources = vec![uniform()];
            match stage {
                Stage::Forward => resources.extend([slab.clone(), source.clone()]),
                Stage::Main => {
                    resources.extend([source.clone(), bound(&filters.banks[bank], plan.bank_bytes)]);
                    resources.extend(filters.offsets.as_ref().map(wgpu::Buffer::as_entire_binding));
                    resources.push(sink.clone());
                }
                Stage::Merge | Stage::Inverse => resources.extend([sink.clone(), output_buffer.clone()]),
            }
            let entries: Vec<_> = (0..)
                .zip(resources)
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("convolution"),
                layout: &pipeline.layout,
                entries: &entries,
            })
        };
        let bindings: Bound = filters.passes.iter().map(group).collect();
        if kept.len() >= KEPT_BINDINGS {
            kept.clear();
        }
        kept.insert((index, output), Arc::clone(&bindings));
        bindings
    }
}

/// The first `bytes` of a buffer. The exact size keeps checked accesses inside the data of the layer.
fn bound(buffer: &wgpu::Buffer, bytes: u64) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size: NonZeroU64::new(bytes) })
}

/// The buffer between passes, if `bytes` is not zero.
fn between(kept: Option<&wgpu::Buffer>, bytes: u64) -> Option<wgpu::BindingResource<'_>> {
    kept.filter(|_| bytes > 0).map(|kept| bound(kept, bytes))
}

/// Dispatches steps of the plan of `filters`, each range with its bindings, in one compute pass. The step after the
/// last one runs an empty dispatch of each pipeline.
pub(super) fn encode(
    encoder: &mut wgpu::CommandEncoder,
    filters: &ConvFilters,
    work: &[(Bound, Range<usize>)],
    timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: Some("convolution"),
        timestamp_writes: timestamps,
    });
    for (bindings, steps) in work {
        for step in steps.clone() {
            let offset = u32::try_from(step as u64 * filters.uniform_stride)
                .expect("a plan has far fewer than 2^24 steps: each is some 2e8 multiply-adds");
            let planned = filters.plan.steps.get(step);
            let grid = planned.map_or([1, 1], |step| step.grid);
            for ((stage, pipeline), group) in filters.passes.iter().zip(&**bindings) {
                if planned.is_none_or(|step| step.stage == *stage) {
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, group, &[offset]);
                    pass.dispatch_workgroups(grid[0], grid[1], 1);
                }
            }
        }
    }
}
