//! From a graph to a plan, with the rewrites that keep tract from rewriting it wrongly.

use std::sync::Arc;

use tract_onnx::prelude::IntoRunnable;
use tract_onnx::tract_core::internal::{
    TractResult, TypedModel, TypedModelPatch, TypedNode, TypedSimplePlan,
};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::math::{add, mul, neg, recip};

/// The optimised graph, ready to run.
pub(super) fn runnable(mut graph: TypedModel) -> TractResult<Arc<TypedSimplePlan>> {
    repair(&mut graph)?;
    graph.into_optimized()?.into_runnable()
}

/// Puts `c + (-y)` for `c - y` and `c * (1 / y)` for `c / y` where y is the output of a convolution.
///
/// tract 0.23 merges a channel's constant into the convolution in front of it and then takes the two for
/// `c + conv` with unchanged filters and for a division of the filters; behind another operator it leaves them.
fn repair(graph: &mut TypedModel) -> TractResult<()> {
    let wrong: Vec<usize> =
        graph.nodes().iter().filter(|node| is_misread(graph, node)).map(|node| node.id).collect();
    for id in wrong {
        let node = graph.node(id);
        let (name, inputs) = (node.name.clone(), node.inputs.clone());
        let subtraction = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.name() == "Sub");
        let mut patch = TypedModelPatch::new("constant first");
        let wires = patch.taps(graph, &inputs)?;
        let inverse = if subtraction { neg() } else { recip() };
        let inverse = patch.wire_node(format!("{name}.inverse"), inverse, &wires[1..])?[0];
        let joined = if subtraction { add() } else { mul() };
        let joined = patch.wire_node(format!("{name}.joined"), joined, &[wires[0], inverse])?[0];
        patch.shunt_outside(graph, id.into(), joined)?;
        patch.apply(graph)?;
    }
    Ok(())
}

fn is_misread(graph: &TypedModel, node: &TypedNode) -> bool {
    let Some(op) = node.op_as::<TypedBinOp>() else { return false };
    matches!(op.0.name(), "Sub" | "Div")
        && node.outputs[0].fact.datum_type.is_float()
        && graph.node(node.inputs[1].node).op_is::<Conv>()
}
