//! Workers: the trait that computes subtasks, and its implementations.
//!
//! A worker holds coded filters ([`Worker::install`]). Given a [`Task`] with coded slabs, it returns the sub-results of one
//! subtask one by one ([`Worker::execute`]). It has no knowledge of codes, deadlines or other workers. One thread of the
//! [pool](crate::scheduler::Pool) owns each worker and calls it; the calls may block, which is why the trait needs no async
//! and no interior locking.
//!
//! A worker that differs from another one in a few respects is an [`Intercept`] around it. The module `testing` (feature
//! `testing`) checks any worker against the contract of the trait.
//!
//! Invariant: a call to `execute` whose [`CancelToken`] is cancelled returns within one sub-result, and the worker is then
//! ready for the next call.

mod backoff;
mod cancel;
mod cpu;
mod cpu_parts;
mod fault;
mod faulty;
#[cfg(feature = "gpu")]
mod gpu;
mod intercept;
mod part;
mod phases;
mod presence;
mod probe;
mod scheduled_fault;
mod shared_slabs;
mod supervised;
mod task;
mod turns;

pub(crate) use backoff::Backoff;
pub use cancel::{CancelHook, CancelToken};
pub use cpu::CpuWorker;
pub(crate) use cpu_parts::no_part;
pub use fault::{Delay, Fault, FaultSpec, TaskFault, WorkerSet};
pub use faulty::{faulty, inject};
#[cfg(feature = "gpu")]
pub use gpu::{GpuOptions, GpuWorker};
pub use intercept::{Intercept, intercept};
pub use part::{CompiledPart, PartArray, PartCompiler, PartFile, PartKey, PartSignature};
pub use phases::{Phase, PhaseClock, PhaseTimes};
pub use presence::Presence;
pub use probe::Probe;
#[cfg(feature = "testing")]
pub(crate) use probe::{distance, numbers, tolerance, values};
pub use scheduled_fault::TaskFaults;
pub use shared_slabs::SharedSlabs;
pub(crate) use supervised::{HANG_GRACE, Live, Owner, Supervised, Supervision, abandon_if_hung};
pub use task::Task;
#[cfg(feature = "cluster")]
pub(crate) use turns::count_wait;
pub(crate) use turns::waited;

use std::sync::Arc;

use serde::Serialize;

use crate::array::{DType, Values, WireFormat, check_elems, check_indices};
use crate::conv::{ConvKernel, ConvShape};
use crate::error::{Error, Result};
use crate::ids::SubtaskId;

/// Kind of the device that computes.
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

/// Description of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Name, e.g. `cpu-0`. Unique within a pool, which appends an index to duplicates.
    pub name: String,
    /// Kind of device.
    pub kind: WorkerKind,
    /// The device, readable: adapter name and driver, or number of threads.
    pub device: String,
    /// Whether it computes in f64 as well as f32.
    pub f64: bool,
    /// Whether it stores slabs and filters in 16 bits: results are then less exact, which the error bounds include.
    pub half: bool,
    /// Format in which slabs and sub-results travel to and from another machine: 16-bit numbers are less exact, which the
    /// error bounds include.
    pub wire: WireFormat,
    /// The machine it runs on: [`LOCAL_HOST`] for this one.
    pub host: String,
    /// The adapter of a GPU worker by position and name, e.g. `0 llvmpipe (LLVM 15.0.6, 256 bits)`: workers that share it
    /// are lost together. `None` where a worker fails on its own.
    pub adapter: Option<String>,
}

/// The [`WorkerInfo::host`] of workers of this machine.
pub const LOCAL_HOST: &str = "local";

impl WorkerInfo {
    /// A worker of this machine that computes in f32 alone, keeps numbers in full width and fails on its own.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: WorkerKind, device: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            device: device.into(),
            f64: false,
            half: false,
            wire: WireFormat::Full,
            host: LOCAL_HOST.to_owned(),
            adapter: None,
        }
    }

    /// The failure domains of the worker, from the widest to the worker itself: host, adapter if it has one, name. The
    /// longer the common prefix of two paths, the more likely the two workers are lost together.
    #[must_use]
    pub fn domain(&self) -> Vec<String> {
        let adapter = self.adapter.iter().cloned();
        std::iter::once(self.host.clone()).chain(adapter).chain([self.name.clone()]).collect()
    }
}

