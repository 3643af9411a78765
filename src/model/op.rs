//! The node that stands in tract's graph where a coded layer was put.

use tract_onnx::tract_core::internal::{
    DatumType, DatumTypeExt, EvalOp, Op, StaticName, TValue, TVec, TractResult, TypedFact, TypedOp, as_op,
    not_out_of_plan, op_as_typed_op, tvec,
};

/// Layer `index` of a prepared model. The plan's evaluation intercepts it: the op itself cannot compute, because
/// layers report and fail in ways that tract's evaluation has no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CodedOp {
    pub(super) index: usize,
    pub(super) dtype: DatumType,
    pub(super) output: Vec<usize>,
}

impl Op for CodedOp {
    fn name(&self) -> StaticName {
        "Coded".into()
    }

    op_as_typed_op!();
}

impl EvalOp for CodedOp {
    not_out_of_plan!();
}

impl TypedOp for CodedOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.dtype.fact(&self.output)))
    }

    as_op!();
}
