//! Buffers that carry slabs to a device and outputs back; reused between calls, grown when needed.
//!
//! If the adapter can map the buffers that shaders use, the host reads and writes them directly; otherwise each has a
//! staging buffer, and the copy between the two is part of the submission that computes. Either way the host copies
//! each element once per direction.
//!
//! A slab buffer is mapped again as soon as it is free, so that writing the next slab need not wait; an output buffer
//! is mapped when the submission that fills it is complete. Invariant: data is read only after the mapping succeeded
//! and the device reported no error, so a failed transfer never looks like a result of zeros; and no submission uses a
//! mapped buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::device::GpuDevice;
use crate::array::Element;
use crate::error::Result;

/// Direction of a transfer buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Upload,
    Readback,
}

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

/// A storage buffer that the host writes or reads.
#[derive(Debug)]
struct Transfer {
    storage: wgpu::Buffer,
    /// The buffer that the host maps, if `storage` cannot be mapped.
    staging: Option<wgpu::Buffer>,
    direction: Direction,
    /// State of the requested mapping; `None` while submissions may use the buffer.
    mapping: Option<Arc<AtomicU8>>,
}

impl Transfer {
    fn new(gpu: &GpuDevice, direction: Direction, label: &str, bytes: u64) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let (map, other) = match direction {
            Direction::Upload => (U::MAP_WRITE, U::COPY_SRC),
            Direction::Readback => (U::MAP_READ, U::COPY_DST),
        };
        let shared = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let (storage, staging) = if gpu.caps().mappable {
            (gpu.buffer(label, bytes, shared | map, false)?, None)
        } else {
            let staging = gpu.buffer(&format!("{label} staging"), bytes, map | other, false)?;
            (gpu.buffer(label, bytes, shared, false)?, Some(staging))
        };
        Ok(Self { storage, staging, direction, mapping: None })
    }

    /// The buffer that is mapped.
    fn host(&self) -> &wgpu::Buffer {
        self.staging.as_ref().unwrap_or(&self.storage)
    }

    /// Requests a mapping of the first `bytes`, effective once earlier submissions are done with them. Does nothing if
    /// one is already requested.
    fn map(&mut self, bytes: u64) {
        if self.mapping.is_some() {
            return;
        }
        let state = Arc::new(AtomicU8::new(PENDING));
        let report = Arc::clone(&state);
        let mode = match self.direction {
            Direction::Upload => wgpu::MapMode::Write,
            Direction::Readback => wgpu::MapMode::Read,
        };
        self.mapping = Some(state);
        self.host().slice(..bytes).map_async(mode, move |result| {
            report.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
    }

    fn state(&self) -> u8 {
        self.mapping.as_ref().map_or(FAILED, |state| state.load(Ordering::Acquire))
    }

    /// Releases the buffer to submissions.
    fn unmap(&mut self) {
        // wgpu reports an error when a buffer whose mapping failed is unmapped.
        if self.mapping.take().is_some_and(|state| state.load(Ordering::Acquire) != FAILED) {
            self.host().unmap();
        }
    }

    /// Waits until `submission` (or everything submitted) is complete, passes the first `bytes`, for which
    /// [`Self::map`] has been called, to `with`, and unmaps.
    fn mapped<R>(
        &mut self,
        gpu: &GpuDevice,
        bytes: u64,
        submission: Option<wgpu::SubmissionIndex>,
        with: impl FnOnce(wgpu::BufferSlice<'_>) -> Result<R>,
    ) -> Result<R> {
        let waited = if self.state() == PENDING { gpu.wait(submission) } else { gpu.check() };
        let result = match self.state() {
            MAPPED => waited.and_then(|()| with(self.host().slice(..bytes))),
            _ => waited.and_then(|()| Err(gpu.error("a buffer could not be mapped"))),
        };
        self.unmap();
        gpu.check()?;
        result
    }
}

/// The buffer of a slab that is sent to the device.
#[derive(Debug)]
pub(super) struct Upload(Transfer);

/// The buffer of an output that is read back.
#[derive(Debug)]
pub(super) struct Readback(Transfer);

impl Upload {
    pub(super) fn new(gpu: &GpuDevice, bytes: u64) -> Result<Self> {
        Transfer::new(gpu, Direction::Upload, "coded slab", bytes).map(Self)
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.storage
    }

    /// Requests a mapping for the next [`Self::write`].
    pub(super) fn prepare(&mut self) {
        self.0.map(self.0.storage.size());
    }

    /// Releases the buffer with its contents to submissions.
    pub(super) fn release(&mut self) {
        self.0.unmap();
    }

    /// Writes `bytes` to the front of the buffer for later submissions. No earlier submission may use the buffer. With
    /// a staging buffer, [`Self::begin`] must follow.
    pub(super) fn write(&mut self, gpu: &GpuDevice, bytes: &[u8]) -> Result<()> {
        self.prepare();
        if self.0.state() == PENDING {
            gpu.poll()?;
        }
        self.0.mapped(gpu, bytes.len() as u64, None, |slice| {
            let mut view = slice.get_mapped_range_mut().map_err(|e| gpu.error(e.to_string()))?;
            view.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Encodes the copy from the staging buffer, if there is one, before the commands that read the slab.
    pub(super) fn begin(&self, encoder: &mut wgpu::CommandEncoder, bytes: u64) {
        if let Some(staging) = &self.0.staging {
            encoder.copy_buffer_to_buffer(staging, 0, &self.0.storage, 0, bytes);
        }
    }
}

impl Readback {
    pub(super) fn new(gpu: &GpuDevice, bytes: u64) -> Result<Self> {
        Transfer::new(gpu, Direction::Readback, "sub-result", bytes).map(Self)
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.storage
    }

    /// Encodes the copy to the staging buffer, if there is one, after the commands that complete the output.
    pub(super) fn finish(&self, encoder: &mut wgpu::CommandEncoder, bytes: u64) {
        if let Some(staging) = &self.0.staging {
            encoder.copy_buffer_to_buffer(&self.0.storage, 0, staging, 0, bytes);
        }
    }

    /// Requests a mapping of the first `bytes`, effective when all earlier submissions are complete.
    pub(super) fn prepare(&mut self, bytes: u64) {
        self.0.map(bytes);
    }

    /// Releases the buffer to submissions and drops a requested mapping.
    pub(super) fn release(&mut self) {
        self.0.unmap();
    }

    /// Waits for `submission`, which ended with [`Self::finish`] and was followed by [`Self::prepare`], and copies
    /// `elems` elements.
    pub(super) fn read<T: Element>(
        &mut self,
        gpu: &GpuDevice,
        elems: usize,
        submission: &wgpu::SubmissionIndex,
    ) -> Result<Vec<T>> {
        self.0.mapped(gpu, (elems * size_of::<T>()) as u64, Some(submission.clone()), |slice| {
            let view = slice.get_mapped_range().map_err(|e| gpu.error(e.to_string()))?;
            // Mapped memory is aligned; if it were not, the copy would go byte by byte.
            Ok(bytemuck::try_cast_slice(&view)
                .map_or_else(|_| bytemuck::pod_collect_to_vec(&view), <[T]>::to_vec))
        })
    }
}

/// Makes `slots` hold `count` buffers of at least `bytes` each, created by `new`.
pub(super) fn grow<B>(
    slots: &mut Vec<B>,
    count: usize,
    bytes: u64,
    size: impl Fn(&B) -> u64,
    mut new: impl FnMut() -> Result<B>,
) -> Result<()> {
    // Buffers that are too small are freed first, since old and new ones may not fit side by side.
    slots.retain(|slot| size(slot) >= bytes);
    while slots.len() < count {
        slots.push(new()?);
    }
    Ok(())
}
