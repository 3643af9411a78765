//! Single nodes in tract's optimised form.
//!
//! Relevant if you want to know how products and loops run that stay in tract: their constants are packed once.
//!
//! Invariant: each node is compiled alone. Nothing is joined, and nothing moves past another node.

use std::sync::Arc;

use tract_onnx::prelude::{IntoRunnable, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, EvalOp, InletId, Op, OutletId, StaticName, TValue, TVec, TypedFact, TypedModel, TypedNode,
    TypedOp, TypedSimplePlan, as_op, bail, op_as_typed_op, op_out_of_plan,
};
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_core::optim::Optimizer;

/// Most changes that tract makes to a graph of one node: some of its rules for loops undo one another forever.
const MOST_CHANGES: usize = 1000;

/// Puts products and loops into tract's optimized form, but for nodes that something else computes.
pub(super) fn compile(
    graph: &mut TypedModel,
    but: impl Fn(&TypedModel, &TypedNode) -> TractResult<bool>,
) -> TractResult<()> {
    for id in 0..graph.nodes().len() {
        let node = graph.node(id);
        if !(node.op_is::<EinSum>() || node.op_is::<Scan>() || node.op_is::<Conv>()) {
            continue;
        }
        if but(graph, node)? {
            continue;
        }
        // Has its own order of inputs, since constants become a part of the operator.
        let Some(compiled) = Compiled::of(graph, node)? else { continue };
        let facts = node.outputs.iter().map(|output| output.fact.clone()).collect();
        let (name, wires) = (node.name.clone(), node.inputs.clone());
        let outputs = node.outputs.len();
        let data: Vec<OutletId> = wires
            .into_iter()
            .filter(|wire| graph.outlet_fact(*wire).is_ok_and(|fact| fact.konst.is_none()))
            .collect();
        let new = graph.add_node(name, compiled, facts)?;
        for (slot, wire) in data.into_iter().enumerate() {
            graph.add_edge(wire, InletId::new(new, slot))?;
        }
        for slot in 0..outputs {
            shunt(graph, OutletId::new(id, slot), OutletId::new(new, slot))?;
        }
    }
    Ok(())
}

/// Redirects all uses of `from` to `to`; compacting the graph then drops the node of `from`.
pub(super) fn shunt(graph: &mut TypedModel, from: OutletId, to: OutletId) -> TractResult<()> {
    for successor in graph.outlet_successors(from).to_vec() {
        graph.add_edge(to, successor)?;
    }
    let outputs: Vec<OutletId> =
        graph.output_outlets()?.iter().map(|output| if *output == from { to } else { *output }).collect();
    graph.select_output_outlets(&outputs)
}

/// One node in tract's optimized form, with its constants packed.
#[derive(Clone, Debug)]
struct Compiled {
    name: StaticName,
    plan: Arc<TypedSimplePlan>,
    facts: TVec<TypedFact>,
}

impl Compiled {
    /// Compiles a node; `None` if a size is not known.
    fn of(graph: &TypedModel, node: &TypedNode) -> TractResult<Option<Self>> {
        let mut alone = TypedModel { symbols: graph.symbols.clone(), ..TypedModel::default() };
        let mut wires = TVec::new();
        for (slot, input) in node.inputs.iter().enumerate() {
            let fact = graph.outlet_fact(*input)?;
            let name = format!("input {slot}");
            if let Some(known) = &fact.konst {
                let id =
                    alone.add_node(name, Const::new(Arc::clone(known))?, TVec::from_elem(fact.clone(), 1))?;
                wires.push(OutletId::new(id, 0));
                continue;
            }
            if fact.shape.as_concrete().is_none() {
                return Ok(None);
            }
            wires.push(alone.add_source(name, fact.clone())?);
        }
        let outputs = alone.wire_node(&*node.name, node.op.clone(), &wires)?;
        alone.select_output_outlets(&outputs)?;
        Optimizer::declutter().stopping_at(MOST_CHANGES).optimize(&mut alone)?;
        alone.optimize_with_session(&mut Optimizer::codegen().stopping_at(MOST_CHANGES).session())?;
        let facts: TVec<TypedFact> = node.outputs.iter().map(|output| output.fact.clone()).collect();
        for (outlet, fact) in alone.output_outlets()?.iter().zip(&facts) {
            let made = alone.outlet_fact(*outlet)?;
            if made.shape != fact.shape || made.datum_type != fact.datum_type {
                bail!("node {} became {made:?} where it was {fact:?}", node.name);
            }
        }
        Ok(Some(Self { name: node.op.name(), plan: alone.into_runnable()?, facts }))
    }
}

impl PartialEq for Compiled {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.plan, &other.plan)
    }
}

impl Eq for Compiled {}

impl Op for Compiled {
    fn name(&self) -> StaticName {
        self.name.clone()
    }

    op_as_typed_op!();
}

impl EvalOp for Compiled {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.plan.run(inputs)
    }
}

impl TypedOp for Compiled {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }

    as_op!();
}
