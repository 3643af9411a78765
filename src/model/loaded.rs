//! Models for tests, loaded from small graphs; and what operators compute that are rewritten on the way.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use ndarray::{ArrayD, Axis};

use super::load::Model;
use super::tensor::Tensor;
use super::testing::{Attributes, Net};
use crate::error::Result;

/// The model of a graph, with opset 17.
pub(super) fn loaded(net: Net) -> Result<Model> {
    Model::of_proto("net.onnx".to_owned(), tract_onnx::onnx(), net.proto(), 0, None)
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
