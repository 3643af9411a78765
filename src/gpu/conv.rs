//! The engine: compiled kernels, filters on the device, and the loop that dispatches a subtask.
//!
//! One [`ConvEngine`] drives one [`GpuDevice`]. Installing packs and uploads filters and compiles and warms up their
//! kernel; running uploads slabs and computes the convolution of each slab with each filter bank, at most two
//! submissions ahead of the host, so that one sub-result is read back while the next is computed.
//!
//! Invariant: at most two submissions are in flight and they are waited for before `run` returns, so between calls
//! the device is idle and every buffer may be mapped or replaced.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use super::buffers::{Readback, Upload};
use super::device::GpuDevice;
use super::kernel::Kernel;
use super::params::Params;
use super::plan::{ConvPlan, Step};
use super::shaders::Variant;
use crate::array::{DType, Element, Values, check_elems, check_indices};
use crate::conv::ConvShape;
use crate::error::{Error, Result};

/// Submissions in flight: one computes while the host reads back or prepares the next.
const IN_FLIGHT: usize = 2;

#[derive(Debug)]
struct Pipeline {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
}

/// Filter banks of one convolution on a device, packed for the kernel that will read them.
///
/// Holding it holds the device memory; dropping it frees that.
#[derive(Debug)]
pub struct ConvFilters {
    plan: ConvPlan,
    pipeline: Arc<Pipeline>,
    banks: Vec<wgpu::Buffer>,
    /// `tiled` only: see its shader.
    offsets: Option<wgpu::Buffer>,
    /// The uniform block of each step, `uniform_stride` apart, then one of a dispatch that does nothing.
    uniforms: wgpu::Buffer,
    uniform_stride: u64,
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
    gpu: GpuDevice,
    pipelines: HashMap<Variant, Arc<Pipeline>>,
    slabs: Vec<Option<Upload>>,
    outputs: [Option<Readback>; IN_FLIGHT],
    poison: bool,
}

/// One submission of a run.
struct Job {
    /// The sub-result it is part of, slab * banks + bank, and how many were begun before that: neighbours in a run
    /// write to different output buffers, whatever their indices.
    index: usize,
    turn: usize,
    steps: Range<usize>,
    /// The sub-result's first and last submission.
    first: bool,
    last: bool,
}

/// What was submitted and not yet waited for, oldest first.
type InFlight = VecDeque<(Job, wgpu::SubmissionIndex)>;

impl ConvEngine {
    /// An engine without filters.
    #[must_use]
    pub fn new(gpu: GpuDevice) -> Self {
        Self { gpu, pipelines: HashMap::new(), slabs: Vec::new(), outputs: [None, None], poison: false }
    }

    /// The device this engine drives.
    #[must_use]
    pub fn device(&self) -> &GpuDevice {
        &self.gpu
    }

    /// From now on, fills each output with NaN before it is computed: an element that no thread writes then shows.
    /// For tests; costs an upload a sub-result.
    pub fn poison_outputs(&mut self, poison: bool) {
        self.poison = poison;
    }

    /// Packs and uploads `banks` filter banks of `[O, C/g, kernel...]`, one after the other, for convolutions of
    /// `shape` with up to `slabs` slabs a call; compiles the kernel ([`Kernel::choose`] picks it when `kernel` is
    /// `None`) and runs it once on nothing, so that the first real dispatch meets no compiler.
    ///
    /// # Errors
    /// Those of [`ConvPlan::new`]; [`Error::Mismatch`] for a wrong number of elements; [`Error::Gpu`] when the
    /// device is out of memory, refuses the kernel, or is lost.
    pub fn install(
        &mut self,
        shape: &ConvShape,
        slabs: usize,
        banks: usize,
        filters: &Values,
        kernel: Option<Kernel>,
    ) -> Result<ConvFilters> {
        check_elems("elements of the coded filters", filters.len(), banks * shape.weight_elems())?;
        let plan = ConvPlan::new(shape, filters.dtype(), self.gpu.caps(), kernel)?;
        self.gpu.check()?;
        let pipeline = self.pipeline(plan.variant)?;
        let banks = match filters {
            Values::F32(values) => self.upload_banks(&plan, values),
            Values::F64(values) => self.upload_banks(&plan, values),
        }?;
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
        let filters = ConvFilters { plan, pipeline, banks, offsets, uniforms, uniform_stride };

        self.reserve(&filters.plan, slabs)?;
        let nothing = Step { params: nothing, grid: [1, 1] };
        let bindings = self.bind(&filters, 0, 0, 0);
        let mut encoder = self.encoder("warm-up");
        encode(&mut encoder, &filters, &bindings, &[(filters.plan.steps.len(), nothing)]);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.wait(Some(submission))?;
        Ok(filters)
    }

