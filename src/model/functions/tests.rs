//! Functions of model files, inlined or refused.

use tract_onnx::pb::OperatorSetIdProto;

use super::super::testing::{Attributes, Net};
use super::*;

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.to_owned(), input: owned(inputs), output: owned(outputs), ..NodeProto::default() }
}

fn call(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: "own".to_owned(), ..node(op, inputs, outputs) }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], body: Vec<NodeProto>) -> FunctionProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("own".to_owned()),
        input: owned(inputs),
        output: owned(outputs),
        node: body,
        opset_import: vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }],
        ..FunctionProto::default()
    }
}

fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut proto = Net::new(&[1, 2]).proto();
    proto.graph.as_mut().unwrap().node = nodes;
    proto.functions = functions;
    proto
}

/// The nodes after inlining, as `op(inputs) -> outputs`.
fn inlined(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> Vec<String> {
    let mut proto = model(nodes, functions);
    inline(&mut proto).unwrap();
    assert!(proto.functions.is_empty());
    let described = |n: &NodeProto| format!("{}({}) -> {}", n.op_type, n.input.join(","), n.output.join(","));
    proto.graph.unwrap().node.iter().map(described).collect()
}

#[test]
fn calls_become_bodies_with_names_of_their_own() {
    let twice =
        function("F", &["a"], &["b"], vec![node("Relu", &["a"], &["t"]), node("Neg", &["t"], &["b"])]);
    let got = inlined(vec![call("F", &["x"], &["m"]), call("F", &["m"], &["y"])], vec![twice]);
    assert_eq!(got, ["Relu(x) -> F/t", "Neg(F/t) -> m", "Relu(m) -> F/t.1", "Neg(F/t.1) -> y"]);
}

#[test]
fn functions_call_functions_and_pass_values_through() {
    let inner = function("I", &["a", "b"], &["a", "c", "c"], vec![node("Add", &["a", "b"], &["c"])]);
    let outer = function("O", &["p"], &["q"], vec![call("I", &["p", ""], &["r", "s", "q"])]);
    let got = inlined(vec![call("O", &["x"], &["y"])], vec![inner, outer]);
    assert_eq!(got, ["Add(x,) -> O/s", "Identity(x) -> O/r", "Identity(O/s) -> y"]);
}

#[test]
fn attributes_come_from_the_call() {
    let refer = |name: &str, to: &str| AttributeProto {
        name: name.to_owned(),
        ref_attr_name: to.to_owned(),
        ..AttributeProto::default()
    };
    let mut body = node("Conv", &["a", "a"], &["b"]);
    body.attribute = vec![refer("pads", "border"), refer("group", "parts"), refer("strides", "steps")];
    let mut conv = function("F", &["a"], &["b"], vec![body]);
    conv.attribute = vec!["border".to_owned(), "steps".to_owned()];
    let mut caller = call("F", &["x"], &["y"]);
    caller.ints("border", &[1, 2]);
    // An attribute that is not listed has a default.
    let said = inline(&mut model(vec![caller.clone()], vec![conv.clone()])).unwrap_err();
    assert!(said.contains("parts") && said.contains("makes y"), "{said}");
    caller.int("parts", 3);
    let mut proto = model(vec![caller], vec![conv]);
    inline(&mut proto).unwrap();
    let attributes = &proto.graph.unwrap().node[0].attribute;
    assert_eq!(attributes.len(), 2, "an attribute without a value is removed");
    assert_eq!((attributes[0].name.as_str(), &attributes[0].ints), ("pads", &vec![1, 2]));
    assert_eq!((attributes[1].name.as_str(), attributes[1].i), ("group", 3));
}

#[test]
fn inner_graphs_are_renamed_with_the_values_they_capture() {
    let inner = GraphProto {
        node: vec![node("Relu", &["a"], &["z"])],
        output: vec![tract_onnx::pb::ValueInfoProto { name: "z".to_owned(), ..Default::default() }],
        ..GraphProto::default()
    };
    let mut choice = node("If", &["a"], &["b"]);
    choice.attribute.push(AttributeProto {
        name: "then_branch".to_owned(),
        g: Some(inner),
        ..Default::default()
    });
    let mut proto = model(vec![call("F", &["x"], &["y"])], vec![function("F", &["a"], &["b"], vec![choice])]);
    inline(&mut proto).unwrap();
    let graph = proto.graph.unwrap();
    let inner = graph.node[0].attribute[0].g.as_ref().unwrap();
    assert_eq!((inner.node[0].input[0].as_str(), inner.output[0].name.as_str()), ("x", "F/z"));
    assert_eq!(inner.node[0].output[0], "F/z");
}

#[test]
fn what_cannot_be_inlined_is_refused() {
    let refused = |nodes, functions| inline(&mut model(nodes, functions)).unwrap_err();
    let own = || vec![call("F", &["x"], &["y"])];
    let around = function("F", &["a"], &["b"], vec![call("F", &["a"], &["b"])]);
    assert!(refused(own(), vec![around]).contains("calls itself"));
    let plain = || function("F", &["a"], &["b"], vec![node("Relu", &["a"], &["b"])]);
    assert!(refused(own(), vec![plain(), plain()]).contains("defined twice"));
    let many = vec![call("F", &["x", "x"], &["y"])];
    assert!(refused(many, vec![plain()]).contains("2 inputs and 1 outputs"));
    let mut older = plain();
    older.opset_import[0].version = 11;
    let said = refused(own(), vec![older.clone()]);
    assert!(said.contains("opset 11") && said.contains("opset 17"), "{said}");
    // A function that is not called may be anything.
    assert!(inline(&mut model(vec![node("Relu", &["x"], &["y"])], vec![older])).is_ok());
    // Each function calls the next one, deeper than a thread's stack would allow.
    let name = |i: usize| format!("F{i}");
    let chain = |i: usize| function(&name(i), &["a"], &["b"], vec![call(&name(i + 1), &["a"], &["b"])]);
    let mut functions: Vec<FunctionProto> = (0..20_000).map(chain).collect();
    functions.push(function(&name(20_000), &["a"], &["b"], vec![node("Relu", &["a"], &["b"])]));
    assert!(refused(vec![call("F0", &["x"], &["y"])], functions).contains("within 100 others"));
    // A hundred megabytes in a body that is called forty times.
    let mut constant = node("Constant", &[], &["b"]);
    let tensor = TensorProto { raw_data: vec![0; 100 << 20], ..TensorProto::default() };
    constant.attribute.push(AttributeProto { t: Some(tensor), ..AttributeProto::default() });
    let (none, large) = (HashMap::new(), function("I", &["a"], &["b"], vec![constant]));
    let mut inlining = Inlining::of(&none);
    let admitted = (0..40).take_while(|_| inlining.admit(&large).is_ok()).count();
    assert!(admitted <= 20, "{admitted} copies");
    // Each of thirty functions calls the next one twice.
    let doubling = |i: usize| {
        let next = name(i + 1);
        let body = vec![call(&next, &["a"], &["t"]), call(&next, &["t"], &["b"])];
        function(&name(i), &["a"], &["b"], body)
    };
    let mut functions: Vec<FunctionProto> = (0..30).map(doubling).collect();
    functions.push(function(&name(30), &["a"], &["b"], vec![node("Relu", &["a"], &["b"])]));
    assert!(refused(vec![call("F0", &["x"], &["y"])], functions).contains("more than 200000"));
}