/// Identifies one set of coded filters on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterKey {
    /// Number of a prepared layer; unique within the process.
    pub layer: u64,
    /// Index of the subtask whose filters these are.
    pub subtask: SubtaskId,
}

impl FilterKey {
    /// The key under which a [`Probe`] installs its filters; no layer has this number.
    pub const PROBE: Self = Self { layer: u64::MAX, subtask: SubtaskId(0) };

    /// Whether this is the key of a probe. Wrappers that inject faults use it to answer probes correctly.
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
    /// The convolution of one sub-result. Its padding is zero, since slabs include their padding.
    pub conv: ConvShape,
    /// [l_A](crate::glossary#symbols): coded [slabs](crate::glossary#dividing-and-coding-a-layer) of a
    /// subtask, each `[N, C, slab spatial...]`, stored one after the other.
    pub slabs: usize,
    /// [l_B](crate::glossary#symbols): coded filter [banks](crate::glossary#dividing-and-coding-a-layer) of a
    /// subtask, each `[O', C/g, kernel...]`, stored one after the other.
    pub banks: usize,
    /// Whether operands and results must keep their full width, and workers sum plain products: neither 16-bit storage or
    /// messages nor Winograd's algorithm. Needed for data of very uneven magnitude, for infinities, and for sums of integers.
    pub plain: bool,
}

impl SubtaskShape {
    /// The plan by which this machine's processor computes the subtask's convolutions.
    #[must_use]
    pub fn cpu_kernel(&self) -> ConvKernel {
        if self.plain { ConvKernel::new(&self.conv) } else { ConvKernel::with_filtering(&self.conv) }
    }

    /// Number of [sub-results](crate::glossary#dividing-and-coding-a-layer) of a subtask, l_A * l_B.
    #[must_use]
    pub fn sub_results(&self) -> usize {
        self.slabs * self.banks
    }

    /// Number of elements of all slabs of a subtask.
    #[must_use]
    pub fn upload_elems(&self) -> usize {
        self.slabs * self.conv.input_elems()
    }

    /// Number of elements of all filter banks of a subtask.
    #[must_use]
    pub fn filter_elems(&self) -> usize {
        self.banks * self.conv.weight_elems()
    }

    /// Whether a subtask of shape `other` has filters of the same shape and arithmetic.
    #[must_use]
    pub fn has_filters_of(&self, other: &Self) -> bool {
        let filters = |shape: &Self| {
            let conv = &shape.conv;
            (shape.banks, shape.plain, conv.out_channels, conv.in_channels, conv.groups, conv.kernel)
        };
        filters(self) == filters(other)
    }

    /// Number of elements of all sub-results of a subtask.
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

    /// Checks that every index in `order` is below the number of sub-results.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with the first index out of range.
    pub fn check_order(&self, order: Order<'_>) -> Result<()> {
        match order {
            Order::All => Ok(()),
            Order::Each(indices) => check_indices(indices, self.sub_results()),
        }
    }
}

/// The sub-results of a subtask to compute, and their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<'a> {
    /// All, in the order and grouping that is fastest.
    All,
    /// These, in this order. Each is emitted before the next is begun (or while the next is computed, on a device with a
    /// queue), so a cancelled call has emitted its finished work. An index that occurs twice is computed twice.
    Each(&'a [usize]),
}

/// Recreates a lost worker: opens the same device under the same name, without filters. May block until the token is
/// cancelled, and may fail as when first opened; can be called repeatedly.
pub type Respawn = Arc<dyn Fn(&CancelToken) -> Result<Box<dyn Worker>> + Send + Sync>;

