//! Takes parts out of a model: pieces of its file between two cuts.
//!
//! Relevant if you want parts of a model to be computed in different places. The cuts of a model divide it into *pieces*,
//! numbered from 0; a part is a range of pieces.
//!
//! Invariant: running the parts of a model one after the other, each on the output of the one before, gives the outputs of the
//! model within rounding. A part is a file of its own, with fixed shapes and without data in other files.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use prost::Message as _;
use tract_onnx::pb::{
    GraphProto, ModelProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto,
    type_proto,
};
use tract_onnx::tract_core::internal::{DatumType, OutletId, Tensor as TractTensor, TypedFact, TypedModel};
use tract_onnx::tract_core::ops::konst::Const;

use super::cut::Wiring;
use super::find::layers;
use super::guard::{guarded, refused};
use super::load::Model;
use super::lower::Labels;
use super::nodes::{F32, F64};
use super::tensor::Tensor;
use crate::array::DType;
use crate::error::{Error, Result};
use crate::worker::{PartArray, PartSignature};

/// The version of the format from which on initializers need not be inputs.
const FREE_INITIALIZERS: i64 = 4;

/// A value at which a model can be cut: every path from its inputs to its outputs crosses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its name in the file.
    pub name: String,
    /// Element type and shape.
    pub array: PartArray,
}

impl Cut {
    /// Bytes of the value.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.array)
    }
}

/// Bytes of an array.
pub(super) fn bytes_of(array: &PartArray) -> u64 {
    let elems = array.shape.iter().fold(1u64, |product, size| product.saturating_mul(*size as u64));
    elems.saturating_mul(array.dtype.size_bytes() as u64)
}

/// A model divided into the pieces between its cuts.
///
/// # Examples
///
/// ```
/// use fcdcc::Model;
///
/// let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// let sections = model.sections()?;
/// // The first piece, and all others.
/// let (head, tail) = (sections.model(&(0..1))?, sections.model(&(1..sections.pieces()))?);
/// assert_eq!(head.outputs(), [sections.cuts()[0].name.clone()]);
/// assert_eq!(tail.outputs(), model.outputs());
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub struct Sections {
    name: String,
    /// The file; `None` where only the whole model is a part, and no file of it can be had.
    proto: Option<ModelProto>,
    wiring: Wiring,
    cuts: Vec<Cut>,
    /// The position of the node that makes each cut.
    ends: Vec<usize>,
    /// Values that are known before a run.
    known: HashMap<String, Arc<TractTensor>>,
    /// Name and piece of each layer, in the order of the graph.
    layers: Vec<(String, usize)>,
    /// Element type and shape of each input and output; `None` where workers cannot take it.
    ends_of_model: (Vec<Option<PartArray>>, Vec<Option<PartArray>>),
    shapes: Vec<(String, Vec<usize>)>,
    whole_only: Option<String>,
}

