//! Finds the axis along which the outputs of several runs can be concatenated.
//!
//! Relevant if you want to run a model of fixed batch size on more data. Outputs of several runs may be concatenated
//! only along an axis that holds the items of the batch, and only if no operator mixes items: a network that returns
//! `[time, batch, class]`, or lists boxes of all pictures together, is not concatenated along its first axis.
//!
//! Invariant: an axis is returned only if every operator between input and output is known to keep the items separate.

use std::collections::HashMap;

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{AxisOp, OutletId, TDim, TypedFact, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::array::{Gather, MultiBroadcastTo, Pad, Slice, Tile, Topk, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, SumPool};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::nn::{Reduce, Softmax};

use super::conv::ConvOp;
use super::deform::SamplingOp;
use super::extremes::Extremes;
use super::guard::{guarded, refused};
use super::load::Model;
use super::resize::Nearest;
use super::transpose::TransposeOp;
use super::whole::WholeSums;
use crate::error::Result;

/// The batch items in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Items {
    /// The value is independent of the data.
    None,
    /// The items lie along this axis, and none is influenced by another.
    Along(usize),
    /// The items may be mixed from this node on.
    Lost(usize),
}

impl Model {
    /// The axis of each output along which the outputs of several runs are concatenated to the output of the whole. The
    /// runs are on consecutive batches along axis 0 of the model's only input.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the model has several inputs, or when an output has no such axis,
    /// naming the output and the operator that mixes the items of a batch; those of [`Model::prepare`] that concern the
    /// model.
    pub fn batch_axes(&self) -> Result<Vec<usize>> {
        let graph = self.typed()?;
        let [input] = graph.input_outlets().unwrap_or_default() else {
            let inputs = self.inputs().len();
            return Err(refused(
                self.name(),
                &format!("it has {inputs} inputs, so its batch is not known: give one batch at a time"),
            ));
        };
        let items = guarded(self.name(), || follow(&graph, *input))?;
        let outlets = graph.output_outlets().unwrap_or_default();
        let axis = |(outlet, name): (&OutletId, &String)| {
            let why = match items.get(outlet) {
                Some(Items::Along(axis)) => return Ok(*axis),
                Some(Items::Lost(at)) => {
                    let node = graph.node(*at);
                    format!("{} node {} does not keep the items of a batch apart", node.op.name(), node.name)
                }
                _ => "it does not depend on the data".to_owned(),
            };
            let help =
                "give as many items as its batch has, run after run, or export the model with a free batch";
            Err(refused(
                self.name(),
                &format!("output {name} of several runs cannot be put together, as {why}: {help}"),
            ))
        };
        outlets.iter().zip(self.outputs()).map(axis).collect()
    }
}

fn follow(graph: &TypedModel, input: OutletId) -> TractResult<HashMap<OutletId, Items>> {
    let mut known = HashMap::from([(input, Items::Along(0))]);
    for id in graph.eval_order()? {
        let node = graph.node(id);
        if id == input.node {
            continue;
        }
        let of: Vec<Items> =
            node.inputs.iter().map(|wire| known.get(wire).copied().unwrap_or(Items::None)).collect();
        let facts = graph.node_input_facts(id)?;
        let lost = of.iter().find(|items| matches!(items, Items::Lost(_))).copied();
        for (slot, output) in node.outputs.iter().enumerate() {
            let items = match lost {
                Some(lost) => lost,
                None if of.iter().all(|items| *items == Items::None) => Items::None,
                None => {
                    let axis = through(node, &of, &facts, &output.fact);
                    // The axis must also have the right size.
                    let size = graph.outlet_fact(input)?.shape.first();
                    axis.filter(|axis| output.fact.shape.get(*axis) == size)
                        .map_or(Items::Lost(id), Items::Along)
                }
            };
            known.insert(OutletId::new(id, slot), items);
        }
    }
    Ok(known)
}

