//! Rewrites of operators that tract computes otherwise than the standard says, into operators that it computes right.
//!
//! - Celu lacks a factor in tract: alpha Elu(x / alpha).
//! - Swish knows no alpha: x Sigmoid(alpha x).
//! - RNN, GRU and LSTM read backward, and sequences of different lengths, otherwise ([`recurrent`]).
//! - DeformConv is not known: it becomes a sampling and a convolution ([`deform`]).
//! - ConstantOfShape without a value makes zeros of f32; tract makes them in f64.
//! - DFT and STFT of f32 have errors of f32 relative to the largest sum, so they run in f64.
//! - Casts to 64-bit integers keep 32 bits in tract; TopK takes no sizes ([`numbers`]).
//! - SpaceToDepth knows one order of channels; the other one is a permutation of it.
//!
//! Invariant: a rewritten node makes the values that the standard describes, under the names that it had.

use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto, attribute_proto};

use super::check::{attribute, is_standard, text};
use super::nodes::{F32, F64, I64, Nodes, integers_attribute};
use super::{deform, numbers, recurrent};

/// Adds `node`, or the nodes that stand for it, to `nodes`.
///
/// # Errors
/// One line, for an operator that cannot be rewritten.
pub(super) fn add(mut node: NodeProto, nodes: &mut Nodes) -> Result<(), String> {
    let op = if is_standard(&node) { node.op_type.as_str() } else { "" };
    match (op, node.input.first(), node.output.first()) {
        ("Celu", Some(x), Some(y)) => {
            let alpha = alpha(&node, x, nodes);
            let scaled = nodes.op("Div", &[x, &alpha]);
            let elu = nodes.op("Elu", &[&scaled]);
            nodes.last("Mul", &[&elu, &alpha], y);
            return Ok(());
        }
        ("Swish", Some(x), Some(y)) => {
            let alpha = alpha(&node, x, nodes);
            let scaled = nodes.op("Mul", &[x, &alpha]);
            let gate = nodes.op("Sigmoid", &[&scaled]);
            nodes.last("Mul", &[x, &gate], y);
            return Ok(());
        }
        ("DFT" | "STFT", Some(x), Some(y)) => {
            let (x, y) = (x.clone(), y.clone());
            wide(node, &x, &y, nodes);
            return Ok(());
        }
        ("Cast", ..) if attribute(&node, "to").is_some_and(|to| to.i == i64::from(I64)) => {
            numbers::SIZES.clone_into(&mut node.op_type);
        }
        ("ConstantOfShape", ..) if attribute(&node, "value").is_none() => {
            let zero = TensorProto {
                dims: vec![1],
                data_type: F32,
                float_data: vec![0.0],
                ..TensorProto::default()
            };
            node.attribute.push(AttributeProto {
                name: "value".to_owned(),
                r#type: attribute_proto::AttributeType::Tensor.into(),
                t: Some(zero),
                ..AttributeProto::default()
            });
        }
        ("TopK", Some(x), Some(_)) => node.input[0] = nodes.op(numbers::NAME, &[x]),
        _ if recurrent::takes(&node) => return recurrent::rewrite(node, nodes),
        _ if deform::takes(&node) => return deform::rewrite(node, nodes),
        ("SpaceToDepth", Some(_), Some(y)) if text(&node, "mode") == Some("CRD") => {
            let y = y.clone();
            by_channel(node, &y, nodes);
            return Ok(());
        }
        _ => {}
    }
    nodes.add(node);
    Ok(())
}

/// Adds a SpaceToDepth that makes `y` with the elements of a channel side by side: the one of the other order, and a
/// permutation of its channels. Sizes are copied from the axes before, so none has to be known.
fn by_channel(mut node: NodeProto, y: &str, nodes: &mut Nodes) {
    let block = attribute(&node, "blocksize").map_or(1, |block| block.i);
    let blocks = nodes.name("blocks");
    node.attribute.retain(|attribute| attribute.name != "mode");
    node.output = vec![blocks.clone()];
    nodes.add(node);
    let permuted = |nodes: &mut Nodes, x: &str, order: &[i64]| {
        let permuted = nodes.op("Transpose", &[x]);
        nodes.attribute(integers_attribute("perm", order));
        permuted
    };
    let last = permuted(nodes, &blocks, &[0, 2, 3, 1]);
    let apart = nodes.reshaped(&last, Some(vec![0, 0, 0, block.saturating_mul(block), -1]));
    let swapped = permuted(nodes, &apart, &[0, 1, 2, 4, 3]);
    let joined = nodes.reshaped(&swapped, Some(vec![0, 0, 0, -1]));
    nodes.last("Transpose", &[&joined], y);
    nodes.attribute(integers_attribute("perm", &[0, 3, 1, 2]));
}

