//! Pools: workers of this machine, of a pool file, and in Python.

use std::path::PathBuf;

use fcdcc::worker::{FaultSpec, GpuOptions, GpuWorker, inject};
use fcdcc::{CpuWorker, Error, Worker, WorkerId};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::pythonize;

use super::process::{self, Held};
use super::worker::PyWorker;
use super::{errors, jobs};

/// Maximum number of workers of this machine: each has a thread.
const MAX_WORKERS: usize = 4096;

/// A set of workers; `fcdcc.Pool` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct Pool(Held<fcdcc::Pool>);

/// How to make the workers of a pool.
enum Plan {
    Cpu { count: usize, threads: usize },
    Gpu { count: usize, adapter: Option<String>, half: bool },
    File { path: PathBuf, seed: u64, tolerate: usize },
    Python(Vec<PyWorker>),
}

impl Plan {
    fn open(self) -> fcdcc::Result<Vec<Box<dyn Worker>>> {
        match self {
            Self::Cpu { count, threads } => {
                check_count(count)?;
                check_count(threads)?;
                let worker = |i| -> Box<dyn Worker> { Box::new(CpuWorker::new(format!("cpu-{i}"), threads)) };
                Ok((0..count).map(worker).collect())
            }
            Self::Gpu { count, adapter, half } => {
                check_count(count)?;
                let adapter = adapter.as_deref().map(fcdcc::gpu::AdapterSelector::from);
                let options = GpuOptions { adapter, half_storage: half, ..GpuOptions::default() };
                GpuWorker::fleet_with(count, &options)
            }
            Self::File { path, seed, tolerate } => {
                fcdcc_cli::embedded::workers_of_file(&path, seed, tolerate)
            }
            Self::Python(workers) => {
                Ok(workers.into_iter().map(|worker| -> Box<dyn Worker> { Box::new(worker) }).collect())
            }
        }
    }
}

fn check_count(count: usize) -> fcdcc::Result<()> {
    if (1..=MAX_WORKERS).contains(&count) {
        return Ok(());
    }
    Err(Error::invalid("number of workers", count, format!("use 1 to {MAX_WORKERS}")))
}

fn open(py: Python<'_>, plan: Plan, faults: &[String], seed: u64) -> PyResult<Pool> {
    let faults: Vec<FaultSpec> = faults
        .iter()
        .map(|fault| fault.parse())
        .collect::<fcdcc::Result<_>>()
        .map_err(|error| errors::raise(py, error))?;
    let pool = jobs::run_once(py, jobs::Limits::default(), "opening a pool", move |_| {
        fcdcc::Pool::new(inject(plan.open()?, &faults, seed)?)
    })?;
    Ok(Pool(Held::new(pool)))
}

#[pymethods]
impl Pool {
    #[staticmethod]
    fn cpu(py: Python<'_>, count: usize, threads: usize, faults: Vec<String>, seed: u64) -> PyResult<Self> {
        open(py, Plan::Cpu { count, threads }, &faults, seed)
    }

    #[staticmethod]
    fn gpu(
        py: Python<'_>,
        count: usize,
        adapter: Option<String>,
        half: bool,
        faults: Vec<String>,
        seed: u64,
    ) -> PyResult<Self> {
        open(py, Plan::Gpu { count, adapter, half }, &faults, seed)
    }

    #[staticmethod]
    fn of_file(
        py: Python<'_>,
        path: PathBuf,
        tolerate: usize,
        faults: Vec<String>,
        seed: u64,
    ) -> PyResult<Self> {
        open(py, Plan::File { path, seed, tolerate }, &faults, seed)
    }

    /// A pool of workers written in Python.
    #[staticmethod]
    fn of_workers(
        py: Python<'_>,
        workers: Vec<Bound<'_, PyAny>>,
        faults: Vec<String>,
        seed: u64,
    ) -> PyResult<Self> {
        let workers = workers.iter().map(PyWorker::new).collect::<PyResult<_>>()?;
        open(py, Plan::Python(workers), &faults, seed)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// A description and the state of each worker, as dictionaries.
    fn workers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        process::enter(py)?;
        let infos: Vec<_> = self.0.workers().collect();
        let described = infos.iter().enumerate().map(|(index, info)| {
            let row = pythonize(py, info.as_ref())?;
            let health = pythonize(py, &self.0.health(WorkerId(index)))?;
            row.cast::<PyDict>()?.update(health.cast::<PyDict>()?.as_mapping())?;
            Ok(row)
        });
        described.collect()
    }

    /// Waits until no worker has anything to do, at most `limit` seconds; whether that came true.
    fn wait_idle(&self, py: Python<'_>, limit: f64) -> PyResult<bool> {
        let limit = jobs::seconds(py, "limit", limit)?;
        jobs::run(py, jobs::Limits::default(), "waiting for a pool", |_| Ok(self.0.wait_idle(limit)))
    }
}

impl Pool {
    pub(crate) fn inner(&self) -> &fcdcc::Pool {
        &self.0
    }
}
