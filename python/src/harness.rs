//! The benchmark harness: comparisons under faults, and the stability study.

use std::ffi::OsString;
use std::ops::ControlFlow;

use fcdcc_cli::embedded;
use pyo3::prelude::*;
use pythonize::pythonize;

use super::codes::Code;
use super::jobs::{self, CancelToken, Limits, Observer};

/// The report of `fcdcc bench` with these options of the command line, as a dictionary. `own_code` is that of method
/// `custom`.
#[pyfunction]
#[pyo3(signature = (options, own_code=None, cancel=None, deadline=None, progress=None))]
pub(crate) fn bench<'py>(
    py: Python<'py>,
    options: Vec<OsString>,
    own_code: Option<&Code>,
    cancel: Option<&CancelToken>,
    deadline: Option<f64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let report = observed(py, Limits { cancel, deadline }, "a comparison", progress, |observe| {
        embedded::bench(options, own_code.map(|code| code.inner().clone()), observe)
    })?;
    Ok(pythonize(py, &report)?)
}

/// The report of `fcdcc stability` with these options of the command line, as a dictionary.
#[pyfunction]
#[pyo3(signature = (options, cancel=None, deadline=None, progress=None))]
pub(crate) fn stability<'py>(
    py: Python<'py>,
    options: Vec<OsString>,
    cancel: Option<&CancelToken>,
    deadline: Option<f64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let report = observed(py, Limits { cancel, deadline }, "a stability study", progress, |observe| {
        embedded::stability(options, observe)
    })?;
    Ok(pythonize(py, &report)?)
}

fn observed<T: Send>(
    py: Python<'_>,
    limits: Limits<'_>,
    what: &str,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(embedded::Observer<'_>) -> fcdcc::Result<T> + Send,
) -> PyResult<T> {
    let observer = Observer::new(progress);
    let result = jobs::run_once(py, limits, what, |token| {
        work(&mut |done, total, what| {
            observer.report(done, total, what, token);
            if token.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    observer.finish(result)
}
