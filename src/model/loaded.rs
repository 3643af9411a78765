//! Models for tests, loaded from small graphs; and what operators compute that are rewritten on the way.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use ndarray::{ArrayD, Axis};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, ValueInfoProto, attribute_proto};

use super::load::Model;
use super::read::framework;
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

#[test]
fn shifts_by_any_amount_give_what_numpy_gives() {
    // The number of the type in ONNX, numbers, amounts, and what is left of each, to the right and to the left.
    for (onnx, number, amount, right, left) in [
        (2, 255.0, 8.0, 0.0, 0.0),
        (2, 255.0, 3.0, 31.0, 248.0),
        (3, -8.0, 9.0, -1.0, 0.0),
        (3, -8.0, -1.0, -1.0, 0.0),
        (6, -9.0, 30.0, -1.0, -1_073_741_824.0),
        (7, 5.0, 40.0, 0.0, 5_497_558_138_880.0),
        (7, -8_388_608.0, 20.0, -8.0, -8_796_093_022_208.0),
        (7, 3.0, 64.0, 0.0, 0.0),
    ] {
        for (direction, expected) in [("RIGHT", right), ("LEFT", left)] {
            let mut net = Net::new(&[1, 3]);
            net.node("Cast", &["x"], "number").int("to", onnx);
            net.floats("amount", &[1], &[amount]);
            net.node("Cast", &["amount"], "by").int("to", onnx);
            net.node("BitShift", &["number", "by"], "c").string("direction", direction);
            net.node("Cast", &["c"], "y").int("to", 11);
            let found = output(net, &ArrayD::from_elem(vec![1, 3], number)).to_f64();
            assert_eq!(found, [expected; 3], "{number} by {amount}, {direction}, type {onnx}");
        }
    }
}

#[test]
fn shifts_in_no_direction_are_refused_by_name() {
    let mut net = Net::new(&[2]);
    net.node("Cast", &["x"], "a").int("to", 3);
    net.node("BitShift", &["a", "a"], "y").string("direction", "UP").name = "up".to_owned();
    let why = loaded(net).and_then(|model| model.on_host().map(drop)).unwrap_err().to_string();
    assert!(why.contains("BitShift node up") && why.contains("LEFT or RIGHT"), "{why}");
}

#[test]
fn gates_near_zero_are_exact() {
    let mut net = Net::new(&[1, 1, 1]);
    net.floats("w", &[1, 3, 1], &[-20.0, 0.0, 0.0]);
    net.floats("r", &[1, 3, 1], &[0.0; 3]);
    net.floats("h", &[1, 1, 1], &[1.0]);
    net.node("GRU", &["x", "w", "r", "", "", "h"], "y").int("hidden_size", 1);
    let found = output(net, &ArrayD::from_elem(vec![1, 1, 1], 1.0)).to_f64()[0];
    // The new state is zero, so this is the old one times the gate.
    let expected = 1.0 / (1.0 + 20_f64.exp());
    assert!((found / expected - 1.0).abs() < 1e-6, "{found:e}, {expected:e}");
}

#[test]
fn small_values_of_a_spectrum_are_exact_beside_large_ones() {
    let (count, shape) = (100, vec![1, 100, 1]);
    let x = ArrayD::from_shape_fn(shape, |at| at[1] as f32 * 10.0);
    let mut net = Net::new(&[1, count, 1]);
    net.node("DFT", &["x"], "y").int("axis", 1);
    let found = output(net, &x);
    assert_eq!(found.dtype(), "f32");
    for (bin, found) in found.to_f64().chunks(2).enumerate() {
        let (mut real, mut imaginary) = (0.0, 0.0);
        for (at, x) in x.iter().enumerate() {
            let angle = -std::f64::consts::TAU * ((bin * at) % count) as f64 / count as f64;
            real += f64::from(*x) * angle.cos();
            imaginary += f64::from(*x) * angle.sin();
        }
        for (found, expected) in found.iter().zip([real, imaginary]) {
            assert!((found - expected).abs() <= 1e-7 * expected.abs() + 1e-9, "{bin}: {found}, {expected}");
        }
    }
}

#[test]
fn casts_keep_all_bits_of_64() {
    // Numbers that f32 holds exactly, on both sides of what 32 bits hold.
    let x = ArrayD::from_shape_vec(vec![1, 4], vec![3e9, -5e12, 2_147_483_648.0, 7.0]).unwrap();
    let x = x.mapv(|x: f32| x.trunc());
    let expected: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let mut alone = Net::new(&[1, 4]);
    alone.node("Cast", &["x"], "y").int("to", 7);
    let found = output(alone, &x);
    assert_eq!((found.dtype(), found.to_f64()), ("i64", expected.clone()));
    // Together with a size, and with a constant of 64 bits.
    let mut mixed = Net::new(&[1, 4]);
    mixed.node("Cast", &["x"], "numbers").int("to", 7);
    mixed.node("Shape", &["x"], "shape");
    mixed.integers("first", &[0]);
    mixed.integers("large", &[1 << 40]);
    mixed.node("Gather", &["shape", "first"], "one");
    mixed.node("Mul", &["numbers", "one"], "same");
    mixed.node("Add", &["same", "large"], "y");
    let shifted = expected.iter().map(|x| x + 2_f64.powi(40)).collect::<Vec<_>>();
    assert_eq!(output(mixed, &x).to_f64(), shifted);
}

