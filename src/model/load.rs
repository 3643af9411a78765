//! Loads an ONNX file as a graph with named inputs and outputs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::InferenceModel;
use tract_onnx::tract_core::internal::{DatumType, SpecialOps, Tensor as TractTensor, TypedModel};
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact};

use super::examine::{Examined, examine};
use super::find::LayerOp;
use super::findings::Findings;
use super::guard::{guarded, one_line, refused};
use super::half::{self, Half, Widened};
use super::lower::{Labels, labelled};
use super::origin::Origin;
use super::read::{admitted, cause, framework, message, register};
use super::round::HalfType;
use super::tensor::{Tensor, dtype_name};
use super::view::Given;
use super::{branch, loops};
use crate::error::{Error, Message, Parameter, Result};
use crate::files::Input;

/// Maximum size of an array of a model: far beyond the memory of a machine, so only absurd sizes are rejected early.
const MOST_BYTES: usize = 1 << 40;

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
    /// Inputs whose shapes contradict the file, with both shapes.
    overridden: Vec<String>,
    /// Where the file can be read again.
    origin: Origin,
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
        let length = admitted(&name, &mut file)?;
        let origin = Origin::of_file(path);
        Self::parse(name, &mut file, length, Some(path)).map(|model| Self { origin, ..model })
    }

    /// Parses an ONNX model held in memory, called `name` in messages.
    ///
    /// # Errors
    /// Those of [`Model::load`] except for reading; also when the model has external data files.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        Self::parse(name.into(), &mut rest, Some(bytes.len() as u64), None)
    }

    /// As [`Model::from_bytes`], but keeps the bytes, so that parts can be taken out of the model
    /// ([`Model::sections`]).
    ///
    /// # Errors
    /// Those of [`Model::from_bytes`].
    pub fn from_shared(name: impl Into<String>, bytes: Arc<[u8]>) -> Result<Self> {
        Ok(Self { origin: Origin::Memory(Arc::clone(&bytes)), ..Self::from_bytes(name, &bytes)? })
    }

    /// Keeps a single copy of the data, since models can be large, and drops it once it is parsed.
    fn parse(name: String, source: &mut dyn Read, length: Option<u64>, path: Option<&Path>) -> Result<Self> {
        let onnx = framework();
        let (proto, size) = message(&name, &onnx, source, length)?;
        Self::of_proto(name, onnx, proto, size, path)
    }

    /// The model that a message of `size` bytes describes.
    pub(super) fn of_proto(
        name: String,
        onnx: Onnx,
        proto: ModelProto,
        size: u64,
        path: Option<&Path>,
    ) -> Result<Self> {
        Self::examined(name, onnx, proto, (size, path), &mut Findings::default())
    }

    /// As [`Model::of_proto`]. Every reason for a refusal is in `findings`; the error is the first.
    pub(super) fn examined(
        name: String,
        mut onnx: Onnx,
        mut proto: ModelProto,
        (size, path): (u64, Option<&Path>),
        findings: &mut Findings,
    ) -> Result<Self> {
        let examined = examine(&name, &onnx, &mut proto, (size, path), findings);
        findings.ended()?;
        let Examined { mut half, outputs, convolutions, root, data_files } = examined;
        register(&mut onnx);
        half::external_tensors(&mut proto, &mut half, root.as_deref().unwrap_or_default())
            .map_err(|cause| refused(&name, &cause))?;
        let parsed = guarded(&name, || onnx.parse(&proto, root.as_deref()))?;
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
        Ok(Self {
            name,
            graph: parsed.model,
            inputs,
            outputs,
            convolutions,
            data_files,
            half,
            overridden: Vec::new(),
            origin: Origin::Gone,
        })
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

    /// Whether the graph has an `If` or a `Loop`. Where an input decides which branch runs or how often a loop does,
    /// [`Model::with_input_value`] lets the layers in it be coded.
    #[must_use]
    pub fn has_branches(&self) -> bool {
        self.graph.nodes().iter().any(|node| [branch::NAME, loops::NAME].contains(&&*node.op.name()))
    }

    /// Where the file can be read again.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The value that an input of the file was given for good.
    pub(super) fn fixed_value(&self, input: &str) -> Option<Arc<TractTensor>> {
        let name = fixed_name(input);
        let node = self.graph.nodes().iter().find(|node| node.name == name)?;
        node.outputs.first()?.fact.value.concretize()
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
    /// zero. The message has the axes of the input in the words of the file.
    pub fn with_input_shape(mut self, input: &str, shape: &[usize]) -> Result<Self> {
        let index = self.index_of(input)?;
        let info = &mut self.inputs[index];
        if let Some(own) = &info.shape
            && own.len() != shape.len()
        {
            let help = format!("give one size an axis: {} sizes, not {}", own.len(), shape.len());
            let what = format!("shape of input {input}");
            return Err(Error::mismatch(what, shape, info.described.clone(), help));
        }
        if shape.contains(&0) {
            let help = format!("every size must be at least 1; its axes are {}", info.described);
            return Err(Error::invalid(format!("shape of input {input}"), shape, help));
        }
        if !info.admits(shape) {
            let own = format!("{} {shape:?} where the file has {}", info.name, info.described);
            self.overridden.push(own);
        }
        let fact = guarded(&self.name, || {
            let fact = self.graph.input_fact(index)?.clone();
            self.graph.set_input_fact(index, fact.with_shape(shape.to_vec()))?;
            Ok(self.graph.input_fact(index)?.clone())
        })?;
        *info = describe(input, &fact, self.half.inputs.get(input));
        Ok(self)
    }

    /// Fixes the value of an input: it becomes a constant of the graph, and [`Model::inputs`] no longer has it. Needed for
    /// inputs that hold sizes, axes or other parameters on which shapes depend, since every shape must be known when a model
    /// is prepared.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an unknown name, another shape, or values that the input's type does not have.
    pub fn with_input_value(mut self, input: &str, value: &Tensor) -> Result<Self> {
        let index = self.index_of(input)?;
        let info = &self.inputs[index];
        if !info.admits(value.shape()) {
            let help = "give a value of the input's shape";
            let what = format!("shape of input {input}");
            return Err(Error::mismatch(what, value.shape(), info.described.clone(), help));
        }
        let constant = match self.half.inputs.get(input) {
            Some(half) => Given::rounded(&value.into(), input, *half)?.into_tensor(),
            None => value.for_model(input, self.input_type(index)?)?,
        };
        guarded(&self.name, || {
            let outlet = self.graph.input_outlets()?[index];
            let constant = self.graph.add_const(fixed_name(input), constant)?;
            for inlet in self.graph.node(outlet.node).outputs[outlet.slot].successors.clone() {
                self.graph.add_edge(constant, inlet)?;
            }
            self.graph.inputs.retain(|own| *own != outlet);
            self.graph.outputs.iter_mut().filter(|own| **own == outlet).for_each(|own| *own = constant);
            Ok(())
        })?;
        self.inputs.remove(index);
        Ok(self)
    }

    /// The index of the input called `name`.
    fn index_of(&self, name: &str) -> Result<usize> {
        self.inputs.iter().position(|own| own.name == name).ok_or_else(|| {
            let own: Vec<String> =
                self.inputs.iter().map(|i| format!("{} {}", i.name, i.described)).collect();
            Error::mismatch("input", name, own.join(" or "), "name an input of the model")
        })
    }

    /// The graph with all types and shapes inferred.
    pub(super) fn typed(&self) -> Result<TypedModel> {
        self.labelled().map(|(graph, _)| graph)
    }

    /// As [`Model::typed`], with the outlet of each value that the file names.
    pub(super) fn labelled(&self) -> Result<(TypedModel, Labels)> {
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
        let (typed, labels) = guarded(&self.name, || labelled(self.graph.clone())).map_err(|e| {
            let with = match self.overridden.join(", ") {
                none if none.is_empty() => none,
                given => format!(" (with {given})"),
            };
            let cause = format!("its operators and shapes do not fit together{with}: {}", cause(&e));
            refused(&self.name, &cause)
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
        Ok((typed, labels))
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

/// The name of the constant that an input becomes.
fn fixed_name(input: &str) -> String {
    format!("value of {input}")
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
