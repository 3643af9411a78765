//! The operator `Loop`.
//!
//! Exporters write one for a recurrence, or for a search that ends when a token says so. A loop whose number of iterations is
//! known once the shapes and parameters of a model are, and is small, is unrolled: the nodes of each iteration stand in the
//! graph like all others, so that its convolutions are coded. Their names have the loop before and the number of the
//! iteration behind them. Every other loop is one operator that runs its iterations on this machine
//! ([`loop_run`](super::loop_run)).
//!
//! Relevant if you want to know how a graph inside a node becomes part of the graph around it.
//!
//! Invariant: a loop makes the values of its iterations, one after the other, whichever way it runs.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{DatumType, InferenceFact, InferenceModel, SpecialOps, Tensor, TractResult};
use tract_onnx::tract_core::internal::{
    AxisOp, DatumTypeExt, DimLike, EvalContext, EvalOp, IntoArcTensor, Op, OutletId, StaticName, Symbol,
    TDim, TValue, TVec, TypedFact, TypedModel, TypedOp, bail, not_a_typed_op, not_out_of_plan,
};
use tract_onnx::tract_core::ops::array::TypedConcat;
use tract_onnx::tract_hir::infer::{Factoid, InferenceNode, InferenceOp};
use tract_onnx::tract_hir::internal::as_op;

use super::check::is_standard;
use super::conv::Way;
use super::inner;
use super::loop_facts::plain;
use super::loop_run::{LoopOp, as_numbers};
pub(super) use super::loop_spec::NAME;
use super::loop_spec::{Known, Spec};

/// Whether a node is a loop.
pub(super) fn takes(node: &NodeProto) -> bool {
    node.op_type == NAME && is_standard(node)
}

/// Sets the method of the convolutions in every loop of `graph`.
pub(super) fn compute_by(graph: &mut TypedModel, way: Way) {
    for node in graph.nodes_mut() {
        if let Some(op) = node.op_as_mut::<LoopOp>() {
            op.way = way;
            op.plans = Arc::default();
        }
    }
}

/// A parsed node, with what is known of its values.
#[derive(Clone, Debug)]
struct Loops {
    spec: Arc<Spec>,
    /// What was known of the inputs, and what follows.
    known: Option<(Vec<InferenceFact>, Arc<Known>)>,
}

impl PartialEq for Loops {
    fn eq(&self, _: &Self) -> bool {
        // Graphs cannot be compared.
        false
    }
}

impl Eq for Loops {}

/// The parser for tract's operator register.
///
/// # Errors
/// For a node whose body does not fit it.
pub(super) fn parse(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (spec, read) = Spec::parse(ctx, node)?;
    Ok((Box::new(Loops { spec: Arc::new(spec), known: None }), read))
}

impl Loops {
    /// What is known of the outputs, from what is known of the inputs.
    fn know(&self, inputs: &[InferenceFact]) -> TractResult<Arc<Known>> {
        match &self.known {
            Some((before, known)) if before == inputs => Ok(Arc::clone(known)),
            _ => self.spec.know(inputs).map(Arc::new),
        }
    }

    /// Adds the nodes of all iterations to `target`; gives the carried values, then the collected ones.
    fn unroll(
        &self,
        name: &str,
        known: &Known,
        iterations: usize,
        target: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let spec = &self.spec;
        let mut values: TVec<OutletId> = inputs[spec.first()..].into();
        let mut collected: Vec<TVec<OutletId>> = vec![TVec::new(); spec.collected()];
        for iteration in 0..iterations {
            let constant = |target: &mut TypedModel, what: &str, value: Tensor| {
                target.add_const(format!("{name}.{what} [{iteration}]"), value.into_arc_tensor())
            };
            let number = constant(target, "number", spec.number(i64::try_from(iteration)?))?;
            let truth = constant(target, "condition", spec.truth())?;
            let wires: TVec<OutletId> = [number, truth].into_iter().chain(values.iter().copied()).collect();
            let mut body = spec.body.clone();
            for (at, wire) in wires.iter().enumerate() {
                body.set_input_fact(at, InferenceFact::from(target.outlet_fact(*wire)?))?;
            }
            let named = |own: &str| format!("{name}/{own} [{iteration}]");
            let made = inner::inline(body, named, target, &wires)?;
            let made = as_numbers(target, &format!("{name} [{iteration}]"), &made)?;
            values[..spec.carried].copy_from_slice(&made[1..=spec.carried]);
            for (at, one) in made[1 + spec.carried..].iter().enumerate() {
                let listed = format!("{name}.listed {at} [{iteration}]");
                collected[at].push(target.wire_node(listed, AxisOp::Add(0), &[*one])?[0]);
            }
        }
        values.truncate(spec.carried);
        for (at, all) in collected.into_iter().enumerate() {
            let name = format!("{name}.list {at}");
            values.push(if all.is_empty() {
                let fact = &known.outputs[spec.carried + at];
                let Some(dtype) = fact.datum_type.concretize() else {
                    bail!("{}: the type of collected value {at} is not known: give it in the file", spec.node)
                };
                target.add_const(name, Tensor::zero_dt(dtype, &sizes(fact))?.into_arc_tensor())?
            } else {
                target.wire_node(name, TypedConcat::new(0), &all)?[0]
            });
        }
        Ok(values)
    }

