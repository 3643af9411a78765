//! The operator `If`: the branch that runs is inlined where its condition is known before the run.
//!
//! Exporters write an `If` where a layer depends on a size or a parameter, such as the rate of an audio file. Once the
//! shapes and parameters of a model are known, so is the condition. The nodes of the branch then stand in the graph like all
//! others, so that its convolutions are coded, and the other branch is not looked at: it may not even have a meaning for these
//! shapes. An `If` whose condition depends on data is one operator ([`branch_op`](super::branch_op)).
//!
//! Invariant: what is inferred of an output holds whichever branch may still run. A graph inside a node is analysed again only if
//! more is known than before, so that branches within branches take no longer than their nodes.

use std::collections::HashMap;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{DatumType, InferenceFact, InferenceModel, IntoRunnable, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, EvalOp, Op, OutletId, StaticName, TValue, TVec, TypedModel, TypedOp, bail, not_a_typed_op,
    op_out_of_plan,
};
use tract_onnx::tract_hir::infer::{Factoid, InferenceModelExt, InferenceNode, InferenceOp};
use tract_onnx::tract_hir::internal::as_op;

use super::branch_op::BranchOp;
use super::check::called;
use super::inner;
use super::lower::lower;

/// The operator that is parsed here.
pub(super) const NAME: &str = "If";

/// A graph inside a node, and which inputs of the node its inputs are.
#[derive(Clone, Debug)]
struct Body {
    graph: InferenceModel,
    from: Vec<usize>,
}

/// A parsed node: its first input is the condition.
#[derive(Clone, Debug)]
struct Branches {
    then: Body,
    otherwise: Body,
    /// Inputs and outputs of which nothing more can be inferred.
    settled: Option<(TVec<InferenceFact>, TVec<InferenceFact>)>,
}

impl PartialEq for Branches {
    fn eq(&self, _: &Self) -> bool {
        // Graphs cannot be compared.
        false
    }
}

impl Eq for Branches {}

/// The parser for tract's operator register.
///
/// # Errors
/// For a node without one of its branches, or with branches that differ in the number of outputs.
pub(super) fn parse(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let mut outer: Vec<String> = Vec::new();
    let mut body = |name: &str| -> TractResult<Body> {
        let (graph, read) = inner::parse(ctx, node, inner::of(node, name)?)?;
        let from = read.into_iter().map(|name| {
            let known = outer.iter().position(|own| *own == name);
            1 + known.unwrap_or_else(|| {
                outer.push(name);
                outer.len() - 1
            })
        });
        Ok(Body { from: from.collect(), graph })
    };
    let (then, otherwise) = (body("then_branch")?, body("else_branch")?);
    let counts = [&then, &otherwise].map(|body| body.graph.outputs.len());
    if counts[0] != counts[1] {
        bail!("{}: its branches have {} and {} outputs: make them agree", called(node), counts[0], counts[1]);
    }
    Ok((Box::new(Branches { then, otherwise, settled: None }), outer))
}

impl Body {
    /// Exchanges what is known of inputs and outputs with the graph until nothing new is found.
    fn infer(&mut self, inputs: &mut [InferenceFact], outputs: &mut [InferenceFact]) -> TractResult<()> {
        loop {
            let mut changed = false;
            for (index, outer) in self.from.iter().enumerate() {
                changed |= self.graph.input_fact_mut(index)?.unify_with_mut(&mut inputs[*outer])?;
            }
            for (index, output) in outputs.iter_mut().enumerate() {
                changed |= self.graph.output_fact_mut(index)?.unify_with_mut(output)?;
            }
            changed |= self.graph.analyse(false)?;
            if !changed {
                return Ok(());
            }
        }
    }

    /// What the branch would make of these inputs; `None`, and nothing changed, if they have no meaning for it.
    fn tried(&mut self, inputs: &[InferenceFact]) -> Option<Vec<InferenceFact>> {
        let mut body = self.clone();
        let mut outputs = vec![InferenceFact::default(); self.graph.outputs.len()];
        body.infer(&mut inputs.to_vec(), &mut outputs).ok()?;
        *self = body;
        Some(outputs)
    }

    /// Adds the nodes of the branch to `target`; `inputs` are those of the node.
    fn inline(&self, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let inputs: Vec<OutletId> = self.from.iter().map(|outer| inputs[*outer]).collect();
        inner::inline(self.graph.clone(), str::to_owned, target, &inputs)
    }
}

impl Branches {
    /// The branch that runs, if the condition is known.
    fn taken(&mut self, condition: &InferenceFact) -> TractResult<Option<&mut Body>> {
        let Some(value) = condition.value.concretize() else { return Ok(None) };
        Ok(Some(if value.cast_to_scalar::<bool>()? { &mut self.then } else { &mut self.otherwise }))
    }
}

impl Op for Branches {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    not_a_typed_op!();
}

impl EvalOp for Branches {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let body = if inputs[0].cast_to_scalar::<bool>()? { &self.then } else { &self.otherwise };
        let own: TVec<TValue> = body.from.iter().map(|outer| inputs[*outer].clone()).collect();
        lower(body.graph.clone())?.into_runnable()?.run(own)
    }
}

impl InferenceOp for Branches {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let mut inputs: TVec<InferenceFact> = inputs.into_iter().cloned().collect();
        let mut outputs: TVec<InferenceFact> = outputs.into_iter().cloned().collect();
        let observed = observed.into_iter().cloned().collect();
        if self.settled.as_ref().is_some_and(|(known, made)| *known == inputs && *made == outputs) {
            return Ok((inputs, outputs, observed));
        }
        inputs[0].datum_type.unify_with(&DatumType::Bool.into())?;
        let condition = inputs[0].clone();
        if let Some(body) = self.taken(&condition)? {
            body.infer(&mut inputs, &mut outputs)?;
        } else if let (Some(then), Some(otherwise)) =
            (self.then.tried(&inputs), self.otherwise.tried(&inputs))
        {
            for (output, (then, otherwise)) in outputs.iter_mut().zip(then.iter().zip(&otherwise)) {
                if then.datum_type == otherwise.datum_type {
                    output.datum_type.unify_with(&then.datum_type)?;
                }
                if then.shape == otherwise.shape {
                    output.shape.unify_with(&then.shape)?;
                }
            }
        }
        self.settled = Some((inputs.clone(), outputs.clone()));
        Ok((inputs, outputs, observed))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.then.graph.outputs.len())
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let condition = source.outlet_fact(node.inputs[0])?;
        if let Some(body) = self.clone().taken(condition)? {
            return body.inline(target, &inputs);
        }
        let Self { mut then, mut otherwise, .. } = self.clone();
        // Sizes of outputs may be symbols of the branches, which live no longer than these.
        then.graph.symbols = target.symbols.clone();
        otherwise.graph.symbols = target.symbols.clone();
        let (then, otherwise) = ((lower(then.graph)?, then.from), (lower(otherwise.graph)?, otherwise.from));
        let op = BranchOp::of(&node.name, &target.symbols, then, otherwise)?;
        target.wire_node(&*node.name, op, &inputs)
    }

    as_op!();
}