impl std::fmt::Debug for Sections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sections")
            .field("model", &self.name)
            .field("cuts", &self.cuts)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Divides the model at the values that every path from its inputs to its outputs crosses. Its file is read again.
    ///
    /// A model is one piece if its sizes depend on data, if it has branches or loops, 16-bit floats, or results that are
    /// rounded to few bits: [`Sections::whole_only`] then has the reason.
    ///
    /// # Errors
    /// Those of [`Model::prepare`] that concern the model, and of reading the file; [`Error::File`] when it has changed.
    pub fn sections(&self) -> Result<Sections> {
        let (graph, labels) = self.labelled()?;
        let whole_only = self.indivisible(&graph);
        let mut proto = self.origin().message(self.name());
        if let Ok(proto) = &mut proto {
            self.fix_inputs(proto)?;
        }
        let (proto, gone) = match proto {
            Ok(proto) => (Some(proto), None),
            // The bytes were not kept; the planner says so.
            Err(Error::Model { cause, .. }) => (None, Some(cause.to_string())),
            Err(error) => return Err(error),
        };
        let known = known(&graph, &labels);
        let mut sections = Sections {
            name: self.name().to_owned(),
            wiring: Wiring::of(
                proto.as_ref().and_then(|proto| proto.graph.as_ref()).unwrap_or(&GraphProto::default()),
                &|name| known.contains_key(name),
            ),
            proto,
            cuts: Vec::new(),
            ends: Vec::new(),
            known,
            layers: Vec::new(),
            ends_of_model: self.ends(&graph)?,
            shapes: self.shapes(),
            whole_only: whole_only.or(gone),
        };
        if sections.whole_only.is_none() {
            sections.cut(&graph, &labels);
        }
        sections.place_layers(&graph, &labels)?;
        if sections.whole_only.is_none() && sections.cuts.is_empty() {
            sections.whole_only = Some("no single value lies on every path through it".to_owned());
        }
        Ok(sections)
    }

    /// Names and sizes of the inputs.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let shape =
            |input: &super::load::InputInfo| (input.name.clone(), input.fixed_shape().unwrap_or_default());
        self.inputs().iter().map(shape).collect()
    }

    /// Why the model is one piece, if that is known from its graph.
    fn indivisible(&self, graph: &TypedModel) -> Option<String> {
        let open = |fact: &TypedFact| fact.shape.as_concrete().is_none();
        if self.widened().is_some() {
            return Some("it has 16-bit floats".to_owned());
        }
        if self.has_branches() {
            return Some("it has branches or loops".to_owned());
        }
        let dynamic = graph.nodes().iter().flat_map(|node| &node.outputs).any(|output| open(&output.fact));
        dynamic.then(|| "some of its sizes depend on data".to_owned())
    }

    /// What enters and leaves the model; `None` for what workers cannot take.
    fn ends(&self, graph: &TypedModel) -> Result<(Vec<Option<PartArray>>, Vec<Option<PartArray>>)> {
        guarded(self.name(), || {
            let of = |outlets: &[OutletId], names: &[String]| {
                let arrays = outlets.iter().zip(names).map(|(outlet, name)| {
                    let half =
                        self.half().inputs.contains_key(name) || self.half().outputs.contains_key(name);
                    Ok(array_of(graph.outlet_fact(*outlet)?).filter(|_| !half))
                });
                arrays.collect::<tract_onnx::prelude::TractResult<Vec<_>>>()
            };
            let inputs: Vec<String> = self.inputs().iter().map(|input| input.name.clone()).collect();
            Ok((of(graph.input_outlets()?, &inputs)?, of(graph.output_outlets()?, self.outputs())?))
        })
    }

    /// Makes initializers of the inputs that have a value for good.
    fn fix_inputs(&self, proto: &mut ModelProto) -> Result<()> {
        let graph = proto.graph.get_or_insert_default();
        let mut values = Vec::new();
        for input in &graph.input {
            if let Some(value) = self.fixed_value(&input.name) {
                values.push(tensor_of(&input.name, &value)?);
            }
        }
        graph.input.retain(|input| !values.iter().any(|value| value.name == input.name));
        graph.initializer.extend(values);
        Ok(())
    }
}

/// The values of a file that are known before a run.
fn known(graph: &TypedModel, labels: &Labels) -> HashMap<String, Arc<TractTensor>> {
    let constants = labels.iter().filter_map(|(name, outlet)| {
        let constant = graph.node(outlet.node).op_as::<Const>()?;
        Some((name.clone(), Arc::clone(constant.val())))
    });
    constants.collect()
}

/// Element type and shape of a value that workers can take.
fn array_of(fact: &TypedFact) -> Option<PartArray> {
    let dtype = match fact.datum_type {
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        _ => return None,
    };
    let shape = fact.shape.as_concrete()?.to_vec();
    (!shape.contains(&0)).then_some(PartArray { dtype, shape })
}

