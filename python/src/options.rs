//! Options of layers and models from keyword arguments.
//!
//! Invariant: an unknown option, or one of the wrong type, is refused by name.

use fcdcc::array::DType;
use fcdcc::coding::Clamp;
use fcdcc::engine::WindowwiseLimit;
use fcdcc::model::AutoChoices;
use fcdcc::{Error, LayerOptions, ModelOptions};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::codes::Code;
use super::{errors, jobs};

/// Keyword arguments, from which options are taken one by one.
struct Options<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'py> Options<'_, 'py> {
    fn take(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.0.get_item(name)?;
        if found.is_some() {
            self.0.del_item(name)?;
        }
        Ok(found.filter(|value| !value.is_none()))
    }

    fn parsed<T: std::str::FromStr<Err = Error>>(&self, name: &str) -> PyResult<Option<T>> {
        let Some(value) = self.take(name)? else { return Ok(None) };
        let text: String = value.str()?.extract()?;
        text.parse().map(Some).map_err(|error| errors::raise(value.py(), error))
    }

    fn number<T: for<'a> FromPyObject<'a, 'py>>(&self, name: &str, wanted: &str) -> PyResult<Option<T>> {
        let Some(value) = self.take(name)? else { return Ok(None) };
        value.extract().map(Some).map_err(|_| refused(&value, name, wanted))
    }

    /// Refuses what is left.
    fn finish(self, py: Python<'_>, known: &[&str]) -> PyResult<()> {
        match self.0.keys().iter().next() {
            None => Ok(()),
            Some(name) => {
                let help = format!("the options are {}", known.join(", "));
                Err(errors::raise(py, Error::invalid("option", name.to_string(), help)))
            }
        }
    }
}

fn refused(value: &Bound<'_, PyAny>, name: &str, wanted: &str) -> PyErr {
    let got = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string());
    errors::raise(value.py(), Error::invalid(format!("option {name}="), got, wanted.to_owned()))
}

const OF_LAYERS: [&str; 16] = [
    "name",
    "code",
    "subtasks",
    "tolerate",
    "partitions",
    "layer_deadline",
    "on_shortfall",
    "hedge",
    "partial",
    "patience",
    "audit",
    "seed",
    "max_error",
    "max_windowwise",
    "activation",
    "integers",
];

/// The options of a layer in `given`, which are removed from it.
fn layer_options(py: Python<'_>, given: &Options<'_, '_>) -> PyResult<LayerOptions> {
    let mut options = LayerOptions::default();
    if let Some(name) = given.number::<String>("name", "give a text")? {
        options.name = name;
    }
    if let Some(code) = given.take("code")? {
        if let Ok(own) = code.cast::<Code>() {
            options = options.own_code(own.get().inner().clone());
        } else {
            let text: String = code.str()?.extract()?;
            options.code = text.parse().map_err(|error| errors::raise(py, error))?;
        }
    }
    options.subtasks = given.number("subtasks", "give a whole number")?.or(options.subtasks);
    if let Some(tolerate) = given.number("tolerate", "give a whole number, 0 or above")? {
        options.tolerate = tolerate;
    }
    options.partitions =
        given.number("partitions", "give two whole numbers, (k_a, k_b)")?.or(options.partitions);
    if let Some(deadline) = given.number::<f64>("layer_deadline", "give seconds")? {
        options.policy.deadline = jobs::seconds(py, "deadline of a layer (layer_deadline=)", deadline)?;
    }
    if let Some(on_shortfall) = given.parsed("on_shortfall")? {
        options.policy.on_shortfall = on_shortfall;
    }
    if let Some(hedge) = given.take("hedge")? {
        let off = hedge.cast::<PyString>().is_ok_and(|text| text == "off");
        let quantile = || {
            hedge.extract().map_err(|_| refused(&hedge, "hedge", "give a number between 0 and 1, or \"off\""))
        };
        options.policy.hedge = if off { None } else { Some(quantile()?) };
    }
    if let Some(partial) = given.number("partial", "give True or False")? {
        options.policy.partial = partial;
    }
    if let Some(patience) = given.number("patience", "give a number, 0 or above")? {
        options.policy.patience = patience;
    }
    if let Some(audit) = given.parsed("audit")? {
        options.policy.audit = audit;
    }
    if let Some(seed) = given.number("seed", "give a whole number")? {
        options.seed = seed;
    }
    options.max_error = given.number("max_error", "give a number above zero")?;
    if let Some(limit) = given.take("max_windowwise")? {
        options.max_windowwise = windowwise(&limit)?;
    }
    options.clamp = given.take("activation")?.map(|value| activation(&value)).transpose()?;
    options.integers = given.number("integers", "give the largest magnitude of an input, such as 255")?;
    Ok(options)
}

