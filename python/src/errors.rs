//! Errors of the library as exceptions with fields.
//!
//! The classes are in `fcdcc/_errors.py`, one for each variant. An error of a layer of a model is raised as the error itself,
//! with the layer's name in its field `layer`.
//!
//! Invariant: every variant has a class of its own name there; `tests/test_errors.py` compares.

use fcdcc::Error;
use fcdcc::error::{Message, Parameter, Value};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The exception for an error.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    let error = error.with_names(&parameter);
    let text = error.to_string();
    let mut layer = None;
    let mut inner = &error;
    while let Error::Layer { layer: name, source } = inner {
        layer.get_or_insert(name.as_str());
        inner = source;
    }
    let made = fields(py, inner).and_then(|(class, fields)| {
        let make = py.import("fcdcc._errors")?.getattr("make")?;
        make.call1((class, &text, layer, fields))
    });
    made.map_or_else(|failure| failure, PyErr::from_value)
}

/// `fcdcc.Mismatch` with values of Python.
pub(crate) fn mismatch<'py>(
    py: Python<'py>,
    what: &str,
    got: impl IntoPyObject<'py>,
    expected: impl IntoPyObject<'py>,
    help: &str,
) -> PyErr {
    let make = py.import("fcdcc._errors").and_then(|errors| errors.getattr("mismatch"));
    let made = make.and_then(|make| make.call1((what, got, expected, help)));
    made.map_or_else(|failure| failure, PyErr::from_value)
}

/// The exception for use in a child that `fork` made.
pub(crate) fn forked(py: Python<'_>, owner: u32, own: u32) -> PyErr {
    let made = || {
        let fields = PyDict::new(py);
        fields.set_item("owner", owner)?;
        fields.set_item("process", own)?;
        let text = format!(
            "process {own} was forked from process {owner}, whose fcdcc threads it does not have: start processes with \
             multiprocessing.get_context(\"spawn\") (DataLoader: multiprocessing_context=\"spawn\"), or use fcdcc in the \
             child alone"
        );
        py.import("fcdcc._errors")?.getattr("make")?.call1(("ForkedProcess", text, None::<&str>, fields))
    };
    made().map_or_else(|failure| failure, PyErr::from_value)
}

/// The exception for a run that its caller's deadline ended.
pub(crate) fn late(py: Python<'_>, what: &str, limit: std::time::Duration) -> PyErr {
    let help = Message::from("raise deadline=, or tolerate more stragglers (tolerate=)");
    raise(py, Error::Timeout { what: what.to_owned(), limit, help })
}

/// The exception for a panic, which is a defect.
pub(crate) fn defect(payload: &(dyn std::any::Any + Send)) -> PyErr {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    PyRuntimeError::new_err(format!("a defect of fcdcc, please report it: {text}"))
}

/// The name of an option in Python.
fn parameter(parameter: &Parameter) -> String {
    match parameter {
        Parameter::Subtasks => "subtasks=",
        Parameter::Workers => "workers=",
        Parameter::Tolerate => "tolerate=",
        Parameter::Partitions => "partitions=",
        Parameter::Deadline => "layer_deadline=",
        Parameter::OnShortfall => "on_shortfall=",
        Parameter::Hedge => "hedge=",
        Parameter::Patience => "patience=",
        Parameter::Audit => "audit=",
        Parameter::MaxError => "max_error=",
        Parameter::MaxWindowwise => "max_windowwise=",
        Parameter::Groups => "groups=",
        Parameter::ElementType => "precision=",
        Parameter::InputShape { input } => return format!("shapes={{{input:?}: (...)}}"),
        other => return other.to_string(),
    }
    .to_owned()
}

fn value<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Count(count) => Ok(count.into_pyobject(py)?.into_any()),
        Value::Real(real) => Ok(real.into_pyobject(py)?.into_any()),
        Value::Shape(sizes) => Ok(pyo3::types::PyTuple::new(py, sizes.iter())?.into_any()),
        other => Ok(other.to_string().into_pyobject(py)?.into_any()),
    }
}

