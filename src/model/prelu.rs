//! The operator `PRelu`, with one slope, one for each channel, or one for each element.
//!
//! Until opset 6 a slope is one value or a list of one for each channel; the channels are the second axis. From opset 7 on it
//! is broadcast like any array. tract knows the latter alone.
//!
//! Invariant: an element that is not below zero, or is NaN, stays as it is.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{SpecialOps, TractResult, tensor0};
use tract_onnx::tract_core::internal::{AxisOp, OutletId, StaticName, TVec, TypedModel, bail};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::logic::{Iff, comp_gt};
use tract_onnx::tract_core::ops::math::mul;
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::called;

/// The operator that is parsed here.
pub(super) const NAME: &str = "PRelu";
/// The first opset in which slopes are broadcast.
const BROADCASTS: i64 = 7;

#[derive(Clone, Debug, PartialEq, Eq)]
struct PRelu {
    /// The description of the node in messages.
    node: String,
    /// Whether a list of slopes belongs to the channels.
    by_channels: bool,
}

/// The parser for tract's operator register.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all parsers")]
pub(super) fn parse(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let by_channels = ctx.onnx_operator_set_version < BROADCASTS;
    Ok((expand(PRelu { node: called(node), by_channels }), vec![]))
}

impl Expansion for PRelu {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != 2 || outputs.len() != 1 {
            bail!("{}: it has {} inputs: give data and slopes", self.node, inputs.len());
        }
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].datum_type, &inputs[1].datum_type)?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let (data, slopes) = (model.outlet_fact(inputs[0])?.clone(), model.outlet_fact(inputs[1])?.clone());
        let rank = data.rank();
        let one = slopes.shape.as_concrete().is_some_and(|sizes| sizes.iter().all(|size| *size == 1));
        let behind = if self.by_channels && slopes.rank() == 1 && !one { rank.saturating_sub(2) } else { 0 };
        let mut slope = inputs[1];
        for axis in 0..rank.saturating_sub(slopes.rank()) {
            let place = if axis < behind { slopes.rank() } else { 0 };
            slope = model.wire_node(format!("{prefix}.axis {axis}"), AxisOp::Add(place), &[slope])?[0];
        }
        let shape = model.outlet_fact(slope)?.shape.clone();
        let fits = shape.rank() == rank
            && shape.iter().zip(data.shape.iter()).all(|(own, size)| own == size || *own == 1.into());
        if !fits {
            let help =
                if self.by_channels { "one value, or one for each channel" } else { "one that broadcasts" };
            bail!(
                "{}: its slope has shape {:?} where the data have {:?}: give {help}",
                self.node,
                slopes.shape,
                data.shape
            );
        }
        let zero = tensor0(0.0f32).cast_to_dt(data.datum_type)?.into_owned().broadcast_into_rank(rank)?;
        let zero = model.add_const(format!("{prefix}.zero"), zero)?;
        let scaled = model.wire_node(format!("{prefix}.scaled"), mul(), &[inputs[0], slope])?[0];
        let below = TypedBinOp(comp_gt(), None);
        let below = model.wire_node(format!("{prefix}.below"), below, &[zero, inputs[0]])?[0];
        model.wire_node(prefix, Iff, &[below, scaled, inputs[0]])
    }
}
