//! Examines the message of a file, and brings it into the form from which a graph is built.
//!
//! Invariant: a message for which nothing was found has known operators, one meaning, no functions, no 16-bit floats and
//! no quantised convolution whose types are known. Steps that the first reason makes meaningless are left out; all others
//! add their reasons.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto};

use super::external::{self, External};
use super::find::LayerOp;
use super::findings::{Findings, ReasonKind};
use super::half::{self, Half};
use super::{check, deform, functions, loops, quantised, sequences, tidy, upsample};
use crate::memory;

/// What is known of a message besides the message.
#[derive(Default)]
pub(super) struct Examined {
    /// What the file has in 16 bits.
    pub(super) half: Half,
    /// Names of the outputs.
    pub(super) outputs: Vec<String>,
    /// Names and operators of the Conv and ConvTranspose nodes.
    pub(super) convolutions: Vec<(String, LayerOp)>,
    /// The folder that locations of external tensors are relative to.
    pub(super) root: Option<String>,
    /// The external files.
    pub(super) data_files: Vec<PathBuf>,
}

/// Examines `proto`, a message of `size` bytes from `path`, of the model called `name`.
pub(super) fn examine(
    name: &str,
    onnx: &Onnx,
    proto: &mut ModelProto,
    (size, path): (u64, Option<&Path>),
    findings: &mut Findings,
) -> Examined {
    if let Err(why) = functions::inline(proto) {
        findings.refuse(name, ReasonKind::Graph, &why, None);
        return Examined::default();
    }
    let opset = opset(proto);
    let Some(graph) = proto.graph.as_mut().filter(|g| !g.node.is_empty()) else {
        let why = format!("is not an ONNX model: its {size} bytes hold no graph of operators");
        findings.refuse(name, ReasonKind::File, &why, None);
        return Examined::default();
    };
    unknown_operators(name, graph, onnx, findings);
    if let Err(error) = memory::require(&format!("reading the data beside {name}"), external_bytes(graph)) {
        findings.error(name, ReasonKind::Memory, error);
    }
    let half = half::widen(proto).unwrap_or_else(|why| {
        findings.refuse(name, ReasonKind::Type, &why, None);
        Half::default()
    });
    let graph = proto.graph.get_or_insert_default();
    check::graph(graph, opset, &mut |refusal| {
        let kind = if refusal.node.is_some() { ReasonKind::Node } else { ReasonKind::Graph };
        findings.refuse(name, kind, &refusal.to_string(), Some(&refusal.help));
        findings.of_nodes(refusal.node);
    });
    // A graph with other meanings would be rewritten wrongly.
    if findings.is_empty() {
        quantised::graph(graph);
        if let Err(why) = tidy::graph(graph, opset) {
            findings.refuse(name, ReasonKind::Node, &why, None);
        }
    }
    undefined_outputs(name, graph, findings);
    let outputs = graph.output.iter().map(|o| o.name.clone()).collect();
    // After `tidy`, since layers use its names.
    let convolutions = convolutions(graph);
    let mut refuse = |why: &str| findings.refuse(name, ReasonKind::External, why, None);
    let (root, data_files) = match external::settle(proto, path, &mut refuse) {
        Some(External { root, files }) => (Some(root), files),
        None => (None, Vec::new()),
    };
    Examined { half, outputs, convolutions, root, data_files }
}

/// Whether a node has an operator that tract or this crate has.
pub(super) fn is_known(node: &NodeProto, onnx: &Onnx) -> bool {
    onnx.op_register.0.contains_key(&node.op_type)
        || [upsample::takes, deform::takes, loops::takes, sequences::takes].iter().any(|takes| takes(node))
}

/// The operator of a node, with its domain unless that is the standard one.
pub(super) fn operator(node: &NodeProto) -> String {
    match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{} of domain {domain}", node.op_type),
    }
}

/// Refuses operators that neither tract nor this crate has, each once.
fn unknown_operators(name: &str, graph: &GraphProto, onnx: &Onnx, findings: &mut Findings) {
    let nodes = || graph.node.iter().filter(|node| !is_known(node, onnx));
    let mut unknown: Vec<String> = nodes().map(operator).collect();
    if unknown.is_empty() {
        return;
    }
    unknown.sort_unstable();
    unknown.dedup();
    let help = "export the model with other operators";
    let why = format!("uses operators that cannot be run: {}: {help}", unknown.join(", "));
    findings.refuse(name, ReasonKind::Operator, &why, Some(help));
    findings.of_nodes(nodes());
}

fn undefined_outputs(name: &str, graph: &GraphProto, findings: &mut Findings) {
    let made = graph.node.iter().flat_map(|n| &n.output).chain(graph.initializer.iter().map(|i| &i.name));
    let defined: HashSet<&String> = made.chain(graph.input.iter().map(|i| &i.name)).collect();
    for output in graph.output.iter().filter(|o| !defined.contains(&o.name)) {
        let why = format!("nothing in it computes its output {}: export it again", output.name);
        findings.refuse(name, ReasonKind::Graph, &why, Some("export it again"));
    }
}

/// The version of the standard operators that a file requires.
fn opset(proto: &ModelProto) -> i64 {
    let standard = proto.opset_import.iter().find(|import| matches!(import.domain.as_str(), "" | "ai.onnx"));
    standard.map_or(0, |import| import.version)
}

/// Bytes of the external tensors, by the description in the model.
pub(super) fn external_bytes(graph: &GraphProto) -> u64 {
    let external = graph.initializer.iter().filter(|tensor| {
        tensor.data_location.is_some_and(|place| place == tensor_proto::DataLocation::External as i32)
    });
    external.map(tensor_bytes).fold(0, u64::saturating_add)
}

/// Bytes of the elements of a tensor.
pub(super) fn tensor_bytes(tensor: &TensorProto) -> u64 {
    // Bytes per element by ONNX type number: bytes and booleans, then 16, 64 and 32 bits.
    let element = match tensor.data_type {
        2 | 3 | 9 => 1,
        4 | 5 | 10 | 16 => 2,
        7 | 11 | 13 => 8,
        _ => 4,
    };
    let product = |bytes: u64, size: &i64| bytes.saturating_mul(u64::try_from(*size).unwrap_or(0));
    tensor.dims.iter().fold(element, product)
}

/// Names and operators of the Conv and ConvTranspose nodes.
fn convolutions(graph: &GraphProto) -> Vec<(String, LayerOp)> {
    let named = graph.node.iter().filter_map(|node| {
        let op = LayerOp::of_convolution(&node.op_type)?;
        Some((check::name_of(node)?.clone(), op))
    });
    named.collect()
}
