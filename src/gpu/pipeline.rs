//! Compiles the kernels of a device.
//!
//! Relevant if you want to change what a kernel binds. Invariant: a pipeline has the bindings of its variant: the uniform
//! block, the inputs, then the output.

use std::num::NonZeroU64;

use super::device::GpuDevice;
use super::params::Params;
use super::shaders::Variant;
use crate::error::Result;

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) pipeline: wgpu::ComputePipeline,
}

impl Pipeline {
    /// Compiles the kernel of a variant.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) when the device refuses the kernel or is lost.
    pub(super) fn compile(gpu: &GpuDevice, variant: Variant) -> Result<Self> {
        let device = &gpu.device;
        let label = variant.label();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(variant.wgsl().into()),
        });
        let inputs = variant.inputs();
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
                // The only kernel with shared memory writes all of it before reading any.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        gpu.check()?;
        Ok(Self { layout, pipeline })
    }
}
