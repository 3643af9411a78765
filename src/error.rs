//! The errors of this crate, as one flat enum.
//!
//! Relevant if you want to handle errors by kind. Every variant has fields for both sides of a disagreement, and its text
//! ends with a `help`. Options are named by their paths in this library; [`Error::with_names`] renames them. The command line maps variants to exit statuses through [`Error::kind`]; a program that embeds the
//! library can make the same distinction.

mod message;
mod value;

use std::any::Any;
use std::time::Duration;

pub use message::{Message, Parameter};
pub use value::Value;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The four ways in which a request can end without an exact result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A defect or an environment failure on this side (exit status 1).
    Internal,
    /// The request itself cannot be carried out (exit status 2).
    BadInput,
    /// Fewer results than the code needs came, after every fallback allowed (exit status 3).
    Shortfall,
    /// A result exists but was refused: it is corrupted, or its error bound exceeds the tolerance (exit status 4).
    Refused,
}

/// Everything this crate reports as an error.
///
/// # Examples
///
/// A program can read both sides of a disagreement, and the kind decides what to do:
///
/// ```
/// use fcdcc::coding::Code;
/// use fcdcc::{CodeKind, Error, ErrorKind};
///
/// let error = Code::new(CodeKind::Chebyshev, 2, 2, 3).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::BadInput);
/// let Error::Mismatch { got, .. } = error else { unreachable!() };
/// assert_eq!(got.as_usize(), Some(3));
/// ```
///
/// Options appear under the names of this library, which [`Error::with_names`] replaces:
///
/// ```
/// use fcdcc::planner::PlanOptions;
///
/// let error = PlanOptions::new(0, 2).check().unwrap_err();
/// assert_eq!(error.to_string(), "number of workers (PlanOptions::workers) is 0: use at least one");
/// let renamed = error.with_names(&|_| "workers =".to_owned());
/// assert!(renamed.to_string().starts_with("number of workers (workers =)"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter is outside what the operation is defined for.
    #[error("{what} is {got}: {help}")]
    InvalidParameter {
        /// The parameter.
        what: Message,
        /// Its value.
        got: Value,
        /// What would be accepted.
        help: Message,
    },
    /// Two sizes that must agree do not.
    #[error("{what} is {got} where {expected} was expected: {help}")]
    Mismatch {
        /// The quantity that disagrees.
        what: Message,
        /// The value found.
        got: Value,
        /// The value the other side requires.
        expected: Value,
        /// How to make them agree.
        help: Message,
    },
    /// An input holds a NaN or an infinity, which coding would spread over the whole output.
    #[error(
        "{what} holds {value} at flat index {index}: a coded sum would spread it over the whole output; \
         clean the data, or run it with code `uncoded`"
    )]
    NonFinite {
        /// Which array.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// Row-major position of the first such value.
        index: usize,
    },
    /// Too few subtasks can still arrive, or arrived before the deadline.
    #[error(
        "needs {needed} of {total} results, {arrived} came within {waited_ms} ms (missing: {missing}): {help}"
    )]
    Shortfall {
        /// Recovery threshold: the number of results that suffice.
        needed: usize,
        /// Number of subtasks dispatched.
        total: usize,
        /// Number of usable results that arrived.
        arrived: usize,
        /// Time from first dispatch to giving up, in milliseconds.
        waited_ms: u64,
        /// The missing workers and the reasons, readable.
        missing: String,
        /// What the caller can change.
        help: Message,
    },
    /// The error bound of a decoded result exceeds the caller's tolerance.
    #[error(
        "error bound {bound:.3e} exceeds the tolerance {tolerance:.3e} (condition number {condition:.3e}): {help}"
    )]
    ErrorBound {
        /// Estimated relative L2 error of the result.
        bound: f64,
        /// The caller's tolerance.
        tolerance: f64,
        /// Condition number of the recovery matrix.
        condition: f64,
        /// What the caller can change.
        help: Message,
    },
    /// A result is off by more than its report promises.
    #[error(
        "{what}: off from the uncoded reference by {error:.3e} (relative L2) where at most {bound:.3e} was promised: {help}"
    )]
    Inexact {
        /// The result in question.
        what: String,
        /// Its distance from the reference.
        error: f64,
        /// The error bound in its report.
        bound: f64,
        /// How to find the cause.
        help: Message,
    },
    /// The recovery matrix of a responder set is singular to working precision.
    #[error(
        "the recovery matrix of subtasks {subtasks:?} is singular (condition number {condition:.3e}): wait for one more result"
    )]
    Singular {
        /// The responder set.
        subtasks: Vec<usize>,
        /// Its condition number.
        condition: f64,
    },
    /// A decoded or locally computed result holds a NaN or an infinity although input and filters are finite.
    #[error(
        "{count} of {total} results were not finite although input and filters are: the sums overflow {dtype}, or workers are faulty; use f64, or replace the workers {workers}"
    )]
    NonFiniteResults {
        /// Number of results rejected.
        count: usize,
        /// Number of subtasks dispatched.
        total: usize,
        /// Element type of the computation.
        dtype: &'static str,
        /// Names of their workers.
        workers: String,
    },
    /// Results contradict each other, and the faulty workers cannot be located.
    #[error(
        "{results} results contradict each other where any {threshold} must agree (from workers {workers}): {help}"
    )]
    Corrupted {
        /// Number of complete results that were compared.
        results: usize,
        /// Number of results needed to decode and check.
        threshold: usize,
        /// Names of all workers whose results were compared.
        workers: String,
        /// What the caller can change.
        help: Message,
    },
    /// A worker can do no further work.
    #[error("worker {worker} is lost: {cause}")]
    WorkerLost {
        /// Its name.
        worker: String,
        /// What happened.
        cause: String,
    },
    /// A worker could not do one piece of work but can still work.
    #[error("worker {worker} failed: {cause}")]
    WorkerFailed {
        /// Its name.
        worker: String,
        /// What happened.
        cause: String,
    },
    /// A worker gave a wrong answer to a probe and must not be trusted with work.
    #[error(
        "worker {worker} failed its probe: {cause}; check its device and driver, or leave it out of the pool"
    )]
    ProbeFailed {
        /// Its name.
        worker: String,
        /// What it answered and what was expected, with the numbers.
        cause: String,
    },
    /// The work was cancelled before it was complete.
    #[error("cancelled")]
    Cancelled,
    /// A device, adapter or feature that the request names does not exist.
    #[error("{what} is not available: {help}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// What is available, and what to do.
        help: Message,
    },
    /// There is not enough memory for the request.
    #[error(
        "{what} needs about {} of memory where {limit} has {} left: make it smaller, or run it where there is more",
        readable(*needed_bytes), readable(*available_bytes)
    )]
    Memory {
        /// The operation.
        what: String,
        /// Estimated need.
        needed_bytes: u64,
        /// What is available.
        available_bytes: u64,
        /// What sets the limit.
        limit: String,
    },
    /// A GPU refused an operation or failed during the work.
    #[error("GPU {adapter}: {cause}")]
    Gpu {
        /// Adapter name.
        adapter: String,
        /// The message of wgpu or the driver.
        cause: String,
    },
    /// Something took longer than its limit.
    #[error("{what} took longer than {limit:?}: {help}")]
    Timeout {
        /// The operation.
        what: String,
        /// Its limit.
        limit: Duration,
        /// What the caller can change.
        help: Message,
    },
    /// A model asks for something that cannot be carried out, or its operators disagree.
    #[error("{model}: {cause}")]
    Model {
        /// Path or name of the model.
        model: String,
        /// What is wrong, and what to do if that is known.
        cause: Message,
    },
    /// A layer of a model could not be prepared or run.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What happened to it.
        source: Box<Error>,
    },
    /// The system refused to read or write a file.
    #[error("{path}: {cause}: {source}")]
    Io {
        /// The path as the caller gave it.
        path: String,
        /// What could not be done.
        cause: &'static str,
        /// The system's error.
        source: std::io::Error,
        /// Whether the caller's file is at fault (true) or this side's attempt to write (false).
        input: bool,
    },
    /// A file is not what it should be, or could not be understood.
    #[error("{path}: {cause}")]
    File {
        /// The path as the caller gave it.
        path: String,
        /// What is wrong with it, and what to do.
        cause: String,
        /// Whether the caller's file is at fault (true) or this side's attempt to write (false).
        input: bool,
    },
}

