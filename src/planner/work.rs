//! The work of a subtask, and the rates of a worker, which convert it into seconds.

use serde::{Deserialize, Serialize};

use crate::worker::SubtaskShape;

/// Number of kinds of [`Work`].
pub(super) const KINDS: usize = 9;

/// The work of one subtask on a worker: the amounts of which its time is a weighted sum.
///
/// A convolution is a matrix product of m filters, k terms and n columns (pixels). Beside the m k n multiply-adds, operands
/// are staged and read, which dominates for small m or n; these amounts are therefore separate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Number of subtasks: 1.
    pub calls: f64,
    /// Number of sub-results.
    pub sub_results: f64,
    /// Multiply-adds of products, m k n.
    pub macs: f64,
    /// Multiply-adds that are summed directly (one or two filters per group).
    pub direct_macs: f64,
    /// Elements of the second operand, k n, each time it is read.
    pub columns: f64,
    /// Elements of the input that are staged: padded, and rearranged for strides.
    pub packed: f64,
    /// Elements of filters, m k, each time they are read.
    pub filters: f64,
    /// Elements of slabs.
    pub upload: f64,
    /// Elements of sub-results.
    pub download: f64,
}

impl Work {
    /// The work of a subtask whose sub-results are requested one by one.
    #[must_use]
    pub fn of(subtask: &SubtaskShape) -> Self {
        let conv = &subtask.conv;
        let kernel = subtask.cpu_kernel();
        let sub_results = subtask.sub_results() as f64;
        // One or two channels read more than they compute.
        let direct = conv.out_channels / conv.groups <= 2;
        let macs = sub_results * kernel.macs();
        Self {
            calls: 1.0,
            sub_results,
            macs: if direct { 0.0 } else { macs },
            direct_macs: if direct { macs } else { 0.0 },
            columns: if direct { 0.0 } else { sub_results * kernel.columns() },
            packed: (subtask.slabs * kernel.staged_elems(subtask.banks)) as f64,
            filters: if direct { 0.0 } else { sub_results * kernel.filter_elems() as f64 },
            upload: subtask.upload_elems() as f64,
            download: subtask.download_elems() as f64,
        }
    }

    pub(super) fn amounts(&self) -> [f64; KINDS] {
        [
            self.calls,
            self.sub_results,
            self.macs,
            self.direct_macs,
            self.columns,
            self.packed,
            self.filters,
            self.upload,
            self.download,
        ]
    }
}

/// Seconds for a unit of each kind of [`Work`], in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerRates {
    /// A subtask.
    pub call_s: f64,
    /// A sub-result.
    pub sub_result_s: f64,
    /// A multiply-add.
    pub mac_s: f64,
    /// A multiply-add that is summed directly (one or two filters per group).
    pub direct_mac_s: f64,
    /// An element of a second operand read.
    pub column_s: f64,
    /// An element staged.
    pub packed_s: f64,
    /// An element of filters read.
    pub filter_s: f64,
    /// An element of a slab received.
    pub upload_s: f64,
    /// An element of a sub-result emitted.
    pub download_s: f64,
}

impl WorkerRates {
    pub(super) fn new(rates: [f64; KINDS]) -> Self {
        let [call_s, sub_result_s, mac_s, direct_mac_s, column_s, packed_s, filter_s, upload_s, download_s] =
            rates;
        Self { call_s, sub_result_s, mac_s, direct_mac_s, column_s, packed_s, filter_s, upload_s, download_s }
    }

    pub(super) fn values(&self) -> [f64; KINDS] {
        [
            self.call_s,
            self.sub_result_s,
            self.mac_s,
            self.direct_mac_s,
            self.column_s,
            self.packed_s,
            self.filter_s,
            self.upload_s,
            self.download_s,
        ]
    }

    /// The part of [`WorkerRates::seconds`] in which elements are received and emitted.
    pub(super) fn transfer_s(&self, work: &Work) -> f64 {
        work.upload * self.upload_s + work.download * self.download_s
    }

    /// Seconds for a subtask on a worker that has its processor to itself.
    #[must_use]
    pub fn seconds(&self, work: &Work) -> f64 {
        self.values().iter().zip(work.amounts()).map(|(rate, amount)| rate * amount).sum()
    }
}
