//! Checks the nodes of a file before a graph is built from them.
//!
//! Rejects what tract would silently read in one of several ways: attributes that contradict each other or have no
//! meaning, nodes in training mode, operators of unknown domains, duplicate names. Every refusal names node, operator
//! and attribute and contains a help. All refusals of a graph are reported, in the order of the file.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Why a graph is refused: `{cause}: {help}` in one line.
#[derive(Clone, Debug)]
pub(super) struct Refusal<'a> {
    /// The node concerned, unless it is about names.
    pub(super) node: Option<&'a NodeProto>,
    pub(super) cause: String,
    pub(super) help: String,
}

impl<'a> Refusal<'a> {
    fn of(node: &'a NodeProto, cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self { node: Some(node), cause: format!("{}{}", called(node), cause.into()), help: help.into() }
    }

    fn of_names(cause: String, help: &str) -> Self {
        Self { node: None, cause, help: help.to_owned() }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.help)
    }
}

/// Takes each refusal as it is found.
type Report<'r, 'a> = &'r mut dyn FnMut(Refusal<'a>);

/// Known operators of the domain ai.onnx.ml.
const ML: &[&str] = &[
    "ArrayFeatureExtractor",
    "CategoryMapper",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "TreeEnsembleClassifier",
];
/// Known operators of the domain com.microsoft.
const CONTRIBUTED: &[&str] = &[
    "BiasGelu",
    "FastGelu",
    "GatherBlockQuantized",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];
/// Maximum number of axes of an array; real ones have less than ten.
const MOST_AXES: u64 = 64;
/// Operators that slide a window.
const WINDOWED: &[&str] =
    &["Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"];

/// Reports every refusal of a graph and of the graphs inside its nodes; `opset` is the version of the standard operators.
pub(super) fn graph<'a>(graph: &'a GraphProto, opset: i64, report: Report<'_, 'a>) {
    names(graph, report);
    let constants = constants(graph);
    for node in &graph.node {
        if let Some(refusal) = domain(node) {
            report(refusal);
        }
        axes(node, report);
        window(node, report);
        if let Some(refusal) = training(node, opset, &constants) {
            report(refusal);
        }
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            self::graph(inner, opset, report);
        }
    }
}

/// The description of a node in messages.
pub(super) fn called(node: &NodeProto) -> String {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => format!("{} node that makes {output}", node.op_type),
        (name, _) => format!("{} node {name}", node.op_type),
    }
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

pub(super) fn text<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    attribute(node, name).and_then(|a| std::str::from_utf8(&a.s).ok())
}

/// Reports values that are defined by more than one node, input or initializer.
fn names<'a>(graph: &'a GraphProto, report: Report<'_, 'a>) {
    const HELP: &str = "rename one of the two";
    let mut makers: HashMap<&str, String> = HashMap::new();
    let inputs = graph.input.iter().map(|i| (i.name.as_str(), format!("input {}", i.name)));
    let outputs = graph.node.iter().flat_map(|node| {
        node.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), called(node)))
    });
    for (value, maker) in inputs.chain(outputs) {
        if let Some(first) = makers.insert(value, maker.clone()) {
            let cause = format!("{maker} gives the name {value} again, which is that of {first}");
            report(Refusal::of_names(cause, HELP));
        }
    }
    let inputs: HashSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let mut initial = HashSet::new();
    for tensor in &graph.initializer {
        let name = tensor.name.as_str();
        if !initial.insert(name) {
            let cause = format!("initializer {name} is there twice");
            report(Refusal::of_names(cause, "remove one of the two"));
        }
        // An initializer may be the default of an input.
        if let (Some(maker), false) = (makers.get(name), inputs.contains(name)) {
            let cause = format!("{maker} gives the name {name} again, which is that of an initializer");
            report(Refusal::of_names(cause, HELP));
        }
    }
}

/// The constants of a graph by name, from initializers and Constant nodes.
pub(super) fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let nodes = graph
        .node
        .iter()
        .filter(|node| node.op_type == "Constant")
        .filter_map(|node| Some((node.output.first()?.as_str(), attribute(node, "value")?.t.as_ref()?)));
    graph.initializer.iter().map(|t| (t.name.as_str(), t)).chain(nodes).collect()
}

/// Whether a node has an operator of the standard domain.
pub(super) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain.as_str(), "" | "ai.onnx")
}

