//! Translates a parsed graph, node by node, into one with all types and shapes.
//!
//! Invariant: nothing is rewritten. The translation of a node depends on that node and on the types, shapes and
//! constants of its inputs, never on the nodes around it. Time and memory are proportional to the number of nodes,
//! unlike those of tract's own translation, which is made for graphs of some hundred nodes.

use std::collections::{HashMap, HashSet};

use tract_onnx::prelude::{InferenceModel, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, InletId, OutletId, SymbolScope, TDim, TVec, TypedFact, TypedModel, TypedOp, bail,
};
use tract_onnx::tract_core::model::Node;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::infer::{Factoid, InferenceModelExt, InferenceNode};
use tract_onnx::tract_hir::ops::source::Source;

use super::conv::ConvOp;
use super::extremes::Extremes;
use super::numbers::SizesOp;
use super::transpose::TransposeOp;
use super::unary::Exact;

/// The outlets of the values that a file names.
pub(super) type Labels = HashMap<String, OutletId>;

/// The graph with all types and shapes inferred, and with convolutions replaced by operators of this crate.
pub(super) fn lower(parsed: InferenceModel) -> TractResult<TypedModel> {
    labelled(parsed).map(|(graph, _)| graph)
}

/// As [`lower`], with the outlet of each value that the file names and that is left.
pub(super) fn labelled(mut parsed: InferenceModel) -> TractResult<(TypedModel, Labels)> {
    parsed.analyse(false)?;
    let parsed = parsed.incorporate()?;
    let mut lowering = Lowering {
        target: TypedModel { symbols: parsed.symbols.clone(), ..TypedModel::default() },
        places: HashMap::with_capacity(parsed.nodes().len()),
        names: HashSet::new(),
        layers: parsed.nodes().iter().map(|node| node.name.clone()).collect(),
    };
    for id in parsed.eval_order()? {
        let node = parsed.node(id);
        lowering.node(&parsed, node).map_err(|e| e.context(format!("node {}", node.name)))?;
    }
    // Unused inputs remain inputs.
    for input in parsed.input_outlets()? {
        if !lowering.places.contains_key(input) {
            lowering.node(&parsed, parsed.node(input.node))?;
        }
    }
    let Lowering { mut target, places, .. } = lowering;
    let all = |outlets: &[OutletId]| outlets.iter().map(|outlet| places[outlet]).collect::<Vec<_>>();
    target.set_input_outlets(&all(parsed.input_outlets()?))?;
    target.select_output_outlets(&all(parsed.output_outlets()?))?;
    let labels = parsed.outlet_labels.iter();
    let labels = labels.filter_map(|(outlet, label)| Some((label.clone(), *places.get(outlet)?))).collect();
    Ok((target, labels))
}

/// tract's name of log-softmax. tract translates it to a softmax and a logarithm, which give minus infinity if the
/// softmax underflows; both are replaced by the operator that subtracts the logarithm of the sum.
const LOG_SOFTMAX: &str = "LayerLogSoftmax";

struct Lowering {
    target: TypedModel,
    /// The outlet in the target of each outlet of the parsed graph.
    places: HashMap<OutletId, OutletId>,
    names: HashSet<String>,
    /// The names of all nodes of the parsed graph, and of the layers that came from graphs inside them.
    layers: HashSet<String>,
}

/// A name that is not among `names`, and now is.
fn free(names: &mut HashSet<String>, name: &str) -> String {
    let numbered = (2..).map(|number| format!("{name} ({number})"));
    let mut all = std::iter::once(name.to_owned()).chain(numbered);
    // There are more numbers than nodes.
    let free = all.find(|name| !names.contains(name)).unwrap_or_default();
    names.insert(free.clone());
    free
}

/// The name of the layer that an operator is, if it is one of this crate.
fn layer(op: &dyn TypedOp) -> Option<&str> {
    let conv = op.downcast_ref::<ConvOp>().map(ConvOp::name);
    conv.or_else(|| op.downcast_ref::<TransposeOp>().map(TransposeOp::name))
}

