//! Loads an ONNX file as a graph with named inputs and outputs.

use std::collections::HashSet;
use std::io::{Read, Take};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto};
use tract_onnx::prelude::{Framework, InferenceModel};
use tract_onnx::tract_core::internal::{DatumType, TypedModel};
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact};

use super::external::{self, External};
use super::find::LayerOp;
use super::guard::{guarded, one_line, refused};
use super::half::{self, Half, Widened};
use super::lower::lower;
use super::round::{self, HalfType};
use super::tensor::dtype_name;
use super::{check, functions, quantised, resize, tidy, transpose, upsample, whole};
use crate::error::{Error, Message, Parameter, Result};
use crate::files::Input;
use crate::memory;

/// Maximum size of an array of a model: far beyond the memory of a machine, so only absurd sizes are rejected early.
const MOST_BYTES: usize = 1 << 40;
/// Maximum size of a model file, which is the limit of its format.
const MOST_FILE_BYTES: u64 = 1 << 31;

/// A parsed ONNX model; nothing is computed yet.
///
/// # Examples
///
/// ```
/// use fcdcc::Model;
///
/// let model = Model::load("assets/digits/lenet5.onnx")?;
/// assert_eq!(model.inputs()[0].name, "image");
/// // The file leaves the batch size open.
/// assert_eq!(model.inputs()[0].fixed_shape(), None);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// use fcdcc::{Error, Model};
///
/// let error = Model::from_bytes("empty.onnx", &[0]).err();
/// assert!(matches!(error, Some(Error::Model { .. })));
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    name: String,
    graph: InferenceModel,
    inputs: Vec<InputInfo>,
    outputs: Vec<String>,
    /// Names and operators of the Conv and ConvTranspose nodes.
    convolutions: Vec<(String, LayerOp)>,
    /// The external files that tensors were read from.
    data_files: Vec<PathBuf>,
    /// What the file has in 16 bits.
    half: Half,
}

/// One input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputInfo {
    /// Its name in the file.
    pub name: String,
    /// Element type in the file: `f32`, `i64` and so on. `f16` and `bf16` are computed in f32; data of other floats are
    /// rounded to them.
    pub dtype: String,
    /// Sizes of the axes, `None` for a size that the file leaves open; `None` as a whole if even the number of axes is
    /// open.
    pub shape: Option<Vec<Option<usize>>>,
    /// The shape in the words of the file, such as `[batch, 3, 224, 224]`.
    pub described: String,
}

impl InputInfo {
    /// The shape, if every size is known.
    #[must_use]
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().copied().collect()
    }

    /// Whether data of this shape match the file.
    #[must_use]
    pub fn admits(&self, shape: &[usize]) -> bool {
        self.shape.as_ref().is_none_or(|own| {
            own.len() == shape.len() && own.iter().zip(shape).all(|(o, s)| o.is_none_or(|o| o == *s))
        })
    }
}

