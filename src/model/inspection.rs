//! What an inspection of an ONNX file tells.
//!
//! Relevant if you want to read or print an [`Inspection`]. Every type serialises to the JSON of `fcdcc inspect --json`;
//! the names of the fields are stable.
//!
//! Invariant: only descriptions; no weights are kept.

use serde::Serialize;

use super::findings::Reason;

/// The content of an ONNX file, and every reason why it cannot run.
///
/// # Examples
///
/// ```
/// use fcdcc::model::Inspection;
///
/// let lenet = Inspection::of("assets/digits/lenet5.onnx", &[])?;
/// assert!(lenet.runs && lenet.reasons.is_empty());
/// assert_eq!((lenet.parameters, lenet.layers.len()), (61_706, 5));
/// // The file leaves the batch size open; the inspection took one item.
/// assert_eq!(lenet.assumed[0].sizes, [1, 1, 32, 32]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Path of the file.
    pub file: String,
    /// Its length in bytes, without external data; 0 for a stream that was not read.
    pub file_bytes: u64,
    /// Whether the file can run: `reasons` is empty. Where `unchecked` names inputs, only as far as that can be told
    /// without their shapes.
    pub runs: bool,
    /// Version of the file format; 0 if the file could not be read.
    pub ir_version: i64,
    /// Versions of the operators, for each domain.
    pub opsets: Vec<Opset>,
    /// The program that wrote the file.
    pub producer: String,
    /// The version of that program.
    pub producer_version: String,
    /// Name of the graph.
    pub graph: String,
    /// Number of functions that the file defines. Calls of them are replaced by their bodies before nodes are counted.
    pub functions: usize,
    /// The inputs that must be given, in order.
    pub inputs: Vec<Port>,
    /// The outputs, in order.
    pub outputs: Vec<Port>,
    /// Number of nodes, those of branches and loops included.
    pub nodes: usize,
    /// Operators by name, with the number of their nodes.
    pub operators: Vec<OperatorCount>,
    /// Convolutions, transposed convolutions and products with constant matrices, in the order of the file.
    pub layers: Vec<InspectedLayer>,
    /// Number of elements of all constant tensors (initializers and Constant nodes).
    pub parameters: u64,
    /// Their bytes in the types of the file, by the shapes in the file.
    pub parameter_bytes: u64,
    /// Multiply-adds of a run, in convolutions and matrix products; `None` without shapes.
    pub multiply_adds: Option<u64>,
    /// Bytes of all inputs and computed values of a run, in the types in which it computes; `None` without shapes.
    pub activation_bytes: Option<u64>,
    /// Bytes of the values that are in memory at one time, at most; `None` without shapes.
    pub peak_activation_bytes: Option<u64>,
    /// Shapes with which the file was checked where it leaves the batch size open.
    pub assumed: Vec<AssumedShape>,
    /// Inputs with other open sizes. Without these, shapes are not checked, and what depends on them is `None`.
    pub unchecked: Vec<String>,
    /// The 16-bit types that are computed in f32.
    pub widened: Vec<&'static str>,
    /// Files beside the model that hold tensors, by location.
    pub external: Vec<ExternalFile>,
    /// Every reason why the file cannot run; the first is the error with which it is refused.
    pub reasons: Vec<Reason>,
    /// Number of further reasons, beyond the 200 that are kept.
    pub reasons_left_out: usize,
}

/// A version of the operators of one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Opset {
    /// The domain; `ai.onnx` is the standard one.
    pub domain: String,
    /// Its version.
    pub version: i64,
}

/// An input or output of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type, such as `f32`, `i64` or `string`; `unknown` if the file does not give it or it is no tensor.
    pub dtype: String,
    /// Sizes of the axes; `None` if the file does not give their number.
    pub axes: Option<Vec<AxisSize>>,
}

/// The size of an axis of an input or output. Serialises to a number, a text or null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AxisSize {
    /// A fixed size.
    Fixed(u64),
    /// A size that the file leaves open under this name.
    Symbol(String),
    /// A size that the file leaves open.
    Open,
}

/// An operator and the number of its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OperatorCount {
    /// Its domain; empty for the standard one.
    pub domain: String,
    /// Its name.
    pub op: String,
    /// Number of nodes.
    pub count: usize,
    /// Whether it is known here. A node of a known operator may still have unsupported attributes or types.
    pub known: bool,
}

/// A layer of a file that may be coded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedLayer {
    /// Name of the node, as in tables and reports of a run.
    pub name: String,
    /// Its operator in the file.
    pub op: String,
    /// Shape of the data; `None` without shapes.
    pub input: Option<Vec<usize>>,
    /// Shape of the filters in the file: `[O, C/groups, kernel...]`, `[C, O/groups, kernel...]` of transposed
    /// convolutions, two sizes of a matrix. `None` if filters are computed.
    pub filters: Option<Vec<usize>>,
    /// Shape of the output; `None` without shapes.
    pub output: Option<Vec<usize>>,
    /// Groups; 1 for products.
    pub groups: u64,
    /// Stride on each spatial axis; empty for products.
    pub stride: Vec<u64>,
    /// Multiply-adds of a run; `None` without shapes.
    pub multiply_adds: Option<u64>,
    /// Whether six workers of which two may straggle can compute it as a coded layer; `None` if that is not known.
    pub coded: Option<bool>,
    /// Why it cannot be coded, or why that is not known.
    pub why: Option<String>,
}

/// The shape with which an input was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AssumedShape {
    /// Name of the input.
    pub input: String,
    /// Sizes of its axes.
    pub sizes: Vec<usize>,
}

/// A file beside the model that holds tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExternalFile {
    /// Its location, as the model has it.
    pub location: String,
    /// Its length in bytes; `None` if it is missing or may not be read.
    pub bytes: Option<u64>,
    /// Number of tensors in it.
    pub tensors: usize,
    /// Bytes of these tensors, by their shapes.
    pub tensor_bytes: u64,
}

/// A shape for an input whose file leaves sizes open, or in place of the shape in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// Name of the input; `None` for that of a model with one input.
    pub input: Option<String>,
    /// Sizes of the axes.
    pub sizes: Vec<usize>,
}
