//! The transposed convolution of a graph as an operator of this crate, before coding or for the host.
//!
//! tract's own operator reads `output_shape` as padding at the end of the output, where the standard distributes the
//! padding, so files are parsed here. [`find`](super::find) codes the operator as the convolution of its phases
//! ([`TransposedShape::phases`]) followed by an [`InterleaveOp`].
//!
//! Invariant: as for [`conv`](super::conv), no rewrite changes the operator. By [`Way::Definition`] it computes without
//! phases, as the reference for them.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{Datum, DatumType, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, OutletId, StaticName, TDim, TValue, TVec,
    Tensor, ToDim, TypedFact, TypedModel, TypedNode, TypedOp, args_1, as_op, bail, format_err,
    op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::{attribute, name_of, text};
use super::conv::{ConvOp, Way, each_channel, in_floats};
use super::fold::constant;
use crate::array::Element;
use crate::conv::{ConvParams, Phases, TransposedShape, conv_uncoded};
use crate::ops::Interleave;
use crate::share::threads;

/// The operator that is parsed here.
pub(super) const NAME: &str = "ConvTranspose";

/// The attributes of a node, with all values for each axis or none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attributes {
    /// The description of the node in messages.
    node: String,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    kernel: Vec<usize>,
    /// Begins, then ends.
    pads: Vec<usize>,
    output_padding: Vec<usize>,
    /// The spatial axes, or all axes.
    output_shape: Vec<usize>,
    /// Whether the output is as large as the input times the stride.
    same: bool,
    /// Whether an odd element of automatic padding is removed at the end.
    upper: bool,
    groups: usize,
}

/// The parser for tract's operator register.
///
/// # Errors
/// For attributes without meaning.
pub(super) fn parse(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let list = |name: &str| -> TractResult<Vec<usize>> {
        let values = attribute(node, name).map_or(&[][..], |a| a.ints.as_slice());
        Ok(values.iter().map(|value| usize::try_from(*value)).collect::<Result<_, _>>()?)
    };
    let auto = text(node, "auto_pad").unwrap_or("NOTSET");
    let attributes = Attributes {
        node: name_of(node).map_or_else(|| NAME.to_owned(), |name| format!("{NAME} node {name}")),
        strides: list("strides")?,
        dilations: list("dilations")?,
        kernel: list("kernel_shape")?,
        pads: list("pads")?,
        output_padding: list("output_padding")?,
        output_shape: list("output_shape")?,
        same: auto.starts_with("SAME"),
        upper: auto == "SAME_UPPER",
        groups: attribute(node, "group").map_or(Ok(1), |a| usize::try_from(a.i))?,
    };
    let has_bias = node.input.get(2).is_some_and(|name| !name.is_empty());
    Ok((expand(Parsed { attributes, has_bias }), vec![]))
}

impl Attributes {
    /// The values for each of `rank` axes: those given, or `absent`.
    fn each(&self, what: &str, given: &[usize], rank: usize, absent: usize) -> TractResult<Vec<usize>> {
        match given.len() {
            0 => Ok(vec![absent; rank]),
            len if len == rank => Ok(given.to_vec()),
            len => bail!(
                "{}: attribute {what} has {len} values where {rank} are expected: make them agree",
                self.node
            ),
        }
    }