/// The name that tract uses for a node: its own or that of its first output.
pub(super) fn name_of(node: &NodeProto) -> Option<&String> {
    if node.name.is_empty() { node.output.first() } else { Some(&node.name) }
}

/// The refusal of an operator whose domain and name are unknown.
fn domain(node: &NodeProto) -> Option<Refusal<'_>> {
    let known = match node.domain.as_str() {
        "" | "ai.onnx" => true,
        "ai.onnx.ml" => ML.contains(&node.op_type.as_str()),
        "com.microsoft" => CONTRIBUTED.contains(&node.op_type.as_str()),
        _ => false,
    };
    let cause = || format!(" is of domain {}, whose operator of that name is not known here", node.domain);
    (!known).then(|| Refusal::of(node, cause(), "export the model with operators of the standard domain"))
}

/// Reports axes that no array has. Some operators would count up to them.
fn axes<'a>(node: &'a NodeProto, report: Report<'_, 'a>) {
    for own in node.attribute.iter().filter(|own| matches!(own.name.as_str(), "axis" | "axes")) {
        let mut all = own.ints.iter().chain([&own.i]);
        if let Some(bad) = all.find(|axis| axis.unsigned_abs() > MOST_AXES) {
            let cause =
                format!(": attribute {} is {bad} where arrays have at most {MOST_AXES} axes", own.name);
            report(Refusal::of(node, cause, "give an axis of its input"));
        }
    }
}

/// Checks strides, dilations, kernels and padding.
fn window<'a>(node: &'a NodeProto, report: Report<'_, 'a>) {
    if !WINDOWED.contains(&node.op_type.as_str()) {
        return;
    }
    let ints = |name: &str| attribute(node, name).map(|a| a.ints.as_slice());
    for (name, least) in [
        ("strides", 1),
        ("dilations", 1),
        ("kernel_shape", 1),
        ("pads", 0),
        ("output_padding", 0),
        ("output_shape", 1),
    ] {
        if let Some(values) = ints(name)
            && let Some(bad) = values.iter().find(|v| **v < least)
        {
            let cause = format!(": attribute {name} is {values:?}, and {bad} is less than {least}");
            report(Refusal::of(node, cause, format!("give values of at least {least}")));
        }
    }
    if let Some(group) = attribute(node, "group")
        && group.i < 1
    {
        report(Refusal::of(node, format!(": attribute group is {}", group.i), "give at least 1"));
    }
    if let Some(kernel) = ints("kernel_shape") {
        for (name, times) in [("strides", 1), ("dilations", 1), ("pads", 2), ("output_padding", 1)] {
            if let Some(values) = ints(name)
                && !values.is_empty()
                && values.len() != kernel.len() * times
            {
                let cause = format!(
                    ": attribute {name} has {} values where kernel_shape {kernel:?} asks for {}",
                    values.len(),
                    kernel.len() * times
                );
                report(Refusal::of(node, cause, "make them agree"));
            }
        }
    }
    padding(node, report);
}

/// Checks automatic padding.
fn padding<'a>(node: &'a NodeProto, report: Report<'_, 'a>) {
    let pads = attribute(node, "pads").map(|a| a.ints.as_slice());
    let auto = text(node, "auto_pad").unwrap_or("NOTSET");
    let contradicts = match (auto, pads) {
        ("NOTSET" | "", _) | (_, None | Some([])) => false,
        ("VALID", Some(pads)) => pads.iter().any(|pad| *pad != 0),
        ("SAME_UPPER" | "SAME_LOWER", Some(_)) => true,
        _ => false,
    };
    if contradicts {
        let pads = pads.unwrap_or_default();
        let cause = format!(": attributes auto_pad = {auto} and pads = {pads:?} contradict each other");
        report(Refusal::of(node, cause, "remove pads, or set auto_pad to NOTSET"));
    }
    if !["NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"].contains(&auto) {
        let cause = format!(": attribute auto_pad is {auto}");
        report(Refusal::of(node, cause, "use NOTSET, VALID, SAME_UPPER or SAME_LOWER"));
    }
}

const FOR_INFERENCE: &str = "export the model for inference (eval mode)";

