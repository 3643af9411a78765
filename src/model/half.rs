//! Widens models of 16-bit floats (f16, bf16) to f32 when they are loaded.
//!
//! Exporters write half-precision models to save space. Processors compute them in f32 anyway, and workers compute in f32
//! or f64. So every 16-bit tensor, type and attribute of a file becomes f32 before a graph is built, in the graph itself
//! and in the graphs inside its nodes. A Cast to 16 bits is kept as rounding ([`round`](super::round)), because a file
//! that casts f32 values asks for it. Relevant if you want to know how such a model is computed.
//!
//! Invariant: the widened model contains no 16-bit float. It computes the same function, with every result between casts
//! in f32 where the file rounds it to 16 bits. The types of the file's inputs and outputs are kept beside it, for the
//! [`Signature`](super::signature::Signature).

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, tensor_proto, type_proto,
};

use super::check::is_standard;
use super::external;
use super::fresh::Fresh;
use super::round::HalfType;
use crate::memory;

const FLOAT: tensor_proto::DataType = tensor_proto::DataType::Float;
/// Attributes whose integer is an element type, besides `to` of Cast.
const TYPES: &[&str] =
    &["dtype", "stash_type", "output_datatype", "output_dtype", "precision", "softmax_precision"];
/// Memory that a widened element takes while a model is parsed: once in the message, once in the graph.
const BYTES_PER_ELEM: u64 = 8;

/// The 16-bit floats of a model file, which are computed in f32.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Widened {
    /// Names of the 16-bit types in the file: `f16`, `bf16` or both.
    pub dtypes: Vec<&'static str>,
    /// Number of constant tensors that became f32.
    pub tensors: usize,
    /// Number of elements in these tensors; each takes 4 bytes in place of 2.
    pub elems: u64,
}

impl fmt::Display for Widened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} values are computed in f32 ({} constants of {} elements widened)",
            self.dtypes.join(" and "),
            self.tensors,
            self.elems
        )
    }
}

/// The 16-bit types of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Half {
    /// The types of inputs and outputs that the file has in 16 bits, by name.
    pub(super) inputs: HashMap<String, HalfType>,
    pub(super) outputs: HashMap<String, HalfType>,
    types: BTreeSet<HalfType>,
    tensors: usize,
    elems: u64,
}

impl Half {
    /// A summary, unless the file has no 16-bit float.
    pub(super) fn widened(&self) -> Option<Widened> {
        let dtypes: Vec<_> = self.types.iter().map(|of| of.name()).collect();
        (!dtypes.is_empty()).then_some(Widened { dtypes, tensors: self.tensors, elems: self.elems })
    }
}

