//! Workers written in Python.
//!
//! A worker is an object with `install` and `execute`, called from its own thread of the pool. The base class `fcdcc.Worker`
//! says what they get. Relevant if you change what a worker in Python can do.
//!
//! Invariant: an exception of a worker is a failed task, and never reaches another thread.

use std::collections::HashMap;
use std::sync::Arc;

use fcdcc::array::{DType, Values};
use fcdcc::worker::{FilterKey, Respawn, SubtaskShape as Shape, Task as NativeTask, WorkerInfo, WorkerKind};
use fcdcc::{Error, Worker, testing};
use ndarray::{ArrayD, IxDyn};
use numpy::{IntoPyArray, PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arrays::Borrowed;
use super::jobs::{self, CancelToken, Limits};

/// What each task of a subtask computes: sub-result p * banks + r is slab p convolved with filter bank r.
#[pyclass(frozen, module = "fcdcc")]
pub(crate) struct SubtaskShape(Shape);

#[pymethods]
impl SubtaskShape {
    /// Coded slabs of a subtask.
    #[getter]
    fn slabs(&self) -> usize {
        self.0.slabs
    }

    /// Coded filter banks of a subtask.
    #[getter]
    fn banks(&self) -> usize {
        self.0.banks
    }

    /// Results of a subtask, slabs times banks.
    #[getter]
    fn sub_results(&self) -> usize {
        self.0.sub_results()
    }

    /// Shape of one slab, `[N, C, spatial...]`.
    #[getter]
    fn slab_shape(&self) -> Vec<usize> {
        self.0.conv.input_shape()
    }

    /// Shape of one filter bank, `[O', C/g, kernel...]`.
    #[getter]
    fn bank_shape(&self) -> Vec<usize> {
        self.0.conv.weight_shape()
    }

    /// Shape of one sub-result, `[N, O', spatial...]`.
    #[getter]
    fn output_shape(&self) -> Vec<usize> {
        self.0.conv.output_shape()
    }

    /// Step of the window along each spatial axis.
    #[getter]
    fn stride(&self) -> Vec<usize> {
        self.0.conv.stride[self.0.conv.split_axis()..].to_vec()
    }

    /// Distance of the kernel's taps along each spatial axis.
    #[getter]
    fn dilation(&self) -> Vec<usize> {
        self.0.conv.dilation[self.0.conv.split_axis()..].to_vec()
    }

    /// Groups of channels.
    #[getter]
    fn groups(&self) -> usize {
        self.0.conv.groups
    }

    /// Multiply-adds of one sub-result.
    #[getter]
    fn macs(&self) -> f64 {
        self.0.conv.macs()
    }
}

/// One call of `Worker.execute`.
#[pyclass(frozen, get_all, module = "fcdcc")]
pub(crate) struct Task {
    /// The installed filters to use: (layer, subtask).
    key: (u64, usize),
    /// The coded slabs, `[slabs, N, C, spatial...]`.
    slabs: Py<PyAny>,
    /// The sub-results to compute, in this order.
    order: Vec<usize>,
    /// What the results are.
    shape: Py<SubtaskShape>,
    /// Cancelled when the results are no longer needed.
    cancel: Py<CancelToken>,
}

/// A worker that calls a Python object.
pub(crate) struct PyWorker {
    object: Py<PyAny>,
    info: WorkerInfo,
    can_respawn: bool,
    shapes: HashMap<FilterKey, (Shape, DType)>,
}

impl PyWorker {
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let text = |name: &str| -> PyResult<String> { object.getattr(name)?.str()?.extract() };
        let mut info = WorkerInfo::new(text("name")?, WorkerKind::Cpu, text("device")?);
        info.f64 = object.getattr("float64")?.is_truthy()?;
        if let Some(host) = object.getattr("host")?.extract::<Option<String>>()? {
            info.host = host;
        }
        let can_respawn = object.getattr("can_respawn")?.is_truthy()?;
        Ok(Self { object: object.clone().unbind(), info, can_respawn, shapes: HashMap::new() })
    }

    fn failed(&self, cause: String) -> Error {
        Error::WorkerFailed { worker: self.info.name.clone(), cause }
    }

    /// Calls Python; an exception becomes an error of this worker.
    fn call<T>(&self, call: impl FnOnce(Python<'_>) -> PyResult<T>) -> fcdcc::Result<T> {
        let called = Python::try_attach(|py| call(py).map_err(|error| self.error(py, &error)));
        called.unwrap_or_else(|| {
            let cause = "the interpreter has ended".to_owned();
            Err(Error::WorkerLost { worker: self.info.name.clone(), cause })
        })
    }

    fn error(&self, py: Python<'_>, error: &PyErr) -> Error {
        let value = error.value(py);
        let class = value.get_type().name().map_or_else(|_| "exception".to_owned(), |name| name.to_string());
        let cause = match value.str() {
            Ok(text) if !text.is_empty().unwrap_or(true) => format!("{class}: {text}"),
            _ => class.clone(),
        };
        match class.as_str() {
            "Cancelled" => Error::Cancelled,
            "WorkerLost" => Error::WorkerLost { worker: self.info.name.clone(), cause },
            _ => self.failed(cause),
        }
    }
}

fn key_of(key: FilterKey) -> (u64, usize) {
    (key.layer, key.subtask.0)
}

/// Values as a numpy array that owns them.
fn owned<'py>(py: Python<'py>, values: Values, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    let wrong = |error: ndarray::ShapeError| pyo3::exceptions::PyRuntimeError::new_err(error.to_string());
    Ok(match values {
        Values::F32(values) => {
            ArrayD::from_shape_vec(IxDyn(shape), values).map_err(wrong)?.into_pyarray(py).into_any()
        }
        Values::F64(values) => {
            ArrayD::from_shape_vec(IxDyn(shape), values).map_err(wrong)?.into_pyarray(py).into_any()
        }
    })
}

