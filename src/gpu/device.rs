//! Open queues: a [`GpuDevice`] is a queue on an [adapter](super::adapter), with its own record of errors and loss.
//!
//! Invariant: driver failures never cause a panic here. Errors that wgpu reports outside of a call are recorded, and
//! every later step of this device fails with them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::adapter::{AdapterSelector, AdapterSummary, adapters, enumerate, summary, unavailable};
use crate::error::{Error, Result};
use crate::sync::locked;

/// Time after which an unfinished submission means a hung device. Submissions take some 40 ms; the rest is reserve for
/// a loaded machine and slow software adapters.
const SUBMISSION_LIMIT: Duration = Duration::from_mins(1);
/// Multiply-adds of one submission: some 40 ms, so that cancelling is prompt and no driver watchdog intervenes.
const SOFTWARE_SUBMISSION_MACS: u64 = 200_000_000;
const HARDWARE_SUBMISSION_MACS: u64 = 100_000_000_000;
/// Duration of one wait between checks for device loss.
const POLL_SLICE: Duration = Duration::from_secs(1);

/// The properties of a device that plans depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent abilities, one flag each")]
pub struct Caps {
    /// Computes on the CPU, where shared memory gains nothing and scalar loads are costly.
    pub software: bool,
    /// 64-bit floats in shaders.
    pub f64: bool,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Slabs and filters are stored in 16 bits: see [`GpuDevice::with_half_storage`].
    pub half: bool,
    /// Subgroup shuffles, in subgroups that always have at least 8 lanes.
    pub subgroup_shuffle: bool,
    /// Smallest number of lanes of a subgroup.
    pub subgroup_size: u32,
    /// Number of threads that run workgroups, if known: on software adapters.
    pub threads: usize,
    /// Buffers that shaders use can be mapped.
    pub mappable: bool,
    /// Largest array that a shader can access, in bytes.
    pub max_binding_bytes: u64,
    /// Maximum number of workgroups along one dimension of a dispatch.
    pub max_workgroups_per_dimension: u32,
    /// Maximum number of threads of a workgroup.
    pub max_workgroup_invocations: u32,
    /// Multiply-adds of one submission, as nearly as whole workgroups allow. A run can be cancelled between
    /// submissions.
    pub submission_macs: u64,
}

/// Errors of a device that were reported outside of calls.
#[derive(Debug, Default)]
struct Health {
    /// The reason, if the device was lost.
    lost: Mutex<Option<String>>,
    /// The first error that has not been returned yet.
    error: Mutex<Option<String>>,
}

impl Health {
    fn lose(&self, cause: String) {
        locked(&self.lost).get_or_insert(cause);
    }
}

/// An open queue on an adapter. Several queues may be open on one adapter; each has its own instance.
#[derive(Debug)]
pub struct GpuDevice {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    summary: AdapterSummary,
    caps: Caps,
    /// Nanoseconds per tick of the device clock, if it can be read.
    pub(super) tick_ns: Option<f64>,
    health: Arc<Health>,
    buffers_created: Arc<AtomicU64>,
}

