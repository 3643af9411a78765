//! Numbers in place of what tract computes as sizes.
//!
//! tract has a type of its own for sizes, which may be symbols, and casts to 64-bit integers give it. Some of its operators
//! take numbers only; [`rewrite`](super::rewrite) puts this operator before them.
//!
//! Invariant: values stay as they are.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{DatumType, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{OutletId, StaticName, TVec, TypedModel, bail, tvec};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

/// The operator that makes numbers; its name cannot occur in a file.
pub(super) const NAME: &str = "Plain numbers";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers;

/// The parser for tract's operator register.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all parsers")]
pub(super) fn parse(_: &ParsingContext, _: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Numbers), vec![]))
}

impl Expansion for Numbers {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let ([input], [output]) = (inputs, outputs) else { bail!("{NAME} have one input and one output") };
        solver.equals(&input.shape, &output.shape)?;
        solver.given(&input.datum_type, move |solver, own| {
            let plain = if own == DatumType::TDim { DatumType::I64 } else { own };
            solver.equals(&output.datum_type, plain)
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        if model.outlet_fact(inputs[0])?.datum_type != DatumType::TDim {
            return Ok(tvec!(inputs[0]));
        }
        model.wire_node(prefix, cast(DatumType::I64), inputs)
    }
}