/// Adds a Fourier transform of `x` in f64 that makes `y` in the type of `x`.
fn wide(mut node: NodeProto, x: &str, y: &str, nodes: &mut Nodes) {
    // The signal; and for STFT the window, which has to be of the same type.
    let floats: &[usize] = if node.op_type == "STFT" { &[0, 2] } else { &[0] };
    for slot in floats {
        if let Some(input) = node.input.get_mut(*slot).filter(|name| !name.is_empty()) {
            *input = nodes.cast(input, F64);
        }
    }
    let made = nodes.name("transformed");
    node.output = vec![made.clone()];
    nodes.add(node);
    nodes.last("CastLike", &[&made, x], y);
}

/// The attribute alpha of a node as a constant of the type of `value`.
fn alpha(node: &NodeProto, value: &str, nodes: &mut Nodes) -> String {
    let alpha = nodes.floats(attribute(node, "alpha").map_or(1.0, |alpha| alpha.f));
    nodes.op("CastLike", &[&alpha, value])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::testing::{Attributes, Net};
    use super::*;

    fn rewritten(change: impl FnOnce(&mut NodeProto), op: &str) -> Result<Vec<NodeProto>, String> {
        let mut net = Net::new(&[1, 3, 8, 8]);
        change(net.node(op, &["x", "w", "r"], "y"));
        let graph = net.graph();
        let mut nodes = Nodes::of(&graph, "made");
        for node in graph.node {
            add(node, &mut nodes)?;
        }
        Ok(nodes.done())
    }

    fn operators(nodes: &[NodeProto]) -> Vec<&str> {
        nodes.iter().map(|node| node.op_type.as_str()).filter(|op| *op != "Constant").collect()
    }

    #[test]
    fn the_last_node_makes_the_value_that_the_first_one_made() {
        let celu = rewritten(|_| {}, "Celu").unwrap();
        assert_eq!(operators(&celu), ["CastLike", "Div", "Elu", "Mul"]);
        let swish = rewritten(|_| {}, "Swish").unwrap();
        assert_eq!(operators(&swish), ["CastLike", "Mul", "Sigmoid", "Mul"]);
        for nodes in [&celu, &swish] {
            assert_eq!(nodes.last().unwrap().output, ["y"]);
        }
    }

    #[test]
    fn steps_are_reversed_before_and_after() {
        let reverse = |node: &mut NodeProto| {
            node.string("direction", "reverse");
        };
        for op in ["RNN", "GRU", "LSTM"] {
            let nodes = rewritten(reverse, op).unwrap();
            assert_eq!(operators(&nodes), ["Slice", op, "Slice"]);
            assert_eq!(nodes.last().unwrap().output, ["y"]);
            let inner = nodes.iter().find(|node| node.op_type == op).unwrap();
            assert!(attribute(inner, "direction").is_none() && inner.input[1..] == ["w", "r"]);
            assert_eq!(operators(&rewritten(|_| {}, op).unwrap()), [op]);
        }
        let last_only = |node: &mut NodeProto| {
            node.string("direction", "reverse");
            node.output = vec![String::new(), "last".to_owned()];
        };
        assert_eq!(operators(&rewritten(last_only, "GRU").unwrap()), ["Slice", "GRU"]);
    }

    #[test]
    fn transforms_run_in_f64_and_keep_their_type() {
        let spectrum = rewritten(|_| {}, "DFT").unwrap();
        assert_eq!(operators(&spectrum), ["Cast", "DFT", "CastLike"]);
        assert_eq!(spectrum.last().unwrap().input[1], "x");
        let frames = rewritten(|_| {}, "STFT").unwrap();
        assert_eq!(operators(&frames), ["Cast", "Cast", "STFT", "CastLike"]);
        assert_eq!(frames[2].input[1], "w");
        for nodes in [spectrum, frames] {
            assert_eq!(nodes.last().unwrap().output, ["y"]);
        }
    }

    #[test]
    fn the_other_order_of_channels_is_a_permutation() {
        let order = |mode: &'static str| {
            rewritten(
                |node| {
                    node.string("mode", mode).int("blocksize", 2);
                },
                "SpaceToDepth",
            )
        };
        let nodes = order("CRD").unwrap();
        assert_eq!(
            operators(&nodes),
            ["SpaceToDepth", "Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]
        );
        assert_eq!(nodes.last().unwrap().output, ["y"]);
        assert_eq!(operators(&order("DCR").unwrap()), ["SpaceToDepth"]);
    }
}