impl GpuDevice {
    /// Opens a queue on an adapter of [`adapters`] or [`select`](super::select), with all the limits and features it offers.
    /// `label` names the queue in messages and debuggers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the adapter no longer exists; [`Error::Gpu`] when it refuses.
    pub fn open(adapter: &AdapterSummary, label: &str) -> Result<Self> {
        let found = enumerate()
            .into_iter()
            .nth(adapter.index)
            .filter(|a| a.get_info().name == adapter.name)
            .ok_or_else(|| unavailable(Some(&AdapterSelector::Index(adapter.index)), &adapters()))?;
        let gpu_error = |cause: String| Error::Gpu { adapter: adapter.name.clone(), cause };

        let wanted = wgpu::Features::SHADER_F64
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY;
        let mut features = found.features() & wanted;
        let device_type = found.get_info().device_type;
        // On a discrete GPU, mappable memory that shaders use would be accessed across the bus.
        let shared_memory = matches!(device_type, wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu);
        if shared_memory {
            features |= found.features() & wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let limits = found.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some(label),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) =
            catch_unwind(AssertUnwindSafe(|| pollster::block_on(found.request_device(&descriptor))))
                .map_err(|_| gpu_error("opening the device panicked inside wgpu".to_owned()))?
                .map_err(|e| gpu_error(format!("cannot open the device: {e}")))?;

        let health = Arc::new(Health::default());
        let record = Arc::clone(&health);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            tracing::warn!(%error, "GPU error");
            locked(&record.error).get_or_insert_with(|| error.to_string());
        }));
        let record = Arc::clone(&health);
        device.set_device_lost_callback(move |reason, message| {
            record.lose(format!("device lost ({reason:?}): {message}"));
        });
        let summary = summary(adapter.index, &found);
        let lanes = summary.limits.min_subgroup_size;
        let caps = Caps {
            software: summary.software,
            f64: features.contains(wgpu::Features::SHADER_F64),
            f16: features.contains(wgpu::Features::SHADER_F16),
            half: false,
            subgroup_shuffle: features.contains(wgpu::Features::SUBGROUP) && lanes >= 8,
            subgroup_size: lanes,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            mappable: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            submission_macs: if summary.software {
                SOFTWARE_SUBMISSION_MACS
            } else {
                HARDWARE_SUBMISSION_MACS
            },
        };
        let timestamps = features.contains(wgpu::Features::TIMESTAMP_QUERY);
        let tick_ns = timestamps.then(|| f64::from(queue.get_timestamp_period()));
        Ok(Self { device, queue, summary, caps, tick_ns, health, buffers_created: Arc::default() })
    }

    /// The adapter of this queue.
    #[must_use]
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// The properties of this device that plans depend on.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Changes [`Caps::submission_macs`] for everything installed from now on. Smaller submissions make cancelling
    /// faster and reduce throughput.
    #[must_use]
    pub fn with_submission_macs(mut self, macs: u64) -> Self {
        self.caps.submission_macs = macs;
        self
    }

    /// Stores the slabs and filters of everything installed from now on in 16 bits, half the size of f32; sums stay
    /// f32. The rounding causes a relative L2 error of some 3e-4, which decoding amplifies like any other; numbers
    /// beyond 65,504 are rejected.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the adapter lacks 16-bit floats.
    pub fn with_half_storage(mut self) -> Result<Self> {
        if !self.caps.f16 {
            return Err(Error::Unavailable {
                what: format!("f16 storage on {}", self.summary.name),
                help: "leave storage at f32: `fcdcc devices` lists what each adapter can do".into(),
            });
        }
        self.caps.half = true;
        Ok(self)
    }

    /// Uses staging buffers even if buffers can be mapped, as on a discrete GPU, to test that path.
    #[doc(hidden)]
    #[must_use]
    pub fn with_staging(mut self) -> Self {
        self.caps.mappable = false;
        self
    }

    /// Creates a buffer of `bytes`, mapped if it is to be filled at once.
    ///
    /// # Errors
    /// [`Error::Gpu`] when there is no memory for it, or the device is lost.
    pub(super) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer> {
        self.buffers_created.fetch_add(1, Ordering::Relaxed);
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: mapped };
        // wgpu panics if memory to be mapped at creation is not available.
        let buffer = catch_unwind(AssertUnwindSafe(|| self.device.create_buffer(&descriptor)))
            .map_err(|_| self.error(format!("no {bytes} bytes for {label}")))?;
        self.check()?;
        Ok(buffer)
    }

    /// Number of buffers created since this device was opened, to test that runs reuse buffers.
    #[doc(hidden)]
    #[must_use]
    pub fn buffers_created(&self) -> u64 {
        self.buffers_created.load(Ordering::Relaxed)
    }

    /// Runs the callbacks that are due, without waiting.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device is lost or recorded an error.
    pub(super) fn poll(&self) -> Result<()> {
        if catch_unwind(AssertUnwindSafe(|| self.device.poll(wgpu::PollType::Poll))).is_err() {
            self.health.lose("wgpu gave the device up".to_owned());
        }
        self.check()
    }

    /// The reason, if this device was lost and can do no further work. Recovery is to open a new one.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        locked(&self.health.lost).clone()
    }

    /// An [`Error::Gpu`] of this device.
    pub(super) fn error(&self, cause: impl Into<String>) -> Error {
        Error::Gpu { adapter: self.summary.name.clone(), cause: cause.into() }
    }

    /// Fails if the device is lost or has recorded an error since the last call.
    ///
    /// # Errors
    /// [`Error::Gpu`] with the message of wgpu or the driver.
    pub fn check(&self) -> Result<()> {
        if let Some(cause) = self.lost() {
            return Err(self.error(cause));
        }
        match locked(&self.health.error).take() {
            Some(cause) => Err(self.error(cause)),
            None => Ok(()),
        }
    }

    /// Waits until `submission` (or everything submitted) is complete and its callbacks have run.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device is lost, has recorded an error, or does not finish in time; in the last case it
    /// counts as lost from then on.
    pub(super) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let started = Instant::now();
        loop {
            let poll =
                wgpu::PollType::Wait { submission_index: submission.clone(), timeout: Some(POLL_SLICE) };
            // wgpu panics in `poll` on errors that it considers fatal, such as a lost device.
            match catch_unwind(AssertUnwindSafe(|| self.device.poll(poll))) {
                Ok(Ok(_)) => return self.check(),
                Ok(Err(wgpu::PollError::Timeout)) => {
                    self.check()?;
                    if started.elapsed() >= SUBMISSION_LIMIT {
                        self.health.lose(format!("a submission did not finish within {SUBMISSION_LIMIT:?}"));
                    }
                }
                Ok(Err(error)) => return Err(self.error(error.to_string())),
                Err(_) => self.health.lose("wgpu gave the device up while waiting for it".to_owned()),
            }
            self.check()?;
        }
    }

    /// Loses the device, as a driver would, to test the consequences.
    #[doc(hidden)]
    pub fn destroy(&self) {
        self.destroyer()();
    }

    /// [`Self::destroy`] as a function that can be called while the device is in use elsewhere.
    #[doc(hidden)]
    pub fn destroyer(&self) -> impl Fn() + Send + Sync + 'static {
        let (device, health) = (self.device.clone(), Arc::clone(&self.health));
        move || {
            // wgpu calls the callback of the loss when it is next polled, but not while work is in flight.
            device.destroy();
            let _ = catch_unwind(AssertUnwindSafe(|| device.poll(wgpu::PollType::Poll)));
            health.lose("device lost (destroyed)".to_owned());
        }
    }
}