/// The same operator; a layer of this crate has the name that `named` makes of its own.
pub(super) fn renamed(op: Box<dyn TypedOp>, named: impl FnOnce(&str) -> String) -> Box<dyn TypedOp> {
    if let Some(conv) = op.downcast_ref::<ConvOp>() {
        return Box::new(conv.called(&named(conv.name())));
    }
    if let Some(conv) = op.downcast_ref::<TransposeOp>() {
        return Box::new(conv.called(&named(conv.name())));
    }
    op
}

impl Lowering {
    /// A name that no node has yet: in files, values, nodes and the nodes made of them share names.
    fn unique(&mut self, name: &str) -> String {
        free(&mut self.names, name)
    }

    fn node(&mut self, parsed: &InferenceModel, node: &InferenceNode) -> TractResult<()> {
        let outputs = if node.op_is::<Source>() {
            let fact = TypedFact::try_from(&node.outputs[0].fact)?;
            let name = self.unique(&node.name);
            vec![self.target.add_source(name, fact)?]
        } else if is_known(node)? {
            let known = node.outputs.iter().enumerate().map(|(slot, output)| {
                let Some(value) = output.fact.value.concretize() else { bail!("its value is not known") };
                let name =
                    self.unique(&if slot == 0 { node.name.clone() } else { format!("{}.{slot}", node.name) });
                let fact = TypedFact::try_from(value.clone())?;
                let id = self.target.add_node(name, Const::new(value)?, TVec::from_elem(fact, 1))?;
                Ok(OutletId::new(id, 0))
            });
            known.collect::<TractResult<_>>()?
        } else {
            self.part(parsed, node)?
        };
        for (slot, outlet) in outputs.into_iter().enumerate() {
            self.places.insert(OutletId::new(node.id, slot), outlet);
        }
        Ok(())
    }

    /// Translates one node into a separate graph and moves that into the target. A node may be wired to many others in
    /// the end, but its translation uses its inputs alone.
    fn part(&mut self, parsed: &InferenceModel, node: &InferenceNode) -> TractResult<Vec<OutletId>> {
        let mut part = TypedModel { symbols: parsed.symbols.clone(), ..TypedModel::default() };
        let mut inner = HashMap::new();
        // The outlets in the target of the outlets of the part, starting with its inputs.
        let mut outlets = HashMap::new();
        for input in &node.inputs {
            if inner.contains_key(input) {
                continue;
            }
            let outer = self.places[input];
            let fact = self.target.outlet_fact(outer)?.clone();
            let source = part.add_source(format!("input {}", outlets.len()), fact)?;
            inner.insert(*input, source);
            outlets.insert(source, outer);
        }
        let inputs = outlets.len();
        let logarithm = node.op.name() == LOG_SOFTMAX;
        let outputs = node.op.to_typed(parsed, node, &mut part, &inner)?;
        for Node { id, name, inputs: wires, op, outputs } in part.nodes.into_iter().skip(inputs) {
            let op = match op.downcast_ref::<Softmax>() {
                Some(softmax) if logarithm => {
                    Box::new(Softmax { kind: SoftmaxKind::LogSoftmax, ..softmax.clone() })
                }
                None if logarithm => {
                    outlets.insert(OutletId::new(id, 0), outlets[&wires[0]]);
                    continue;
                }
                _ => op,
            };
            // Layers are identified by their names. Those from graphs inside nodes have had one there.
            let op = if layer(&*op).is_some_and(|own| own != node.name) {
                renamed(op, |own| free(&mut self.layers, own))
            } else {
                op
            };
            let facts = wires.iter().map(|wire| self.target.outlet_fact(outlets[wire]));
            let op = ours(&node.name, op, &facts.collect::<TractResult<Vec<_>>>()?)?;
            let count = outputs.len();
            let facts = outputs.into_iter().map(|output| living(output.fact, &self.target.symbols)).collect();
            let name = self.unique(&name);
            let new = self.target.add_node(name, op, facts)?;
            for (slot, wire) in wires.iter().enumerate() {
                self.target.add_edge(outlets[wire], InletId::new(new, slot))?;
            }
            outlets.extend((0..count).map(|slot| (OutletId::new(id, slot), OutletId::new(new, slot))));
        }
        Ok(outputs.iter().map(|outlet| outlets[outlet]).collect())
    }
}