/// Widens everything but tensors in other files, for which [`external_tensors`] has to follow. Functions must have been
/// inlined.
///
/// # Errors
/// One line, for a tensor whose data do not fit its shape, and when the widened tensors do not fit into memory.
pub(super) fn widen(proto: &mut ModelProto) -> Result<Half, String> {
    let Some(graph) = proto.graph.as_mut() else { return Ok(Half::default()) };
    let mut half = Half::default();
    let border = |values: &[tract_onnx::pb::ValueInfoProto]| {
        let of = |value: &tract_onnx::pb::ValueInfoProto| {
            Some((value.name.clone(), HalfType::of_onnx(element(value.r#type.as_ref()?)?)?))
        };
        values.iter().filter_map(of).collect()
    };
    (half.inputs, half.outputs) = (border(&graph.input), border(&graph.output));
    let mut all = 0u64;
    external::tensors(graph, &mut |tensor| {
        if HalfType::of_onnx(tensor.data_type).is_some() {
            all = all.saturating_add(elems(tensor)?);
        }
        Ok(())
    })?;
    if all > 0 {
        let needed = all.saturating_mul(BYTES_PER_ELEM);
        memory::require("widening its 16-bit tensors to f32", needed).map_err(|error| error.to_string())?;
    }
    external::tensors(graph, &mut |tensor| half.tensor(tensor))?;
    half.graph(graph);
    Ok(half)
}

/// Reads the 16-bit tensors in other files, and widens them. `root` is the folder that [`external::settle`] gave.
///
/// # Errors
/// One line, for a file that cannot be read or whose data do not fit the shape.
pub(super) fn external_tensors(proto: &mut ModelProto, half: &mut Half, root: &str) -> Result<(), String> {
    let Some(graph) = proto.graph.as_mut() else { return Ok(()) };
    external::tensors(graph, &mut |tensor| {
        if HalfType::of_onnx(tensor.data_type).is_some() && external::is_external(tensor) {
            let bytes = elems(tensor)?.saturating_mul(2);
            external::take_in(tensor, root, bytes)?;
        }
        half.tensor(tensor)
    })
}

/// The element type of a value.
fn element(of: &TypeProto) -> Option<i32> {
    match of.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor.elem_type),
    }
}

fn elems(tensor: &TensorProto) -> Result<u64, String> {
    let product = |product: u64, size: &i64| product.checked_mul(u64::try_from(*size).ok()?);
    tensor
        .dims
        .iter()
        .try_fold(1, product)
        .ok_or_else(|| format!("tensor {} has shape {:?}: export the model again", tensor.name, tensor.dims))
}

/// The elements of a tensor of 16-bit floats.
///
/// # Errors
/// One line, for data of another size than the shape, or of more than 16 bits.
fn values(tensor: &TensorProto, of: HalfType, elems: u64) -> Result<Vec<f32>, String> {
    let damaged = |there: usize, what: &str, needed: u64| {
        format!(
            "tensor {} has {there} {what} of {of} where its shape {:?} needs {needed}: the file is damaged; export it again",
            tensor.name, tensor.dims
        )
    };
    if tensor.int32_data.is_empty() {
        let (raw, needed) = (&tensor.raw_data, elems.saturating_mul(2));
        if raw.len() as u64 != needed {
            return Err(damaged(raw.len(), "bytes", needed));
        }
        return Ok(raw.as_chunks().0.iter().map(|bytes| of.value(u16::from_le_bytes(*bytes))).collect());
    }
    if tensor.int32_data.len() as u64 != elems {
        return Err(damaged(tensor.int32_data.len(), "elements", elems));
    }
    let bits = |value: &i32| {
        // Some writers extend the sign.
        let bits = u16::try_from(*value).or_else(|_| i16::try_from(*value).map(i16::cast_unsigned));
        bits.map(|bits| of.value(bits)).map_err(|_| {
            format!(
                "tensor {} holds {value} for the 16 bits of one {of}: the file is damaged; export it again",
                tensor.name
            )
        })
    };
    tensor.int32_data.iter().map(bits).collect()
}

impl Half {
    /// Widens a tensor of this file; one in another file is left.
    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), String> {
        let Some(of) = HalfType::of_onnx(tensor.data_type) else { return Ok(()) };
        self.types.insert(of);
        if external::is_external(tensor) {
            return Ok(());
        }
        let elems = elems(tensor)?;
        let wide = values(tensor, of, elems)?;
        // Freed first, since it may be large.
        tensor.int32_data = Vec::new();
        tensor.raw_data = Vec::new();
        tensor.raw_data = wide.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor.data_type = FLOAT.into();
        self.tensors += 1;
        self.elems = self.elems.saturating_add(elems);
        Ok(())
    }

    fn value_type(&mut self, of: Option<&mut TypeProto>) {
        if let Some(type_proto::Value::TensorType(tensor)) = of.and_then(|of| of.value.as_mut())
            && let Some(half) = HalfType::of_onnx(tensor.elem_type)
        {
            self.types.insert(half);
            tensor.elem_type = FLOAT.into();
        }
    }

    /// Widens the types in a graph and in the graphs inside its nodes.
    fn graph(&mut self, graph: &mut GraphProto) {
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            self.value_type(value.r#type.as_mut());
        }
        let mut fresh = None;
        if graph.node.iter().any(|node| rounds(node).is_some()) {
            fresh = Some(Fresh::of(graph));
        }
        let mut nodes = Vec::with_capacity(graph.node.len());
        for mut node in std::mem::take(&mut graph.node) {
            let to = rounds(&node);
            for attribute in &mut node.attribute {
                self.attribute(attribute);
            }
            let cast = (to, fresh.as_mut(), node.output.first_mut());
            let (Some(to), Some(fresh), Some(output)) = cast else {
                nodes.push(node);
                continue;
            };
            self.types.insert(to);
            let wide = fresh.name(&format!("{output}.wide"));
            let output = std::mem::replace(output, wide.clone());
            node.attribute.retain(|attribute| attribute.name != "to");
            node.attribute.push(AttributeProto {
                name: "to".to_owned(),
                r#type: tract_onnx::pb::attribute_proto::AttributeType::Int.into(),
                i: FLOAT as i64,
                ..AttributeProto::default()
            });
            nodes.push(node);
            nodes.push(NodeProto {
                op_type: to.operator().to_owned(),
                input: vec![wide],
                output: vec![output],
                ..NodeProto::default()
            });
        }
        graph.node = nodes;
    }

    fn attribute(&mut self, attribute: &mut AttributeProto) {
        if TYPES.contains(&attribute.name.as_str())
            && let Some(of) = i32::try_from(attribute.i).ok().and_then(HalfType::of_onnx)
        {
            self.types.insert(of);
            attribute.i = FLOAT as i64;
        }
        for of in &mut attribute.type_protos {
            self.value_type(Some(of));
        }
        for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            self.graph(inner);
        }
    }
}

/// The 16-bit type that a node casts to.
fn rounds(node: &NodeProto) -> Option<HalfType> {
    if node.op_type != "Cast" || !is_standard(node) {
        return None;
    }
    let to = node.attribute.iter().find(|attribute| attribute.name == "to")?;
    HalfType::of_onnx(i32::try_from(to.i).ok()?)
}
