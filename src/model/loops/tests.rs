//! Loops that end early, that never end, and loops within loops.

use std::sync::mpsc::channel;

use ndarray::ArrayD;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, attribute_proto};

use super::super::cancel::during;
use super::super::loaded::loaded;
use super::super::testing::{Attributes, Net};
use super::super::{Model, ModelOptions, Tensor};
use crate::error::Error;
use crate::scheduler::Pool;
use crate::worker::{CancelToken, CpuWorker};

/// A graph with the inputs of a body: the number of the iteration, the condition and `value`.
fn body(value: &str) -> Net {
    let mut net = Net::bare();
    net.input("number", 7, &[]);
    net.input("on", 9, &[]);
    net.input(value, 1, &[2]);
    net
}

fn graph_attribute(node: &mut NodeProto, graph: GraphProto) {
    node.attribute.push(AttributeProto {
        name: "body".to_owned(),
        r#type: attribute_proto::AttributeType::Graph.into(),
        g: Some(graph),
        ..AttributeProto::default()
    });
}

/// `x`, doubled until an element reaches `limit`.
fn doubled_until(limit: f32) -> Model {
    let mut inner = body("value");
    inner.floats("two", &[], &[2.0]);
    inner.floats("limit", &[], &[limit]);
    inner.node("Mul", &["value", "two"], "doubled");
    inner.node("ReduceMax", &["doubled"], "most").int("keepdims", 0);
    inner.node("Less", &["most", "limit"], "goes on");
    inner.output("goes on");
    inner.output("doubled");
    let mut net = Net::new(&[2]);
    net.floats("limit", &[], &[limit]);
    net.node("ReduceMax", &["x"], "most").int("keepdims", 0);
    net.node("Less", &["most", "limit"], "on");
    graph_attribute(net.node("Loop", &["", "on", "x"], "y"), inner.graph());
    loaded(net).unwrap()
}

fn pair(values: [f32; 2]) -> [Tensor; 1] {
    [ArrayD::from_shape_vec(vec![2], values.to_vec()).unwrap().into()]
}

#[test]
fn a_condition_ends_a_loop() {
    let model = doubled_until(100.0);
    let at = |x| model.on_host().unwrap().run(&pair(x)).unwrap()[0].tensor.to_f64();
    assert_eq!(at([3.0, -1.0]), [192.0, -64.0]);
    assert_eq!(at([200.0, 1.0]), [200.0, 1.0]);
}

#[test]
fn a_loop_ends_when_its_run_is_cancelled() {
    // Zeros stay below every limit.
    let endless = doubled_until(100.0);
    let token = CancelToken::new();
    token.cancel();
    let host = endless.on_host().unwrap();
    assert!(matches!(during(&token, || host.run(&pair([0.0, 0.0]))), Err(Error::Cancelled)));
    // Another thread cancels once the run has begun.
    let pool = Pool::new(CpuWorker::fleet(3)).unwrap();
    let prepared = endless.prepare(&pool, &ModelOptions::default()).unwrap();
    let (token, (sender, receiver)) = (CancelToken::new(), channel());
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            sender.send(()).unwrap();
            prepared.run_cancellable(&pair([0.0, 0.0]), &token, &mut |_| {})
        });
        receiver.recv().unwrap();
        token.cancel();
        assert!(matches!(run.join().unwrap(), Err(Error::Cancelled)));
    });
    // The set of arrays that the run had is gone; others take its place.
    assert_eq!(prepared.run(&pair([60.0, 1.0])).unwrap().outputs[0].tensor.to_f64(), [120.0, 2.0]);
}

/// Adds to `net` a loop over `value` that makes `made` of as many loops within it; each doubles `value` as often as `count`
/// says.
fn nested(net: &mut Net, depth: usize, value: &str, made: &str) {
    let own = format!("v{depth}");
    let mut inner = body(&own);
    let after = format!("a{depth}");
    if depth == 0 {
        inner.node("Add", &[&own, &own], &after);
    } else {
        nested(&mut inner, depth - 1, &own, &after);
    }
    inner.output("on");
    inner.output(&after);
    graph_attribute(net.node("Loop", &["count", "", value], made), inner.graph());
}

#[test]
fn loops_within_loops_run_as_often_as_they_say() {
    let model = |known: bool| {
        let mut net = Net::new(&[2]);
        if known {
            net.integers("count", &[2]);
        } else {
            net.input("count", 7, &[1]);
        }
        nested(&mut net, 2, "x", "y");
        loaded(net).unwrap()
    };
    let x = || pair([1.0, -3.0]);
    // Two to the third.
    let known = model(true).on_host().unwrap().run(&x()).unwrap()[0].tensor.to_f64();
    assert_eq!(known, [256.0, -768.0]);
    let [x] = x();
    let count = |count: i64| Tensor::from(ArrayD::from_elem(vec![1], count));
    let by_data = model(false).on_host().unwrap();
    let at = |times| by_data.run(&[x.clone(), count(times)]).unwrap()[0].tensor.to_f64();
    assert_eq!((at(2), at(0), at(-1)), (vec![256.0, -768.0], vec![1.0, -3.0], vec![1.0, -3.0]));
    // The names of an unrolled layer tell its iterations apart.
    let names: Vec<String> =
        model(true).typed().unwrap().nodes().iter().map(|node| node.name.clone()).collect();
    assert!(names.iter().any(|name| name.ends_with("a0 [1] [1] [1]")), "{names:?}");
}

#[test]
fn a_loop_that_is_known_to_be_endless_is_refused() {
    let mut inner = body("value");
    inner.node("Neg", &["value"], "made");
    inner.output("on");
    inner.output("made");
    let mut net = Net::new(&[2]);
    net.booleans("true", &[true]);
    graph_attribute(net.node("Loop", &["", "true", "x"], "y"), inner.graph());
    let why = loaded(net).unwrap().typed().unwrap_err().to_string();
    assert!(why.contains("Loop node that makes y") && why.contains("never ends"), "{why}");
}
