//! Measures the time of a run: on the host by its clock, on the device by the device clock.
//!
//! A [`DeviceClock`] exists only if requested; it costs two timestamps per submission on the hot path.

use super::device::GpuDevice;
use crate::error::Result;

/// Breakdown of the time of one [`ConvEngine::run`](super::ConvEngine::run).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunTiming {
    /// From call to return, in seconds.
    pub wall_s: f64,
    /// Time of the host to copy slabs into memory that the device reads or copies from, in seconds.
    pub upload_s: f64,
    /// Time of the host to copy outputs out of memory that the device wrote, in seconds, without waiting for them.
    pub readback_s: f64,
    /// Computing time of the device by its own clock, in seconds; `None` unless
    /// [requested](super::ConvEngine::time_device) and supported by the adapter.
    pub device_s: Option<f64>,
    /// Submissions to the queue.
    pub submissions: usize,
    /// Dispatches in these submissions.
    pub dispatches: usize,
}

/// Maximum number of compute passes between two collections.
const PASSES: u32 = 512;
const TICK: u64 = size_of::<u64>() as u64;

/// Timestamps around compute passes.
#[derive(Debug)]
pub(super) struct DeviceClock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    host: wgpu::Buffer,
    tick_ns: f64,
    /// Passes since the last collection.
    passes: u32,
    seconds: f64,
}

impl DeviceClock {
    /// Creates a clock for `gpu`; `None` if its adapter has none.
    pub(super) fn new(gpu: &GpuDevice) -> Result<Option<Self>> {
        use wgpu::BufferUsages as U;
        let Some(tick_ns) = gpu.tick_ns else { return Ok(None) };
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("compute passes"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * PASSES,
        });
        let bytes = u64::from(2 * PASSES) * TICK;
        let resolved = gpu.buffer("timestamps", bytes, U::QUERY_RESOLVE | U::COPY_SRC, false)?;
        let host = gpu.buffer("timestamps staging", bytes, U::MAP_READ | U::COPY_DST, false)?;
        Ok(Some(Self { queries, resolved, host, tick_ns, passes: 0, seconds: 0.0 }))
    }

    /// The timestamp writes for a compute pass to be timed. Collects first if all slots are used.
    pub(super) fn pass(&mut self, gpu: &GpuDevice) -> Result<wgpu::ComputePassTimestampWrites<'_>> {
        if self.passes == PASSES {
            self.collect(gpu)?;
        }
        let first = 2 * self.passes;
        self.passes += 1;
        Ok(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        })
    }

    /// Discards all passes so far.
    pub(super) fn reset(&mut self) {
        (self.passes, self.seconds) = (0, 0.0);
    }

    /// Seconds of all passes since the last [`Self::take`] or [`Self::reset`]; waits until the passes are complete.
    pub(super) fn take(&mut self, gpu: &GpuDevice) -> Result<f64> {
        let collected = self.collect(gpu);
        let seconds = self.seconds;
        self.reset();
        collected.map(|()| seconds)
    }

    fn collect(&mut self, gpu: &GpuDevice) -> Result<()> {
        if self.passes == 0 {
            return Ok(());
        }
        let bytes = u64::from(2 * self.passes) * TICK;
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("timestamps") };
        let mut encoder = gpu.device.create_command_encoder(&descriptor);
        encoder.resolve_query_set(&self.queries, 0..2 * self.passes, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.host, 0, bytes);
        let submission = gpu.queue.submit([encoder.finish()]);
        self.passes = 0;
        let slice = self.host.slice(..bytes);
        // The outcome is ignored here: a failed mapping shows when the range is read below.
        slice.map_async(wgpu::MapMode::Read, |_| {});
        let waited = gpu.wait(Some(submission));
        let ticks = waited.and_then(|()| {
            let view = slice.get_mapped_range().map_err(|e| gpu.error(e.to_string()))?;
            Ok(bytemuck::pod_collect_to_vec::<u8, u64>(&view))
        });
        self.host.unmap();
        // A clock that ran backwards counts as zero.
        let passed = ticks?.chunks_exact(2).map(|t| t[1].saturating_sub(t[0])).sum::<u64>();
        self.seconds += passed as f64 * self.tick_ns * 1e-9;
        Ok(())
    }
}
