//! Rates, which convert work into seconds.

use serde::{Deserialize, Serialize};

use crate::array::Element;
use crate::coding::{Code, CodeKind};
use crate::conv::ConvShape;
use crate::error::Result;
use crate::partition::InputPartition;
use crate::worker::SubtaskShape;

use super::cost::subtask_shape;
use super::network::Network;
use super::work::{Work, WorkerRates};

/// Seconds for encoding, decoding and the overhead of a layer on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRates {
    /// Dispatching and gathering a layer.
    pub layer_s: f64,
    /// Dispatching and gathering one of its subtasks.
    pub subtask_s: f64,
    /// An element of the padded input, or of a coded slab.
    pub encode_elem_s: f64,
    /// A multiply-add of encoding.
    pub encode_mac_s: f64,
    /// An element of a sub-result read, or of the output written.
    pub decode_elem_s: f64,
    /// A multiply-add of decoding.
    pub decode_mac_s: f64,
    /// Rates of one thread as a worker.
    pub thread: WorkerRates,
    /// Speed of all cores on an uncoded convolution, as a multiple of the speed of one thread.
    pub parallel: f64,
}

/// All rates needed to predict the time of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Rates of a typical worker, alone on its processor.
    pub worker: WorkerRates,
    /// Rates of this machine.
    pub host: HostRates,
    /// Number of processors that the workers share; `None` if they share none. More workers than processors take turns.
    pub cores: Option<usize>,
    /// Seconds per element of coded filters in every run: its share of reinstalling the filters, and of the memory that they
    /// occupy.
    pub storage_s: f64,
    /// The links to other machines; `None` if no worker is on another machine, and then no transfer waits for another.
    #[serde(default)]
    pub network: Option<Network>,
}

impl Default for Rates {
    /// Rates of a server of 2024 for f32: 30 G multiply-adds per second on a thread, also on each worker, which has its own
    /// processor; elements at 4 GB/s; filters that are reinstalled every thousandth run.
    fn default() -> Self {
        let thread = WorkerRates {
            call_s: 2e-5,
            sub_result_s: 2e-6,
            mac_s: 3.3e-11,
            direct_mac_s: 2.5e-10,
            column_s: 3e-10,
            packed_s: 2e-10,
            filter_s: 1e-10,
            upload_s: 1e-9,
            download_s: 1e-9,
        };
        Self {
            worker: thread,
            host: HostRates {
                layer_s: 4e-5,
                subtask_s: 2e-6,
                encode_elem_s: 3e-10,
                encode_mac_s: 5e-11,
                decode_elem_s: 3e-10,
                decode_mac_s: 2e-11,
                thread,
                parallel: 2.0,
            },
            cores: None,
            storage_s: 1e-12,
            network: None,
        }
    }
}

/// Predicted times and memory of a layer without stragglers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Padding, cutting and encoding, seconds.
    pub encode_s: f64,
    /// From first dispatch to the result that makes decoding possible, seconds.
    pub wait_s: f64,
    /// Decoding, seconds.
    pub decode_s: f64,
    /// One subtask on a worker that has its processor to itself, seconds.
    pub subtask_s: f64,
    /// Coded slabs, sub-results and output in this machine's memory during a run, in bytes.
    pub host_bytes: f64,
    /// Coded filters, slabs and sub-results of one subtask on its worker, in bytes.
    pub worker_bytes: f64,
}

impl Prediction {
    /// Encoding, waiting and decoding, seconds.
    #[must_use]
    pub fn total_s(&self) -> f64 {
        self.encode_s + self.wait_s + self.decode_s
    }
}

/// Elements touched and multiply-adds made on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CodecWork {
    pub(super) encode_elems: f64,
    pub(super) encode_macs: f64,
    pub(super) decode_elems: f64,
    pub(super) decode_macs: f64,
}

