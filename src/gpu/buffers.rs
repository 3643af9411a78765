//! Buffers that carry slabs to a device and outputs back; kept between calls, grown when needed.
//!
//! Where the adapter can map the buffers that shaders use, the host writes and reads those; elsewhere each has a staging
//! buffer beside it, and the copy between the two is part of the submission that computes. Either way the host copies an
//! element once on its way there and once on its way back.
//!
//! A slab's buffer is mapped again as soon as it is free, so that writing the next one waits for nothing; an output's
//! is when the submission that fills it is complete. Invariant: data is handed out only after the mapping succeeded and
//! the device reported no error, so a failed transfer is never mistaken for a result of zeros; and no submission uses a
//! buffer that is mapped.

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

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

/// A storage buffer that the host writes or reads.
#[derive(Debug)]
struct Transfer {
    storage: wgpu::Buffer,
    /// Where the host's side of the transfer happens, if `storage` cannot be mapped.
    staging: Option<wgpu::Buffer>,
    direction: Direction,
    /// What became of the mapping that was asked for; `None` while submissions may use the buffer.
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

    /// Asks that the first `bytes` be mapped when what was submitted is done with them; not if that was asked already.
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

    /// Gives the buffer back to submissions.
    fn unmap(&mut self) {
        // wgpu takes offence at unmapping what could not be mapped.
        if self.mapping.take().is_some_and(|state| state.load(Ordering::Acquire) != FAILED) {
            self.host().unmap();
        }
    }

    /// Hands the first `bytes`, for which [`Self::map`] has been called, to `with` when `submission` (or everything
    /// submitted) is complete, and unmaps.
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

/// A slab on its way to the device.
#[derive(Debug)]
pub(super) struct Upload(Transfer);

/// An output on its way back.
#[derive(Debug)]
pub(super) struct Readback(Transfer);

impl Upload {
    pub(super) fn new(gpu: &GpuDevice, bytes: u64) -> Result<Self> {
        Transfer::new(gpu, Direction::Upload, "coded slab", bytes).map(Self)
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.storage
    }

    /// Asks that the buffer be mapped for the next [`Self::write`].
    pub(super) fn prepare(&mut self) {
        self.0.map(self.0.storage.size());
    }

    /// Gives the buffer to submissions with what it holds.
    pub(super) fn release(&mut self) {
        self.0.unmap();
    }

    /// Puts `bytes` at the front of the buffer, which nothing submitted earlier may use, for what is submitted later.
    /// Where there is a staging buffer, [`Self::begin`] has to follow.
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

    /// Puts the copy from the staging buffer, if there is one, before the commands that read the slab.
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

    /// Appends the copy to the staging buffer, if there is one, to the commands that complete the output.
    pub(super) fn finish(&self, encoder: &mut wgpu::CommandEncoder, bytes: u64) {
        if let Some(staging) = &self.0.staging {
            encoder.copy_buffer_to_buffer(&self.0.storage, 0, staging, 0, bytes);
        }
    }

    /// Asks that the first `bytes` be mapped when what has been submitted is complete.
    pub(super) fn prepare(&mut self, bytes: u64) {
        self.0.map(bytes);
    }

    /// Gives the buffer back to submissions, whatever has been asked for.
    pub(super) fn release(&mut self) {
        self.0.unmap();
    }

    /// Waits for `submission`, which ended with [`Self::finish`] and was followed by [`Self::prepare`], and takes
    /// `elems` elements.
    pub(super) fn read<T: Element>(
        &mut self,
        gpu: &GpuDevice,
        elems: usize,
        submission: &wgpu::SubmissionIndex,
    ) -> Result<Vec<T>> {
        self.0.mapped(gpu, (elems * size_of::<T>()) as u64, Some(submission.clone()), |slice| {
            let view = slice.get_mapped_range().map_err(|e| gpu.error(e.to_string()))?;
            // Mapped memory is aligned; were it not, the copy would go by bytes.
            Ok(bytemuck::try_cast_slice(&view)
                .map_or_else(|_| bytemuck::pod_collect_to_vec(&view), <[T]>::to_vec))
        })
    }
}

/// Makes `slots` hold `count` buffers at least of `bytes` each, by `new`.
pub(super) fn grow<B>(
    slots: &mut Vec<B>,
    count: usize,
    bytes: u64,
    size: impl Fn(&B) -> u64,
    mut new: impl FnMut() -> Result<B>,
) -> Result<()> {
    // Who is too small goes first: old and new may not fit side by side.
    slots.retain(|slot| size(slot) >= bytes);
    while slots.len() < count {
        slots.push(new()?);
    }
    Ok(())
}