fn windowwise(value: &Bound<'_, PyAny>) -> PyResult<WindowwiseLimit> {
    match value.cast::<PyString>() {
        Ok(text) if text == "auto" => Ok(WindowwiseLimit::Automatic),
        Ok(text) if text == "off" => Ok(WindowwiseLimit::Off),
        _ => value
            .extract()
            .map(WindowwiseLimit::At)
            .map_err(|_| refused(value, "max_windowwise", "give a number, \"auto\" or \"off\"")),
    }
}

/// `"relu"`, `"relu6"` or (low, high).
fn activation(value: &Bound<'_, PyAny>) -> PyResult<Clamp> {
    match value.cast::<PyString>() {
        Ok(text) if text == "relu" => Ok(Clamp::RELU),
        Ok(text) if text == "relu6" => Ok(Clamp { low: 0.0, high: 6.0 }),
        _ => value
            .extract()
            .map(|(low, high)| Clamp { low, high })
            .map_err(|_| refused(value, "activation", "give \"relu\", \"relu6\" or (low, high)")),
    }
}

/// The options of a single layer.
pub(crate) fn of_layer(py: Python<'_>, given: &Bound<'_, PyDict>) -> PyResult<LayerOptions> {
    let given = Options(given);
    let options = layer_options(py, &given)?;
    given.finish(py, &OF_LAYERS)?;
    Ok(options)
}

/// The options of a model.
pub(crate) fn of_model(py: Python<'_>, given: &Bound<'_, PyDict>) -> PyResult<ModelOptions> {
    let given = Options(given);
    let mut options = ModelOptions { layer: layer_options(py, &given)?, ..ModelOptions::default() };
    if let Some(gemm) = given.parsed("gemm")? {
        options.gemm = gemm;
    }
    options.precision = given.take("precision")?.map(|value| precision(&value)).transpose()?;
    if let Some(choices) =
        given.number::<Vec<String>>("planner", "give a list of \"code\", \"subtasks\", \"local\"")?
    {
        let mut freedom = AutoChoices::default();
        for choice in &choices {
            match choice.as_str() {
                "code" => freedom.code = true,
                "subtasks" => freedom.subtasks = true,
                "local" => freedom.local = true,
                other => {
                    let help = "the planner may choose \"code\", \"subtasks\" and \"local\"";
                    return Err(errors::raise(py, Error::invalid("choice (planner=)", other, help)));
                }
            }
        }
        options.freedom = freedom;
    }
    let known: Vec<&str> = OF_LAYERS.into_iter().chain(["gemm", "precision", "planner"]).collect();
    given.finish(py, &known)?;
    Ok(options)
}

/// `f32`, `f64`, or a numpy type of that name.
fn precision(value: &Bound<'_, PyAny>) -> PyResult<DType> {
    match value.str()?.to_string().as_str() {
        "f32" | "float32" => Ok(DType::F32),
        "f64" | "float64" => Ok(DType::F64),
        _ => Err(refused(value, "precision", "give \"f32\" or \"f64\"")),
    }
}
