//! Models for tests, loaded from small graphs; and what operators compute that are rewritten on the way.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use ndarray::{ArrayD, Axis};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, ValueInfoProto, attribute_proto};

use super::load::{Model, framework};
use super::tensor::Tensor;
use super::testing::{Attributes, Net};
use crate::error::Result;

/// The model of a graph, with opset 17.
pub(super) fn loaded(net: Net) -> Result<Model> {
    Model::of_proto("net.onnx".to_owned(), framework(), net.proto(), 0, None)
}

/// The first output for this input.
fn output(net: Net, x: &ArrayD<f32>) -> Tensor {
    loaded(net).unwrap().on_host().unwrap().run(&[x.clone().into()]).unwrap().swap_remove(0).tensor
}

#[test]
fn celu_has_the_factor_that_its_definition_has() {
    let x = ArrayD::from_shape_vec(vec![1, 6], vec![-30.0, -2.0, -0.5, 0.0, 0.5, 3.0]).unwrap();
    for alpha in [0.5_f32, 1.0, 2.0] {
        let mut net = Net::new(&[1, 6]);
        net.node("Celu", &["x"], "y").float("alpha", alpha);
        let found = output(net, &x).to_f64();
        for (x, found) in x.iter().zip(found) {
            let (x, alpha) = (f64::from(*x), f64::from(alpha));
            let expected = x.max(0.0) + (alpha * ((x / alpha).exp() - 1.0)).min(0.0);
            assert!((found - expected).abs() < 1e-5, "{x}, alpha {alpha}: {found}, {expected}");
        }
    }
}

#[test]
fn a_reversed_layer_does_what_a_forward_one_does_with_reversed_steps() {
    let layer = |direction: &str| {
        let mut net = Net::new(&[4, 1, 2]);
        net.floats("w", &[1, 3, 2], &[0.5, -0.2, 0.3, 0.8, -0.6, 0.1]);
        net.floats("r", &[1, 3, 3], &[0.2, -0.4, 0.1, 0.3, 0.5, -0.3, -0.1, 0.2, 0.6]);
        net.node("RNN", &["x", "w", "r"], "y").string("direction", direction).int("hidden_size", 3);
        net
    };
    let x = ArrayD::from_shape_fn(vec![4, 1, 2], |at| (at[0] * 3 + at[2]) as f32 / 5.0 - 0.7);
    let mut flipped = x.clone();
    flipped.invert_axis(Axis(0));
    let reversed = output(layer("reverse"), &x).to_f64();
    let forward = output(layer("forward"), &flipped.as_standard_layout().into_owned()).to_f64();
    let steps: Vec<f64> = forward.chunks(3).rev().flatten().copied().collect();
    assert_eq!(reversed, steps);
    assert_ne!(reversed, output(layer("forward"), &x).to_f64());
}

/// A graph that makes `o{depth}`: the sum of `x` and `depth` branches within branches, or `x` negated if `p` is false.
fn nested(depth: usize) -> GraphProto {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let graph = |nodes: Vec<NodeProto>, output: &str| GraphProto {
        node: nodes,
        output: vec![ValueInfoProto { name: output.to_owned(), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    let made = format!("o{depth}");
    let Some(below) = depth.checked_sub(1) else { return graph(vec![node("Abs", &["x"], &made)], &made) };
    let attribute = |name: &str, graph: GraphProto| AttributeProto {
        name: name.to_owned(),
        r#type: attribute_proto::AttributeType::Graph.into(),
        g: Some(graph),
        ..AttributeProto::default()
    };
    let (inner, other) = (format!("i{depth}"), format!("e{depth}"));
    let mut choice = node("If", &["p"], &inner);
    choice.attribute.push(attribute("then_branch", nested(below)));
    choice.attribute.push(attribute("else_branch", graph(vec![node("Neg", &["x"], &other)], &other)));
    graph(vec![choice, node("Add", &["x", &inner], &made)], &made)
}

#[test]
fn branches_within_branches_take_no_longer_than_their_nodes() {
    // Were each level to double the work, this would not end.
    const DEPTH: usize = 24;
    let model = || {
        let mut net = Net::new(&[2]);
        net.floats("zero", &[], &[0.0]);
        net.node("ReduceMax", &["x"], "most").int("keepdims", 0);
        net.node("Greater", &["most", "zero"], "p");
        let graph = nested(DEPTH);
        for inner in graph.node {
            let made = if inner.op_type == "Add" { "y".to_owned() } else { inner.output[0].clone() };
            let inputs: Vec<&str> = inner.input.iter().map(String::as_str).collect();
            net.node(&inner.op_type, &inputs, &made).attribute = inner.attribute.clone();
        }
        net
    };
    let at = |x: [f32; 2]| output(model(), &ArrayD::from_shape_vec(vec![2], x.to_vec()).unwrap()).to_f64();
    assert_eq!(at([1.0, -2.0]), [25.0, -46.0]);
    assert_eq!(at([-1.0, -2.0]), [0.0, 0.0]);
}
