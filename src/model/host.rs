//! A whole model computed on this machine exactly as in the file: the reference for coded runs.
//!
//! Invariant: shares nothing with a prepared model but the translation of single nodes. Nothing is folded, joined or
//! moved, and every convolution is computed by definition with sums in f64.

use std::sync::Arc;

use tract_onnx::prelude::IntoRunnable;
use tract_onnx::tract_core::internal::{IntoTValue, TValue, TVec, TypedSimplePlan};

use super::conv::{Way, compute_by};
use super::guard::guarded;
use super::load::Model;
use super::loops;
use super::memory::ModelMemory;
use super::signature::{Output, Signature};
use super::tensor::Tensor;
use super::transpose;
use super::view::TensorView;
use crate::error::Result;
use crate::memory;

/// A model that is computed node by node as in its file, with every convolution computed by definition
/// ([`conv::reference`](crate::conv::reference())): slow, and independent of all optimizations of coded runs.
#[derive(Debug)]
pub struct HostModel {
    signature: Signature,
    plan: Arc<TypedSimplePlan>,
}

impl Model {
    /// The whole model on this machine, without coding, folding or rewriting: the reference for coded runs.
    ///
    /// # Errors
    /// As [`Model::prepare`], except those that concern workers.
    pub fn on_host(&self) -> Result<HostModel> {
        let mut graph = self.typed()?;
        let signature = Signature::of(self)?;
        let needed = ModelMemory::of(self.name(), &graph)?;
        memory::require(&format!("{}, run on this machine,", self.name()), needed.host)?;
        let plan = guarded(self.name(), || {
            compute_by(&mut graph, Way::Definition);
            transpose::compute_by(&mut graph, Way::Definition);
            loops::compute_by(&mut graph, Way::Definition);
            graph.compact()?;
            graph.into_runnable()
        })?;
        Ok(HostModel { signature, plan })
    }
}

impl HostModel {
    /// Computes every output from `inputs`, in the model's order.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a wrong number, shape or type of inputs,
    /// [`Error::Model`](crate::Error::Model) when an operator fails.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Output>> {
        let inputs = self.signature.accept(&inputs.iter().map(TensorView::from).collect::<Vec<_>>())?;
        let outputs = guarded(&self.signature.model, || {
            let inputs: TVec<TValue> =
                inputs.into_iter().map(|given| given.into_tensor().into_tvalue()).collect();
            self.plan.run(inputs)
        })?;
        self.signature.name_all(&outputs)
    }
}
