//! Workers: what computes a subtask, behind one trait.
//!
//! A worker holds coded filters ([`Worker::install`]) and, given coded slabs, hands back the sub-results of one
//! subtask one by one ([`Worker::execute`]). It knows nothing of codes, deadlines or other workers. One thread of
//! the [pool](crate::scheduler::Pool) owns each worker and calls it; the calls may block, which is why the trait
//! needs no async and no interior locking.
//!
//! Invariant: a call to `execute` that sees its [`CancelToken`] cancelled returns within one sub-result, and the
//! worker is then ready for the next call.

mod cancel;
mod cpu;
mod fault;
mod faulty;
#[cfg(feature = "gpu")]
mod gpu;
mod probe;
mod scheduled_fault;

pub use cancel::{CancelHook, CancelToken};
pub use cpu::CpuWorker;
pub use fault::{Delay, Fault, FaultSpec, TaskFault, WorkerSet};
pub use faulty::{FaultyWorker, inject};
#[cfg(feature = "gpu")]
pub use gpu::{GpuOptions, GpuWorker};
pub use probe::Probe;
pub use scheduled_fault::{ScheduledFaultWorker, TaskFaults};

use std::sync::Arc;

use serde::Serialize;

use crate::array::{DType, Values, check_elems, check_indices};
use crate::conv::ConvShape;
use crate::error::{Error, Result};

/// What kind of device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// Threads of this machine.
    Cpu,
    /// A queue of a GPU adapter.
    Gpu,
    /// Another machine.
    Remote,
}

impl WorkerKind {
    /// `cpu`, `gpu` or `remote`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Remote => "remote",
        }
    }
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerInfo {
    /// Unique within a pool after the pool has appended an index to doubles, e.g. `cpu-0`.
    pub name: String,
    /// Kind of device.
    pub kind: WorkerKind,
    /// The device, readable: adapter name and driver, or number of threads.
    pub device: String,
    /// Whether it computes in f64 as well as f32.
    pub f64: bool,
    /// Whether it keeps slabs and filters in 16 bits: results are then less exact, which error bounds take in.
    pub half: bool,
    /// The machine it runs on: [`LOCAL_HOST`] for this one.
    pub host: String,
    /// What several workers share and lose together, by position and name: the adapter of GPU workers, e.g.
    /// `0 llvmpipe (LLVM 15.0.6, 256 bits)`. `None` where a worker fails on its own.
    pub adapter: Option<String>,
}

/// The [`WorkerInfo::host`] of workers of this machine.
pub const LOCAL_HOST: &str = "local";

impl WorkerInfo {
    /// Where the worker stands among what fails together, from the widest to the worker itself: host, adapter if it has
    /// one, name. Workers are as likely to be lost together as their paths have a beginning in common.
    #[must_use]
    pub fn domain(&self) -> Vec<String> {
        let adapter = self.adapter.iter().cloned();
        std::iter::once(self.host.clone()).chain(adapter).chain([self.name.clone()]).collect()
    }
}

/// Names one set of coded filters on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterKey {
    /// A prepared layer; unique within the process.
    pub layer: u64,
    /// Index of the subtask whose filters these are.
    pub subtask: usize,
}

impl FilterKey {
    /// Where a [`Probe`] installs its filters: no layer has this number.
    pub const PROBE: Self = Self { layer: u64::MAX, subtask: 0 };

    /// Whether a probe's filters lie under this key. Workers that wrap or imitate others for tests tell by this what
    /// must be answered properly.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.layer == Self::PROBE.layer
    }
}

/// The work of one subtask: `slabs * banks` convolutions of one shape.
///
/// Sub-result `p * banks + r` is slab `p` convolved with filter bank `r`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubtaskShape {
    /// One sub-result's convolution. Its padding is zero: slabs carry their padding with them.
    pub conv: ConvShape,
    /// l_A: coded slabs of a subtask, each `[N, C, slab spatial...]`, stored one after the other.
    pub slabs: usize,
    /// l_B: coded filter banks of a subtask, each `[O', C/g, kernel...]`, stored one after the other.
    pub banks: usize,
    /// Whether a worker must keep operands as wide as their type and compute every output from its own window alone: neither
    /// storage of 16 bits nor Winograd's filtering. For data of very uneven size.
    pub plain: bool,
}

impl SubtaskShape {
    /// Sub-results of a subtask, l_A * l_B.
    #[must_use]
    pub fn sub_results(&self) -> usize {
        self.slabs * self.banks
    }

    /// Elements of all slabs of a subtask.
    #[must_use]
    pub fn upload_elems(&self) -> usize {
        self.slabs * self.conv.input_elems()
    }

