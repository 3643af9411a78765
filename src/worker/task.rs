//! One call of [`Worker::execute`](super::Worker::execute): which sub-results to compute, from which data.

use std::sync::LazyLock;

use super::{CancelToken, FilterKey, Order, Phase, PhaseClock, SharedSlabs};
use crate::array::{Buffers, Values};

/// The task of one call of [`Worker::execute`](super::Worker::execute). A worker around another one changes the fields that
/// it is about: `inner.execute(Task { order, ..task }, emit)`.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The installed filters to use.
    pub key: FilterKey,
    /// `shape.slabs` slabs of `[N, C, slab spatial...]`, row-major, one after the other.
    pub slabs: &'a Values,
    /// Identity of the slabs, if other tasks may use them too: equal identities mean equal slabs. A worker may
    /// ignore it; a worker around another one that changes the slabs sets it to `None`.
    pub shared: Option<&'a SharedSlabs>,
    /// The sub-results to compute.
    pub order: Order<'a>,
    /// Ends the call when it is cancelled.
    pub cancel: &'a CancelToken,
    /// Where buffers for results come from: what a worker emits returns there once it is no longer needed. Their content is
    /// arbitrary. A worker may also allocate its buffers itself.
    pub buffers: &'a Buffers,
    /// Where a worker may say in which [`Phase`] the task is; `None` where the caller does not ask. Without a word of the
    /// worker all of its time counts as computing.
    pub phases: Option<&'a PhaseClock>,
}

impl<'a> Task<'a> {
    /// All sub-results of the subtask `key`, in new buffers.
    #[must_use]
    pub fn new(key: FilterKey, slabs: &'a Values, cancel: &'a CancelToken) -> Self {
        static NONE: LazyLock<Buffers> = LazyLock::new(Buffers::default);
        Self { key, slabs, shared: None, order: Order::All, cancel, buffers: &NONE, phases: None }
    }

    /// The same task with another order.
    #[must_use]
    pub fn with_order(self, order: Order<'a>) -> Self {
        Self { order, ..self }
    }

    /// Tells the clock of the task, if it has one, that it is in `phase` from now on.
    pub fn enter(&self, phase: Phase) {
        if let Some(clock) = self.phases {
            clock.enter(phase);
        }
    }

    /// The indices to compute, of a subtask with `sub_results` sub-results.
    #[must_use]
    pub fn indices(&self, sub_results: usize) -> Vec<usize> {
        match self.order {
            Order::All => (0..sub_results).collect(),
            Order::Each(indices) => indices.to_vec(),
        }
    }
}