    /// Convolves `slabs` slabs `[N, C, spatial...]`, one after the other in `values`, with the banks of `filters`:
    /// result `slab * banks + bank` is `[N, O, spatial...]`. Computes the results that `order` names, in that order,
    /// or all in ascending order, and hands each to `emit` with its index as soon as it is there, while the next is
    /// computed. `stop` is asked between submissions.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a wrong number or type of elements; [`Error::InvalidParameter`] for an order with an
    /// index beyond the results; [`Error::Cancelled`] when `stop` said so; [`Error::Gpu`] when the device fails, after which [`GpuDevice::lost`] tells whether it is gone for good.
    pub fn run(
        &mut self,
        filters: &ConvFilters,
        slabs: usize,
        values: &Values,
        order: Option<&[usize]>,
        stop: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        if values.dtype() != filters.dtype() {
            return Err(Error::mismatch(
                "element type of the coded slabs",
                values.dtype(),
                filters.dtype(),
                "slabs and installed filters must be of one type",
            ));
        }
        let results = slabs * filters.banks();
        let order = order.map_or_else(|| Cow::Owned((0..results).collect()), Cow::Borrowed);
        check_indices(&order, results)?;
        match values {
            Values::F32(values) => self.run_typed(filters, slabs, values, &order, stop, emit),
            Values::F64(values) => self.run_typed(filters, slabs, values, &order, stop, emit),
        }
    }

    fn run_typed<T: Element>(
        &mut self,
        filters: &ConvFilters,
        slabs: usize,
        values: &[T],
        order: &[usize],
        stop: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let plan = &filters.plan;
        let slab_elems = plan.shape.input_elems();
        check_elems("elements of the coded slabs", values.len(), slabs * slab_elems)?;
        if stop() {
            return Err(Error::Cancelled);
        }
        self.gpu.check()?;
        self.reserve(plan, slabs)?;
        for (index, slab) in values.chunks_exact(slab_elems).enumerate() {
            if order.iter().any(|result| result / filters.banks() == index) {
                let upload = self.slabs[index].as_ref().expect("reserved above");
                upload.write(&self.gpu, bytemuck::cast_slice(slab))?;
            }
        }

        let mut in_flight = VecDeque::with_capacity(IN_FLIGHT);
        let outcome = self.pump::<T>(filters, order, stop, emit, &mut in_flight);
        // Also after an error or a cancellation: whoever comes next finds an idle device.
        let drained = if in_flight.is_empty() { Ok(()) } else { self.gpu.wait(None) };
        outcome.and(drained)
    }

    fn pump<T: Element>(
        &self,
        filters: &ConvFilters,
        order: &[usize],
        stop: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(usize, Values),
        in_flight: &mut InFlight,
    ) -> Result<()> {
        let plan = &filters.plan;
        let banks = filters.banks();
        for job in jobs(plan, order) {
            if stop() {
                return Err(Error::Cancelled);
            }
            let output = self.output(job.turn);
            if self.poison && job.first {
                let nan = vec![T::from_f64(f64::NAN); plan.shape.output_elems()];
                self.gpu.queue.write_buffer(output.buffer(), 0, bytemuck::cast_slice(&nan));
            }
            let bindings = self.bind(filters, job.index / banks, job.index % banks, job.turn);
            let mut encoder = self.encoder("sub-result");
            let steps: Vec<_> = job.steps.clone().map(|s| (s, plan.steps[s])).collect();
            encode(&mut encoder, filters, &bindings, &steps);
            if job.last {
                output.finish(&mut encoder, plan.output_bytes);
            }
            let submission = self.gpu.queue.submit([encoder.finish()]);
            self.gpu.check()?;
            in_flight.push_back((job, submission));
            if in_flight.len() == IN_FLIGHT {
                self.retire::<T>(plan, in_flight, emit)?;
            }
        }
        while !in_flight.is_empty() {
            if stop() {
                return Err(Error::Cancelled);
            }
            self.retire::<T>(plan, in_flight, emit)?;
        }
        Ok(())
    }

    /// Waits for the oldest submission and hands out the sub-result it completes, if it completes one.
    fn retire<T: Element>(
        &self,
        plan: &ConvPlan,
        in_flight: &mut InFlight,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let Some((job, submission)) = in_flight.pop_front() else { return Ok(()) };
        if !job.last {
            return self.gpu.wait(Some(submission));
        }
        let values = self.output(job.turn).read::<T>(&self.gpu, plan.shape.output_elems(), submission)?;
        emit(job.index, T::wrap(values));
        Ok(())
    }

