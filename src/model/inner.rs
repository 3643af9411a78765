//! Graphs inside nodes: the branches of an `If`, the bodies of a `Loop`.
//!
//! Relevant if you want to add an operator that has a graph as an attribute.
//!
//! Invariant: the inputs of a parsed graph are those that it declares, then the values around it that it reads.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use tract_onnx::model::{ParseResult, ParsingContext};
use tract_onnx::pb::{GraphProto, NodeProto, TypeProto, type_proto};
use tract_onnx::prelude::{InferenceModel, TractResult};
use tract_onnx::tract_core::internal::{InletId, OutletId, TVec, TypedModel, bail, format_err};
use tract_onnx::tract_core::ops::source::TypedSource;

use super::check::{attribute, called};
use super::lower::{lower, renamed};
use super::nodes::F32;

/// The graph that an attribute of a node holds.
///
/// # Errors
/// For a node without it.
pub(super) fn of<'a>(node: &'a NodeProto, name: &str) -> TractResult<&'a GraphProto> {
    let graph = attribute(node, name).and_then(|attribute| attribute.g.as_ref());
    graph.ok_or_else(|| format_err!("{}: attribute {name} is missing: export the model again", called(node)))
}

/// Parses a graph inside a node, and names the values around it that it reads.
///
/// # Errors
/// For inputs that are no arrays, and for outputs that nothing in it makes.
pub(super) fn parse(
    ctx: &ParsingContext,
    node: &NodeProto,
    graph: &GraphProto,
) -> TractResult<(InferenceModel, Vec<String>)> {
    for input in &graph.input {
        if input.r#type.as_ref().is_some_and(|of| of.value.is_none()) {
            bail!(
                "{}: input {} of its graph {} is no array: export the model with arrays in place of sequences and \
                 optional values",
                called(node),
                input.name,
                graph.name
            );
        }
    }
    let made = graph.node.iter().flat_map(|own| &own.output).chain(graph.input.iter().map(|own| &own.name));
    let made: HashSet<&String> = made.chain(graph.initializer.iter().map(|own| &own.name)).collect();
    if let Some(output) = graph.output.iter().find(|output| !made.contains(&output.name)) {
        bail!(
            "{}: nothing in its graph {} computes the output {}: add an Identity to it",
            called(node),
            graph.name,
            output.name
        );
    }
    // Types may be left out, but tract asks for one. The values that are given have theirs.
    let mut typed = Cow::Borrowed(graph);
    if graph.input.iter().any(|input| input.r#type.is_none()) {
        for input in typed.to_mut().input.iter_mut().filter(|input| input.r#type.is_none()) {
            let any = type_proto::Tensor { elem_type: F32, shape: None };
            input.r#type =
                Some(TypeProto { value: Some(type_proto::Value::TensorType(any)), ..TypeProto::default() });
        }
    }
    let ParseResult { model, unresolved_inputs, .. } = ctx.parse_graph(&typed)?;
    Ok((model, unresolved_inputs))
}

/// Adds the nodes of a graph to `target`, where `inputs` are what its inputs become, and `named` gives the names of its nodes
/// and layers.
pub(super) fn inline(
    mut graph: InferenceModel,
    named: impl Fn(&str) -> String,
    target: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    // Sizes that depend on data have symbols, which must live as long as the nodes do.
    graph.symbols = target.symbols.clone();
    let typed = lower(graph)?;
    let mut places: HashMap<OutletId, OutletId> =
        typed.input_outlets()?.iter().copied().zip(inputs.iter().copied()).collect();
    for id in typed.eval_order()? {
        let node = typed.node(id);
        if node.op_is::<TypedSource>() {
            continue;
        }
        let facts = node.outputs.iter().map(|output| output.fact.clone()).collect();
        let new = target.add_node(named(&node.name), renamed(node.op.clone(), &named), facts)?;
        for (slot, input) in node.inputs.iter().enumerate() {
            target.add_edge(places[input], InletId::new(new, slot))?;
        }
        places
            .extend((0..node.outputs.len()).map(|slot| (OutletId::new(id, slot), OutletId::new(new, slot))));
    }
    Ok(typed.output_outlets()?.iter().map(|outlet| places[outlet]).collect())
}
