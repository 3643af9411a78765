//! Prepared models and their runs.

use fcdcc::LayerReport;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::pythonize;

use super::jobs::{CancelToken, Limits, Observer};
use super::process::Held;
use super::{arrays, jobs};

/// A model ready to run; `fcdcc.PreparedModel` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct PreparedModel(Held<fcdcc::PreparedModel>);

impl PreparedModel {
    pub(crate) fn new(model: fcdcc::PreparedModel) -> Self {
        Self(Held::new(model))
    }
}

#[pymethods]
impl PreparedModel {
    /// Computes the outputs from arrays in the model's order, each with whether it holds the bits of bfloat16 numbers.
    #[pyo3(signature = (inputs, cancel=None, deadline=None, progress=None))]
    fn run(
        &self,
        py: Python<'_>,
        inputs: Vec<(Bound<'_, PyAny>, bool)>,
        cancel: Option<&CancelToken>,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<ModelRun> {
        let inputs =
            inputs.iter().map(|(array, bf16)| arrays::tensor(array, *bf16)).collect::<PyResult<Vec<_>>>()?;
        let observer = Observer::new(progress);
        let run = jobs::run(py, Limits { cancel, deadline }, "a run of the model", |token| {
            self.0.run_cancellable(&inputs, token, &mut |done| {
                observer.report(done.done, done.total, done.layer, token);
            })
        });
        let run = observer.finish(run)?;
        let mut names = Vec::with_capacity(run.outputs.len());
        let mut outputs = Vec::with_capacity(run.outputs.len());
        for output in run.outputs {
            names.push(output.name);
            outputs.push(arrays::array(py, output.tensor)?);
        }
        let (total, host) = (run.total.as_secs_f64(), run.host.as_secs_f64());
        Ok(ModelRun { names, outputs, layers: run.layers, total, host })
    }

    /// Names and shapes of the inputs, in order.
    #[getter]
    fn input_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.0.input_shapes().into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
    }

    #[getter]
    fn coded_layers(&self) -> usize {
        self.0.coded_layers()
    }

    /// Name, operator and reason of each layer that stays on this machine.
    #[getter]
    fn local_layers(&self) -> Vec<(String, &'static str, String)> {
        self.0.local_layers().map(|(name, op, why)| (name.to_owned(), op, why.to_owned())).collect()
    }

    /// Estimated memory of the prepared model and one run, in bytes.
    #[getter]
    fn memory_bytes(&self) -> u64 {
        self.0.memory().total()
    }
}

/// Outputs and reports of one run, which are converted when they are asked for.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct ModelRun {
    #[pyo3(get)]
    names: Vec<String>,
    outputs: Vec<(Py<PyAny>, bool)>,
    layers: Vec<LayerReport>,
    /// Seconds of the whole run.
    #[pyo3(get)]
    total: f64,
    /// Seconds of this machine's own computations.
    #[pyo3(get)]
    host: f64,
}

#[pymethods]
impl ModelRun {
    #[getter]
    fn outputs(&self, py: Python<'_>) -> Vec<(Py<PyAny>, bool)> {
        self.outputs.iter().map(|(array, bf16)| (array.clone_ref(py), *bf16)).collect()
    }

    /// The layers' reports as dictionaries.
    #[getter]
    fn layers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.layers.iter().map(|layer| report(py, layer)).collect()
    }
}

/// A report as a dictionary.
pub(crate) fn report<'py>(py: Python<'py>, layer: &LayerReport) -> PyResult<Bound<'py, PyAny>> {
    let report = pythonize(py, layer)?;
    debug_assert!(report.cast::<PyDict>().is_ok(), "a struct with named fields");
    Ok(report)
}
