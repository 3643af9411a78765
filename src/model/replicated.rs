//! A part of a model that workers hold, and that this machine computes if none of them does.
//!
//! Invariant: the part is prepared for this machine when it is first needed, and then kept.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use ndarray::ArrayD;

use super::load::Model;
use super::options::ModelOptions;
use super::prepared::PreparedModel;
use super::sections::Sections;
use super::signature::Output;
use super::tensor::Tensor;
use crate::array::Values;
use crate::engine::{ReplicatedOptions, ReplicatedPart};
use crate::error::{Error, Result};
use crate::scheduler::{OnShortfall, Pool, ReplicaPolicy};
use crate::sync::locked;
use crate::worker::{PartArray, PartFile, PartSignature};

/// A part that workers hold.
pub(super) struct Replicated {
    pub(super) name: String,
    pub(super) part: ReplicatedPart,
    file: PartFile,
    pub(super) signature: PartSignature,
    outputs: Vec<String>,
    pub(super) on_shortfall: OnShortfall,
    /// The part for this machine, prepared when it is first needed.
    here: Mutex<Option<Arc<PreparedModel>>>,
}

impl Replicated {
    /// Installs a part on the workers of a pool.
    pub(super) fn install(
        sections: &Sections,
        pieces: &Range<usize>,
        pool: &Pool,
        options: &ModelOptions,
    ) -> Result<Self> {
        let name = sections.name_of(pieces);
        let file = sections.part(pieces)?;
        let outputs = Model::from_bytes(name.as_str(), &file.bytes)?.outputs().to_vec();
        let signature = sections.signature(pieces).ok_or_else(|| {
            let help = "workers take arrays of f32 and f64 of fixed shape: choose other segments";
            Error::invalid("pieces of a replicated segment", format!("{pieces:?}"), help)
        })?;
        let policy = options.layer.policy;
        let tolerate = options.layer.tolerate;
        let defaults = ReplicaPolicy::default();
        let replicas = ReplicatedOptions {
            tolerate,
            policy: ReplicaPolicy {
                deadline: policy.deadline,
                max_copies: defaults.max_copies.max(tolerate.saturating_add(1)),
                hedge: policy.hedge.and(defaults.hedge),
                ..defaults
            },
            audit: policy.audit,
            signature: Some(signature.clone()),
            ..ReplicatedOptions::default()
        };
        let part = ReplicatedPart::install(pool, &file, &replicas)?;
        let on_shortfall = policy.on_shortfall;
        Ok(Self { name, part, file, signature, outputs, on_shortfall, here: Mutex::new(None) })
    }

    /// The part for this machine.
    pub(super) fn here(&self) -> Result<Arc<PreparedModel>> {
        let mut here = locked(&self.here);
        if let Some(prepared) = &*here {
            return Ok(Arc::clone(prepared));
        }
        let prepared = Arc::new(Model::from_bytes(self.name.as_str(), &self.file.bytes)?.prepare_here()?);
        *here = Some(Arc::clone(&prepared));
        Ok(prepared)
    }

    /// The arrays under their names, as tensors.
    pub(super) fn named(&self, arrays: Vec<Values>) -> Result<Vec<Output>> {
        let named = self.outputs.iter().zip(&self.signature.outputs).zip(arrays);
        named
            .map(|((name, array), values)| Ok(Output { name: name.clone(), tensor: tensor(array, values)? }))
            .collect()
    }
}

/// Values of this shape as a tensor.
pub(super) fn tensor(array: &PartArray, values: Values) -> Result<Tensor> {
    let elems = values.len();
    let wrong = |_| {
        let help = "the worker returned another array than it announced: replace it";
        Error::mismatch("elements of a part's output", elems, format!("{:?}", array.shape), help)
    };
    let shape = array.shape.clone();
    Ok(match values {
        Values::F32(own) => ArrayD::from_shape_vec(shape, own).map_err(wrong)?.into(),
        Values::F64(own) => ArrayD::from_shape_vec(shape, own).map_err(wrong)?.into(),
    })
}