/// The refusal of a node that computes something else in training mode.
fn training<'a>(
    node: &'a NodeProto,
    opset: i64,
    constants: &HashMap<&str, &TensorProto>,
) -> Option<Refusal<'a>> {
    let flag = |name: &str| attribute(node, name).is_some_and(|a| a.i != 0);
    match node.op_type.as_str() {
        "BatchNormalization" => {
            if flag("training_mode") {
                let cause = ": attribute training_mode is 1, which takes mean and variance from the data";
                return Some(Refusal::of(node, cause, FOR_INFERENCE));
            }
            let made = node.output.iter().filter(|o| !o.is_empty()).count();
            let cause = || format!(": it has {made} outputs, which it has in training only");
            (made > 1).then(|| Refusal::of(node, cause(), FOR_INFERENCE))
        }
        "Dropout" if opset >= 12 => {
            let value = |index: usize| {
                let name = node.input.get(index).filter(|name| !name.is_empty())?;
                constants.get(name.as_str()).and_then(|tensor| scalar(tensor))
            };
            let drops = value(2).is_some_and(|on| on != 0.0) && value(1).unwrap_or(0.5) != 0.0;
            let cause = ": input training_mode is true, which drops elements at random";
            drops.then(|| Refusal::of(node, cause, FOR_INFERENCE))
        }
        _ => None,
    }
}

