//! The operator that marks sums of products of integers.
//!
//! [`quantised`](super::quantised) puts one behind every convolution and product of integers. It rounds to the nearest integer,
//! which changes nothing where the sums were computed in f64 on this machine: they are integers already. A layer that is
//! coded takes the operator into its decoding ([`fold`](super::fold)), where the engine removes all rounding errors.
//!
//! Invariant: its input is the output of a convolution or product of integers, of which those of the data are at most
//! `largest` in magnitude.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, EvalOp, IntoTValue, IntoTensor, Op, OutletId, StaticName, TValue, TVec, TypedFact,
    TypedModel, TypedOp, args_1, as_op, bail, format_err, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::attribute;

/// The operator name given to nodes of this kind; it cannot occur in a file.
pub(super) const NAME: &str = "Whole sums";

/// The attribute with the largest magnitude of the data.
pub(super) const LARGEST: &str = "largest";

/// The attribute that is 1 where the file asks for sums in floats.
pub(super) const FLOATS: &str = "floats";

/// Rounds sums in f64 to the integers that they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WholeSums {
    /// Largest magnitude of an element of the data.
    pub(super) largest: u32,
    /// Whether the file asks for sums in floats, so that these may be as inexact as floats are.
    pub(super) floats: bool,
}

/// The parser for tract's operator register.
///
/// # Errors
/// For a node that [`quantised`](super::quantised) did not make.
pub(super) fn parse(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let largest = attribute(node, LARGEST).and_then(|largest| u32::try_from(largest.i).ok());
    let largest = largest.ok_or_else(|| format_err!("{NAME} without the largest magnitude"))?;
    let floats = attribute(node, FLOATS).is_some_and(|floats| floats.i == 1);
    Ok((expand(WholeSums { largest, floats }), Vec::new()))
}

impl Expansion for WholeSums {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, *self, &[inputs[0]])
    }
}

impl Op for WholeSums {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    op_as_typed_op!();
}

impl EvalOp for WholeSums {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut sums = args_1!(inputs).into_tensor();
        for sum in sums.try_as_plain_ram_mut()?.as_slice_mut::<f64>()? {
            *sum = sum.round();
        }
        Ok(tvec!(sums.into_tvalue()))
    }
}

impl TypedOp for WholeSums {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [sums] = inputs else { bail!("{NAME} have one input, not {}", inputs.len()) };
        Ok(tvec!(sums.without_value()))
    }

    as_op!();
}
