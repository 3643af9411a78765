//! What an adapter can do at best: multiply-adds in registers, and copies inside its memory. Wall time of whole
//! submissions, the best of several.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fcdcc::gpu::AdapterSummary;

use crate::ceilings::Ceilings;

/// Steps of each sum, far from what software adapters count wrong.
const STEPS: usize = 512;
/// Sums of four lanes in each thread.
const SUMS: usize = 8;
const WORKGROUP: usize = 64;
const ROUNDS: usize = 20;
/// Longest wait for a submission.
const WAIT: Duration = Duration::from_secs(20);

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

/// Measures the adapter.
pub(crate) fn measure(adapter: &AdapterSummary) -> Result<Ceilings> {
    let gpu = Gpu::open(adapter)?;
    let workgroups = if adapter.software { 256 } else { 65_535 };
    let total = if adapter.software { 256 << 20 } else { 4 << 30 };
    let bandwidth = [2 << 20, 16 << 20, 128 << 20]
        .into_iter()
        .map(|set| Ok((set, gpu.copies(set, total / set)?)))
        .collect::<Result<_>>()?;
    Ok(Ceilings { peak: gpu.multiply_adds(workgroups)?, bandwidth })
}

impl Gpu {
    fn open(summary: &AdapterSummary) -> Result<Self> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        descriptor.backends = wgpu::Backends::PRIMARY;
        let instance = wgpu::Instance::new(descriptor);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let same = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            info.name == summary.name && info.backend.to_str() == summary.backend
        };
        let adapter = adapters.into_iter().find(same).context("the adapter is no longer there")?;
        let descriptor =
            wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        Ok(Self { device, queue })
    }

    fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        self.device.create_buffer(&descriptor)
    }

    /// Seconds of the fastest of several submissions.
    fn fastest(&self, record: impl Fn(&mut wgpu::CommandEncoder)) -> Result<f64> {
        let mut fastest = f64::INFINITY;
        // The first ones meet compilers and fresh memory; they do not win.
        for _ in 0..ROUNDS {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            record(&mut encoder);
            let begin = Instant::now();
            let submission_index = Some(self.queue.submit([encoder.finish()]));
            self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(WAIT) })?;
            fastest = fastest.min(begin.elapsed().as_secs_f64());
        }
        Ok(fastest)
    }

    /// Operations a second.
    fn multiply_adds(&self, workgroups: usize) -> Result<f64> {
        let threads = workgroups * WORKGROUP;
        let sums = |line: &dyn Fn(usize) -> String| (0..SUMS).map(line).collect::<Vec<_>>();
        let declare = sums(&|sum| format!("var s{sum} = vec4f(f32({sum}) + f32(id.x));")).join("\n");
        let step = sums(&|sum| format!("s{sum} = fma(s{sum}, half, one);")).join("\n");
        let total = sums(&|sum| format!("s{sum}")).join(" + ");
        // The factors come from memory, so that nothing can be computed beforehand.
        let source = format!(
            "@group(0) @binding(0) var<storage, read_write> numbers: array<vec4f>;
            @compute @workgroup_size({WORKGROUP})
            fn main(@builtin(global_invocation_id) id: vec3u) {{
                let half = numbers[id.x] + vec4f(0.5);
                let one = numbers[id.x] + vec4f(1.0);
                {declare}
                for (var step = 0u; step < {STEPS}u; step++) {{
                    {step}
                }}
                // Stays zero, which the compiler cannot know.
                numbers[id.x] = min(vec4f(), {total});
            }}"
        );
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let numbers = self.buffer((threads * 16) as u64, wgpu::BufferUsages::STORAGE);
        let bindings = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: numbers.as_entire_binding() }],
        });
        let seconds = self.fastest(|encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bindings, &[]);
            pass.dispatch_workgroups(u32::try_from(workgroups).unwrap_or(u32::MAX), 1, 1);
        })?;
        Ok((threads * STEPS * SUMS * 4 * 2) as f64 / seconds)
    }

    /// Bytes read and written a second where both buffers together have `set` bytes.
    fn copies(&self, set: usize, times: usize) -> Result<f64> {
        let bytes = (set / 2) as u64;
        let from = self.buffer(bytes, wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
        let to = self.buffer(bytes, wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
        let seconds = self.fastest(|encoder| {
            for _ in 0..times {
                encoder.copy_buffer_to_buffer(&from, 0, &to, 0, bytes);
            }
        })?;
        Ok((set * times) as f64 / seconds)
    }
}
