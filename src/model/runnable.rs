//! Makes a graph executable.
//!
//! Invariant: nodes are computed as they are. Constants are computed once; transposed convolutions
//! become convolutions of their phases; products and loops are individually put into
//! tract's optimized form. No rewrite joins two nodes or moves one past another: tract's own rewrites are wrong for
//! some graphs and take time that grows with the square of the number of nodes.

use std::sync::Arc;

use tract_onnx::prelude::{IntoRunnable, TractResult};
use tract_onnx::tract_core::internal::{
    InletId, IntoArcTensor, IntoTValue, OutletId, TVec, TypedFact, TypedModel, TypedOp, TypedSimplePlan,
};
use tract_onnx::tract_core::ops::konst::Const;

use super::compiled::{compile, shunt};
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
        // A schedule computes some products itself.
        compile(&mut graph, |graph, node| Ok(fixed && dense(graph, node)?.is_some()))?;
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