/// The axis of the items after a node, if the node is known to keep them separate.
fn through(node: &TypedNode, of: &[Items], facts: &[&TypedFact], output: &TypedFact) -> Option<usize> {
    let first = match of.first()? {
        Items::Along(axis) => Some(*axis),
        _ => None,
    };
    // Whether only the first input depends on the data.
    let only_first = || of.iter().skip(1).all(|items| *items == Items::None);
    let op = &node.op;
    if op.is::<Identity>() || op.is::<ElementWiseOp>() || op.is::<Cast>() || op.is::<WholeSums>() {
        return first;
    }
    if op.is::<TypedBinOp>() || op.is::<Iff>() {
        return element_by_element(of, facts, output);
    }
    if op.is::<SamplingOp>() {
        return first.filter(|_| of.iter().all(|items| *items == Items::Along(0)));
    }
    if op.is::<ConvOp>()
        || op.is::<Conv>()
        || op.is::<TransposeOp>()
        || op.is::<MaxPool>()
        || op.is::<SumPool>()
    {
        return first.filter(|axis| *axis == 0 && only_first());
    }
    if let Some(product) = op.downcast_ref::<EinSum>() {
        return product_axis(product, of, facts);
    }
    if let Some(concat) = op.downcast_ref::<TypedConcat>() {
        return joined(concat, of, facts, output);
    }
    let axis = first.filter(|_| only_first())?;
    if let Some(change) = op.downcast_ref::<AxisOp>() {
        return change.transform_axis(axis);
    }
    let keeps = if let Some(reduce) = op.downcast_ref::<Reduce>() {
        !reduce.axes.contains(&axis)
    } else if let Some(extremes) = op.downcast_ref::<Extremes>() {
        extremes.keeps(axis)
    } else if let Some(softmax) = op.downcast_ref::<Softmax>() {
        !softmax.axes.contains(&axis)
    } else if let Some(slice) = op.downcast_ref::<Slice>() {
        slice.axis != axis
    } else if let Some(sample) = op.downcast_ref::<Downsample>() {
        sample.axis != axis
    } else if let Some(pad) = op.downcast_ref::<Pad>() {
        pad.pads.get(axis) == Some(&(0, 0))
    } else if let Some(tile) = op.downcast_ref::<Tile>() {
        tile.multipliers.get(axis).and_then(TDim::as_i64) == Some(1)
    } else if op.is::<MultiBroadcastTo>() {
        facts[0].rank() == output.rank()
    } else if let Some(top) = op.downcast_ref::<Topk>() {
        top.axis != axis
    } else if let Some(resize) = op.downcast_ref::<Nearest>() {
        resize.keeps(axis)
    } else if let Some(gather) = op.downcast_ref::<Gather>() {
        // Indices replace the axis that they select from.
        return match axis.cmp(&gather.axis) {
            std::cmp::Ordering::Less => Some(axis),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => (axis + facts.get(1)?.rank()).checked_sub(1),
        };
    } else {
        // Local response normalization mixes channels, which are axis 1.
        op.name() == "Lrn" && axis == 0
    };
    keeps.then_some(axis)
}

/// Elementwise operators on inputs of one rank, with broadcasting along axes of one element.
fn element_by_element(of: &[Items], facts: &[&TypedFact], output: &TypedFact) -> Option<usize> {
    let axis = the_same_axis(of)?;
    let fits = |(items, fact): (&Items, &&TypedFact)| {
        fact.rank() == output.rank()
            && (*items != Items::None || fact.shape.get(axis).is_some_and(|size| size.as_i64() == Some(1)))
    };
    of.iter().zip(facts).all(fits).then_some(axis)
}

fn the_same_axis(of: &[Items]) -> Option<usize> {
    let mut along = of.iter().filter_map(|items| match items {
        Items::Along(axis) => Some(*axis),
        _ => None,
    });
    let axis = along.next()?;
    along.all(|other| other == axis).then_some(axis)
}

fn joined(concat: &TypedConcat, of: &[Items], facts: &[&TypedFact], output: &TypedFact) -> Option<usize> {
    let axis = the_same_axis(of)?;
    let ranks = facts.iter().all(|fact| fact.rank() == output.rank());
    (ranks && concat.axis != axis).then_some(axis)
}