    /// Elements of all filter banks of a subtask.
    #[must_use]
    pub fn filter_elems(&self) -> usize {
        self.banks * self.conv.weight_elems()
    }

    /// Elements of all sub-results of a subtask.
    #[must_use]
    pub fn download_elems(&self) -> usize {
        self.sub_results() * self.conv.output_elems()
    }

    /// Checks a buffer of filter banks against this shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both element counts.
    pub fn check_banks(&self, banks: &Values) -> Result<()> {
        check_elems("elements of the coded filters", banks.len(), self.filter_elems())
    }

    /// Checks a buffer of slabs against this shape and the element type of the installed filters.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both element counts or types.
    pub fn check_slabs(&self, slabs: &Values, dtype: DType) -> Result<()> {
        check_elems("elements of the coded slabs", slabs.len(), self.upload_elems())?;
        if slabs.dtype() == dtype {
            Ok(())
        } else {
            Err(Error::mismatch(
                "element type of the coded slabs",
                slabs.dtype(),
                dtype,
                "slabs and installed filters must be of one type",
            ))
        }
    }

    /// Checks that `order` names sub-results of this shape only.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with the first index beyond them.
    pub fn check_order(&self, order: Order<'_>) -> Result<()> {
        match order {
            Order::All => Ok(()),
            Order::Each(indices) => check_indices(indices, self.sub_results()),
        }
    }
}

/// Which sub-results of a subtask to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<'a> {
    /// All, in whatever order and grouping is fastest.
    All,
    /// These, in this order, each emitted before the next is begun (or while it is computed, on a device with a
    /// queue): work that is cut short has handed over what it did. An index that occurs twice is computed twice.
    Each(&'a [usize]),
}

/// How to make a worker again that was lost: opens what the lost one had opened, under the same name, and holds no
/// filters. May block, until the token is cancelled, and may fail, as at the first time; can be called again.
pub type Respawn = Arc<dyn Fn(&CancelToken) -> Result<Box<dyn Worker>> + Send + Sync>;

/// Something that computes subtasks. See the module documentation for the contract.
pub trait Worker: Send {
    /// Name, kind, device and abilities; constant over the worker's life. The one that takes the place of a lost worker
    /// may have another device and host.
    fn info(&self) -> WorkerInfo;

    /// Takes the coded filters of one subtask: `shape.banks` banks of `[O', C/g, kernel...]`, row-major; they are
    /// the worker's from here on, so that a large layer is not in memory twice. Installing under a key that is held already replaces the filters.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] when the worker can do no further work; any other error when it cannot hold these
    /// filters (element type, memory) but lives on.
    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()>;

    /// Forgets the filters of `key`; unknown keys are fine.
    fn remove(&mut self, key: FilterKey);

    /// Computes the sub-results that `order` names of the subtask `key` from `slabs` (`shape.slabs` slabs of
    /// `[N, C, slab spatial...]`, row-major) and hands each to `emit` as (sub-result index,
    /// `[N, O', spatial...]` row-major) as soon as it is complete.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for an order with an index beyond the shape; [`Error::Mismatch`] for slabs of
    /// another size or type; [`Error::Cancelled`] when `cancel` was set first; [`Error::WorkerLost`] when the worker can do no further
    /// work; any other error when this task failed and the worker lives on. Sub-results emitted before an error
    /// are valid.
    fn execute(
        &mut self,
        key: FilterKey,
        slabs: &Values,
        order: Order<'_>,
        cancel: &CancelToken,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()>;

    /// A buffer of sub-results that nobody needs any more, of whatever length and content: memory to make others in, since
    /// fresh memory costs more than some layers do. Comes before [`execute`](Worker::execute), about as many as that will
    /// emit; a worker that makes its buffers otherwise drops it.
    fn recycle(&mut self, _buffer: Values) {}

    /// How to make this worker again should it be lost; `None` when it would not come back. Asked for while the worker
    /// is healthy.
    fn respawn(&self) -> Option<Respawn> {
        None
    }

    /// Why it cannot work yet, where it stands for one that has still to come: a pool takes it for lost from the start
    /// and waits for what its [recipe](Worker::respawn) makes.
    fn unavailable_reason(&self) -> Option<String> {
        None
    }

    /// Loses the device as a driver would, for fault injection. Workers without one ignore it.
    #[doc(hidden)]
    fn lose_device(&mut self) {}
}

/// The error of executing a subtask whose filters were never installed (or were removed).
pub(crate) fn not_installed(worker: &str, key: FilterKey) -> Error {
    Error::WorkerFailed {
        worker: worker.to_owned(),
        cause: format!(
            "holds no filters for subtask {} of layer {}: prepare the layer again",
            key.subtask, key.layer
        ),
    }
}
