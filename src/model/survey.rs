//! Surveys the message of an ONNX file: what it says about itself, whether or not it can run.
//!
//! Relevant if you want to know what an [`Inspection`](super::Inspection) knows of a file that cannot run.
//!
//! Invariant: nothing is computed, and no tensor is copied; the time is proportional to the number of nodes and tensors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use tract_onnx::Onnx;
use tract_onnx::pb::tensor_shape_proto::dimension::Value;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

use super::check::{attribute, name_of};
use super::examine::is_known;
use super::external;
use super::inspection::{AxisSize, ExternalFile, InspectedLayer, Inspection, OperatorCount, Opset, Port};

/// Convolutions.
const CONVOLUTIONS: &[&str] = &["Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"];
/// Matrix products, with the position of their second factor. The first is the first input.
const PRODUCTS: &[(&str, usize)] = &[("Gemm", 1), ("MatMul", 1), ("MatMulInteger", 1), ("QLinearMatMul", 3)];
/// Maximum number of layers that are described; far beyond those of real models.
const MOST_LAYERS: usize = 20_000;

/// Whether a layer is a convolution, not a product.
pub(super) fn is_convolution(op: &str) -> bool {
    CONVOLUTIONS.contains(&op)
}

/// Adds what the message says about itself to `told`.
pub(super) fn survey(proto: &mut ModelProto, onnx: &Onnx, path: &Path, told: &mut Inspection) {
    let domain = |name: &str| if name.is_empty() { "ai.onnx".to_owned() } else { name.to_owned() };
    let opsets = proto.opset_import.iter();
    told.ir_version = proto.ir_version;
    told.opsets = opsets.map(|o| Opset { domain: domain(&o.domain), version: o.version }).collect();
    told.producer.clone_from(&proto.producer_name);
    told.producer_version.clone_from(&proto.producer_version);
    told.functions = proto.functions.len();
    graph(proto, onnx, path, told);
}

/// What the graph of the message says; nodes, layers and tensors that were told before are replaced.
pub(super) fn graph(proto: &mut ModelProto, onnx: &Onnx, path: &Path, told: &mut Inspection) {
    let functions: HashSet<(String, String)> =
        proto.functions.iter().map(|f| (f.domain().to_owned(), f.name().to_owned())).collect();
    let Some(graph) = proto.graph.as_mut() else { return };
    let initial: HashSet<&String> = graph.initializer.iter().map(|tensor| &tensor.name).collect();
    told.graph.clone_from(&graph.name);
    told.inputs = graph.input.iter().filter(|i| !initial.contains(&i.name)).map(port).collect();
    told.outputs = graph.output.iter().map(port).collect();
    let mut counts = BTreeMap::new();
    count(graph, &mut counts);
    told.nodes = counts.values().map(|(count, _)| count).sum();
    let operators = counts.into_iter().map(|((domain, op), (count, node))| {
        let known = is_known(node, onnx) || functions.contains(&(domain.clone(), op.clone()));
        OperatorCount { domain, op, count, known }
    });
    told.operators = operators.collect();
    told.operators.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.op.cmp(&b.op)));
    told.layers = layers(graph);
    tensors(graph, path, told);
}

/// Counts the nodes of a graph and of the graphs inside it; with a node of each operator.
fn count<'a>(graph: &'a GraphProto, counts: &mut BTreeMap<(String, String), (usize, &'a NodeProto)>) {
    for node in &graph.node {
        let domain = if node.domain == "ai.onnx" { "" } else { &node.domain };
        counts.entry((domain.to_owned(), node.op_type.clone())).or_insert((0, node)).0 += 1;
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            count(inner, counts);
        }
    }
}

fn port(value: &ValueInfoProto) -> Port {
    let tensor = value.r#type.as_ref().and_then(|of| of.value.as_ref()).map(|of| match of {
        type_proto::Value::TensorType(tensor) => tensor,
    });
    let dtype = tensor.map_or("unknown", |tensor| dtype(tensor.elem_type)).to_owned();
    let axes = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| {
        let size = |value: &Option<Value>| match value {
            Some(Value::DimValue(size)) => u64::try_from(*size).map_or(AxisSize::Open, AxisSize::Fixed),
            Some(Value::DimParam(name)) if !name.is_empty() => AxisSize::Symbol(name.clone()),
            _ => AxisSize::Open,
        };
        shape.dim.iter().map(|dim| size(&dim.value)).collect()
    });
    Port { name: value.name.clone(), dtype, axes }
}

/// The name of an element type by its number in the format.
fn dtype(number: i32) -> &'static str {
    const NAMES: [&str; 24] = [
        "unknown",
        "f32",
        "u8",
        "i8",
        "u16",
        "i16",
        "i32",
        "i64",
        "string",
        "bool",
        "f16",
        "f64",
        "u32",
        "u64",
        "complex64",
        "complex128",
        "bf16",
        "f8e4m3fn",
        "f8e4m3fnuz",
        "f8e5m2",
        "f8e5m2fnuz",
        "u4",
        "i4",
        "f4e2m1",
    ];
    usize::try_from(number).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or("unknown")
}

