//! Rewrites of operators that tract computes otherwise than the standard says, into operators that it computes right.
//!
//! - Celu lacks a factor in tract: alpha Elu(x / alpha).
//! - Swish knows no alpha: x Sigmoid(alpha x).
//! - RNN, GRU and LSTM of direction `reverse` run forward: the input is reversed, and the outputs of all steps are.
//! - SpaceToDepth knows one order of channels, so the other one is refused.
//!
//! Invariant: a rewritten node makes the values that the standard describes, under the names that it had.

use tract_onnx::pb::{NodeProto, TensorProto};

use super::check::{attribute, called, is_standard, text};
use super::fresh::Fresh;

/// Adds `node`, or the nodes that stand for it, to `nodes`.
///
/// # Errors
/// One line, for an operator that cannot be rewritten.
pub(super) fn add(mut node: NodeProto, fresh: &mut Fresh, nodes: &mut Vec<NodeProto>) -> Result<(), String> {
    let mut made = Made { fresh, nodes };
    match node.op_type.as_str() {
        _ if !is_standard(&node) => {}
        "Celu" => {
            let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
                return made.keep(node);
            };
            let alpha = made.like(attribute(&node, "alpha").map_or(1.0, |alpha| alpha.f), x);
            let scaled = made.value("Div", &[x, &alpha]);
            let elu = made.value("Elu", &[&scaled]);
            made.named("Mul", &[&elu, &alpha], y);
            return Ok(());
        }
        "Swish" => {
            let alpha = attribute(&node, "alpha").map_or(1.0, |alpha| alpha.f);
            let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
                return made.keep(node);
            };
            let alpha = made.like(alpha, x);
            let scaled = made.value("Mul", &[x, &alpha]);
            let gate = made.value("Sigmoid", &[&scaled]);
            made.named("Mul", &[x, &gate], y);
            return Ok(());
        }
        "RNN" | "GRU" | "LSTM" if text(&node, "direction") == Some("reverse") => {
            // Steps are the first axis of input and outputs, or the second one.
            let axis = i64::from(attribute(&node, "layout").is_some_and(|layout| layout.i == 1));
            node.attribute.retain(|attribute| attribute.name != "direction");
            if let Some(x) = node.input.first_mut() {
                *x = made.reversed(x, axis, None);
            }
            let all = node.output.first().filter(|all| !all.is_empty()).cloned();
            if let Some(all) = all {
                let forward = made.fresh.name("steps");
                node.output[0].clone_from(&forward);
                made.nodes.push(node);
                made.reversed(&forward, axis, Some(all));
                return Ok(());
            }
        }
        "SpaceToDepth" if text(&node, "mode") == Some("CRD") => {
            return Err(format!(
                "{}: attribute mode is CRD where only DCR is known: export the model with Reshape and Transpose",
                called(&node)
            ));
        }
        _ => {}
    }
    made.keep(node)
}

/// Nodes under construction.
struct Made<'a> {
    fresh: &'a mut Fresh,
    nodes: &'a mut Vec<NodeProto>,
}

impl Made<'_> {
    #[expect(clippy::unnecessary_wraps, reason = "it ends a function that may fail")]
    fn keep(self, node: NodeProto) -> Result<(), String> {
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a node that makes the value `output`.
    fn named(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
    }

    /// Adds a node; returns its output.
    fn value(&mut self, op: &str, inputs: &[&str]) -> String {
        let output = self.fresh.name("rewritten");
        self.named(op, inputs, &output);
        output
    }

    /// A constant of the type of `value`, without an axis.
    fn like(&mut self, constant: f32, value: &str) -> String {
        let tensor = TensorProto { data_type: 1, float_data: vec![constant], ..TensorProto::default() };
        let (name, node) = self.fresh.constant("factor", tensor);
        self.nodes.push(node);
        self.value("CastLike", &[&name, value])
    }

    /// `value` with the order of an axis reversed, called `output` if that is given.
    fn reversed(&mut self, value: &str, axis: i64, output: Option<String>) -> String {
        // From the last element to the first in steps of -1.
        let parameters = [-1, i64::MIN + 1, axis, -1].map(|parameter| {
            let tensor = TensorProto {
                dims: vec![1],
                data_type: 7,
                int64_data: vec![parameter],
                ..TensorProto::default()
            };
            let (name, node) = self.fresh.constant("reversed", tensor);
            self.nodes.push(node);
            name
        });
        let output = output.unwrap_or_else(|| self.fresh.name("reversed"));
        let inputs = [[value].as_slice(), &parameters.each_ref().map(String::as_str)].concat();
        self.named("Slice", &inputs, &output);
        output
    }
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
        let (mut fresh, mut nodes) = (Fresh::of(&graph), Vec::new());
        for node in graph.node {
            add(node, &mut fresh, &mut nodes)?;
        }
        Ok(nodes)
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
    fn an_order_of_channels_that_is_not_known_is_refused() {
        let order = |mode: &'static str| {
            rewritten(
                |node| {
                    node.string("mode", mode);
                },
                "SpaceToDepth",
            )
        };
        assert!(order("CRD").unwrap_err().contains("SpaceToDepth node that makes y: attribute mode is CRD"));
        assert_eq!(operators(&order("DCR").unwrap()), ["SpaceToDepth"]);
    }
}