/// The value of a tensor that holds one boolean, integer or float.
pub(super) fn scalar(tensor: &TensorProto) -> Option<f64> {
    let first = |bytes: usize| tensor.raw_data.get(..bytes);
    let raw = match tensor.data_type {
        // Numbers of `tensor_proto::DataType`: f32, f64, bool, i32, i64.
        1 => first(4).and_then(|b| Some(f64::from(f32::from_le_bytes(b.try_into().ok()?)))),
        11 => first(8).and_then(|b| Some(f64::from_le_bytes(b.try_into().ok()?))),
        9 => first(1).map(|b| f64::from(b[0])),
        _ => None,
    };
    raw.or_else(|| tensor.float_data.first().map(|v| f64::from(*v)))
        .or_else(|| tensor.double_data.first().copied())
        .or_else(|| tensor.int32_data.first().map(|v| f64::from(*v)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Attributes, Net};
    use super::*;

    /// The texts of all refusals.
    fn all(graph: &GraphProto, opset: i64) -> Vec<String> {
        let mut all = Vec::new();
        super::graph(graph, opset, &mut |refusal| all.push(refusal.to_string()));
        all
    }

    /// The first refusal.
    fn graph(graph: &GraphProto, opset: i64) -> Result<(), String> {
        all(graph, opset).into_iter().next().map_or(Ok(()), Err)
    }

    fn conv(change: impl FnOnce(&mut NodeProto)) -> Result<(), String> {
        let mut net = Net::new(&[1, 3, 8, 8]);
        change(net.node("Conv", &["x", "x"], "y"));
        graph(&net.graph(), 17)
    }

    #[test]
    fn padding_that_is_said_twice_must_agree() {
        for (auto, pads, fine) in [
            ("NOTSET", [1, 1, 1, 1], true),
            ("VALID", [0, 0, 0, 0], true),
            ("VALID", [0, 0, 0, 1], false),
            ("SAME_UPPER", [0, 0, 0, 0], false),
            ("SAME_LOWER", [1, 1, 1, 1], false),
        ] {
            let said = conv(|node| {
                node.string("auto_pad", auto).ints("pads", &pads);
            });
            assert_eq!(said.is_ok(), fine, "{auto} {pads:?}");
            if let Err(why) = said {
                let all = format!("Conv node that makes y: attributes auto_pad = {auto} and pads = {pads:?}");
                assert!(why.starts_with(&all) && why.contains("remove pads"), "{why}");
            }
        }
        assert!(
            conv(|node| {
                node.string("auto_pad", "SAME_UPPER");
            })
            .is_ok()
        );
        let unknown = conv(|node| {
            node.string("auto_pad", "SAME");
        })
        .unwrap_err();
        assert!(unknown.contains("auto_pad is SAME: use NOTSET"), "{unknown}");
    }

    #[test]
    fn attributes_without_meaning_are_refused_by_name() {
        for (name, values) in [
            ("strides", [0, 1]),
            ("dilations", [1, 0]),
            ("kernel_shape", [-3, 3]),
            ("output_padding", [-1, 0]),
        ] {
            let why = conv(|node| {
                node.name = "c1".to_owned();
                node.ints(name, &values);
            })
            .unwrap_err();
            assert!(why.contains("Conv node c1: attribute") && why.contains(name), "{why}");
        }
        assert!(
            conv(|node| {
                node.int("group", 0);
            })
            .unwrap_err()
            .contains("group is 0")
        );
        assert!(
            conv(|node| {
                node.ints("strides", &[2, 2]).int("group", 1);
            })
            .is_ok()
        );
    }

    #[test]
    fn axes_that_no_array_has_are_refused() {
        for (axis, fine) in [(-2, true), (64, true), (65, false), (-12_079_595_521, false), (i64::MIN, false)]
        {
            let mut net = Net::new(&[1, 3]);
            net.node("LayerNormalization", &["x", "x"], "n").int("axis", axis);
            net.node("Squeeze", &["n"], "y").ints("axes", &[0, axis]);
            let said = all(&net.graph(), 17);
            assert_eq!(said.len(), if fine { 0 } else { 2 }, "{axis}: {said:?}");
            assert!(said.iter().all(|why| why.contains(&axis.to_string()) && why.contains("at most 64")));
        }
    }

    #[test]
    fn every_refusal_of_a_graph_is_reported_in_its_order() {
        let mut net = Net::new(&[1, 3, 8, 8]);
        net.node("Conv", &["x", "x"], "a").int("group", 0).ints("strides", &[0, 1]);
        net.node("Relu", &["a"], "b").domain = "com.example".to_owned();
        net.node("BatchNormalization", &["b", "s", "s", "s", "s"], "a").int("training_mode", 1);
        net.node("Relu", &["a"], "y");
        let said = all(&net.graph(), 17);
        let parts =
            ["gives the name a again", "strides is [0, 1]", "group is 0", "com.example", "training_mode"];
        assert_eq!(said.len(), parts.len(), "{said:?}");
        assert!(said.iter().zip(parts).all(|(why, part)| why.contains(part)), "{said:?}");
    }

    #[test]
    fn operators_of_other_domains_are_others() {
        for (domain, op, known) in [
            ("", "Conv", true),
            ("ai.onnx", "Conv", true),
            ("com.example", "Conv", false),
            ("com.microsoft", "Conv", false),
            ("com.microsoft", "FastGelu", true),
            ("ai.onnx.ml", "Normalizer", true),
            ("ai.onnx.ml", "Relu", false),
        ] {
            let mut net = Net::new(&[1, 3]);
            net.node(op, &["x"], "y").domain = domain.to_owned();
            let said = graph(&net.graph(), 17);
            assert_eq!(said.is_ok(), known, "{domain} {op}");
            assert!(said.err().is_none_or(|why| why.contains(op) && why.contains(domain)));
        }
    }

    #[test]
    fn what_is_wrong_inside_a_branch_is_found() {
        let mut inner = Net::new(&[1, 3, 8, 8]);
        inner.node("Conv", &["x", "x"], "y").ints("dilations", &[0, 1]);
        let mut net = Net::new(&[1, 3, 8, 8]);
        let branch = AttributeProto {
            name: "then_branch".to_owned(),
            g: Some(inner.graph()),
            ..AttributeProto::default()
        };
        net.node("If", &["x"], "y").attribute.push(branch);
        assert!(graph(&net.graph(), 17).unwrap_err().contains("dilations"));
    }

    #[test]
    fn what_trains_is_refused() {
        let mut net = Net::new(&[1, 3, 8, 8]);
        net.node("BatchNormalization", &["x", "s", "s", "s", "s"], "y").output.push("mean".to_owned());
        let why = graph(&net.graph(), 9).unwrap_err();
        assert!(why.contains("BatchNormalization") && why.contains("2 outputs"), "{why}");
        let dropout = |training: f32, ratio: f32| {
            let mut net = Net::new(&[1, 3]);
            net.floats("t", &[], &[training]);
            net.floats("r", &[], &[ratio]);
            net.node("Dropout", &["x", "r", "t"], "y");
            graph(&net.graph(), 17)
        };
        assert!(dropout(1.0, 0.5).unwrap_err().contains("training_mode is true"));
        assert!(dropout(0.0, 0.5).is_ok() && dropout(1.0, 0.0).is_ok());
    }
}