impl Model {
    /// Reads and parses an ONNX file. External data files must be in its folder; links there may also lead to the
    /// `blobs` of a cache beside it (Hugging Face).
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, [`Error::Model`] when it is not an ONNX model, is damaged, or uses an
    /// unsupported operator; [`Error::Memory`] when it does not fit into the memory of this machine.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let mut file = Input::open(path)?;
        // No message begins with a zero byte, and endless files such as /dev/zero often do.
        if file.head(1)?.first() == Some(&0) {
            return Err(refused(&name, "is not an ONNX model: it begins with a zero byte"));
        }
        let length = file.length();
        if let Some(length) = length.filter(|length| *length > MOST_FILE_BYTES) {
            return Err(too_long(&name, &format!("has {length} bytes")));
        }
        // The data are in memory twice for a while: as file contents, and as tensors.
        memory::require(&format!("reading {name}"), length.unwrap_or(0).saturating_mul(2))?;
        Self::parse(name, &mut file, length, Some(path))
    }

    /// Parses an ONNX model held in memory, called `name` in messages.
    ///
    /// # Errors
    /// Those of [`Model::load`] except for reading; also when the model has external data files.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        Self::parse(name.into(), &mut rest, Some(bytes.len() as u64), None)
    }

    /// Keeps a single copy of the data, since models can be large, and drops it once it is parsed.
    fn parse(name: String, source: &mut dyn Read, length: Option<u64>, path: Option<&Path>) -> Result<Self> {
        // Value hints in the file may use symbolic sizes; here every size becomes a number.
        let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
        onnx.provider = Arc::new(external::Resolver);
        let mut source = Source { bytes: source.take(MOST_FILE_BYTES + 1), length };
        let proto = guarded(&name, || onnx.proto_model_for_read(&mut source));
        let size = MOST_FILE_BYTES + 1 - source.bytes.limit();
        if size > MOST_FILE_BYTES {
            return Err(too_long(&name, "goes on"));
        }
        let proto = proto.map_err(|e| {
            refused(&name, &format!("is not an ONNX model, or is damaged ({size} bytes): {}", cause(&e)))
        })?;
        Self::of_proto(name, onnx, proto, size, path)
    }

    /// The model that a message of `size` bytes describes.
    pub(super) fn of_proto(
        name: String,
        mut onnx: Onnx,
        mut proto: ModelProto,
        size: u64,
        path: Option<&Path>,
    ) -> Result<Self> {
        functions::inline(&mut proto).map_err(|why| refused(&name, &why))?;
        let opset = opset(&proto);
        let Some(graph) = proto.graph.as_mut().filter(|g| !g.node.is_empty()) else {
            return Err(refused(
                &name,
                &format!("is not an ONNX model: its {size} bytes hold no graph of operators"),
            ));
        };
        let unknown = unknown_operators(graph, &onnx);
        if !unknown.is_empty() {
            let which = unknown.join(", ");
            let help = "export the model with other operators";
            return Err(refused(&name, &format!("uses operators that cannot be run: {which}: {help}")));
        }
        memory::require(&format!("reading the data beside {name}"), external_bytes(graph))?;
        let mut half = half::widen(&mut proto).map_err(|why| refused(&name, &why))?;
        let graph = proto.graph.get_or_insert_default();
        check::graph(graph, opset)
            .and_then(|()| {
                quantised::graph(graph);
                tidy::graph(graph, opset)
            })
            .map_err(|why| refused(&name, &why))?;
        register(&mut onnx);
        let made = graph.node.iter().flat_map(|n| &n.output).chain(graph.initializer.iter().map(|i| &i.name));
        let defined: HashSet<&String> = made.chain(graph.input.iter().map(|i| &i.name)).collect();
        if let Some(output) = graph.output.iter().find(|o| !defined.contains(&o.name)) {
            let cause = format!("nothing in it computes its output {}: export it again", output.name);
            return Err(refused(&name, &cause));
        }
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        // After `tidy`, since layers use its names.
        let convolutions = convolutions(graph);
        let external = external::settle(&mut proto, path).map_err(|cause| refused(&name, &cause))?;
        let root = external.as_ref().map(|external| external.root.as_str());
        half::external_tensors(&mut proto, &mut half, root.unwrap_or_default())
            .map_err(|cause| refused(&name, &cause))?;
        let parsed = guarded(&name, || onnx.parse(&proto, root))?;
        drop(proto);
        if !parsed.unresolved_inputs.is_empty() {
            let which = parsed.unresolved_inputs.join(", ");
            return Err(refused(
                &name,
                &format!("uses values that nothing in it defines: {which}: export it again"),
            ));
        }
        let inputs = guarded(&name, || {
            let ids = parsed.model.input_outlets()?;
            ids.iter()
                .map(|id| {
                    let name = &parsed.model.node(id.node).name;
                    Ok(describe(name, parsed.model.outlet_fact(*id)?, half.inputs.get(name)))
                })
                .collect()
        })?;
        let data_files = external.map_or_else(Vec::new, |External { files, .. }| files);
        Ok(Self { name, graph: parsed.model, inputs, outputs, convolutions, data_files, half })
    }

    /// Path or name of the model.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inputs of the model, in order.
    #[must_use]
    pub fn inputs(&self) -> &[InputInfo] {
        &self.inputs
    }

    /// Names of the outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// The external files that tensors were read from, with links resolved.
    #[must_use]
    pub fn data_files(&self) -> &[PathBuf] {
        &self.data_files
    }

    /// What the file has in 16 bits and is computed in f32; `None` for a model without 16-bit floats.
    #[must_use]
    pub fn widened(&self) -> Option<Widened> {
        self.half.widened()
    }

    /// The 16-bit types of inputs and outputs.
    pub(super) fn half(&self) -> &Half {
        &self.half
    }

    /// Names and operators of the Conv and ConvTranspose nodes of the file; a node without a name has that of its output.
    pub(super) fn convolutions(&self) -> &[(String, LayerOp)] {
        &self.convolutions
    }

    /// Sets the shape of an input. Needed for sizes that the file leaves open; overrides the shape in the file
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an unknown name or a wrong number of axes, [`Error::InvalidParameter`] for a size of
    /// zero.
    pub fn with_input_shape(mut self, input: &str, shape: &[usize]) -> Result<Self> {
        let names: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
        let Some(index) = names.iter().position(|name| *name == input) else {
            return Err(Error::mismatch("input", input, names.join(" or "), "name an input of the model"));
        };
        let info = &mut self.inputs[index];
        if let Some(own) = &info.shape
            && own.len() != shape.len()
        {
            let (got, expected) = (shape, info.described.clone());
            return Err(Error::mismatch(
                format!("shape of input {input}"),
                got,
                expected,
                "give one size an axis",
            ));
        }
        if shape.contains(&0) {
            let help = "every size must be at least 1";
            return Err(Error::invalid(format!("shape of input {input}"), shape, help));
        }
        let fact = guarded(&self.name, || {
            let fact = self.graph.input_fact(index)?.clone();
            self.graph.set_input_fact(index, fact.with_shape(shape.to_vec()))?;
            Ok(self.graph.input_fact(index)?.clone())
        })?;
        *info = describe(input, &fact, self.half.inputs.get(input));
        Ok(self)
    }

    /// The graph with all types and shapes inferred.
    pub(super) fn typed(&self) -> Result<TypedModel> {
        for input in &self.inputs {
            let Some(shape) = input.fixed_shape() else {
                let cause = one_line(&format!(
                    "input {} has shape {}, and every size must be known: give them",
                    input.name, input.described
                ));
                let how = Parameter::InputShape { input: one_line(&input.name) };
                let cause = Message::from(cause).and(" (").and(how).and(")");
                return Err(Error::Model { model: self.name.clone(), cause });
            };
            if shape.contains(&0) {
                let cause = format!("input {} has shape {shape:?}: there is nothing to compute", input.name);
                return Err(refused(&self.name, &cause));
            }
        }
        let typed = guarded(&self.name, || lower(self.graph.clone())).map_err(|e| {
            refused(&self.name, &format!("its operators and shapes do not fit together: {}", cause(&e)))
        })?;
        for (node, output) in typed.nodes().iter().flat_map(|n| n.outputs.iter().map(move |o| (n, o))) {
            // Sizes that depend on data are not known yet.
            let Some(shape) = output.fact.shape.as_concrete() else { continue };
            let bytes = shape
                .iter()
                .try_fold(output.fact.datum_type.size_of(), |product, size| product.checked_mul(*size));
            if bytes.is_none_or(|b| b > MOST_BYTES) {
                let cause = format!(
                    "{} has shape {shape:?}, more than {} GiB: give the inputs smaller shapes",
                    node.name,
                    MOST_BYTES >> 30
                );
                return Err(refused(&self.name, &cause));
            }
        }
        Ok(typed)
    }

    /// The element type of an input, as a tract type.
    pub(super) fn input_type(&self, index: usize) -> Result<DatumType> {
        let fact = guarded(&self.name, || Ok(self.graph.input_fact(index)?.clone()))?;
        let plain = |dt: &DatumType| dt.is_float() || dt.is_integer() || *dt == DatumType::Bool;
        fact.datum_type.concretize().filter(plain).ok_or_else(|| {
            let input = &self.inputs[index];
            refused(
                &self.name,
                &format!("input {} has element type {}: only numbers can be given", input.name, input.dtype),
            )
        })
    }
}