impl PyWorker {
    /// Computes a task, and hands each result on as it comes.
    fn compute(
        &self,
        py: Python<'_>,
        task: NativeTask<'_>,
        (shape, dtype): (&Shape, DType),
        emit: &mut dyn FnMut(usize, Values),
    ) -> PyResult<fcdcc::Result<()>> {
        let sizes = [vec![shape.slabs], shape.conv.input_shape()].concat();
        let order = task.indices(shape.sub_results());
        let given = Task {
            key: key_of(task.key),
            slabs: owned(py, task.slabs.clone(), &sizes)?.unbind(),
            order: order.clone(),
            shape: Py::new(py, SubtaskShape(shape.clone()))?,
            cancel: Py::new(py, CancelToken::of(task.cancel.clone()))?,
        };
        let results = self.object.bind(py).call_method1("execute", (given,))?;
        let mut left = order;
        for item in results.try_iter()? {
            let (index, values): (usize, Bound<'_, PyAny>) = item?.extract()?;
            let Some(at) = left.iter().position(|wanted| *wanted == index) else {
                let cause = format!("emitted sub-result {index}, which the task does not ask for (again)");
                return Ok(Err(self.failed(cause)));
            };
            left.remove(at);
            let values = match taken(&values, &shape.conv.output_shape(), dtype)? {
                Ok(values) => values,
                Err(cause) => return Ok(Err(self.failed(format!("sub-result {index}: {cause}")))),
            };
            emit(index, values);
            if task.cancel.is_cancelled() && !left.is_empty() {
                return Ok(Err(Error::Cancelled));
            }
        }
        if left.is_empty() {
            Ok(Ok(()))
        } else {
            Ok(Err(self.failed(format!("ended without the sub-results {left:?}"))))
        }
    }
}

/// A copy of the values of a result, or what is wrong with it.
fn taken(array: &Bound<'_, PyAny>, shape: &[usize], dtype: DType) -> PyResult<Result<Values, String>> {
    macro_rules! copied {
        ($element:ty, $variant:ident) => {{
            let Ok(array) = array.cast::<PyArrayDyn<$element>>() else {
                let wanted = dtype.name();
                return Ok(Err(format!("must be a numpy array of {wanted}, is {}", described(array))));
            };
            if array.shape() != shape {
                return Ok(Err(format!("has shape {:?} where {shape:?} was expected", array.shape())));
            }
            Values::$variant(Borrowed::new(array)?.as_slice()?.to_vec())
        }};
    }
    Ok(Ok(match dtype {
        DType::F32 => copied!(f32, F32),
        DType::F64 => copied!(f64, F64),
    }))
}

fn described(value: &Bound<'_, PyAny>) -> String {
    let class = value.get_type().to_string();
    value.getattr("dtype").map_or(class, |dtype| dtype.to_string())
}

impl Worker for PyWorker {
    fn info(&self) -> WorkerInfo {
        self.info.clone()
    }

