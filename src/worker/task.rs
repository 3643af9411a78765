//! One call of [`Worker::execute`](super::Worker::execute): which sub-results to compute, from which data.

use super::{CancelToken, FilterKey, Order};
use crate::array::Values;

/// The task of one call of [`Worker::execute`](super::Worker::execute). A worker around another one changes the fields that
/// it is about: `inner.execute(Task { order, ..task }, emit)`.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The installed filters to use.
    pub key: FilterKey,
    /// `shape.slabs` slabs of `[N, C, slab spatial...]`, row-major, one after the other.
    pub slabs: &'a Values,
    /// The sub-results to compute.
    pub order: Order<'a>,
    /// Ends the call when it is cancelled.
    pub cancel: &'a CancelToken,
}

impl<'a> Task<'a> {
    /// All sub-results of the subtask `key`.
    #[must_use]
    pub fn new(key: FilterKey, slabs: &'a Values, cancel: &'a CancelToken) -> Self {
        Self { key, slabs, order: Order::All, cancel }
    }

    /// The same task with another order.
    #[must_use]
    pub fn with_order(self, order: Order<'a>) -> Self {
        Self { order, ..self }
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