/// Operators that neither tract nor this crate has, each once.
fn unknown_operators(graph: &GraphProto, onnx: &Onnx) -> Vec<String> {
    let known = |node: &&NodeProto| onnx.op_register.0.contains_key(&node.op_type) || upsample::takes(node);
    let name = |node: &NodeProto| match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{} of domain {domain}", node.op_type),
    };
    let mut unknown: Vec<String> = graph.node.iter().filter(|node| !known(node)).map(name).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown
}

/// The version of the standard operators that a file requires.
fn opset(proto: &ModelProto) -> i64 {
    let standard = proto.opset_import.iter().find(|import| matches!(import.domain.as_str(), "" | "ai.onnx"));
    standard.map_or(0, |import| import.version)
}

/// Reads a file of bounded length into memory of exactly that length, without over-allocation.
struct Source<'a> {
    bytes: Take<&'a mut dyn Read>,
    length: Option<u64>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.bytes.read(buffer)
    }

    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        if let Some(length) = self.length.and_then(|length| usize::try_from(length).ok()) {
            buffer.try_reserve_exact(length)?;
        }
        self.bytes.read_to_end(buffer)
    }
}

fn too_long(name: &str, what: &str) -> Error {
    let cause = format!(
        "{what} where an ONNX file has at most {MOST_FILE_BYTES} bytes: keep its weights in files beside it (external data)"
    );
    refused(name, &cause)
}