    /// Adds the loop as one operator that makes the wanted ones of the carried and the collected values.
    fn operator(
        &self,
        name: &str,
        known: &Known,
        wanted: Vec<usize>,
        target: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let spec = &self.spec;
        let count = target.symbols.new_with_prefix("iterations");
        let facts = wanted.iter().map(|at| {
            let count = (*at >= spec.carried).then_some(&count);
            self.typed(*at, &known.outputs[*at], count, target)
        });
        let facts = facts.collect::<TractResult<_>>()?;
        let constants = inputs[spec.first()..].iter().enumerate().map(|(at, wire)| {
            let same = spec.constant.get(at).copied().unwrap_or(true);
            Ok(target.outlet_fact(*wire)?.konst.clone().filter(|_| same))
        });
        let constants = constants.collect::<TractResult<_>>()?;
        let op = LoopOp {
            spec: Arc::clone(spec),
            constants,
            wanted,
            facts,
            way: Way::Kernel,
            plans: Arc::default(),
        };
        target.wire_node(name, op, inputs)
    }

    /// The type and shape of output `at`, with a symbol for each size that is not known; that of the first is `count`.
    fn typed(
        &self,
        at: usize,
        fact: &InferenceFact,
        count: Option<&Symbol>,
        target: &TypedModel,
    ) -> TractResult<TypedFact> {
        let (Some(dtype), false) = (fact.datum_type.concretize(), fact.shape.is_open()) else {
            bail!(
                "{}: the type or number of axes of its output {at} depends on data: make both the same in every iteration",
                self.spec.node
            );
        };
        let mut count = count;
        let dims = fact.shape.dims().map(|dim| {
            let first = count.take();
            let unknown = || match first {
                Some(count) => TDim::Sym(count.clone()),
                None => TDim::Sym(target.symbols.new_with_prefix("carried")),
            };
            dim.concretize().unwrap_or_else(unknown)
        });
        Ok(dtype.fact(dims.collect::<TVec<TDim>>()))
    }
}

/// The sizes of an array without elements; those that are not known are zero.
fn sizes(fact: &InferenceFact) -> Vec<usize> {
    fact.shape.dims().map(|dim| dim.concretize().and_then(|dim| dim.to_usize().ok()).unwrap_or(0)).collect()
}

impl Op for Loops {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    not_a_typed_op!();
}

impl EvalOp for Loops {
    // A loop of constants may have any number of iterations.
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, _: TVec<TValue>) -> TractResult<TVec<TValue>> {
        bail!("{}: it is translated before it runs", self.spec.node)
    }
}

impl InferenceOp for Loops {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let mut inputs: TVec<InferenceFact> = inputs.into_iter().cloned().collect();
        let mut outputs: TVec<InferenceFact> = outputs.into_iter().cloned().collect();
        if self.spec.conditional {
            inputs[usize::from(self.spec.counted)].datum_type.unify_with(&DatumType::Bool.into())?;
        }
        let facts: Vec<InferenceFact> = inputs.iter().map(plain).collect();
        let known = self.know(&facts)?;
        for (output, made) in outputs.iter_mut().zip(&self.spec.made) {
            output.unify_with(&known.outputs[*made])?;
        }
        self.known = Some((facts, known));
        Ok((inputs, outputs, observed.into_iter().cloned().collect()))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.spec.made.len())
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let inputs = as_numbers(target, &format!("{} input", node.name), &inputs)?;
        // Sizes that depend on data have symbols by now.
        let facts = inputs.iter().map(|wire| target.outlet_fact(*wire).map(InferenceFact::from));
        let facts = facts.collect::<TractResult<Vec<_>>>()?;
        let known = match &self.known {
            // Still holds.
            Some((_, known)) if known.iterations.is_some() => Arc::clone(known),
            _ => self.know(&facts)?,
        };
        if let Some(iterations) = known.iterations {
            let all = self.unroll(&node.name, &known, iterations, target, &inputs)?;
            return Ok(self.spec.made.iter().map(|at| all[*at]).collect());
        }
        let is_used = |slot: &usize| {
            let outlet = OutletId::new(node.id, *slot);
            !node.outputs[*slot].successors.is_empty() || source.outputs.contains(&outlet)
        };
        let used: Vec<usize> = (0..self.spec.made.len()).filter(is_used).collect();
        let wanted = used.iter().map(|slot| self.spec.made[*slot]).collect();
        let made = self.operator(&node.name, &known, wanted, target, &inputs)?;
        // Nothing reads the others.
        let mut all: TVec<OutletId> = TVec::from_elem(inputs[0], self.spec.made.len());
        used.into_iter().zip(made).for_each(|(slot, outlet)| all[slot] = outlet);
        Ok(all)
    }

    as_op!();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