/// Bits of an element of this type; strings have none.
fn bits(number: i32) -> u64 {
    match number {
        2 | 3 | 9 | 17..=20 => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        21..=23 => 4,
        _ => 0,
    }
}

fn elems(dims: &[i64]) -> u64 {
    dims.iter().fold(1, |product: u64, size| product.saturating_mul(u64::try_from(*size).unwrap_or(0)))
}

/// Bytes of a tensor by its shape.
fn bytes(tensor: &TensorProto) -> u64 {
    let strings: u64 = tensor.string_data.iter().map(|text| text.len() as u64).sum();
    // Elements of 4 bits share bytes.
    elems(&tensor.dims).saturating_mul(bits(tensor.data_type)).div_ceil(8).saturating_add(strings)
}

/// Counts the constants, and lists the files that hold some of them.
fn tensors(graph: &mut GraphProto, path: &Path, told: &mut Inspection) {
    (told.parameters, told.parameter_bytes) = (0, 0);
    let mut files: BTreeMap<String, ExternalFile> = BTreeMap::new();
    let mut each = |tensor: &mut TensorProto| {
        told.parameters = told.parameters.saturating_add(elems(&tensor.dims));
        told.parameter_bytes = told.parameter_bytes.saturating_add(bytes(tensor));
        if external::is_external(tensor) {
            let location = external::location(tensor).unwrap_or_default();
            let file = files.entry(location.to_owned()).or_insert_with(|| ExternalFile {
                location: location.to_owned(),
                bytes: external::bytes_at(path, location),
                tensors: 0,
                tensor_bytes: 0,
            });
            file.tensors += 1;
            file.tensor_bytes = file.tensor_bytes.saturating_add(bytes(tensor));
        }
        Ok(())
    };
    // The closure does not fail.
    let _ = external::tensors(graph, &mut each);
    told.external = files.into_values().collect();
}

/// The layers of a graph, as far as the file itself describes them.
fn layers(graph: &GraphProto) -> Vec<InspectedLayer> {
    let initial = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice()));
    let constants = graph.node.iter().filter(|node| node.op_type == "Constant").filter_map(|node| {
        Some((node.output.first()?.as_str(), attribute(node, "value")?.t.as_ref()?.dims.as_slice()))
    });
    let mut known: HashMap<&str, &[i64]> = initial.chain(constants).collect();
    // The filters of quantised models are dequantised on the way.
    for node in graph.node.iter().filter(|node| matches!(node.op_type.as_str(), "DequantizeLinear" | "Cast"))
    {
        let dims = node.input.first().and_then(|from| known.get(from.as_str())).copied();
        if let (Some(dims), Some(to)) = (dims, node.output.first()) {
            known.insert(to, dims);
        }
    }
    let mut names = HashSet::new();
    let mut layers = Vec::new();
    for node in &graph.node {
        let Some(own) = name_of(node) else { continue };
        // As `tidy` names the nodes that share a name.
        let name = match node.output.first() {
            Some(output) if !node.name.is_empty() && !names.insert(own) => format!("{own} ({output})"),
            _ => own.clone(),
        };
        if layers.len() < MOST_LAYERS {
            layers.extend(layer(node, name, &known));
        }
    }
    layers
}

fn layer(node: &NodeProto, name: String, known: &HashMap<&str, &[i64]>) -> Option<InspectedLayer> {
    let op = node.op_type.as_str();
    let shape = |slot: usize| {
        let dims = known.get(node.input.get(slot)?.as_str())?;
        dims.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<Vec<usize>>>()
    };
    let filters = if is_convolution(op) {
        shape(if op == "QLinearConv" { 3 } else { 1 })
    } else {
        let (_, second) = PRODUCTS.iter().find(|(product, _)| *product == op)?;
        // Products of two computed matrices have no weights.
        Some(shape(*second).or_else(|| shape(0)).filter(|sizes| sizes.len() == 2)?)
    };
    let positive = |value: &i64| u64::try_from(*value).unwrap_or(0);
    let given = attribute(node, "strides").map(|a| a.ints.iter().map(positive).collect::<Vec<u64>>());
    let axes = filters.as_ref().map_or(0, |sizes| sizes.len().saturating_sub(2));
    Some(InspectedLayer {
        name,
        op: op.to_owned(),
        input: None,
        filters,
        output: None,
        groups: attribute(node, "group").map_or(1, |a| positive(&a.i)),
        stride: given.filter(|stride| !stride.is_empty()).unwrap_or_else(|| vec![1; axes]),
        multiply_adds: None,
        coded: None,
        why: None,
    })
}
