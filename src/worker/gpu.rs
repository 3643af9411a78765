//! The worker that computes on a GPU queue.
//!
//! Maps the [`Worker`] contract onto [`crate::gpu`]: one engine, one queue, filters by key. Several workers may share an
//! adapter. Each opens a device of its own, so they fail one by one and, on software adapters, run in parallel.
//!
//! Invariant: once the device is lost every call returns [`Error::WorkerLost`]; recovery is a new worker.

use std::collections::HashMap;
use std::sync::Arc;

use super::supervised::drop_elsewhere;
use super::{
    FilterKey, LOCAL_HOST, Order, Respawn, SubtaskShape, Task, Worker, WorkerInfo, WorkerKind, not_installed,
};
use crate::array::{Values, WireFormat};
use crate::error::{Error, Result};
use crate::gpu::{
    AdapterSelector, AdapterSummary, ConvEngine, ConvFilters, GpuDevice, Kernel, Tuner, select,
};

/// Options of a worker: its adapter, its name and its kernels.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// The adapter; the first in the order of [`select`] when `None`.
    pub adapter: Option<AdapterSelector>,
    /// Number of this queue among those that the pool opens; names the worker when `name` is `None`.
    pub queue: usize,
    /// The worker's name; `gpu-<queue>` when `None`.
    pub name: Option<String>,
    /// The kernel for every layer; chosen by `tuner` when `None`.
    pub kernel: Option<Kernel>,
    /// How to find the fastest kernel for a layer; by default no search is done.
    pub tuner: Tuner,
    /// Store slabs and filters in 16 bits, where the adapter supports it: half of the memory and of the traffic; sums stay
    /// in f32. f32 only, and less exact ([`GpuDevice::with_half_storage`]).
    pub half_storage: bool,
}

/// Computes subtasks on one queue of a GPU adapter.
#[derive(Debug)]
pub struct GpuWorker {
    info: WorkerInfo,
    adapter: AdapterSummary,
    /// The name and the options for choosing kernels.
    options: GpuOptions,
    /// `None` once the device is lost; the cause is in `lost`.
    held: Option<Held>,
    lost: String,
}

/// Everything that keeps the device alive.
#[derive(Debug)]
struct Held {
    engine: ConvEngine,
    filters: HashMap<FilterKey, Installed>,
}

#[derive(Debug)]
struct Installed {
    shape: SubtaskShape,
    filters: ConvFilters,
}

impl GpuWorker {
    /// Opens a queue on the adapter of `options`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with a list of the adapters, when none matches; [`Error::Gpu`] when the adapter refuses.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        // `select` never returns an empty list.
        let adapter = select(options.adapter.as_ref())?.swap_remove(0);
        Self::on(&adapter, options)
    }

    fn on(adapter: &AdapterSummary, options: &GpuOptions) -> Result<Self> {
        let name = options.name.clone().unwrap_or_else(|| format!("gpu-{}", options.queue));
        let mut gpu = GpuDevice::open(adapter, &name)?;
        let half = options.half_storage;
        if half {
            gpu = gpu.with_half_storage()?;
        }
        // Some drivers report no version.
        let driver = format!("{} {}", adapter.driver, adapter.driver_info);
        let info = WorkerInfo {
            name,
            kind: WorkerKind::Gpu,
            device: format!(
                "{} ({}){}",
                adapter.name,
                driver.trim_end(),
                if half { ", f16 storage" } else { "" }
            ),
            f64: gpu.caps().f64 && !half,
            half,
            wire: WireFormat::Full,
            host: LOCAL_HOST.to_owned(),
            adapter: Some(format!("{} {}", adapter.index, adapter.name)),
        };
        let held = Held { engine: ConvEngine::new(gpu), filters: HashMap::new() };
        Ok(Self {
            info,
            adapter: adapter.clone(),
            options: options.clone(),
            held: Some(held),
            lost: String::new(),
        })
    }

    /// Opens `count` workers, named `gpu-0` and so on, distributed round-robin over all adapters that match `selector`.
    /// Without a selector these are all hardware GPUs, or the software adapters if there is no hardware GPU. With more
    /// workers than adapters, adapters get several queues.
    ///
    /// # Errors
    /// As [`GpuWorker::open`], for the first worker that cannot be opened.
    pub fn fleet(count: usize, selector: Option<&AdapterSelector>) -> Result<Vec<Box<dyn Worker>>> {
        Self::fleet_with(count, &GpuOptions { adapter: selector.cloned(), ..GpuOptions::default() })
    }

    /// As [`Self::fleet`], with the adapter and the kernels of `options`.
    ///
    /// # Errors
    /// Those of [`Self::fleet`].
    pub fn fleet_with(count: usize, options: &GpuOptions) -> Result<Vec<Box<dyn Worker>>> {
        let adapters = select(options.adapter.as_ref())?;
        adapters
            .iter()
            .cycle()
            .take(count)
            .enumerate()
            .map(|(queue, adapter)| {
                let options = GpuOptions { queue, name: None, ..options.clone() };
                Ok(Box::new(Self::on(adapter, &options)?) as Box<dyn Worker>)
            })
            .collect()
    }

    /// Runs `work` unless the device is lost, and turns a loss into [`Error::WorkerLost`].
    fn with<R>(&mut self, work: impl FnOnce(&mut Held, &str) -> Result<R>) -> Result<R> {
        if let Some(held) = &mut self.held {
            let result = work(held, &self.info.name);
            match held.engine.device().lost() {
                // A result finished before the loss is valid.
                Some(cause) if result.is_err() => self.bury(cause),
                _ => return result,
            }
        }
        Err(Error::WorkerLost { worker: self.info.name.clone(), cause: self.lost.clone() })
    }

    /// Drops a lost device on a separate thread: dropping waits until the device is idle, which a hung one never is.
    fn bury(&mut self, cause: String) {
        self.lost = cause;
        drop_elsewhere(&self.info.name, self.held.take());
    }
}