    /// The transposed convolution of `data` `[N, C, spatial...]` with `weight` `[C, O/groups, kernel...]`.
    fn shape(&self, data: &[usize], weight: &[usize]) -> TractResult<TransposedShape> {
        let Some(rank) = data.len().checked_sub(2).filter(|_| data.len() == weight.len()) else {
            bail!(
                "{}: its input {data:?} and filters {weight:?} differ in axes: give as many for both",
                self.node
            );
        };
        let kernel = self.each("kernel_shape", &self.kernel, rank, 0)?;
        if !self.kernel.is_empty() && kernel != weight[2..] {
            bail!(
                "{}: attribute kernel_shape is {kernel:?} where the filters have {:?}: make them agree",
                self.node,
                &weight[2..]
            );
        }
        let stride = self.each("strides", &self.strides, rank, 1)?;
        let dilation = self.each("dilations", &self.dilations, rank, 1)?;
        let more = self.each("output_padding", &self.output_padding, rank, 0)?;
        let pads = self.each("pads", &self.pads, 2 * rank, 0)?;
        let wanted = match self.output_shape.len() {
            0 => None,
            len if len == rank + 2 => Some(&self.output_shape[2..]),
            _ => Some(&self.output_shape[..]),
        };
        if let Some(wanted) = wanted {
            self.each("output_shape", wanted, rank, 0)?;
        }
        let (mut begins, mut output) = (Vec::with_capacity(rank), Vec::with_capacity(rank));
        for axis in 0..rank {
            let size = data[axis + 2];
            let reach = weight[axis + 2].saturating_sub(1).saturating_mul(dilation[axis]).saturating_add(1);
            let steps = size.saturating_sub(1).saturating_mul(stride[axis]);
            let makes = steps.saturating_add(reach).saturating_add(more[axis]);
            let automatic = wanted.map(|wanted| wanted[axis]);
            let automatic = automatic.or_else(|| self.same.then(|| size.saturating_mul(stride[axis])));
            let (begin, removed) = match automatic {
                Some(size) => {
                    let removed = makes.saturating_sub(size);
                    (if self.upper { removed / 2 } else { removed.div_ceil(2) }, removed)
                }
                None => (pads[axis], pads[axis].saturating_add(pads[axis + rank])),
            };
            if removed >= makes {
                bail!(
                    "{}: its pads take {removed} of the {makes} elements it makes on spatial axis {axis}, so it has no \
                     output: use smaller pads",
                    self.node
                );
            }
            begins.push(begin);
            output.push(wanted.map_or(makes - removed, |wanted| wanted[axis]));
        }
        let params =
            ConvParams { stride, dilation, padding: [begins.clone(), begins].concat(), groups: self.groups };
        TransposedShape::new(data, weight, &params, &output)
            .map_err(|error| format_err!("{}: {error}", self.node))
    }

    /// The shape of the output for sizes some of which may depend on data; `None` where one cannot be told.
    fn output(&self, data: &[TDim], weight: &[TDim]) -> TractResult<Option<TVec<TDim>>> {
        let known = |dims: &[TDim]| {
            dims.iter().map(|dim| usize::try_from(dim.as_i64()?).ok()).collect::<Option<Vec<_>>>()
        };
        let Some(weight) = known(weight) else { return Ok(None) };
        if let Some(data) = known(data) {
            let shape = self.shape(&data, &weight)?;
            return Ok(Some(shape.output_shape().into_iter().map(|size| size.to_dim()).collect()));
        }
        // Sizes are linear in those of the input; two of them give the rule.
        let at = |size: usize| {
            let data: Vec<usize> = data
                .iter()
                .enumerate()
                .map(|(axis, dim)| match (dim.as_i64().and_then(|dim| usize::try_from(dim).ok()), axis) {
                    (Some(dim), _) => dim,
                    (None, 0) => 1,
                    (None, 1) => weight.first().copied().unwrap_or(1),
                    (None, _) => size,
                })
                .collect();
            self.shape(&data, &weight)
        };
        // Large enough that no padding takes the whole output.
        let large =
            2 + weight.iter().chain(&self.pads).fold(0usize, |sum, v| sum.saturating_add(*v)).min(1 << 20);
        let (Ok(first), Ok(second)) = (at(large), at(large + 1)) else { return Ok(None) };
        let (low, high) = (first.output_shape(), second.output_shape());
        let sizes =
            data.iter().zip(low.iter().zip(&high)).enumerate().map(|(axis, (dim, (low, high)))| {
                match (dim.as_i64(), axis) {
                    (None, 0) => Some(dim.clone()),
                    (None, 2..) => {
                        let (step, low) = (high.checked_sub(*low)?, i64::try_from(*low).ok()?);
                        let offset = low.checked_sub(i64::try_from(step.checked_mul(large)?).ok()?)?;
                        Some(dim.clone() * step + offset)
                    }
                    _ => Some(low.to_dim()),
                }
            });
        Ok(sizes.collect())
    }
}

/// A parsed node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parsed {
    attributes: Attributes,
    has_bias: bool,
}