/// A size in readable form, such as `1500 MB`.
fn readable(bytes: u64) -> String {
    match bytes {
        0..10_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The message of a caught panic, if it is text.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let borrowed = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    borrowed.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidParameter { .. }
            | Self::Mismatch { .. }
            | Self::NonFinite { .. }
            | Self::Unavailable { .. }
            | Self::Memory { .. }
            | Self::Model { .. }
            | Self::Io { input: true, .. }
            | Self::File { input: true, .. } => ErrorKind::BadInput,
            Self::Layer { source, .. } => source.kind(),
            Self::Shortfall { .. } => ErrorKind::Shortfall,
            Self::ErrorBound { .. }
            | Self::Inexact { .. }
            | Self::NonFiniteResults { .. }
            | Self::Corrupted { .. } => ErrorKind::Refused,
            Self::Singular { .. }
            | Self::WorkerLost { .. }
            | Self::WorkerFailed { .. }
            | Self::ProbeFailed { .. }
            | Self::Cancelled
            | Self::Gpu { .. }
            | Self::Timeout { .. }
            | Self::Io { input: false, .. }
            | Self::File { input: false, .. } => ErrorKind::Internal,
        }
    }

    /// This error with every [`Parameter`] in its text under the name that `names` gives it: for programs whose users
    /// know the options by other names than this library's.
    #[must_use]
    pub fn with_names(mut self, names: &dyn Fn(&Parameter) -> String) -> Self {
        self.rename(names);
        self
    }

    fn rename(&mut self, names: &dyn Fn(&Parameter) -> String) {
        match self {
            Self::InvalidParameter { what, got, help } => {
                what.replace(names);
                got.replace(names);
                help.replace(names);
            }
            Self::Mismatch { what, got, expected, help } => {
                what.replace(names);
                got.replace(names);
                expected.replace(names);
                help.replace(names);
            }
            Self::Shortfall { help, .. }
            | Self::ErrorBound { help, .. }
            | Self::Inexact { help, .. }
            | Self::Corrupted { help, .. }
            | Self::Unavailable { help, .. }
            | Self::Timeout { help, .. }
            | Self::Model { cause: help, .. } => help.replace(names),
            Self::Layer { source, .. } => source.rename(names),
            Self::NonFinite { .. }
            | Self::Singular { .. }
            | Self::NonFiniteResults { .. }
            | Self::WorkerLost { .. }
            | Self::WorkerFailed { .. }
            | Self::ProbeFailed { .. }
            | Self::Cancelled
            | Self::Memory { .. }
            | Self::Gpu { .. }
            | Self::Io { .. }
            | Self::File { .. } => {}
        }
    }

    /// An [`Error::InvalidParameter`].
    pub fn invalid(what: impl Into<Message>, got: impl Into<Value>, help: impl Into<Message>) -> Self {
        Self::InvalidParameter { what: what.into(), got: got.into(), help: help.into() }
    }

    /// An [`Error::Mismatch`].
    pub fn mismatch(
        what: impl Into<Message>,
        got: impl Into<Value>,
        expected: impl Into<Value>,
        help: impl Into<Message>,
    ) -> Self {
        Self::Mismatch { what: what.into(), got: got.into(), expected: expected.into(), help: help.into() }
    }

    /// An [`Error::ErrorBound`] with its usual help.
    #[must_use]
    pub fn over_tolerance(bound: f64, tolerance: f64, condition: f64) -> Self {
        let help = Message::from("use f64, lower the recovery threshold, or raise ").and(Parameter::MaxError);
        Self::ErrorBound { bound, tolerance, condition, help }
    }
}