/// Computes subtasks. See the module documentation for the contract.
///
/// # Examples
///
/// A pool takes workers of any kinds:
///
/// ```
/// use fcdcc::{CpuWorker, Pool, Worker};
///
/// let workers: Vec<Box<dyn Worker>> =
///     vec![Box::new(CpuWorker::new("one", 1)), Box::new(CpuWorker::new("four", 4))];
/// let pool = Pool::new(workers)?;
/// assert_eq!(pool.workers().map(|info| info.name.clone()).collect::<Vec<_>>(), ["one", "four"]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// A wrapper around a worker passes its calls on, here with faults:
///
/// ```
/// use fcdcc::worker::inject;
/// use fcdcc::{CpuWorker, Pool};
///
/// // The second worker never answers.
/// let workers = inject(CpuWorker::fleet(6), &["1:drop".parse()?], 0)?;
/// assert_eq!(workers[1].info().name, CpuWorker::fleet(6)[1].info().name);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// A worker of your own implements four methods. `fcdcc::testing` (feature `testing`) checks it, and a pool uses it like any
/// other:
///
/// ```
/// use std::collections::HashMap;
/// use std::time::Duration;
///
/// use fcdcc::array::Values;
/// use fcdcc::conv::{conv_uncoded, reference};
/// use fcdcc::testing::check_worker;
/// use fcdcc::worker::{FilterKey, SubtaskShape, Task, WorkerInfo, WorkerKind};
/// use fcdcc::{CodedConv, ConvParams, ConvShape, Error, LayerOptions, Pool, Result, Worker};
/// use ndarray::{ArrayD, IxDyn};
///
/// /// Computes in f32 on the thread that calls it.
/// struct Own {
///     name: String,
///     installed: HashMap<FilterKey, (SubtaskShape, Values)>,
/// }
///
/// impl Worker for Own {
///     fn info(&self) -> WorkerInfo {
///         WorkerInfo::new(&self.name, WorkerKind::Cpu, "1 thread")
///     }
///
///     fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
///         shape.check_banks(&banks)?;
///         // Refuses f64, which `info` does not offer.
///         banks.as_slice::<f32>()?;
///         self.installed.insert(key, (shape.clone(), banks));
///         Ok(())
///     }
///
///     fn remove(&mut self, key: FilterKey) {
///         self.installed.remove(&key);
///     }
///
///     fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
///         if task.cancel.is_cancelled() {
///             return Err(Error::Cancelled);
///         }
///         let Some((shape, banks)) = self.installed.get(&task.key) else {
///             let cause = format!("holds no filters for {:?}", task.key);
///             return Err(Error::WorkerFailed { worker: self.name.clone(), cause });
///         };
///         shape.check_slabs(task.slabs, banks.dtype())?;
///         shape.check_order(task.order)?;
///         let (slabs, banks) = (task.slabs.as_slice::<f32>()?, banks.as_slice::<f32>()?);
///         let (slab_len, bank_len) = (shape.conv.input_elems(), shape.conv.weight_elems());
///         for index in task.indices(shape.sub_results()) {
///             // Slab p with bank r.
///             let (p, r) = (index / shape.banks, index % shape.banks);
///             let (slab, bank) = (&slabs[p * slab_len..][..slab_len], &banks[r * bank_len..][..bank_len]);
///             // Ends with `Error::Cancelled` when the token is cancelled.
///             let stop = || task.cancel.is_cancelled();
///             let output = conv_uncoded(&shape.conv, slab, bank, None, 1, &stop)?;
///             emit(index, Values::F32(output));
///         }
///         Ok(())
///     }
/// }
///
/// let own = |name: String| -> Box<dyn Worker> { Box::new(Own { name, installed: HashMap::new() }) };
///
/// // It keeps the contract.
/// let findings = check_worker(Duration::from_secs(60), || Ok(own("checked".to_owned())));
/// assert!(findings.is_empty(), "{findings:#?}");
///
/// // Any four of these six compute a layer.
/// let pool = Pool::new((0..6).map(|i| own(format!("own-{i}"))).collect())?;
/// let numbers = |i: IxDyn| ((i[0] * 11 + i[1] * 7 + i[2] * 3 + i[3] * 5) % 17) as f32 / 16.0 - 0.5;
/// let input = ArrayD::from_shape_fn(vec![1, 3, 16, 12], numbers);
/// let weight = ArrayD::from_shape_fn(vec![8, 3, 3, 3], numbers);
/// let params = ConvParams::default().padding([1]);
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view())
///     .params(params.clone())
///     .options(LayerOptions::default().partitions(4, 4))
///     .prepare()?;
/// let run = layer.run(input.view())?;
/// assert!(run.report.used.len() >= 4);
///
/// // Without workers, by the definition of the convolution.
/// let shape = ConvShape::new(input.shape(), weight.shape(), &params)?;
/// let expected = reference(&shape, input.as_slice().unwrap(), weight.as_slice().unwrap(), None)?;
/// assert!(run.output.iter().zip(&expected).all(|(got, want)| (got - want).abs() < 1e-4));
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub trait Worker: Send {
    /// Name, kind, device and abilities; constant over the worker's life. The worker that replaces a lost one may have
    /// another device and host.
    fn info(&self) -> WorkerInfo;

    /// Takes the coded filters of one subtask: `shape.banks` banks of `[O', C/g, kernel...]`, row-major. The worker owns
    /// them from then on, so that a large layer is not in memory twice. Installing under a key that is in use replaces its
    /// filters.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for filters of another size; [`Error::WorkerLost`] when the worker can do no further work; any
    /// other error when it cannot hold these filters (element type, memory) but can still work.
    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()>;

    /// Removes the filters of `key`; unknown keys are ignored. Other keys that [share](Worker::share) them keep them.
    fn remove(&mut self, key: FilterKey);

    /// Takes the filters that are installed under `from` for `key` as well, whose subtask has other slabs but the same
    /// filters. False if the worker cannot share them, or holds none under `from`; they are then installed a second time.
    ///
    /// # Errors
    /// Those of [`install`](Worker::install).
    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let _ = (key, from, shape);
        Ok(false)
    }

    /// Computes the sub-results that `task` names and hands each to `emit` as (sub-result index, `[N, O', spatial...]`
    /// row-major) as soon as it is complete.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for an index out of range in the order; [`Error::Mismatch`] for slabs of another size or
    /// type; [`Error::Cancelled`] when the token was cancelled first; [`Error::WorkerLost`] when the worker can do no further
    /// work; any other error when this task failed but the worker can still work. Sub-results emitted before an error are
    /// valid.
    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()>;

    /// Takes a part of a model, to be computed by [`run_part`](Worker::run_part) under this key. A part under a key that is in
    /// use replaces the one before.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] when the worker can do no further work; any other error when it cannot hold this part (it takes
    /// no parts at all, which is the default; the file; memory) but can still work.
    fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        let _ = (key, part);
        Err(Error::WorkerFailed {
            worker: self.info().name,
            cause: "computes convolutions only, no parts of models".to_owned(),
        })
    }

    /// Removes the part of `key`; unknown keys are ignored.
    fn remove_part(&mut self, key: PartKey) {
        let _ = key;
    }

    /// Computes the part of `key`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for inputs that do not fit the part; [`Error::Cancelled`] when the token was cancelled first;
    /// [`Error::WorkerLost`] when the worker can do no further work; any other error when this run failed but the worker can
    /// still work.
    fn run_part(&mut self, key: PartKey, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        let _ = (inputs, cancel);
        Err(no_part(&self.info().name, key))
    }

    /// How to recreate this worker if it is lost; `None` when that is impossible. Called while the worker is healthy.
    fn respawn(&self) -> Option<Respawn> {
        None
    }

    /// Why the worker cannot work yet, if it is a placeholder for a worker still to join. A pool then treats it as lost from
    /// the start, and waits for the worker that [`respawn`](Worker::respawn) creates.
    fn unavailable_reason(&self) -> Option<String> {
        None
    }

    /// Whether the worker's machine answers, for workers on other machines; `None` for those that cannot fall silent.
    fn presence(&self) -> Option<Presence> {
        None
    }

    /// Loses the device as a driver would, for fault injection. Workers without a device ignore it.
    #[doc(hidden)]
    fn lose_device(&mut self) {}
}

/// The error for a subtask whose filters were never installed (or were removed).
pub(crate) fn not_installed(worker: &str, key: FilterKey) -> Error {
    Error::WorkerFailed {
        worker: worker.to_owned(),
        cause: format!(
            "holds no filters for subtask {} of layer {}: prepare the layer again",
            key.subtask, key.layer
        ),
    }
}
