//! Makes a graph executable.
//!
//! Invariant: nodes are computed as they are. Constants are computed once; transposed convolutions
//! become convolutions of their phases; products and loops are individually put into
//! tract's optimized form. No rewrite joins two nodes or moves one past another: tract's own rewrites are wrong for
//! some graphs and take time that grows with the square of the number of nodes.

use std::sync::Arc;

use tract_onnx::prelude::{IntoRunnable, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, EvalOp, InletId, IntoArcTensor, IntoTValue, Op, OutletId, StaticName, TValue, TVec,
    TypedFact, TypedModel, TypedNode, TypedOp, TypedSimplePlan, as_op, bail, op_as_typed_op, op_out_of_plan,
};
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::scan::Scan;

use super::operators::dense;
use super::schedule::{Schedule, is_fixed};
use super::transpose::Parts;

/// Maximum bytes of a precomputed constant that is larger than its inputs.
const MOST_GROWTH_BYTES: usize = 4 << 20;

/// A graph that contains its coded layers, ready to run.
pub(super) enum Program {
    /// Planned in full.
    Fixed(Schedule),
    /// Run by tract alone, because some sizes depend on data or an operator has a state.
    Dynamic(Arc<TypedSimplePlan>),
}

impl Program {
    /// The program of a graph.
    pub(super) fn of(mut graph: TypedModel) -> TractResult<Self> {
        graph.compact()?;
        expand_transposed(&mut graph)?;
        compute_constants(&mut graph)?;
        graph.compact()?;
        let fixed = is_fixed(&graph)?;
        compile(&mut graph, fixed)?;
        graph.compact()?;
        if fixed { Ok(Self::Fixed(Schedule::of(&graph)?)) } else { graph.into_runnable().map(Self::Dynamic) }
    }
}

/// Replaces transposed convolutions with constant filters by operators whose filters are packed once.
fn expand_transposed(graph: &mut TypedModel) -> TractResult<()> {
    for id in graph.eval_order()? {
        let Some(parts) = Parts::of(graph, graph.node(id))? else { continue };
        let (name, data) = (graph.node(id).name.clone(), graph.node(id).inputs[0]);
        let filters = Const::new(parts.filters.into_arc_tensor())?;
        let filters = attach(graph, format!("{name}.filters"), filters, &[])?;
        let bias = attach(graph, format!("{name}.biases"), Const::new(parts.bias.into_arc_tensor())?, &[])?;
        let mut last = attach(graph, format!("{name}.phases"), parts.conv, &[data, filters, bias])?;
        if let Some(interleave) = parts.interleave {
            last = attach(graph, format!("{name}.interleave"), interleave, &[last])?;
        }
        shunt(graph, OutletId::new(id, 0), last)?;
    }
    Ok(())
}

/// Adds a node with one output, without comparing it with all others.
fn attach(
    graph: &mut TypedModel,
    name: String,
    op: impl TypedOp,
    inputs: &[OutletId],
) -> TractResult<OutletId> {
    let facts = inputs.iter().map(|input| graph.outlet_fact(*input)).collect::<TractResult<Vec<_>>>()?;
    let facts = op.output_facts(&facts)?;
    let node = graph.add_node(name, op, facts)?;
    for (slot, input) in inputs.iter().enumerate() {
        graph.add_edge(*input, InletId::new(node, slot))?;
    }
    Ok(OutletId::new(node, 0))
}

/// Replaces nodes whose inputs are all constant by their values.
fn compute_constants(graph: &mut TypedModel) -> TractResult<()> {
    for id in graph.eval_order()? {
        let node = graph.node(id);
        if node.inputs.is_empty() || node.outputs.len() != 1 {
            continue;
        }
        let facts = graph.node_input_facts(id)?;
        let Some(known) = facts.iter().map(|fact| fact.konst.clone()).collect::<Option<TVec<_>>>() else {
            continue;
        };
        let bytes = |fact: &TypedFact| {
            let elems = fact
                .shape
                .as_concrete()?
                .iter()
                .try_fold(1usize, |product, size| product.checked_mul(*size))?;
            elems.checked_mul(fact.datum_type.size_of())
        };
        let given: usize = known.iter().map(|tensor| tensor.len() * tensor.datum_type().size_of()).sum();
        if bytes(&node.outputs[0].fact).is_none_or(|made| made > given.max(MOST_GROWTH_BYTES)) {
            continue;
        }
        let known = known.into_iter().map(IntoTValue::into_tvalue).collect();
        // A node that cannot be computed now may fail when it runs.
        let Ok(Some(mut values)) = node.op.eval_out_of_plan(known) else { continue };
        let (Some(value), true) = (values.pop(), values.is_empty()) else { continue };
        let value = value.into_arc_tensor();
        let fact = TypedFact::try_from(value.clone())?;
        if fact.datum_type != node.outputs[0].fact.datum_type || fact.shape != node.outputs[0].fact.shape {
            continue;
        }
        let name = node.name.clone();
        drop(facts);
        let new = graph.add_node(name, Const::new(value)?, TVec::from_elem(fact, 1))?;
        shunt(graph, OutletId::new(id, 0), OutletId::new(new, 0))?;
    }
    Ok(())
}

/// Puts products and loops into tract's optimized form; `but_dense` spares the products that a schedule computes.
fn compile(graph: &mut TypedModel, but_dense: bool) -> TractResult<()> {
    for id in 0..graph.nodes().len() {
        let node = graph.node(id);
        if !(node.op_is::<EinSum>() || node.op_is::<Scan>() || node.op_is::<Conv>()) {
            continue;
        }
        if but_dense && dense(graph, node)?.is_some() {
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
        let alone = alone.into_optimized()?;
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
