//! Buffers that carry slabs to a device and outputs back; kept between calls, grown when needed.
//!
//! Where the adapter can map the buffers shaders use, they are mapped themselves; elsewhere each has a staging
//! buffer beside it. Invariant: data is handed out only after the mapping succeeded and the device reported no
//! error, so a failed transfer is never mistaken for a result of zeros.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::device::GpuDevice;
use crate::array::Element;
use crate::error::Result;

/// Which way a transfer buffer carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Upload,
    Readback,
}

/// A storage buffer that the host writes or reads.
#[derive(Debug)]
struct Transfer {
    storage: wgpu::Buffer,
    /// Where the host's side of the transfer happens, if `storage` cannot be mapped.
    staging: Option<wgpu::Buffer>,
    direction: Direction,
}

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

impl Transfer {
    fn new(gpu: &GpuDevice, direction: Direction, label: &str, bytes: u64) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let (map, other) = match direction {
            Direction::Upload => (U::MAP_WRITE, U::COPY_SRC),
            Direction::Readback => (U::MAP_READ, U::COPY_DST),
        };
        let create = |label: &str, usage: wgpu::BufferUsages| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        let shared = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let transfer = if gpu.caps().mappable {
            Self { storage: create(label, shared | map), staging: None, direction }
        } else {
            let staging = create(&format!("{label} staging"), map | other);
            Self { storage: create(label, shared), staging: Some(staging), direction }
        };
        gpu.check()?;
        Ok(transfer)
    }

    /// Maps the first `bytes`, which no submission after `submission` may use, and hands them to `with`.
    fn mapped<R>(
        &self,
        gpu: &GpuDevice,
        bytes: u64,
        submission: Option<wgpu::SubmissionIndex>,
        with: impl FnOnce(wgpu::BufferSlice<'_>) -> Result<R>,
    ) -> Result<R> {
        let buffer = self.staging.as_ref().unwrap_or(&self.storage);
        let slice = buffer.slice(..bytes);
        let state = Arc::new(AtomicU8::new(PENDING));
        let report = Arc::clone(&state);
        let mode = match self.direction {
            Direction::Upload => wgpu::MapMode::Write,
            Direction::Readback => wgpu::MapMode::Read,
        };
        slice.map_async(mode, move |result| {
            report.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
        let waited = gpu.wait(submission);
        if state.load(Ordering::Acquire) != MAPPED {
            waited?;
            return Err(gpu.error("a buffer could not be mapped"));
        }
        let result = waited.and_then(|()| with(slice));
        buffer.unmap();
        gpu.check()?;
        result
    }
}

/// Slabs on their way to the device.
#[derive(Debug)]
pub(super) struct Upload(Transfer);

/// Outputs on their way back.
#[derive(Debug)]
pub(super) struct Readback(Transfer);

/// The buffer in `slot`, replaced by a larger one if it has fewer than `bytes`.
fn grown<B>(
    slot: &mut Option<B>,
    bytes: u64,
    size: impl Fn(&B) -> u64,
    new: impl FnOnce() -> Result<B>,
) -> Result<&B> {
    if slot.as_ref().is_none_or(|b| size(b) < bytes) {
        // The old one goes first: both may not fit.
        *slot = None;
        *slot = Some(new()?);
    }
    Ok(slot.as_ref().expect("filled above"))
}

impl Upload {
    pub(super) fn grown<'a>(slot: &'a mut Option<Self>, gpu: &GpuDevice, bytes: u64) -> Result<&'a Self> {
        let new = || Transfer::new(gpu, Direction::Upload, "coded slab", bytes).map(Self);
        grown(slot, bytes, |b| b.0.storage.size(), new)
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.storage
    }

    /// Puts `bytes` at the front of the buffer, before anything submitted later. The device must be idle.
    pub(super) fn write(&self, gpu: &GpuDevice, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.0.mapped(gpu, size, None, |slice| {
            let mut view = slice.get_mapped_range_mut().map_err(|e| gpu.error(e.to_string()))?;
            view.copy_from_slice(bytes);
            Ok(())
        })?;
        if let Some(staging) = &self.0.staging {
            let mut encoder = gpu
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("upload coded slab") });
            encoder.copy_buffer_to_buffer(staging, 0, &self.0.storage, 0, size);
            gpu.queue.submit([encoder.finish()]);
        }
        gpu.check()
    }
}

impl Readback {
    pub(super) fn grown<'a>(slot: &'a mut Option<Self>, gpu: &GpuDevice, bytes: u64) -> Result<&'a Self> {
        let new = || Transfer::new(gpu, Direction::Readback, "sub-result", bytes).map(Self);
        grown(slot, bytes, |b| b.0.storage.size(), new)
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.storage
    }

    /// Appends the copy to the staging buffer, if there is one, to the commands that complete the output.
    pub(super) fn finish(&self, encoder: &mut wgpu::CommandEncoder, bytes: u64) {
        if let Some(staging) = &self.0.staging {
            encoder.copy_buffer_to_buffer(&self.0.storage, 0, staging, 0, bytes);
        }
    }

    /// Waits for `submission`, which ended with [`Self::finish`], and takes `elems` elements.
    pub(super) fn read<T: Element>(
        &self,
        gpu: &GpuDevice,
        elems: usize,
        submission: wgpu::SubmissionIndex,
    ) -> Result<Vec<T>> {
        self.0.mapped(gpu, (elems * size_of::<T>()) as u64, Some(submission), |slice| {
            let view = slice.get_mapped_range().map_err(|e| gpu.error(e.to_string()))?;
            let mut values = vec![T::default(); elems];
            bytemuck::cast_slice_mut::<T, u8>(&mut values).copy_from_slice(&view);
            Ok(values)
        })
    }
}