/// The class of an error, and its fields.
fn fields<'py>(py: Python<'py>, error: &Error) -> PyResult<(&'static str, Bound<'py, PyDict>)> {
    let all = PyDict::new(py);
    macro_rules! set {
        ($class:literal $(, $name:ident = $value:expr)*) => {{
            $(all.set_item(stringify!($name), $value)?;)*
            $class
        }};
    }
    let class = match error {
        Error::InvalidParameter { what, got, help } => {
            set!("InvalidParameter", what = what.to_string(), got = value(py, got)?, help = help.to_string())
        }
        Error::Mismatch { what, got, expected, help } => set!(
            "Mismatch",
            what = what.to_string(),
            got = value(py, got)?,
            expected = value(py, expected)?,
            help = help.to_string()
        ),
        Error::NonFinite { what, value, index } => {
            set!("NonFinite", what = *what, value = *value, index = *index)
        }
        Error::Shortfall { needed, total, arrived, waited_ms, missing, help } => set!(
            "Shortfall",
            needed = *needed,
            total = *total,
            arrived = *arrived,
            waited_ms = *waited_ms,
            missing = missing,
            help = help.to_string()
        ),
        Error::ErrorBound { bound, tolerance, condition, help } => set!(
            "ErrorBound",
            bound = *bound,
            tolerance = *tolerance,
            condition = *condition,
            help = help.to_string()
        ),
        Error::Inexact { what, error, bound, help } => {
            set!("Inexact", what = what, error = *error, bound = *bound, help = help.to_string())
        }
        Error::Singular { subtasks, condition } => {
            set!("Singular", subtasks = subtasks.clone(), condition = *condition)
        }
        Error::NonFiniteResults { count, total, dtype, workers } => {
            set!("NonFiniteResults", count = *count, total = *total, dtype = *dtype, workers = workers)
        }
        Error::Corrupted { results, threshold, workers, help } => set!(
            "Corrupted",
            results = *results,
            threshold = *threshold,
            workers = workers,
            help = help.to_string()
        ),
        Error::WorkerLost { worker, cause } => set!("WorkerLost", worker = worker, cause = cause),
        Error::WorkerFailed { worker, cause } => set!("WorkerFailed", worker = worker, cause = cause),
        Error::ProbeFailed { worker, cause } => set!("ProbeFailed", worker = worker, cause = cause),
        other => return environment_fields(other, all),
    };
    Ok((class, all))
}

/// The rest of [`fields`]: errors of devices, files, models and limits.
fn environment_fields<'py>(
    error: &Error,
    all: Bound<'py, PyDict>,
) -> PyResult<(&'static str, Bound<'py, PyDict>)> {
    macro_rules! set {
        ($class:literal $(, $name:ident = $value:expr)*) => {{
            $(all.set_item(stringify!($name), $value)?;)*
            $class
        }};
    }
    let class = match error {
        Error::Cancelled => "Cancelled",
        Error::Unavailable { what, help } => set!("Unavailable", what = what, help = help.to_string()),
        Error::Memory { what, needed_bytes, available_bytes, limit } => set!(
            "OutOfMemory",
            what = what,
            needed_bytes = *needed_bytes,
            available_bytes = *available_bytes,
            limit = limit
        ),
        Error::Gpu { adapter, cause } => set!("GpuError", adapter = adapter, cause = cause),
        Error::Timeout { what, limit, help } => {
            set!("Timeout", what = what, limit = limit.as_secs_f64(), help = help.to_string())
        }
        Error::Model { model, cause } => set!("ModelError", model = model, cause = cause.to_string()),
        Error::Io { path, cause, source, .. } => {
            set!("FileError", path = path, cause = format!("{cause}: {source}"))
        }
        Error::File { path, cause, .. } => set!("FileError", path = path, cause = cause),
        _ => "Internal",
    };
    Ok((class, all))
}
