//! The layers of the soak test.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::coding::{Code, CodeKind, DecoderCache, ParityCheckCache, Rounding, Sketcher, encode_filters};
use crate::conv::{ConvParams, ConvShape};
use crate::engine::tracker::RecoveryContext;
use crate::ids::SubtaskId;
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::planner::subtask_shape;
use crate::scheduler::Policy;
use crate::worker::SubtaskShape;

/// One coded layer, encoded once.
pub(super) struct Layer {
    pub(super) code: Code,
    pub(super) shape: ConvShape,
    pub(super) subtask: Arc<SubtaskShape>,
    pub(super) slabs: InputPartition,
    pub(super) tiling: OutputTiling,
    pub(super) weight: Vec<f64>,
    /// Coded filters of each subtask.
    pub(super) banks: Arc<Vec<Vec<f32>>>,
    pub(super) decoders: DecoderCache,
    pub(super) checkers: ParityCheckCache,
    pub(super) sketcher: Arc<Sketcher>,
    /// The error bound at the condition number of [`CODES`].
    pub(super) limit: f64,
}

impl Layer {
    pub(super) fn new(
        (kind, (k_a, k_b, n), condition): (CodeKind, (usize, usize, usize), f64),
        seed: u64,
    ) -> Self {
        let shape = ConvShape::new(&[1, 3, 10, 9], &[16, 3, 3, 3], &ConvParams::default()).unwrap();
        let code = Code::new(kind, k_a, k_b, n).unwrap();
        let slabs = InputPartition::new(&shape, k_a).unwrap();
        let filters = FilterPartition::new(&shape, k_b).unwrap();
        let subtask = Arc::new(subtask_shape(&shape, &code).unwrap());
        let weight = numbers(shape.weight_elems(), &mut ChaCha8Rng::seed_from_u64(seed));
        let banks: Vec<_> =
            (0..n).map(|i| encode_filters(&code, &filters, &weight, &[], SubtaskId(i))).collect();
        Self {
            tiling: OutputTiling::new(&shape, &slabs, &filters),
            weight: weight.iter().copied().map(f64::from).collect(),
            banks: Arc::new(banks),
            decoders: DecoderCache::new(256),
            checkers: ParityCheckCache::new(256),
            sketcher: Arc::new(Sketcher::new(subtask.conv.output_elems(), seed)),
            limit: Rounding::plain::<f32>(shape.reduction()).normwise(condition),
            code,
            shape,
            subtask,
            slabs,
        }
    }

    pub(super) fn scheme(&self, policy: &Policy) -> RecoveryContext<'_> {
        RecoveryContext {
            code: &self.code,
            decoders: &self.decoders,
            checkers: &self.checkers,
            rounding: Rounding::plain::<f32>(self.shape.reduction()),
            audit: policy.audit,
            partial: policy.partial,
            energies: Vec::new(),
        }
    }
}

pub(super) fn numbers(len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

pub(super) fn mean_square(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64
}

/// Relative L2 distance; infinite where it is not a finite number.
pub(super) fn distance(got: &[f32], truth: &[f64]) -> f64 {
    let off: f64 = got.iter().zip(truth).map(|(g, t)| (f64::from(*g) - t).powi(2)).sum();
    let distance = (off / truth.iter().map(|t| t * t).sum::<f64>()).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}