impl Sections {
    /// The cuts, in order.
    #[must_use]
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Number of pieces: one more than cuts.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.cuts.len() + 1
    }

    /// Why the model is one piece; `None` if it has cuts.
    #[must_use]
    pub fn whole_only(&self) -> Option<&str> {
        self.whole_only.as_deref()
    }

    /// Name and piece of each layer that [`Model::plan`] lists, in its order.
    #[must_use]
    pub fn layers(&self) -> &[(String, usize)] {
        &self.layers
    }

    /// What enters and leaves a part; `None` where workers cannot hold it: an input or output is neither f32 nor f64, or its
    /// size depends on data, or the bytes of the model were not kept.
    #[must_use]
    pub fn signature(&self, pieces: &Range<usize>) -> Option<PartSignature> {
        Some(PartSignature { inputs: self.inputs_of(pieces)?, outputs: self.outputs_of(pieces)? })
    }

    /// What enters a part; `None` where workers cannot take it.
    pub(super) fn inputs_of(&self, pieces: &Range<usize>) -> Option<Vec<PartArray>> {
        self.proto.as_ref()?;
        match pieces.start.checked_sub(1) {
            None => self.ends_of_model.0.iter().cloned().collect(),
            Some(cut) => Some(vec![self.cuts.get(cut)?.array.clone()]),
        }
    }

    /// What leaves a part; `None` where workers cannot take it.
    pub(super) fn outputs_of(&self, pieces: &Range<usize>) -> Option<Vec<PartArray>> {
        self.proto.as_ref()?;
        if pieces.end >= self.pieces() {
            return self.ends_of_model.1.iter().cloned().collect();
        }
        Some(vec![self.cuts.get(pieces.end.checked_sub(1)?)?.array.clone()])
    }

    /// Names of the cuts between which a part lies.
    pub(super) fn ends_of(&self, pieces: &Range<usize>) -> (Option<String>, Option<String>) {
        let of_cut = |at: Option<usize>| at.and_then(|at| self.cuts.get(at)).map(|cut| cut.name.clone());
        (of_cut(pieces.start.checked_sub(1)), of_cut(pieces.end.checked_sub(1)))
    }

    /// The file of a part.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a range without pieces, or with pieces that the model does not have;
    /// [`Error::Model`] when the bytes of the model were not kept.
    pub fn file(&self, pieces: &Range<usize>) -> Result<Vec<u8>> {
        Ok(self.proto(pieces)?.encode_to_vec())
    }

    /// A part as a model, with the checks of any file.
    ///
    /// # Errors
    /// Those of [`Sections::file`] and [`Model::from_bytes`].
    pub fn model(&self, pieces: &Range<usize>) -> Result<Model> {
        Model::from_bytes(self.name_of(pieces), &self.file(pieces)?)
    }

    /// The name of a part in messages.
    #[must_use]
    pub fn name_of(&self, pieces: &Range<usize>) -> String {
        match self.ends_of(pieces) {
            (None, None) => self.name.clone(),
            (None, Some(to)) => format!("{} up to {to}", self.name),
            (Some(from), None) => format!("{} from {from}", self.name),
            (Some(from), Some(to)) => format!("{} from {from} to {to}", self.name),
        }
    }

    /// The message of a part.
    fn proto(&self, pieces: &Range<usize>) -> Result<ModelProto> {
        if pieces.is_empty() || pieces.end > self.pieces() {
            let help = format!("the model has pieces 0 to {}: give a range of them", self.pieces() - 1);
            return Err(Error::invalid("pieces of a part", format!("{pieces:?}"), help));
        }
        let Some((proto, graph)) = self.proto.as_ref().and_then(|own| Some((own, own.graph.as_ref()?)))
        else {
            let cause = self.whole_only.as_deref().unwrap_or("its file cannot be read again");
            return Err(refused(&self.name, cause));
        };
        let after = pieces.start.checked_sub(1).map(|cut| self.ends[cut]);
        let last = self.ends.get(pieces.end - 1).copied();
        let inside = |at: usize| after.is_none_or(|after| at > after) && last.is_none_or(|last| at <= last);
        let (nodes, mut read) = self.wiring.nodes(graph, &inside);
        let mut part = GraphProto { name: graph.name.clone(), ..GraphProto::default() };
        match pieces.start.checked_sub(1) {
            Some(cut) => {
                part.input.push(declared(&self.cuts[cut].name, &self.cuts[cut].array));
                read.remove(&self.cuts[cut].name);
            }
            None => self.shapes.iter().for_each(|(name, shape)| {
                let own = graph.input.iter().find(|input| input.name == *name);
                part.input.extend(own.map(|input| with_shape(input, shape)));
                read.remove(name);
            }),
        }
        if pieces.end == self.pieces() {
            part.output.clone_from(&graph.output);
            read.extend(graph.output.iter().map(|output| output.name.clone()));
        } else {
            let cut = &self.cuts[pieces.end - 1];
            part.output.push(declared(&cut.name, &cut.array));
        }
        self.add_constants(graph, &read, &mut part)?;
        part.node.extend(nodes.into_iter().map(|at| graph.node[at].clone()));
        let made: HashSet<&String> = part.node.iter().flat_map(|node| &node.output).collect();
        let about = graph.value_info.iter().filter(|value| made.contains(&value.name)).cloned();
        part.value_info = about.collect();
        Ok(ModelProto {
            ir_version: proto.ir_version.max(FREE_INITIALIZERS),
            opset_import: proto.opset_import.clone(),
            functions: proto.functions.clone(),
            graph: Some(part),
            ..ModelProto::default()
        })
    }

    /// Adds the constants among the values that a part reads.
    fn add_constants(&self, graph: &GraphProto, read: &HashSet<String>, part: &mut GraphProto) -> Result<()> {
        let own = graph.initializer.iter().filter(|tensor| read.contains(&tensor.name));
        part.initializer.extend(own.cloned());
        let name = |values: &Option<TensorProto>| values.as_ref().is_some_and(|own| read.contains(&own.name));
        let sparse = graph.sparse_initializer.iter().filter(|tensor| name(&tensor.values));
        part.sparse_initializer.extend(sparse.cloned());
        let there: HashSet<&String> = part.initializer.iter().map(|tensor| &tensor.name).collect();
        let mut missing: Vec<&String> = read.iter().filter(|name| !there.contains(name)).collect();
        missing.sort_unstable();
        for name in missing {
            if let Some(value) = self.known.get(name) {
                part.initializer.push(tensor_of(name, value)?);
            }
        }
        Ok(())
    }

    /// Takes the cuts at which a part would have a value that workers can take.
    fn cut(&mut self, graph: &TypedModel, labels: &Labels) {
        for (name, position) in &self.wiring.cuts {
            let fact = labels.get(name).and_then(|outlet| graph.outlet_fact(*outlet).ok());
            if let Some(array) = fact.and_then(array_of) {
                self.cuts.push(Cut { name: name.clone(), array });
                self.ends.push(*position);
            }
        }
    }

    /// Finds the piece of each layer. Nodes on a path are computed before a cut or after it in every order.
    fn place_layers(&mut self, graph: &TypedModel, labels: &Labels) -> Result<()> {
        let order = guarded(&self.name, || graph.eval_order())?;
        let places: HashMap<usize, usize> =
            order.into_iter().enumerate().map(|(at, node)| (node, at)).collect();
        let place = |node: usize| places.get(&node).copied();
        let cuts: Vec<usize> = self
            .cuts
            .iter()
            .map(|cut| labels.get(&cut.name).and_then(|outlet| place(outlet.node)).unwrap_or_default())
            .collect();
        let mut last = 0;
        for layer in layers(&self.name, graph)? {
            let at = layer.found.ok().and_then(|found| place(found.node));
            last = at.map_or(last, |at| cuts.iter().filter(|cut| **cut < at).count());
            self.layers.push((layer.name, last));
        }
        Ok(())
    }
}

