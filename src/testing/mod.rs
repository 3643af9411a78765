//! Checks any [`Worker`] against the contract of the trait.
//!
//! Relevant if you write a worker of your own: [`check_worker`] runs the checks that the workers of this crate pass, and
//! reports every [`Property`] that yours does not have. To vary a worker in a test, see
//! [`intercept`](crate::worker::intercept()). The documentation of [`Worker`] has a complete worker that passes the checks.
//!
//! ```
//! use std::time::Duration;
//!
//! use fcdcc::testing::check_worker;
//! use fcdcc::{CpuWorker, Worker};
//!
//! # type MyWorker = CpuWorker;
//! let open = || -> fcdcc::Result<Box<dyn Worker>> { Ok(Box::new(MyWorker::new("mine", 1))) };
//! let findings = check_worker(Duration::from_secs(60), open);
//! assert!(findings.is_empty(), "{findings:#?}");
//! ```
//!
//! Invariant: each check ends by its deadline, whatever the worker does.

mod cases;
mod filters;
mod properties;
mod session;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::error::{Result, panic_text};
use crate::worker::Worker;
use session::Verdict;

/// A property that the contract of [`Worker`] demands.
///
/// Only [`Self::RightNumbers`] compares results with the definition of the convolution. The other properties compare them
/// with what the same worker gave before, so that a worker that computes wrongly lacks that one property alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Property {
    /// [`Worker::info`] gives the same before, during and after work.
    ConstantInfo,
    /// Under [`Order::All`](crate::worker::Order::All), every sub-result comes once, with its length and element type.
    CompleteResults,
    /// Sub-results agree with [`conv::reference()`](crate::conv::reference()), in one, two and three dimensions, with
    /// strides, dilation and groups, and in both element types if [`WorkerInfo::f64`](crate::worker::WorkerInfo::f64) is
    /// set. A shape that the worker refuses to install is skipped, unless it is an ordinary one of two dimensions.
    RightNumbers,
    /// Under [`Order::Each`](crate::worker::Order::Each), exactly the requested sub-results come, in this order; an index
    /// that occurs twice comes twice.
    RequestedOrder,
    /// An index out of range is an [`Error::InvalidParameter`](crate::Error::InvalidParameter).
    IndexOutOfRange,
    /// Slabs of another size or element type are an [`Error::Mismatch`](crate::Error::Mismatch).
    WrongSlabs,
    /// Filters of another size are an [`Error::Mismatch`](crate::Error::Mismatch) and are not installed.
    WrongFilters,
    /// A task for filters that were never installed is an error.
    UnknownKey,
    /// A task for removed filters is an error; removing unknown filters has no effect.
    RemovedFilters,
    /// Installing under a key that is in use replaces its filters.
    ReplacedFilters,
    /// Filters of several layers and subtasks are held at the same time.
    SeparateFilters,
    /// Filters that [`Worker::share`] says it shared compute like installed ones, and stay when those they were shared from
    /// are removed. Filters of another size are not shared, nor those that the worker does not hold. A worker that shares
    /// none has this property too.
    SharedFilters,
    /// A task whose token is cancelled beforehand gives [`Error::Cancelled`](crate::Error::Cancelled) and no sub-result.
    CancelledBefore,
    /// A task whose token is cancelled during a sub-result gives [`Error::Cancelled`](crate::Error::Cancelled) after at
    /// most one more. (A worker on another machine may also give those that are on their way.)
    CancelledDuring,
    /// Results do not depend on what is in the buffers of [`Task::buffers`](crate::worker::Task::buffers).
    UsedBuffers,
    /// The worker that [`Worker::respawn`] creates has the same name, no filters, and works. A worker that cannot be
    /// respawned has this property too.
    Respawned,
}

impl Property {
    /// All properties, in the order of the checks.
    pub const ALL: [Self; 16] = [
        Self::ConstantInfo,
        Self::CompleteResults,
        Self::RightNumbers,
        Self::RequestedOrder,
        Self::IndexOutOfRange,
        Self::WrongSlabs,
        Self::WrongFilters,
        Self::UnknownKey,
        Self::RemovedFilters,
        Self::ReplacedFilters,
        Self::SeparateFilters,
        Self::SharedFilters,
        Self::CancelledBefore,
        Self::CancelledDuring,
        Self::UsedBuffers,
        Self::Respawned,
    ];

    fn verify(self) -> fn(Box<dyn Worker>) -> Verdict {
        match self {
            Self::ConstantInfo => properties::constant_info,
            Self::CompleteResults => properties::complete_results,
            Self::RightNumbers => properties::right_numbers,
            Self::RequestedOrder => properties::requested_order,
            Self::IndexOutOfRange => properties::index_out_of_range,
            Self::WrongSlabs => properties::wrong_slabs,
            Self::WrongFilters => filters::wrong_filters,
            Self::UnknownKey => filters::unknown_key,
            Self::RemovedFilters => filters::removed_filters,
            Self::ReplacedFilters => filters::replaced_filters,
            Self::SeparateFilters => filters::separate_filters,
            Self::SharedFilters => filters::shared_filters,
            Self::CancelledBefore => properties::cancelled_before,
            Self::CancelledDuring => properties::cancelled_during,
            Self::UsedBuffers => properties::used_buffers,
            Self::Respawned => properties::respawned,
        }
    }
}

/// A property that a worker lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{property:?}: expected {expected}, came {came}")]
#[non_exhaustive]
pub struct Finding {
    /// The property.
    pub property: Property,
    /// What the contract demands.
    pub expected: String,
    /// What the worker did.
    pub came: String,
}

/// Checks all properties and returns those that the worker lacks.
///
/// `open` is called once for each property, on the calling thread, after the worker of the property before was dropped. Each
/// check runs on a thread of its own for at most `deadline`. A worker that does not return keeps its thread.
pub fn check_worker(deadline: Duration, mut open: impl FnMut() -> Result<Box<dyn Worker>>) -> Vec<Finding> {
    let checked = Property::ALL.iter().map(|property| match open() {
        Ok(worker) => check_property(*property, deadline, worker),
        Err(error) => Err(Finding {
            property: *property,
            expected: "a worker to check".to_owned(),
            came: error.to_string(),
        }),
    });
    checked.filter_map(std::result::Result::err).collect()
}

/// Checks one property of a worker without filters, for at most `deadline`.
///
/// # Errors
/// A [`Finding`] when the worker lacks the property, panics, or does not return in time.
pub fn check_property(
    property: Property,
    deadline: Duration,
    worker: Box<dyn Worker>,
) -> std::result::Result<(), Finding> {
    let verify = property.verify();
    let (sender, verdict) = sync_channel(1);
    let thread = thread::Builder::new().name(format!("check {property:?}"));
    let spawned = thread.spawn(move || {
        let verdict = catch_unwind(AssertUnwindSafe(|| verify(worker)));
        // After the deadline there is no receiver.
        let _ = sender.send(verdict.map_err(|panic| panic_text(&*panic)));
    });
    let finding = |expected: String, came: String| Err(Finding { property, expected, came });
    if let Err(error) = spawned {
        return finding("a thread for the check".to_owned(), error.to_string());
    }
    match verdict.recv_timeout(deadline) {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(mismatch))) => finding(mismatch.expected, mismatch.came),
        Ok(Err(text)) => finding("no panic".to_owned(), format!("a panic: {text}")),
        Err(RecvTimeoutError::Timeout) => finding(format!("an end within {deadline:?}"), "no end".to_owned()),
        Err(RecvTimeoutError::Disconnected) => finding("a verdict".to_owned(), "none".to_owned()),
    }
}
