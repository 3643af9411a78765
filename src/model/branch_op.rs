//! An `If` whose condition depends on data, as one operator on this machine.
//!
//! Invariant: what is said of an output holds for both branches; its value is never said to be known.

use std::sync::Arc;

use tract_onnx::prelude::{IntoRunnable, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, Op, StaticName, SymbolScope, TDim, TValue, TVec, TypedFact,
    TypedModel, TypedOp, TypedSimplePlan, as_op, bail, not_out_of_plan, op_as_typed_op,
};

/// Both branches, and which inputs of the node theirs are. The first input of the node is the condition.
#[derive(Clone, Debug)]
pub(super) struct BranchOp {
    branches: [Arc<TypedSimplePlan>; 2],
    from: [Vec<usize>; 2],
    facts: TVec<TypedFact>,
}

impl BranchOp {
    /// The operator of the node called `node`, from the branch for true and that for false, each with the inputs of the node
    /// that it reads.
    ///
    /// # Errors
    /// For outputs that differ in type or number of axes.
    pub(super) fn of(
        node: &str,
        symbols: &SymbolScope,
        then: (TypedModel, Vec<usize>),
        otherwise: (TypedModel, Vec<usize>),
    ) -> TractResult<Self> {
        let mut facts = TVec::new();
        for (at, (one, other)) in then.0.outputs.iter().zip(&otherwise.0.outputs).enumerate() {
            let (one, other) = (then.0.outlet_fact(*one)?, otherwise.0.outlet_fact(*other)?);
            if one.datum_type != other.datum_type || one.rank() != other.rank() {
                bail!(
                    "If node {node}: its branches make {:?} {:?} and {:?} {:?} of output {at}, and which of them runs depends on \
                     data: make type and number of axes agree",
                    one.datum_type,
                    one.shape,
                    other.datum_type,
                    other.shape
                );
            }
            let dims = one.shape.iter().zip(other.shape.iter());
            let dims = dims.map(|(one, other)| {
                if one == other { one.clone() } else { TDim::Sym(symbols.new_with_prefix("branch")) }
            });
            facts.push(one.datum_type.fact(dims.collect::<TVec<TDim>>()));
        }
        let plan = |graph: TypedModel| graph.into_compact()?.into_runnable();
        let from = [then.1, otherwise.1];
        Ok(Self { branches: [plan(then.0)?, plan(otherwise.0)?], from, facts })
    }

    /// The graphs of both branches.
    pub(super) fn graphs(&self) -> [&TypedModel; 2] {
        [self.branches[0].model(), self.branches[1].model()]
    }
}

impl PartialEq for BranchOp {
    fn eq(&self, other: &Self) -> bool {
        self.branches.iter().zip(&other.branches).all(|(own, other)| Arc::ptr_eq(own, other))
    }
}

impl Eq for BranchOp {}

impl Op for BranchOp {
    fn name(&self) -> StaticName {
        "If".into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.facts.iter().any(|fact| fact.shape.as_concrete().is_none())
    }

    op_as_typed_op!();
}

impl EvalOp for BranchOp {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let taken = usize::from(!inputs[0].cast_to_scalar::<bool>()?);
        self.branches[taken].run(self.from[taken].iter().map(|outer| inputs[*outer].clone()).collect())
    }
}

impl TypedOp for BranchOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }

    as_op!();
}
