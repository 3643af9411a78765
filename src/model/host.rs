//! A model computed whole on this machine.

use std::sync::Arc;

use tract_onnx::tract_core::internal::{IntoTValue, TValue, TVec, TypedSimplePlan};

use super::guard::guarded;
use super::load::Model;
use super::memory::ModelMemory;
use super::prepared::{Output, Signature};
use super::repair::runnable;
use super::tensor::Tensor;
use crate::error::Result;
use crate::memory;

/// A model that runs in tract alone: an implementation of every convolution that shares nothing with the coded one.
#[derive(Debug)]
pub struct HostModel {
    signature: Signature,
    plan: Arc<TypedSimplePlan>,
}

impl Model {
    /// The whole model on this machine, nothing coded: what a coded run is compared with.
    ///
    /// # Errors
    /// As [`Model::prepare`], but for what concerns workers.
    pub fn on_host(&self) -> Result<HostModel> {
        let graph = self.typed()?;
        let signature = Signature::of(self)?;
        let needed = ModelMemory::of(self.name(), &graph)?;
        memory::require(&format!("{}, run on this machine,", self.name()), needed.host)?;
        let plan = guarded(self.name(), || runnable(graph))?;
        Ok(HostModel { signature, plan })
    }
}

impl HostModel {
    /// Computes every output from `inputs`, in the model's order.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for inputs of another number, shape or type,
    /// [`Error::Model`](crate::Error::Model) when an operator fails.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Output>> {
        let inputs = self.signature.accept(inputs)?;
        let outputs = guarded(&self.signature.model, || {
            let inputs: TVec<TValue> = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
            self.plan.run(inputs)
        })?;
        self.signature.name(&outputs)
    }
}