    /// The output buffer of the sub-result that is computed as number `turn`.
    fn output(&self, turn: usize) -> &Readback {
        self.outputs[turn % IN_FLIGHT].as_ref().expect("`reserve` fills every output buffer")
    }

    /// Makes the transfer buffers large enough for `slabs` slabs of `plan`.
    fn reserve(&mut self, plan: &ConvPlan, slabs: usize) -> Result<()> {
        if self.slabs.len() < slabs.max(1) {
            self.slabs.resize_with(slabs.max(1), || None);
        }
        for slot in &mut self.slabs[..slabs.max(1)] {
            Upload::grown(slot, &self.gpu, plan.slab_bytes)?;
        }
        for slot in &mut self.outputs {
            Readback::grown(slot, &self.gpu, plan.output_bytes)?;
        }
        Ok(())
    }

    fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
    }

    fn upload_banks<T: Element>(&self, plan: &ConvPlan, filters: &[T]) -> Result<Vec<wgpu::Buffer>> {
        filters
            .chunks_exact(plan.shape.weight_elems())
            .map(|bank| {
                let packed = plan.pack(bank);
                self.constant_buffer("coded filters", &[bytemuck::cast_slice(&packed)], 0)
            })
            .collect()
    }

    /// A buffer holding `parts`, each at a multiple of `stride`, for shaders to read.
    fn constant_buffer(&self, label: &str, parts: &[&[u8]], stride: u64) -> Result<wgpu::Buffer> {
        let last = parts.last().map_or(0, |p| p.len() as u64);
        let size = (stride * (parts.len() as u64 - 1) + last).next_multiple_of(4);
        let usage = if stride > 0 { wgpu::BufferUsages::UNIFORM } else { wgpu::BufferUsages::STORAGE };
        let buffer = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: usage | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.check()?;
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
        let device = &self.gpu.device;
        let label = variant.label();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(variant.wgsl().into()),
        });
        let inputs = if variant.kernel == Kernel::Tiled { 3 } else { 2 };
        let storage = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let uniform = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: NonZeroU64::new(size_of::<Params>() as u64),
            },
            count: None,
        };
        let mut entries = vec![uniform];
        entries.extend((1..=inputs).map(|binding| storage(binding, true)));
        entries.push(storage(inputs + 1, false));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &variant.overrides(),
                // The only kernel with shared memory writes all of it before it reads any.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.gpu.check()?;
        let pipeline = Arc::new(Pipeline { layout, pipeline });
        self.pipelines.insert(variant, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn bind(&self, filters: &ConvFilters, slab: usize, bank: usize, turn: usize) -> wgpu::BindGroup {
        let plan = &filters.plan;
        let slab = self.slabs[slab].as_ref().expect("`reserve` fills every slab buffer");
        // The exact sizes, so that checked accesses stay inside this layer's data.
        let bound = |buffer, bytes| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: 0,
                size: NonZeroU64::new(bytes),
            })
        };
        let mut resources = vec![
            bound(&filters.uniforms, size_of::<Params>() as u64),
            bound(slab.buffer(), plan.slab_bytes),
            bound(&filters.banks[bank], plan.bank_bytes),
        ];
        resources.extend(filters.offsets.as_ref().map(wgpu::Buffer::as_entire_binding));
        resources.push(bound(self.output(turn).buffer(), plan.output_bytes));
        let entries: Vec<_> = (0..)
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("convolution"),
            layout: &filters.pipeline.layout,
            entries: &entries,
        })
    }
}

/// The submissions of a run, in order.
fn jobs(plan: &ConvPlan, order: &[usize]) -> impl Iterator<Item = Job> {
    let last = plan.submissions.len() - 1;
    order.iter().enumerate().flat_map(move |(turn, index)| {
        plan.submissions.iter().enumerate().map(move |(part, steps)| Job {
            index: *index,
            turn,
            steps: steps.clone(),
            first: part == 0,
            last: part == last,
        })
    })
}

/// Dispatches `steps`, each with the index of its uniform block.
fn encode(
    encoder: &mut wgpu::CommandEncoder,
    filters: &ConvFilters,
    bindings: &wgpu::BindGroup,
    steps: &[(usize, Step)],
) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: Some("convolution"),
        timestamp_writes: None,
    });
    pass.set_pipeline(&filters.pipeline.pipeline);
    for (index, step) in steps {
        let offset = u32::try_from(*index as u64 * filters.uniform_stride)
            .expect("a plan has far fewer than 2^24 steps: each is some 2e8 multiply-adds");
        pass.set_bind_group(0, bindings, &[offset]);
        pass.dispatch_workgroups(step.grid[0], step.grid[1], 1);
    }
}