/// The declaration of an array called `name`.
pub(super) fn declared(name: &str, array: &PartArray) -> ValueInfoProto {
    let elem_type = match array.dtype {
        DType::F32 => F32,
        DType::F64 => F64,
    };
    let tensor = type_proto::Tensor { elem_type, shape: None };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    let value = ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() };
    with_shape(&value, &array.shape)
}

/// The same declaration with another shape.
fn with_shape(value: &ValueInfoProto, shape: &[usize]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let mut value = value.clone();
    let tensor = value.r#type.as_mut().and_then(|own| own.value.as_mut());
    if let Some(type_proto::Value::TensorType(tensor)) = tensor {
        let size = |size: &usize| Dimension {
            value: Some(dimension::Value::DimValue(i64::try_from(*size).unwrap_or(i64::MAX))),
            ..Dimension::default()
        };
        tensor.shape = Some(TensorShapeProto { dim: shape.iter().map(size).collect() });
    }
    value
}

/// A tensor as part of a file.
fn tensor_of(name: &str, tensor: &TractTensor) -> Result<TensorProto> {
    macro_rules! bytes {
        ($array:expr) => {
            $array.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
        };
    }
    let tensor = Tensor::from_model(name, tensor)?;
    let (data_type, raw_data) = match &tensor {
        Tensor::F32(array) => (F32, bytes!(array)),
        Tensor::U8(array) => (2, bytes!(array)),
        Tensor::I8(array) => (3, bytes!(array)),
        Tensor::U16(array) => (4, bytes!(array)),
        Tensor::I16(array) => (5, bytes!(array)),
        Tensor::I32(array) => (6, bytes!(array)),
        Tensor::I64(array) => (7, bytes!(array)),
        Tensor::Bool(array) => (9, array.iter().map(|value| u8::from(*value)).collect()),
        Tensor::F16(array) => (10, bytes!(array)),
        Tensor::F64(array) => (F64, bytes!(array)),
        Tensor::U32(array) => (12, bytes!(array)),
        Tensor::U64(array) => (13, bytes!(array)),
        Tensor::BF16(array) => (16, bytes!(array)),
    };
    let dims = tensor.shape().iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
    Ok(TensorProto { name: name.to_owned(), dims, data_type, raw_data, ..TensorProto::default() })
}