impl Expansion for Parsed {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != 2 + usize::from(self.has_bias) || outputs.len() != 1 {
            bail!(
                "{}: it has {} inputs and {} outputs: give data and filters, and at most a bias",
                self.attributes.node,
                inputs.len(),
                outputs.len()
            );
        }
        for input in inputs {
            solver.equals(&input.datum_type, &outputs[0].datum_type)?;
        }
        solver.equals(&inputs[0].rank, &inputs[1].rank)?;
        solver.equals(&inputs[0].rank, &outputs[0].rank)?;
        solver.equals(&inputs[0].shape[0], &outputs[0].shape[0])?;
        solver.given_2(&inputs[0].shape, &inputs[1].shape, move |solver, data, weight| {
            match self.attributes.output(&data, &weight)? {
                Some(shape) => solver.equals(&outputs[0].shape, shape),
                None => Ok(()),
            }
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut wires: TVec<OutletId> = inputs.into();
        if !self.has_bias {
            let zero = Tensor::zero_scalar_dt(model.outlet_fact(inputs[0])?.datum_type)?;
            wires.push(model.add_const(format!("{prefix}.bias"), zero)?);
        }
        let op =
            TransposeOp { name: prefix.to_owned(), attributes: self.attributes.clone(), way: Way::Kernel };
        model.wire_node(prefix, op, &wires)
    }
}

/// Inputs are the data `[N, C, spatial...]`, the filters `[C, O/groups, kernel...]` and the bias, `[O]` or one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TransposeOp {
    /// The name of its node.
    name: String,
    attributes: Attributes,
    way: Way,
}

impl TransposeOp {
    /// The name of its node in the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same for a node of another name.
    pub(super) fn called(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// The transposed convolution on `data`, with resolved padding.
    pub(super) fn shape(&self, data: &[usize], weight: &[usize]) -> TractResult<TransposedShape> {
        self.attributes.shape(data, weight)
    }

    fn compute<T: Element + Datum>(
        &self,
        data: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> TractResult<Tensor> {
        let shape = self.shape(data.shape(), weight.shape())?;
        let (data, weight, bias) =
            (data.try_as_plain_ram()?, weight.try_as_plain_ram()?, bias.try_as_plain_ram()?);
        let (data, weight, bias) = (data.as_slice::<T>()?, weight.as_slice::<T>()?, bias.as_slice::<T>()?);
        let bias = each_channel(bias, shape.out_channels);
        let output = match self.way {
            Way::Definition => shape.reference(data, weight, &bias)?,
            Way::Kernel => by_phases(&shape.phases()?, data, weight, &bias)?,
        };
        Ok(ndarray::ArrayD::from_shape_vec(shape.output_shape(), output)?.into_tensor())
    }
}

/// Computes a transposed convolution on this machine, by the CPU kernel.
fn by_phases<T: Element>(phases: &Phases, data: &[T], weight: &[T], bias: &[T]) -> TractResult<Vec<T>> {
    let (conv, interleave) = (phases.conv(), phases.interleave());
    let (filters, each) = arranged(phases, weight, bias)?;
    let parts = conv_uncoded(conv, data, &filters, Some(&each), threads(), &|| false)?;
    let fill: Vec<f64> = bias.iter().map(|b| b.to_f64()).collect();
    let mut output = vec![T::default(); conv.batch * bias.len() * interleave.plane()];
    interleave.run(&parts, &fill, &mut output);
    Ok(output)
}

/// Filters and bias of the convolution of the phases.
fn arranged<T: Element>(phases: &Phases, weight: &[T], bias: &[T]) -> TractResult<(Vec<T>, Vec<T>)> {
    let (conv, count) = (phases.conv(), phases.count());
    if bias.len() * count != conv.out_channels {
        bail!("{} biases where {} were expected", bias.len(), conv.out_channels / count);
    }
    let mut filters = Vec::with_capacity(conv.weight_elems());
    for filter in 0..conv.out_channels {
        let terms = (0..conv.reduction()).map(|term| phases.source(filter, term));
        filters.extend(terms.map(|source| source.map_or(T::default(), |index| weight[index])));
    }
    Ok((filters, (0..conv.out_channels).map(|filter| bias[filter / count]).collect()))
}

/// A transposed convolution with constant filters as operators whose filters can be packed once.
pub(super) struct Parts {
    pub(super) conv: ConvOp,
    pub(super) filters: Tensor,
    pub(super) bias: Tensor,
    pub(super) interleave: Option<InterleaveOp>,
}

impl Parts {
    /// The parts of a node; `None` if it is no transposed convolution of f32 or f64, if its filters are not constant, or
    /// if a size depends on data.
    pub(super) fn of(graph: &TypedModel, node: &TypedNode) -> TractResult<Option<Self>> {
        let Some(op) = node.op_as::<TransposeOp>() else { return Ok(None) };
        let data = graph.outlet_fact(node.inputs[0])?;
        let constants = [constant(graph, node.inputs[1]), constant(graph, node.inputs[2])];
        let ([Some(weight), Some(bias)], Some(sizes)) = (constants, data.shape.as_concrete()) else {
            return Ok(None);
        };
        if weight.datum_type() != data.datum_type || bias.datum_type() != data.datum_type {
            return Ok(None);
        }
        match data.datum_type {
            DatumType::F32 => op.parts::<f32>(sizes, &weight, &bias),
            DatumType::F64 => op.parts::<f64>(sizes, &weight, &bias),
            _ => Ok(None),
        }
    }
}

impl TransposeOp {
    fn parts<T: Element + Datum>(
        &self,
        data: &[usize],
        weight: &Tensor,
        bias: &Tensor,
    ) -> TractResult<Option<Parts>> {
        let shape = self.shape(data, weight.shape())?;
        // Sizes that cannot be addressed are reported when the operator runs.
        let Ok(phases) = shape.phases() else { return Ok(None) };
        let (weight, bias) = (weight.try_as_plain_ram()?, bias.try_as_plain_ram()?);
        let bias = each_channel(bias.as_slice::<T>()?, shape.out_channels);
        let (filters, each) = arranged(&phases, weight.as_slice::<T>()?, &bias)?;
        let fill = bias.iter().map(|b| b.to_f64()).collect();
        Ok(Some(Parts {
            conv: ConvOp::of_shape(&self.name, phases.conv()),
            filters: Tensor::from_shape(&phases.conv().weight_shape(), &filters)?,
            bias: Tensor::from_shape(&[each.len()], &each)?,
            interleave: InterleaveOp::of(&shape, &phases, fill),
        }))
    }
}

impl Op for TransposeOp {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    op_as_typed_op!();
}

impl EvalOp for TransposeOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let single = |data: &_, weight: &_, bias: &_| self.compute::<f32>(data, weight, bias);
        let double = |data: &_, weight: &_, bias: &_| self.compute::<f64>(data, weight, bias);
        in_floats(inputs, single, double)
    }
}

