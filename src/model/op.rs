//! The node that replaces a coded layer in the graph of tract.

use tract_onnx::tract_core::internal::{
    DatumType, DatumTypeExt, EvalOp, Op, StaticName, TValue, TVec, TractResult, TypedFact, TypedOp, as_op,
    not_out_of_plan, op_as_typed_op, tvec,
};

/// Layer `index` of a prepared model. The evaluation of the plan intercepts it. The operator itself cannot compute,
/// because tract's evaluation does not support the reports and errors of layers.
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