/// The axis of the items must be on every operand that depends on the data, must not be summed over, and must have one
/// element on the other operands.
fn product_axis(product: &EinSum, of: &[Items], facts: &[&TypedFact]) -> Option<usize> {
    let mut found = None;
    for (slot, items) in of.iter().enumerate() {
        let Items::Along(axis) = items else { continue };
        let own = product.axes.iter_all_axes().find(|a| a.inputs[slot].contains(axis))?;
        let [out] = own.outputs[0][..] else { return None };
        if own.inputs[slot].len() != 1 || found.is_some_and(|found| found != out) {
            return None;
        }
        for (other, positions) in own.inputs.iter().enumerate().filter(|(other, _)| *other != slot) {
            let meets = match of[other] {
                Items::Along(axis) => positions[..] == [axis],
                _ => positions.iter().all(|p| facts[other].shape[*p].as_i64() == Some(1)),
            };
            if !meets {
                return None;
            }
        }
        found = Some(out);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::loaded::loaded;
    use super::super::testing::{Attributes, Net};
    use super::*;

    fn conv(net: &mut Net) {
        net.floats("w", &[6, 4, 3, 3], &[0.5; 216]);
        net.node("Conv", &["x", "w"], "c").ints("pads", &[1, 1, 1, 1]);
        net.node("Relu", &["c"], "r");
    }

    fn axes(build: impl FnOnce(&mut Net)) -> Result<Vec<usize>> {
        let mut net = Net::new(&[1, 4, 5, 7]);
        conv(&mut net);
        build(&mut net);
        loaded(net)?.batch_axes()
    }

    #[test]
    fn the_axis_of_the_batch_is_found_where_it_goes() {
        let plain = axes(|net| {
            net.node("Sigmoid", &["r"], "y");
        });
        assert_eq!(plain.unwrap(), [0]);
        // Time first, as the output of text recognizers.
        let time = axes(|net| {
            net.integers("two", &[2]);
            net.node("ReduceMean", &["r"], "m").ints("axes", &[2]).int("keepdims", 0);
            net.node("Transpose", &["m"], "y").ints("perm", &[2, 0, 1]);
            net.output("m");
        });
        assert_eq!(time.unwrap(), [1, 0]);
        let flat = axes(|net| {
            net.integers("shape", &[0, -1]);
            net.floats("m", &[210, 3], &[0.25; 630]);
            net.node("Reshape", &["r", "shape"], "f");
            net.node("MatMul", &["f", "m"], "p");
            net.node("Softmax", &["p"], "y");
        });
        assert_eq!(flat.unwrap(), [0]);
    }

    #[test]
    fn where_items_meet_that_is_said() {
        let lost = |build: fn(&mut Net), operator: &str| {
            let why = axes(build).unwrap_err();
            assert_eq!(why.kind(), crate::error::ErrorKind::BadInput);
            let why = why.to_string();
            assert!(why.contains("output y of several runs") && why.contains(operator), "{why}");
            assert!(why.contains("free batch") && !why.contains('\n'), "{why}");
        };
        lost(
            |net| {
                net.node("Softmax", &["r"], "y").int("axis", 0);
            },
            "Softmax",
        );
        lost(
            |net| {
                net.node("ReduceSum", &["r"], "y");
            },
            "Reduce",
        );
        lost(
            |net| {
                net.integers("shape", &[-1, 7]);
                net.node("Reshape", &["r", "shape"], "y");
            },
            "node",
        );
        lost(
            |net| {
                net.node("Concat", &["r", "r"], "y").int("axis", 0);
            },
            "Concat",
        );
        // An output that does not depend on the data.
        let why = axes(|net| {
            net.floats("k", &[1, 2], &[1.0, 2.0]);
            net.node("Identity", &["k"], "y");
        });
        assert!(why.unwrap_err().to_string().contains("does not depend on the data"));
    }
}