/// Bytes of the external tensors, by the description in the model.
fn external_bytes(graph: &GraphProto) -> u64 {
    let external = graph.initializer.iter().filter(|tensor| {
        tensor.data_location.is_some_and(|place| place == tensor_proto::DataLocation::External as i32)
    });
    let bytes = |tensor: &TensorProto| {
        // Bytes per element by ONNX type number: bytes and booleans, then 16, 64 and 32 bits.
        let element = match tensor.data_type {
            2 | 3 | 9 => 1,
            4 | 5 | 10 | 16 => 2,
            7 | 11 | 13 => 8,
            _ => 4,
        };
        let product = |bytes: u64, size: &i64| bytes.saturating_mul(u64::try_from(*size).unwrap_or(0));
        tensor.dims.iter().fold(element, product)
    };
    external.map(bytes).fold(0, u64::saturating_add)
}

fn cause(error: &Error) -> String {
    match error {
        Error::Model { cause, .. } => cause.to_string(),
        other => other.to_string(),
    }
}

/// Names and operators of the Conv and ConvTranspose nodes.
fn convolutions(graph: &GraphProto) -> Vec<(String, LayerOp)> {
    let named = graph.node.iter().filter_map(|node| {
        let op = LayerOp::of_convolution(&node.op_type)?;
        Some((check::name_of(node)?.clone(), op))
    });
    named.collect()
}

/// Adds the operators of this crate to those of tract.
fn register(onnx: &mut Onnx) {
    onnx.op_register.insert(resize::NAME, resize::parse);
    onnx.op_register.insert(transpose::NAME, transpose::parse);
    onnx.op_register.insert(upsample::LINEAR, upsample::parse_linear);
    onnx.op_register.insert(whole::NAME, whole::parse);
    for half in [HalfType::F16, HalfType::Bf16] {
        onnx.op_register.insert(half.operator(), round::parse);
    }
}

fn describe(name: &str, fact: &InferenceFact, half: Option<&HalfType>) -> InputInfo {
    let own = || fact.datum_type.concretize().map_or_else(|| "any".to_owned(), dtype_name);
    let dtype = half.map_or_else(own, ToString::to_string);
    let dims: Vec<_> = fact.shape.dims().map(Factoid::concretize).collect();
    let words: Vec<String> =
        dims.iter().map(|dim| dim.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string)).collect();
    let sizes = dims
        .iter()
        .map(|dim| dim.as_ref().and_then(|d| d.to_i64().ok()).and_then(|d| usize::try_from(d).ok()));
    let open = fact.shape.is_open();
    InputInfo {
        name: name.to_owned(),
        dtype,
        shape: (!open).then(|| sizes.collect()),
        described: format!("[{}{}]", words.join(", "), if open { ", ..." } else { "" }),
    }
}