    fn install(&mut self, key: FilterKey, shape: &Shape, banks: Values) -> fcdcc::Result<()> {
        shape.check_banks(&banks)?;
        let dtype = banks.dtype();
        if dtype == DType::F64 && !self.info.f64 {
            return Err(self.failed("computes in float32 only: set float64 = True in its class".to_owned()));
        }
        let sizes = [vec![shape.banks], shape.conv.weight_shape()].concat();
        self.call(|py| {
            let given = (key_of(key), SubtaskShape(shape.clone()), owned(py, banks, &sizes)?);
            self.object.call_method1(py, "install", given).map(drop)
        })?;
        self.shapes.insert(key, (shape.clone(), dtype));
        Ok(())
    }

    fn remove(&mut self, key: FilterKey) {
        if self.shapes.remove(&key).is_some()
            && let Err(error) =
                self.call(|py| self.object.call_method1(py, "remove", (key_of(key),)).map(drop))
        {
            tracing::warn!(worker = self.info.name, %error, "removing filters failed");
        }
    }

    fn execute(&mut self, task: NativeTask<'_>, emit: &mut dyn FnMut(usize, Values)) -> fcdcc::Result<()> {
        if task.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Some((shape, dtype)) = self.shapes.get(&task.key) else {
            return Err(self.failed(format!("holds no filters for {:?}", task.key)));
        };
        shape.check_slabs(task.slabs, *dtype)?;
        shape.check_order(task.order)?;
        self.call(|py| self.compute(py, task, (shape, *dtype), emit))?
    }

    fn respawn(&self) -> Option<Respawn> {
        if !self.can_respawn {
            return None;
        }
        let object = Python::try_attach(|py| self.object.clone_ref(py))?;
        let name = self.info.name.clone();
        Some(Arc::new(move |_| {
            let lost = |cause: String| Error::WorkerLost { worker: name.clone(), cause };
            let respawned = Python::try_attach(|py| {
                let made = object.call_method0(py, "respawn").and_then(|made| Self::new(made.bind(py)));
                made.map_err(|error| lost(format!("could not be respawned: {error}")))
            });
            let respawned = respawned.unwrap_or_else(|| Err(lost("the interpreter has ended".to_owned())))?;
            Ok(Box::new(respawned))
        }))
    }
}

impl Drop for PyWorker {
    fn drop(&mut self) {
        // Calls close() where the object has it; its thread no longer calls it afterwards.
        let closed = self.call(|py| {
            let object = self.object.bind(py);
            if object.hasattr("close")? { object.call_method0("close").map(drop) } else { Ok(()) }
        });
        if let Err(error) = closed {
            tracing::debug!(worker = self.info.name, %error, "closing failed");
        }
    }
}

/// The properties of the contract of workers that the workers of `make` lack: property, what it demands, what came.
#[pyfunction]
pub(crate) fn check_worker(
    py: Python<'_>,
    make: Py<PyAny>,
    limit: f64,
) -> PyResult<Vec<(String, String, String)>> {
    let limit = jobs::seconds(py, "limit of a check (limit=)", limit)?;
    let open = || -> fcdcc::Result<Box<dyn Worker>> {
        let failed = |cause: String| Error::WorkerFailed { worker: "under check".to_owned(), cause };
        let made = Python::try_attach(|py| {
            let made = make.call0(py).and_then(|made| PyWorker::new(made.bind(py)));
            made.map_err(|error| failed(error.to_string()))
        });
        let worker = made.unwrap_or_else(|| Err(failed("the interpreter has ended".to_owned())))?;
        Ok(Box::new(worker))
    };
    let findings = jobs::run_once(py, Limits::default(), "checking a worker", |token| {
        Ok(testing::check_worker(limit, || if token.is_cancelled() { Err(Error::Cancelled) } else { open() }))
    })?;
    let told =
        |finding: testing::Finding| (format!("{:?}", finding.property), finding.expected, finding.came);
    Ok(findings.into_iter().map(told).collect())
}
