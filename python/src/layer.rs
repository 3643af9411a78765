//! Single coded layers, and uncoded convolutions.

use std::time::Instant;

use fcdcc::conv::{ConvParams, ConvShape, conv_uncoded};
use fcdcc::{Element, LayerReport};
use ndarray::{ArrayD, ArrayView1, IxDyn};
use numpy::{IntoPyArray, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::jobs::{CancelToken, Limits};
use super::pool::Pool;
use super::prepared::report;
use super::process::{self, Held};
use super::{arrays, errors, jobs, options};

/// A prepared layer; `fcdcc.CodedConv` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct CodedConv(Layer);

enum Layer {
    F32(Held<fcdcc::CodedConv<f32>>),
    F64(Held<fcdcc::CodedConv<f64>>),
}

/// `$body` with `$layer` bound to the layer of either type.
macro_rules! each {
    ($self:expr, $layer:ident => $body:expr) => {
        match &$self.0 {
            Layer::F32($layer) => $body,
            Layer::F64($layer) => $body,
        }
    };
}

/// Stride, padding, dilation and groups.
type Geometry = (Vec<usize>, Vec<usize>, Vec<usize>, usize);

fn params((stride, padding, dilation, groups): Geometry) -> ConvParams {
    ConvParams::default().stride(stride).padding(padding).dilation(dilation).groups(groups)
}

fn is_f64(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(array.cast::<PyUntypedArray>()?.dtype().is_equiv_to(&numpy::dtype::<f64>(array.py())))
}

type Prepared<T> = PyResult<Held<fcdcc::CodedConv<T>>>;

fn prepare<T: Element + numpy::Element>(
    pool: &Pool,
    input_shape: &[usize],
    (weight, bias): (&Bound<'_, PyAny>, Option<&Bound<'_, PyAny>>),
    params: ConvParams,
    given: &Bound<'_, PyDict>,
) -> Prepared<T> {
    let py = given.py();
    let options = options::of_layer(py, given)?;
    let weight = arrays::borrowed::<T>(weight)?;
    let weight = weight.view()?;
    let bias: Option<Vec<T>> =
        bias.map(|bias| Ok::<_, PyErr>(arrays::borrowed::<T>(bias)?.as_slice()?.to_vec())).transpose()?;
    let layer = jobs::run_once(py, Limits::default(), "preparing a layer", |_| {
        let builder = fcdcc::CodedConv::builder(pool.inner(), input_shape, weight);
        let bias = bias.as_deref().map(ArrayView1::from);
        builder.bias(bias).params(params).options(options).prepare()
    })?;
    Ok(Held::new(layer))
}

/// The output and the report.
type Ran<'py> = (Bound<'py, PyAny>, Report);

/// The report of a run, which is converted when it is asked for.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct Report {
    report: LayerReport,
    /// Seconds that the same call takes in Rust.
    #[pyo3(get)]
    call: f64,
}

#[pymethods]
impl Report {
    /// All fields as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        report(py, &self.report)
    }

    /// Milliseconds of the run.
    #[getter]
    fn total_ms(&self) -> f64 {
        self.report.total_ms
    }
}

fn run<'py, T: Element + numpy::Element>(
    py: Python<'py>,
    layer: &fcdcc::CodedConv<T>,
    input: &Bound<'py, PyAny>,
    limits: Limits<'_>,
) -> PyResult<Ran<'py>> {
    let input = arrays::of_layer::<T>(input)?;
    let view = input.view()?;
    let (run, call) = jobs::run(py, limits, "a run of the layer", |token| {
        let started = Instant::now();
        let run = layer.run_cancellable(view.view(), token)?;
        Ok((run, started.elapsed().as_secs_f64()))
    })?;
    Ok((run.output.into_pyarray(py).into_any(), Report { report: run.report, call }))
}

#[pymethods]
impl CodedConv {
    #[new]
    fn new(
        py: Python<'_>,
        pool: &Pool,
        input_shape: Vec<usize>,
        weight: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        geometry: Geometry,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        process::enter(py)?;
        let (shape, operands, params) = (&input_shape, (weight, bias), params(geometry));
        Ok(Self(if is_f64(weight)? {
            Layer::F64(prepare(pool, shape, operands, params, options)?)
        } else {
            Layer::F32(prepare(pool, shape, operands, params, options)?)
        }))
    }

    /// The output and the report.
    #[pyo3(signature = (input, cancel=None, deadline=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        input: &Bound<'py, PyAny>,
        cancel: Option<&CancelToken>,
        deadline: Option<f64>,
    ) -> PyResult<Ran<'py>> {
        each!(self, layer => run(py, layer, input, Limits { cancel, deadline }))
    }

    #[getter]
    fn name(&self) -> &str {
        each!(self, layer => layer.name())
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        match self.0 {
            Layer::F32(_) => "float32",
            Layer::F64(_) => "float64",
        }
    }

    #[getter]
    fn input_shape(&self) -> Vec<usize> {
        each!(self, layer => layer.shape().input_shape())
    }

    #[getter]
    fn output_shape(&self) -> Vec<usize> {
        each!(self, layer => layer.shape().output_shape())
    }

    /// The code in use.
    #[getter]
    fn code(&self) -> super::codes::Code {
        each!(self, layer => super::codes::Code::of(layer.code().clone()))
    }

    /// The worker of each subtask.
    #[getter]
    fn assignment(&self) -> Vec<usize> {
        each!(self, layer => layer.assignment().iter().map(|worker| worker.0).collect())
    }
}

fn uncoded<'py, T: Element + numpy::Element>(
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    params: &ConvParams,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let py = input.py();
    let flat = |array: &Bound<'py, PyAny>| -> PyResult<(Vec<usize>, Vec<T>)> {
        let array = arrays::borrowed::<T>(array)?;
        Ok((array.shape().to_vec(), array.as_slice()?.to_vec()))
    };
    let ((input_shape, input), (weight_shape, weight)) = (flat(input)?, flat(weight)?);
    let bias = bias.map(|bias| flat(bias).map(|(_, values)| values)).transpose()?;
    let shape =
        ConvShape::new(&input_shape, &weight_shape, params).map_err(|error| errors::raise(py, error))?;
    let computed = py.detach(|| conv_uncoded(&shape, &input, &weight, bias.as_deref(), threads, &|| false));
    let computed = computed.map_err(|error| errors::raise(py, error))?;
    let output = ArrayD::from_shape_vec(IxDyn(&shape.output_shape()), computed);
    let output = output.expect("it has as many elements as the output");
    Ok(output.into_pyarray(py).into_any())
}

/// One uncoded convolution on this machine.
#[pyfunction]
pub(crate) fn convolve<'py>(
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    geometry: Geometry,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    process::enter(input.py())?;
    let params = params(geometry);
    if is_f64(input)? {
        uncoded::<f64>(input, weight, bias, &params, threads)
    } else {
        uncoded::<f32>(input, weight, bias, &params, threads)
    }
}