/// A fact without symbols that have outlived the graph they belong to: tract's StridedSlice infers its output in a graph of its
/// own. Each such size gets a symbol of this graph.
fn living(fact: TypedFact, symbols: &SymbolScope) -> TypedFact {
    let is_dead = |dim: &TDim| dim.symbols().iter().any(|symbol| symbol.scope().is_none());
    if !fact.shape.iter().any(is_dead) {
        return fact;
    }
    let dims = fact.shape.iter();
    let dims =
        dims.map(|dim| if is_dead(dim) { TDim::Sym(symbols.new_with_prefix("size")) } else { dim.clone() });
    TypedFact::dt_shape(fact.datum_type, dims.collect::<TVec<TDim>>())
}

/// Whether all outputs of a node are known before the model runs.
fn is_known(node: &InferenceNode) -> TractResult<bool> {
    let known = node.outputs.iter().all(|output| output.fact.value.is_concrete());
    Ok(known && node.op.state(&EvalContext::out_of_plan())?.is_none())
}

/// The operator to use for `op`: the convolution or function of this crate for that of tract, also inside of a recurrent
/// layer, and an error for a window without output.
fn ours(name: &str, mut op: Box<dyn TypedOp>, inputs: &[&TypedFact]) -> TractResult<Box<dyn TypedOp>> {
    if let Some(scan) = op.downcast_mut::<Scan>() {
        for id in 0..scan.body.nodes().len() {
            let exact = Exact::of(&*scan.body.node(id).op, &scan.body.node_input_facts(id)?);
            if let Some(exact) = exact {
                scan.body.node_mut(id).op = Box::new(exact);
            }
        }
        return Ok(op);
    }
    if let Some(conv) = op.downcast_ref::<Conv>() {
        let Some(conv) = ConvOp::of(name, conv) else {
            return covers("Conv", name, &conv.pool_spec, inputs).map(|()| op);
        };
        conv.output_facts(inputs)?;
        return Ok(Box::new(conv));
    }
    if let Some(exact) = Exact::of(&*op, inputs) {
        return Ok(Box::new(exact));
    }
    if let Some(exact) = SizesOp::of(&*op, inputs) {
        return Ok(Box::new(exact));
    }
    if let Some(exact) = Extremes::of(&*op, inputs) {
        return Ok(Box::new(exact));
    }
    if let Some(pool) = op.downcast_ref::<MaxPool>() {
        covers("MaxPool", name, &pool.pool_spec, inputs)?;
    } else if let Some(pool) = op.downcast_ref::<SumPool>() {
        covers("AveragePool", name, &pool.pool_spec, inputs)?;
    }
    Ok(op)
}

/// Rejects a window that does not fit into its input anywhere.
fn covers(kind: &str, name: &str, pool: &PoolSpec, inputs: &[&TypedFact]) -> TractResult<()> {
    let Some(input) = inputs.first().and_then(|fact| fact.shape.as_concrete()) else { return Ok(()) };
    if input.len() != pool.rank() + 2 {
        bail!(
            "{kind} node {name}: its input {input:?} has {} axes where kernel_shape {:?} asks for {}: reshape the input, or give one size for each spatial axis",
            input.len(),
            pool.kernel_shape,
            pool.rank() + 2
        );
    }
    for (axis, sizes) in pool.computed_padding(&input[2..]).iter().enumerate() {
        let padded = input[axis + 2] + sizes.pad_before + sizes.pad_after;
        let extent = extent(pool, axis);
        // When rounding up, the last window may reach beyond the end.
        let beyond = match pool.padding {
            PaddingSpec::ExplicitOnnxPool(_, _, true) => pool.stride(axis).saturating_sub(1),
            _ => 0,
        };
        if extent > padded.saturating_add(beyond) {
            bail!(
                "{kind} node {name}: its kernel (kernel_shape and dilations) reaches over {extent} on spatial axis {axis} \
                 where the padded input has {padded}, so it has no output: use larger inputs, more pads, or a smaller kernel"
            );
        }
    }
    Ok(())
}

/// Length of the dilated kernel on a spatial axis.
fn extent(pool: &PoolSpec, axis: usize) -> usize {
    pool.kernel_shape[axis].saturating_sub(1).saturating_mul(pool.dilation(axis)).saturating_add(1)
}
