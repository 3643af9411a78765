//! Prepared models and their runs.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use fcdcc::model::{ModelShapes, TensorView};
use fcdcc::{Error, LayerReport};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PyString, PyTuple};
use pythonize::pythonize;

use super::arrays::Given;
use super::jobs::{CancelToken, Limits, Observer};
use super::process::Held;
use super::{arrays, errors, jobs};

/// For how many sets of input shapes a model with open sizes stays prepared; each has its coded filters on the workers.
const KEPT_SHAPES: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// A model ready to run; `fcdcc.PreparedModel` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct PreparedModel {
    model: Held<Shapes>,
    /// Names of the inputs, in order.
    names: Vec<Py<PyString>>,
}

enum Shapes {
    Fixed(Arc<fcdcc::PreparedModel>),
    /// Some sizes are those of the arrays that come.
    Open(Box<ModelShapes>),
}

impl Shapes {
    /// The model prepared for these inputs.
    fn for_inputs(
        &self,
        inputs: &[TensorView<'_>],
        cancel: &fcdcc::CancelToken,
    ) -> fcdcc::Result<Arc<fcdcc::PreparedModel>> {
        match self {
            Self::Fixed(model) => Ok(Arc::clone(model)),
            Self::Open(shapes) => {
                let wanted: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape().to_vec()).collect();
                shapes.prepare_cancellable(&wanted, cancel, &mut |_| {})
            }
        }
    }

    /// The model as it was prepared last.
    fn latest(&self) -> fcdcc::Result<Arc<fcdcc::PreparedModel>> {
        match self {
            Self::Fixed(model) => Ok(Arc::clone(model)),
            Self::Open(shapes) => shapes.latest().ok_or_else(|| {
                let cause =
                    "has open sizes and has not run yet: prepare it with shapes={...}, or run it first";
                Error::Model { model: shapes.model().name().to_owned(), cause: cause.into() }
            }),
        }
    }
}

impl PreparedModel {
    /// `model` with the input shapes for which it was prepared.
    pub(crate) fn fixed(py: Python<'_>, names: &[&str], model: fcdcc::PreparedModel) -> Self {
        Self::new(py, names, Shapes::Fixed(Arc::new(model)))
    }

    /// `model` on `pool`, to be prepared for the arrays that come.
    pub(crate) fn open(
        py: Python<'_>,
        names: &[&str],
        model: fcdcc::Model,
        pool: &fcdcc::Pool,
        options: fcdcc::ModelOptions,
    ) -> Self {
        Self::new(py, names, Shapes::Open(Box::new(ModelShapes::new(model, pool, options, KEPT_SHAPES))))
    }

    fn new(py: Python<'_>, names: &[&str], shapes: Shapes) -> Self {
        let names = names.iter().map(|name| PyString::intern(py, name).unbind()).collect();
        Self { model: Held::new(shapes), names }
    }

    /// The arrays in the order of the model, from one mapping or from arrays in that order.
    fn in_order<'py>(&self, inputs: &Bound<'py, PyTuple>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let py = inputs.py();
        if inputs.len() == 1
            && let Ok(named) = inputs.get_item(0)?.cast_into::<PyMapping>()
        {
            return self.by_name(&named);
        }
        if inputs.len() != self.names.len() {
            let names = self.names_in_words(py);
            let help = format!("give the inputs in the order {names}, or by name");
            return Err(errors::mismatch(py, "number of inputs", inputs.len(), self.names.len(), &help));
        }
        Ok(inputs.iter().collect())
    }

    fn by_name<'py>(&self, named: &Bound<'py, PyMapping>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let py = named.py();
        let dict = named.cast::<PyDict>().ok();
        let value = |name: &Py<PyString>| match dict {
            Some(dict) => dict.get_item(name),
            None => {
                if named.contains(name)? {
                    named.get_item(name).map(Some)
                } else {
                    Ok(None)
                }
            }
        };
        let found = self.names.iter().map(value).collect::<PyResult<Option<Vec<_>>>>()?;
        match found {
            Some(values) if named.len()? == values.len() => Ok(values),
            _ => {
                let given = named.keys()?;
                // Names that are no strings stay in their order.
                let _ = given.sort();
                let expected = PyList::new(py, &self.names)?;
                let help = "name every input of the model, and no other";
                Err(errors::mismatch(py, "names of the inputs", given, expected, help))
            }
        }
    }

    fn names_in_words(&self, py: Python<'_>) -> String {
        let names: Vec<String> = self.names.iter().map(|name| name.bind(py).to_string()).collect();
        names.join(", ")
    }

    fn latest(&self, py: Python<'_>) -> PyResult<Arc<fcdcc::PreparedModel>> {
        self.model.latest().map_err(|error| errors::raise(py, error))
    }
}

#[pymethods]
impl PreparedModel {
    /// Computes the outputs from a tuple of one mapping, or of arrays in the model's order.
    #[pyo3(signature = (inputs, cancel=None, deadline=None, progress=None))]
    fn run(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyTuple>,
        cancel: Option<&CancelToken>,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<ModelRun> {
        let values = self.in_order(inputs)?;
        let pairs = values.iter().zip(&self.names);
        let given =
            pairs.map(|(value, name)| Given::new(value, name.bind(py))).collect::<PyResult<Vec<_>>>()?;
        let views = given.iter().map(Given::view).collect::<PyResult<Vec<_>>>()?;
        let observer = Observer::new(progress);
        let model = &*self.model;
        let run = jobs::run(py, Limits { cancel, deadline }, "a run of the model", |token| {
            let prepared = model.for_inputs(&views, token)?;
            let started = Instant::now();
            let run = prepared.run_views(&views, token, &mut |done| {
                observer.report(done.done, done.total, done.layer, token);
            })?;
            Ok((run, started.elapsed()))
        });
        let (run, call) = observer.finish(run)?;
        let mut names = Vec::with_capacity(run.outputs.len());
        let outputs = PyList::empty(py);
        for output in run.outputs {
            names.push(output.name);
            outputs.append(arrays::array(py, output.tensor)?)?;
        }
        let (total, host) = (run.total.as_secs_f64(), run.host.as_secs_f64());
        let outputs = outputs.unbind();
        Ok(ModelRun { names, outputs, layers: run.layers, total, host, call: call.as_secs_f64() })
    }

    #[getter]
    fn coded_layers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.latest(py)?.coded_layers())
    }

    /// Name, operator and reason of each layer that stays on this machine.
    #[getter]
    fn local_layers(&self, py: Python<'_>) -> PyResult<Vec<(String, &'static str, String)>> {
        let model = self.latest(py)?;
        Ok(model.local_layers().map(|(name, op, why)| (name.to_owned(), op, why.to_owned())).collect())
    }

    /// Estimated memory of the prepared model and one run, in bytes.
    #[getter]
    fn memory_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.latest(py)?.memory().total())
    }
}

/// Outputs and reports of one run; reports are converted when they are asked for.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct ModelRun {
    #[pyo3(get)]
    names: Vec<String>,
    /// Arrays, in the order of the model.
    #[pyo3(get)]
    outputs: Py<PyList>,
    layers: Vec<LayerReport>,
    /// Seconds of the whole run.
    #[pyo3(get)]
    total: f64,
    /// Seconds of this machine's own computations.
    #[pyo3(get)]
    host: f64,
    /// Seconds that the same call takes in Rust.
    #[pyo3(get)]
    call: f64,
}

#[pymethods]
impl ModelRun {
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