impl TypedOp for TransposeOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [data, weight, _] = inputs else {
            bail!("a transposed convolution has three inputs, not {}", inputs.len())
        };
        match self.attributes.output(&data.shape.to_tvec(), &weight.shape.to_tvec())? {
            Some(shape) => Ok(tvec!(data.datum_type.fact(&*shape))),
            None => bail!("{}: the size of its filters or output depends on data", self.attributes.node),
        }
    }

    as_op!();
}

/// Sets the method of every transposed convolution of `graph`.
pub(super) fn compute_by(graph: &mut TypedModel, way: Way) {
    for node in graph.nodes_mut() {
        if let Some(transpose) = node.op_as_mut::<TransposeOp>() {
            transpose.way = way;
        }
    }
}

/// Makes the output of a transposed convolution of its phases, `[N, O * phases, spatial...]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct InterleaveOp {
    pub(super) interleave: Interleave,
    /// The value of elements that no tap reaches, for each of O channels.
    pub(super) fill: Vec<f64>,
    output: Vec<usize>,
}

impl Eq for InterleaveOp {}

impl InterleaveOp {
    /// The operator after the convolution of the phases of `shape`; `None` where nothing has to be moved.
    pub(super) fn of(shape: &TransposedShape, phases: &Phases, fill: Vec<f64>) -> Option<Self> {
        let interleave = phases.interleave();
        let moves = !interleave.is_identity();
        moves.then(|| Self { interleave, fill, output: shape.output_shape() })
    }

    fn compute<T: Element + Datum>(&self, phases: &Tensor) -> TractResult<Tensor> {
        let mut output = vec![T::default(); self.output.iter().product()];
        self.interleave.run(phases.try_as_plain_ram()?.as_slice::<T>()?, &self.fill, &mut output);
        Ok(ndarray::ArrayD::from_shape_vec(&self.output[..], output)?.into_tensor())
    }
}

impl Op for InterleaveOp {
    fn name(&self) -> StaticName {
        "Interleave".into()
    }

    op_as_typed_op!();
}

impl EvalOp for InterleaveOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let phases = args_1!(inputs);
        let output = match phases.datum_type() {
            DatumType::F64 => self.compute::<f64>(&phases)?,
            _ => self.compute::<f32>(&phases)?,
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for InterleaveOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [phases] = inputs else { bail!("phases are one input, not {}", inputs.len()) };
        Ok(tvec!(phases.datum_type.fact(&self.output)))
    }

    as_op!();
}