#[test]
fn rows_that_are_masked_out_are_found_by_their_largest_element() {
    let low = f32::NEG_INFINITY;
    let x = ArrayD::from_shape_vec(vec![3, 2], vec![low, low, low, -1.0, f32::MIN, low]).unwrap();
    for (op, expected) in [("ReduceMax", [1.0, 0.0, 0.0]), ("ReduceMin", [1.0, 1.0, 1.0])] {
        let mut net = Net::new(&[3, 2]);
        net.floats("low", &[1], &[low]);
        net.node(op, &["x"], "most").ints("axes", &[1]);
        net.node("Equal", &["most", "low"], "masked");
        net.node("Cast", &["masked"], "y").int("to", 1);
        assert_eq!(output(net, &x).to_f64(), expected, "{op}");
    }
}

#[test]
fn a_zero_point_from_a_cast_decides_ties_by_the_quotient() {
    // The quotient is just above a tie; the product with the reciprocal is the tie.
    let (x, scale) = (-2.5f32, 5.0f32 / 255.0);
    assert!(x / scale > -127.5 && x * (1.0 / scale) <= -127.5);
    let mut net = Net::new(&[1, 1]);
    net.floats("scale", &[1], &[scale]);
    net.floats("zero", &[1], &[153.0]);
    net.node("Cast", &["zero"], "bytes").int("to", 2);
    net.node("QuantizeLinear", &["x", "scale", "bytes"], "y");
    let found = output(net, &ArrayD::from_elem(vec![1, 1], x));
    assert_eq!((found.dtype(), found.to_f64()), ("u8", vec![26.0]));
}

#[test]
fn amounts_and_bounds_may_have_an_axis_of_one_element() {
    let x = ArrayD::from_shape_vec(vec![1, 3], vec![2.0, 5.0, 7.0]).unwrap();
    let mut padded = Net::new(&[1, 3]);
    padded.integers("pads", &[0, 1, 0, 1]);
    // Known, but only once the graph is read.
    padded.floats("low", &[1], &[-7.0]);
    padded.node("Neg", &["low"], "value");
    padded.node("Pad", &["x", "pads", "value"], "y");
    assert_eq!(output(padded, &x).to_f64(), [7.0, 2.0, 5.0, 7.0, 7.0]);
    let mut counted = Net::new(&[1, 3]);
    counted.node("Shape", &["x"], "shape");
    counted.integers("second", &[1]);
    counted.node("Gather", &["shape", "second"], "limit");
    counted.integers("zero", &[0]);
    counted.integers("step", &[1]);
    counted.node("Range", &["zero", "limit", "step"], "y");
    assert_eq!(output(counted, &x).to_f64(), [0.0, 1.0, 2.0]);
}

#[test]
fn truth_values_are_reduced_to_any_and_all() {
    let x = ArrayD::from_shape_vec(vec![3, 2], vec![1.0, 1.0, 0.0, 1.0, 0.0, 0.0]).unwrap();
    for (op, expected) in [("ReduceMax", [1.0, 1.0, 0.0]), ("ReduceMin", [1.0, 0.0, 0.0])] {
        let mut net = Net::new(&[3, 2]);
        net.node("Cast", &["x"], "bits").int("to", 9);
        net.node(op, &["bits"], "reduced").ints("axes", &[1]);
        net.node("Cast", &["reduced"], "y").int("to", 1);
        assert_eq!(output(net, &x).to_f64(), expected, "{op}");
    }
}

#[test]
fn space_to_depth_has_both_orders_of_channels() {
    let x = ArrayD::from_shape_fn(vec![1, 2, 2, 4], |at| (at[1] * 100 + at[2] * 10 + at[3]) as f32);
    for (mode, channel) in [("DCR", [0, 2, 4, 6, 1, 3, 5, 7]), ("CRD", [0, 1, 2, 3, 4, 5, 6, 7])] {
        let mut net = Net::new(&[1, 2, 2, 4]);
        net.node("SpaceToDepth", &["x"], "y").int("blocksize", 2).string("mode", mode);
        let found = output(net, &x);
        assert_eq!(found.shape(), [1, 8, 1, 2]);
        // `channel`: place of (input channel, row, column) in the output.
        let found = found.to_f64();
        for (place, channel) in channel.into_iter().enumerate() {
            let (c, row, column) = (place / 4, place / 2 % 2, place % 2);
            for at in 0..2 {
                assert_eq!(found[channel * 2 + at], f64::from(x[[0, c, row, 2 * at + column].as_slice()]));
            }
        }
    }
}

#[test]
fn constants_of_a_shape_are_zeros_of_f32_unless_the_file_says_more() {
    let mut net = Net::new(&[1, 3]);
    net.node("Shape", &["x"], "shape");
    net.node("ConstantOfShape", &["shape"], "y");
    let found = output(net, &ArrayD::ones(vec![1, 3]));
    assert_eq!((found.dtype(), found.to_f64()), ("f32", vec![0.0; 3]));
}
