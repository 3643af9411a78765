//! Inspects an ONNX file: what it holds, and every reason why it cannot run.
//!
//! Relevant if you want to know whether a file runs before you have workers or data, or what to change in one that does
//! not. The checks are those of [`Model::load`](super::Model::load) and [`Model::prepare`](super::Model::prepare), which
//! end with the first reason. The translation to a graph of all types and shapes reports one reason, the first; it takes
//! place only if nothing was found before.
//!
//! Invariant: an inspection says that a file runs exactly if it can be loaded, and prepared for the given and assumed
//! shapes on workers that support its types. It reserves no more memory than loading does.

use std::collections::HashMap;
use std::path::Path;

use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};
use tract_onnx::tract_core::internal::{OutletId, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::konst::Const;

use super::conv::ConvOp;
use super::examine::{is_known, operator};
use super::filters::flaw;
use super::find::{Layer, LayerOp, layers};
use super::findings::{Findings, ReasonKind};
use super::functions;
use super::guard::guarded;
use super::inspection::{AssumedShape, AxisSize, InputShape, InspectedLayer, Inspection};
use super::load::Model;
use super::memory::ModelMemory;
use super::options::{GemmChoice, ModelOptions};
use super::outputs::infos;
use super::place::{of_layer, place};
use super::prepare::replace;
use super::read::{admitted, framework, message};
use super::runnable::Program;
use super::survey;
use super::transpose::TransposeOp;
use crate::error::{Error, Result};
use crate::files::Input;
use crate::memory;
use crate::planner::{Rates, Way};

/// Number of workers for which [`InspectedLayer::coded`] holds, with the default number of stragglers.
const WORKERS: usize = 6;
/// Maximum number of unknown operators inside branches and loops that are listed.
const MOST_INNER: usize = 100;

impl Inspection {
    /// Inspects the file at `path`, with these shapes of its inputs. The first axis of an input is taken as 1 if it is
    /// the only one without a size.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read; [`Error::Mismatch`] and [`Error::InvalidParameter`] for a shape that
    /// is not one of the model's inputs. A file that can be read and cannot run is no error: see
    /// [`Inspection::reasons`].
    pub fn of(path: impl AsRef<Path>, shapes: &[InputShape]) -> Result<Self> {
        let path = path.as_ref();
        let mut told = Self { file: path.display().to_string(), ..Self::default() };
        match told.read(path) {
            // Says nothing about the model.
            Err(error @ (Error::File { .. } | Error::Io { .. })) => Err(error),
            read => told.told(read, path, shapes),
        }
    }

    /// Reads the message of the file, and its size in bytes.
    fn read(&mut self, path: &Path) -> Result<(Onnx, ModelProto, u64)> {
        let mut file = Input::open(path)?;
        self.file_bytes = file.length().unwrap_or(0);
        let length = admitted(&self.file, &mut file)?;
        let onnx = framework();
        let (proto, size) = message(&self.file, &onnx, &mut file, length)?;
        Ok((onnx, proto, size))
    }

    /// The inspection of what was read.
    fn told(
        mut self,
        read: Result<(Onnx, ModelProto, u64)>,
        path: &Path,
        shapes: &[InputShape],
    ) -> Result<Self> {
        let mut findings = Findings::default();
        let mut inner = Vec::new();
        let of_file = |error| (ReasonKind::File, error);
        let loaded = read
            .map_err(of_file)
            .and_then(|(onnx, proto, size)| self.load(onnx, proto, (size, path), &mut findings, &mut inner));
        match loaded {
            Ok(model) => self.model(model, shapes, &mut findings)?,
            // Known already if it is the first reason that the checks found.
            Err((kind, error)) => findings.error(&self.file, kind, error),
        }
        // A branch that never runs may have operators that cannot be run.
        if !findings.is_empty() && !inner.is_empty() {
            self.inner_operators(&inner, &mut findings);
        }
        self.runs = findings.is_empty();
        (self.reasons, self.reasons_left_out) = findings.into_reasons();
        self.explain_layers();
        Ok(self)
    }

    /// Surveys the message of the file, and loads the model. `inner` gets unknown operators of branches and loops.
    fn load(
        &mut self,
        onnx: Onnx,
        mut proto: ModelProto,
        (size, path): (u64, &Path),
        findings: &mut Findings,
        inner: &mut Vec<NodeProto>,
    ) -> Result<Model, (ReasonKind, Error)> {
        self.file_bytes = size;
        survey::survey(&mut proto, &onnx, path, self);
        if !proto.functions.is_empty() {
            match functions::inline(&mut proto) {
                Ok(()) => survey::graph(&mut proto, &onnx, path, self),
                Err(why) => findings.refuse(&self.file, ReasonKind::Graph, &why, None),
            }
            // What is left of a graph whose functions cannot be replaced would give false reasons.
            findings.ended().map_err(|error| (ReasonKind::Graph, error))?;
        }
        for node in proto.graph.iter().flat_map(|graph| &graph.node) {
            inner_unknown(node, &onnx, inner);
        }
        let model = Model::examined(self.file.clone(), onnx, proto, (size, Some(path)), findings);
        // Besides what the checks found, which is known already.
        model.map_err(|error| (ReasonKind::Node, error))
    }

    fn inner_operators(&self, inner: &[NodeProto], findings: &mut Findings) {
        let mut names: Vec<String> = inner.iter().map(operator).collect();
        names.sort_unstable();
        names.dedup();
        let help = "export the model with other operators";
        let why =
            format!("uses operators in branches or loops that cannot be run: {}: {help}", names.join(", "));
        findings.refuse(&self.file, ReasonKind::Operator, &why, Some(help));
        findings.of_nodes(inner);
    }

    /// Examines a loaded model with these shapes of its inputs.
    fn model(&mut self, mut model: Model, shapes: &[InputShape], findings: &mut Findings) -> Result<()> {
        for InputShape { input, sizes } in shapes {
            let input = match (input, model.inputs()) {
                (Some(input), _) => input.clone(),
                (None, [only]) => only.name.clone(),
                (None, inputs) => {
                    let inputs: Vec<String> =
                        inputs.iter().map(|i| format!("{} {}", i.name, i.described)).collect();
                    let help = format!("name the input; the model has {}", inputs.join(", "));
                    return Err(Error::invalid("shape without the name of its input", &sizes[..], help));
                }
            };
            model = model.with_input_shape(&input, sizes)?;
        }
        self.widened = model.widened().map(|widened| widened.dtypes).unwrap_or_default();
        for input in model.inputs().to_vec() {
            match input.shape.as_deref() {
                Some([None, rest @ ..]) if rest.iter().all(Option::is_some) => {
                    let sizes: Vec<usize> =
                        std::iter::once(1).chain(rest.iter().copied().flatten()).collect();
                    // A size of zero is refused below.
                    if !sizes.contains(&0) {
                        model = model.with_input_shape(&input.name, &sizes)?;
                        self.assumed.push(AssumedShape { input: input.name, sizes });
                    }
                }
                Some(sizes) if sizes.iter().all(Option::is_some) => {}
                _ => self.unchecked.push(input.name),
            }
        }
        if self.unchecked.is_empty()
            && let Err(error) = self.graph(&model, findings)
        {
            findings.error(&self.file, ReasonKind::Shape, error);
        }
        // In the order of `prepare`.
        for index in 0..model.inputs().len() {
            if let Err(error) = model.input_type(index) {
                findings.error(&self.file, ReasonKind::Type, error);
            }
        }
        Ok(())
    }

    /// Describes the graph of a model whose shapes are known, and goes through the steps of
    /// [`Model::prepare`](super::Model::prepare) up to the workers.
    fn graph(&mut self, model: &Model, findings: &mut Findings) -> Result<()> {
        let mut graph = model.typed()?;
        let found = layers(model.name(), &graph)?;
        for (port, info) in self.outputs.iter_mut().zip(infos(model, &graph)?) {
            let size = |size: &Option<usize>| size.map_or(AxisSize::Open, |s| AxisSize::Fixed(s as u64));
            if port.axes.is_none() {
                port.axes = Some(info.shape.iter().map(size).collect());
            }
            if port.dtype == "unknown" {
                info.dtype.clone_into(&mut port.dtype);
            }
        }
        let work = work_of(&graph);
        self.multiply_adds = work.values().map(|work| work.multiply_adds).sum();
        let needed = ModelMemory::of(model.name(), &graph)?;
        self.activation_bytes = activation_bytes(&graph);
        self.peak_activation_bytes = self.activation_bytes.map(|_| needed.host);
        let mut coded = Vec::new();
        for Layer { name, op, found } in found {
            let index = self.layers.iter().position(|layer| layer.name == name);
            let index = index.unwrap_or_else(|| {
                self.layers.push(InspectedLayer::named(&name, op.name()));
                self.layers.len() - 1
            });
            let layer = &mut self.layers[index];
            let placed = found.and_then(|found| {
                let options = ModelOptions { gemm: GemmChoice::On, ..ModelOptions::default() };
                let plan = place(&found, op, WORKERS, &Rates::default(), &options);
                match plan.map_err(|error| error.to_string())? {
                    plan if plan.way == Way::Local => Err(plan.why),
                    _ => Ok(found),
                }
            });
            layer.coded = Some(placed.is_ok());
            match placed {
                Ok(found) => coded.push((name, op, found)),
                Err(why) => layer.why = Some(why),
            }
        }
        for layer in &mut self.layers {
            if let Some(work) = work.get(&layer.name) {
                layer.input = work.input.clone();
                layer.output = work.output.clone();
                layer.multiply_adds = work.multiply_adds;
            }
        }
        memory::require(&format!("{}, prepared and run,", model.name()), needed.additional())?;
        for (index, (name, op, found)) in coded.iter().enumerate() {
            // Products with such numbers may stay on the host, where they are computed.
            if *op != LayerOp::Gemm
                && let Some(error) = flaw(found)?
            {
                findings.error(&self.file, ReasonKind::Node, of_layer(name, error));
                findings.of_nodes(&[named(name, op.name())]);
            }
            guarded(model.name(), || replace(&mut graph, name, found, index))?;
        }
        drop(coded);
        guarded(model.name(), || Program::of(graph)).map(drop)
    }

    /// Says why a layer is not in the graph, or why that is not known.
    fn explain_layers(&mut self) {
        let translated = self.runs && self.unchecked.is_empty();
        for layer in self.layers.iter_mut().filter(|layer| layer.coded.is_none()) {
            let why = if translated {
                layer.coded = Some(false);
                if survey::is_convolution(&layer.op) {
                    "nothing uses its output"
                } else {
                    "it is no product of data with a constant matrix"
                }
            } else if self.reasons.is_empty() {
                "the shapes of the inputs are not known"
            } else {
                "the file cannot run"
            };
            layer.why = Some(why.to_owned());
        }
    }
}

impl InspectedLayer {
    fn named(name: &str, op: &str) -> Self {
        Self {
            name: name.to_owned(),
            op: op.to_owned(),
            input: None,
            filters: None,
            output: None,
            groups: 1,
            stride: Vec::new(),
            multiply_adds: None,
            coded: None,
            why: None,
        }
    }
}

/// A node without content.
fn named(name: &str, op: &str) -> NodeProto {
    NodeProto { name: name.to_owned(), op_type: op.to_owned(), ..NodeProto::default() }
}

/// Collects the nodes with unknown operators in the graphs inside a node, without their content.
fn inner_unknown(node: &NodeProto, onnx: &Onnx, found: &mut Vec<NodeProto>) {
    let graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
    for inner in graphs.flat_map(|graph: &GraphProto| &graph.node) {
        if !is_known(inner, onnx) && found.len() < MOST_INNER {
            found.push(NodeProto {
                name: inner.name.clone(),
                op_type: inner.op_type.clone(),
                domain: inner.domain.clone(),
                output: inner.output.iter().take(1).cloned().collect(),
                ..NodeProto::default()
            });
        }
        inner_unknown(inner, onnx, found);
    }
}

/// The work of one layer.
struct Work {
    input: Option<Vec<usize>>,
    output: Option<Vec<usize>>,
    multiply_adds: Option<u64>,
}

/// The work of each convolution and product of a graph, by the name of its node.
fn work_of(graph: &TypedModel) -> HashMap<String, Work> {
    let mut all = HashMap::new();
    for node in graph.nodes() {
        let transposed = node.op_as::<TransposeOp>();
        let conv = node.op_as::<ConvOp>();
        let plain = conv.is_some() || node.op_is::<Conv>();
        let shape = |outlet: OutletId| {
            graph.outlet_fact(outlet).ok().and_then(|fact| fact.shape.as_concrete()).map(<[usize]>::to_vec)
        };
        let (input, output) =
            (node.inputs.first().copied().and_then(shape), shape(OutletId::new(node.id, 0)));
        let filters = node.inputs.get(1).copied().and_then(shape);
        let multiply_adds = match node.op_as::<EinSum>() {
            Some(product) => product_work(graph, node, product),
            None if transposed.is_some() => times(input.as_deref(), filters.as_deref()),
            None if plain => times(output.as_deref(), filters.as_deref()),
            None => continue,
        };
        let own = node.name.strip_suffix(".ab").unwrap_or(&node.name);
        let name = conv.map(ConvOp::name).or_else(|| transposed.map(TransposeOp::name)).unwrap_or(own);
        all.insert(name.to_owned(), Work { input, output, multiply_adds });
    }
    all
}

/// Multiply-adds of a convolution, where each of `elems` meets one filter (or, transposed, one slice of the filters).
fn times(elems: Option<&[usize]>, filters: Option<&[usize]>) -> Option<u64> {
    let sizes = elems?.iter().chain(filters?.get(1..)?);
    Some(sizes.fold(1u64, |product, size| product.saturating_mul(*size as u64)))
}

/// Multiply-adds of a matrix product: the product of the sizes of all its axes.
fn product_work(graph: &TypedModel, node: &TypedNode, product: &EinSum) -> Option<u64> {
    let size = |outlet: OutletId, position: usize| {
        graph.outlet_fact(outlet).ok()?.shape.as_concrete()?.get(position).copied()
    };
    product.axes.iter_all_axes().try_fold(1u64, |all, axis| {
        // A broadcast axis has size 1 in one of the inputs.
        let inputs = node.inputs.iter().zip(&axis.inputs);
        let at = inputs.flat_map(|(outlet, at)| at.iter().map(|position| size(*outlet, *position)));
        let at = at.chain(axis.outputs.iter().flatten().map(|at| size(OutletId::new(node.id, 0), *at)));
        let most = at.collect::<Option<Vec<usize>>>()?.into_iter().max().unwrap_or(1);
        Some(all.saturating_mul(most as u64))
    })
}

/// Bytes of all inputs and computed values of a graph; `None` if a size depends on data.
fn activation_bytes(graph: &TypedModel) -> Option<u64> {
    let computed = graph.nodes().iter().filter(|node| !node.op_is::<Const>());
    computed.flat_map(|node| &node.outputs).try_fold(0u64, |sum, output| {
        let shape = output.fact.shape.as_concrete()?;
        let bytes = output.fact.datum_type.size_of() as u64;
        Some(sum.saturating_add(shape.iter().fold(bytes, |all, size| all.saturating_mul(*size as u64))))
    })
}

#[cfg(test)]
mod tests;