impl Worker for GpuWorker {
    fn info(&self) -> WorkerInfo {
        self.info.clone()
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        shape.check_banks(&banks)?;
        let (kernel, tuner) = (self.options.kernel, self.options.tuner.clone());
        self.with(|held, _| {
            // Drop the old filters first: both may not fit.
            held.filters.remove(&key);
            let (conv, engine) = (&shape.conv, &mut held.engine);
            let filters = if shape.plain {
                engine.install_plain(conv, shape.slabs, shape.banks, &banks, kernel)
            } else if kernel.is_some() {
                engine.install(conv, shape.slabs, shape.banks, &banks, kernel)
            } else {
                let candidate = tuner.pick(engine, conv, banks.dtype())?;
                engine.install_as(conv, shape.slabs, shape.banks, &banks, candidate)
            }?;
            held.filters.insert(key, Installed { shape: shape.clone(), filters });
            Ok(())
        })
    }

    /// Filters are shared if the kernels for both sizes read the same layout, from the same device memory.
    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let (kernel, tuner) = (self.options.kernel, self.options.tuner.clone());
        self.with(|Held { engine, filters }, _| {
            let Some(other) = filters.get(&from).filter(|other| other.shape.has_filters_of(shape)) else {
                return Ok(false);
            };
            let (conv, other) = (&shape.conv, &other.filters);
            let shared = if shape.plain || kernel.is_some() {
                engine.share(other, conv, shape.slabs, kernel)?
            } else {
                let candidate = tuner.pick(engine, conv, other.dtype())?;
                engine.share_as(other, conv, shape.slabs, candidate)?
            };
            let Some(shared) = shared else { return Ok(false) };
            filters.insert(key, Installed { shape: shape.clone(), filters: shared });
            Ok(true)
        })
    }

    fn remove(&mut self, key: FilterKey) {
        if let Some(held) = &mut self.held {
            held.filters.remove(&key);
        }
    }

    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
        let Task { key, slabs, order, cancel, .. } = task;
        self.with(|held, name| {
            let installed = held.filters.get(&key).ok_or_else(|| not_installed(name, key))?;
            installed.shape.check_slabs(slabs, installed.filters.dtype())?;
            installed.shape.check_order(order)?;
            let order = match order {
                Order::All => None,
                Order::Each(indices) => Some(indices),
            };
            let stop = || cancel.is_cancelled();
            held.engine.run(&installed.filters, installed.shape.slabs, slabs, order, &stop, emit)
        })
    }

    /// Reopens the same adapter, found by its position and name, with the same options.
    fn respawn(&self) -> Option<Respawn> {
        let (adapter, options) = (self.adapter.clone(), self.options.clone());
        Some(Arc::new(move |_| Ok(Box::new(Self::on(&adapter, &options)?))))
    }

    fn lose_device(&mut self) {
        if let Some(held) = &self.held {
            held.engine.device().destroy();
        }
    }
}
