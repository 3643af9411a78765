//! Estimates the memory that a model needs on this machine, before it is allocated.
//!
//! Relevant if you want to know why a model is rejected, or how much memory to provide. `scripts/memory_estimates.py`
//! compares the estimate with measured peaks.
//!
//! Invariant: only descriptions of the graph are allocated here.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::tract_core::internal::{OutletId, TypedModel};
use tract_onnx::tract_core::ops::konst::Const;

use super::guard::guarded;
use crate::error::Result;
use crate::planner::LayerMemory;

/// The memory that a model needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// The constants of the file.
    pub constants: u64,
    /// Filters that differ from those of the file in element type, order or scale.
    pub copies: u64,
    /// Coded filters of workers that are threads of this process.
    pub filters: u64,
    /// Coded filters in transit to other workers, of one layer at a time.
    pub filters_sent: u64,
    /// Coded slabs and sub-results, kept by each layer between runs.
    pub buffers: u64,
    /// Peak of the arrays that the host holds between layers.
    pub host: u64,
}

impl ModelMemory {
    /// The memory of the constants and host arrays of a graph, before any layer is coded.
    pub(super) fn of(name: &str, graph: &TypedModel) -> Result<Self> {
        guarded(name, || {
            let order = graph.eval_order()?;
            let outlet_bytes = |outlet: OutletId| -> u64 {
                let Ok(fact) = graph.outlet_fact(outlet) else { return 0 };
                // Sizes that depend on data are not known yet.
                let Some(shape) = fact.shape.as_concrete() else { return 0 };
                let product = |bytes: u64, size: &usize| bytes.saturating_mul(*size as u64);
                shape.iter().fold(fact.datum_type.size_of() as u64, product)
            };
            let mut last_use: HashMap<OutletId, usize> = HashMap::new();
            for (step, id) in order.iter().enumerate() {
                last_use.extend(graph.node(*id).inputs.iter().map(|input| (*input, step)));
            }
            // The outputs live to the end.
            last_use.extend(graph.output_outlets()?.iter().map(|output| (*output, order.len())));
            let mut constants: HashMap<*const u8, u64> = HashMap::new();
            let mut ends: HashMap<usize, u64> = HashMap::new();
            let (mut live, mut most) = (0u64, 0u64);
            for (step, id) in order.iter().enumerate() {
                let node = graph.node(*id);
                if let Some(constant) = node.op_as::<Const>() {
                    let tensor = constant.val();
                    let bytes = (tensor.len() as u64).saturating_mul(tensor.datum_type().size_of() as u64);
                    constants.insert(Arc::as_ptr(tensor).cast(), bytes);
                    continue;
                }
                for slot in 0..node.outputs.len() {
                    let outlet = OutletId::new(*id, slot);
                    let bytes = outlet_bytes(outlet);
                    live = live.saturating_add(bytes);
                    let end = last_use.get(&outlet).copied().unwrap_or(step);
                    let ending = ends.entry(end).or_default();
                    *ending = ending.saturating_add(bytes);
                }
                most = most.max(live);
                live = live.saturating_sub(ends.remove(&step).unwrap_or(0));
            }
            let constants = constants.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
            Ok(Self { constants, host: most, ..Self::default() })
        })
    }

    /// Adds a coded layer and the copy of its filters.
    pub(super) fn add(&mut self, layer: &LayerMemory, copied: u64) {
        self.copies = self.copies.saturating_add(copied);
        self.filters = self.filters.saturating_add(layer.filters);
        self.filters_sent = self.filters_sent.max(layer.filters_sent);
        self.buffers = self.buffers.saturating_add(layer.slabs).saturating_add(layer.results);
    }

    /// That of two models that run one after the other.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            constants: self.constants.saturating_add(other.constants),
            copies: self.copies.saturating_add(other.copies),
            filters: self.filters.saturating_add(other.filters),
            filters_sent: self.filters_sent.max(other.filters_sent),
            buffers: self.buffers.saturating_add(other.buffers),
            host: self.host.saturating_add(other.host),
        }
    }

    /// The memory of preparing and running beside the constants, which exist once the model is loaded.
    #[must_use]
    pub fn additional(&self) -> u64 {
        let run = self.buffers.saturating_add(self.host);
        self.copies.saturating_add(self.filters).saturating_add(self.filters_sent.max(run))
    }

    /// The total memory. Assumes that the caller drops the model once it is prepared, so that copies replace the file's
    /// filters.
    #[must_use]
    pub fn total(&self) -> u64 {
        let prepared = self.constants.saturating_add(self.additional());
        // While a file is read, its constants are in memory twice.
        prepared.saturating_sub(self.copies.min(self.constants)).max(self.constants.saturating_mul(2))
    }
}
