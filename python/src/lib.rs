//! The extension module `fcdcc._fcdcc` of the Python package: the library's objects as Python sees them.
//!
//! Each file wraps one part of the library; what a user of Python meets is written in Python, in `python/fcdcc`. [`jobs`]
//! runs work without the interpreter's lock, so that an interrupt ends it; [`process`] refuses use after a fork; [`errors`] turns
//! errors into exceptions. Relevant if you change what Python can do.
//!
//! Invariant: the interpreter's lock is never held while this module waits for a worker, and no input panics.

mod arrays;
mod codes;
mod errors;
mod harness;
mod jobs;
mod layer;
mod logging;
mod model;
mod options;
mod pool;
mod prepared;
mod process;
mod wakeup;
mod worker;

use std::ffi::OsString;

use pyo3::prelude::*;

/// The objects of the package.
#[pymodule]
mod _fcdcc {
    #[pymodule_export]
    use super::codes::Code;
    #[pymodule_export]
    use super::harness::{bench, stability};
    #[pymodule_export]
    use super::jobs::CancelToken;
    #[pymodule_export]
    use super::layer::{CodedConv, Report, convolve};
    #[pymodule_export]
    use super::logging::{log_level, start_logging};
    #[pymodule_export]
    use super::model::{Model, inspect};
    #[pymodule_export]
    use super::pool::Pool;
    #[pymodule_export]
    use super::prepared::{ModelRun, PreparedModel};
    #[pymodule_export]
    use super::worker::{SubtaskShape, Task, check_worker};
    #[pymodule_export]
    use super::{command, features, missing_environment, version};
}

/// The version of the library.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// What the extension was built with, beside what it always has.
#[pyfunction]
fn features() -> Vec<&'static str> {
    if cfg!(feature = "full") {
        vec!["cluster", "gpu", "metrics", "onnx", "serve"]
    } else {
        vec!["gpu", "onnx"]
    }
}

/// Runs the command `fcdcc` with these arguments, of which the first is the program's name, and returns the exit status.
#[pyfunction]
fn command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| fcdcc_cli::command(arguments))
}

/// Environment variables that the command sets where they are not set: names and values.
#[pyfunction]
fn missing_environment() -> Vec<(&'static str, &'static str)> {
    fcdcc_cli::embedded::missing_environment()
}
