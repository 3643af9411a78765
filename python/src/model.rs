//! ONNX models: parsing, shapes, preparing.

use std::path::PathBuf;

use fcdcc::model::InputShape;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::arrays::Given;
use super::jobs::{Limits, Observer};
use super::pool::Pool;
use super::prepared::PreparedModel;
use super::{errors, jobs, options, process};

/// A parsed model; `fcdcc.Model` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct Model(fcdcc::Model);

/// Name, element type and shape of an input, the shape also in the words of the file.
type Input = (String, String, Option<Vec<Option<usize>>>, String);

#[pymethods]
impl Model {
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        jobs::run_once(py, Limits::default(), "loading a model", |_| fcdcc::Model::load(path)).map(Self)
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, name: String, bytes: &[u8]) -> PyResult<Self> {
        jobs::run_once(py, Limits::default(), "loading a model", |_| fcdcc::Model::from_bytes(name, bytes))
            .map(Self)
    }

    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn inputs(&self) -> Vec<Input> {
        let input = |info: &fcdcc::model::InputInfo| {
            (info.name.clone(), info.dtype.clone(), info.shape.clone(), info.described.clone())
        };
        self.0.inputs().iter().map(input).collect()
    }

    #[getter]
    fn outputs(&self) -> Vec<String> {
        self.0.outputs().to_vec()
    }

    /// Names, element types and shapes of the outputs, for inputs of known shapes.
    fn output_infos(&self, py: Python<'_>) -> PyResult<Vec<(String, &'static str, Vec<Option<usize>>)>> {
        let infos = jobs::run(py, Limits::default(), "shapes of a model", |_| self.0.output_infos())?;
        Ok(infos.into_iter().map(|info| (info.name, info.dtype, info.shape)).collect())
    }

    /// The model with these shapes of inputs.
    fn with_shapes(&self, py: Python<'_>, shapes: Vec<(String, Vec<usize>)>) -> PyResult<Self> {
        let apply = |mut model: fcdcc::Model| {
            for (name, shape) in &shapes {
                model = model.with_input_shape(name, shape)?;
            }
            Ok(model)
        };
        apply(self.0.clone()).map(Self).map_err(|error| errors::raise(py, error))
    }

    /// The model with an input that is a constant.
    fn with_value(&self, name: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (py, text) = (name.py(), name.to_string());
        let value = Given::new(value, name)?.into_tensor()?;
        let model = self.0.clone().with_input_value(&text, &value);
        model.map(Self).map_err(|error| errors::raise(py, error))
    }

    /// Codes the layers and installs their filters; a model with open sizes is prepared when it runs.
    #[pyo3(signature = (pool, options, cancel=None, deadline=None, progress=None))]
    fn prepare(
        &self,
        py: Python<'_>,
        pool: &Pool,
        options: &Bound<'_, PyDict>,
        cancel: Option<&jobs::CancelToken>,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PreparedModel> {
        process::enter(py)?;
        let options = options::of_model(py, options)?;
        let names: Vec<&str> = self.0.inputs().iter().map(|input| input.name.as_str()).collect();
        if self.0.inputs().iter().any(|input| input.fixed_shape().is_none()) {
            return Ok(PreparedModel::open(py, &names, self.0.clone(), pool.inner(), options));
        }
        let observer = Observer::new(progress);
        let prepared = jobs::run(py, Limits { cancel, deadline }, "preparing a model", |token| {
            self.0.prepare_cancellable(pool.inner(), &options, token, &mut |done| {
                observer.report(done.done, done.total, done.layer, token);
            })
        });
        observer.finish(prepared).map(|model| PreparedModel::fixed(py, &names, model))
    }

    fn __repr__(&self) -> String {
        let inputs: Vec<String> =
            self.0.inputs().iter().map(|i| format!("{} {} {}", i.name, i.dtype, i.described)).collect();
        format!(
            "Model({:?}, inputs: {}; outputs: {})",
            self.0.name(),
            inputs.join(", "),
            self.0.outputs().join(", ")
        )
    }
}

/// What a file holds, and every reason why it cannot run, as text and as numbers.
#[pyfunction]
pub(crate) fn inspect(
    py: Python<'_>,
    path: PathBuf,
    shapes: Vec<(String, Vec<usize>)>,
) -> PyResult<Bound<'_, PyAny>> {
    let shapes: Vec<InputShape> =
        shapes.into_iter().map(|(input, sizes)| InputShape { input: Some(input), sizes }).collect();
    let found = jobs::run_once(py, Limits::default(), "inspecting a model", |_| {
        fcdcc::model::Inspection::of(path, &shapes)
    })?;
    Ok(pythonize::pythonize(py, &found)?)
}