impl CodecWork {
    pub(super) fn of(layer: &ConvShape, code: &Code, slabs: &InputPartition, subtask: &SubtaskShape) -> Self {
        let planes = (layer.batch * layer.in_channels) as f64;
        let distinct = if code.shares_slabs() { 1 } else { code.n() };
        let coded = (distinct * subtask.upload_elems()) as f64;
        let covered = if slabs.is_in_place() { 0.0 } else { planes * slabs.covered_plane() as f64 };
        let selects = matches!(code.kind(), CodeKind::Uncoded | CodeKind::Replication);
        // A column of a block has k_A entries; a single 1 copies.
        let encode_macs = if selects || code.k_a() == 1 { 0.0 } else { coded * code.k_a() as f64 };
        let parts = code.k_a() * code.k_b() / (code.l_a() * code.l_b());
        let used = (parts * subtask.download_elems()) as f64;
        let output = layer.output_elems() as f64;
        // A complex system written as a real one has twice the terms.
        let an_element = match code.kind() {
            _ if selects || parts == 1 => 0,
            CodeKind::Crme => 2 * parts,
            _ => parts,
        };
        Self {
            encode_elems: covered + coded,
            encode_macs,
            decode_elems: used + output,
            decode_macs: output * an_element as f64,
        }
    }
}

impl Rates {
    /// Predicts a run of `layer` under `code` with one worker for each subtask and no stragglers.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) when the layer cannot be cut into the code's parts.
    pub fn predict<T: Element>(&self, layer: &ConvShape, code: &Code) -> Result<Prediction> {
        let subtask = subtask_shape(layer, code)?;
        let slabs = InputPartition::new(layer, code.k_a())?;
        let codec = CodecWork::of(layer, code, &slabs, &subtask);
        let host = &self.host;
        let work = Work::of(&subtask);
        let subtask_s = self.worker.seconds(&work);
        // Workers that share processors take turns, and the last result needed comes with the last turn that is needed.
        let turns = self.cores.map_or(1, |cores| code.recovery_threshold().div_ceil(cores.max(1))) as f64;
        // Workers compute beside each other, but their transfers share links.
        let subtasks_s = match &self.network {
            Some(network) => {
                let transfers_s = self.worker.transfer_s(&work);
                turns * (subtask_s - transfers_s)
                    + network.seconds(&self.worker, &work, code).max(transfers_s)
            }
            None => turns * subtask_s,
        };
        let bytes = T::DTYPE.size_bytes() as f64;
        let held = (subtask.upload_elems() + subtask.download_elems()) as f64;
        let storage = subtask.filter_elems() as f64;
        Ok(Prediction {
            encode_s: codec.encode_elems * host.encode_elem_s + codec.encode_macs * host.encode_mac_s,
            wait_s: host.layer_s + code.n() as f64 * host.subtask_s + subtasks_s + storage * self.storage_s,
            decode_s: codec.decode_elems * host.decode_elem_s + codec.decode_macs * host.decode_mac_s,
            subtask_s,
            host_bytes: bytes * (code.n() as f64 * held + layer.output_elems() as f64),
            worker_bytes: bytes * (held + storage),
        })
    }

    /// Seconds for computing `layer` on this machine, uncoded, on all cores.
    #[must_use]
    pub fn local_s(&self, layer: &ConvShape) -> f64 {
        let work = Work::of(&SubtaskShape { conv: layer.clone(), slabs: 1, banks: 1, plain: true });
        self.host.thread.seconds(&work) / self.host.parallel.max(1.0)
    }
}

impl WorkerRates {
    /// Seconds for computing `layer` whole and uncoded on such a worker, without any transfer.
    #[must_use]
    pub fn compute_s(&self, layer: &ConvShape) -> f64 {
        let work = Work::of(&SubtaskShape { conv: layer.clone(), slabs: 1, banks: 1, plain: true });
        (self.seconds(&work) - self.transfer_s(&work) - self.call_s).max(0.0)
    }
}
