//! Deformable convolution: sampling the input at positions that are data, then an ordinary convolution.
//!
//! [`rewrite`] turns a `DeformConv` into two operators. The first one samples every element of every kernel position
//! ([`Sampling`]); it stays on this machine, because its positions depend on data. The second one is a convolution with a
//! kernel of one element over channels times positions, which is coded like any other.
//!
//! Invariant: the convolution has the name of the node and makes its output, so reports name it as the file does.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{Datum, DatumType, PlainView, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, OutletId, StaticName, TValue, TVec,
    Tensor, ToDim, TypedFact, TypedModel, TypedOp, as_op, bail, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::{attribute, called, is_standard};
use super::nodes::Nodes;
use crate::array::Element;
use crate::ops::Sampling;

/// The operator that is rewritten.
pub(super) const NAME: &str = "DeformConv";

/// The name of the sampling operator; it cannot occur in a file.
pub(super) const SAMPLING: &str = "Deformable sampling";

/// Whether a node is rewritten here.
pub(super) fn takes(node: &NodeProto) -> bool {
    node.op_type == NAME && is_standard(node)
}

/// Adds the nodes that stand for a deformable convolution.
///
/// # Errors
/// One line, for a node that lacks an input or its output.
pub(super) fn rewrite(mut node: NodeProto, nodes: &mut Nodes) -> Result<(), String> {
    let input = |slot: usize| node.input.get(slot).filter(|name| !name.is_empty()).cloned();
    let (Some(data), Some(filters), Some(offsets), 1) = (input(0), input(1), input(2), node.output.len())
    else {
        return Err(format!(
            "{}: it has {} inputs and {} outputs: give data, filters and offsets, and one output",
            called(&node),
            node.input.len(),
            node.output.len()
        ));
    };
    let (bias, mask) = (input(3), input(4));
    let sampled = nodes.name("sampled");
    nodes.add(NodeProto {
        op_type: SAMPLING.to_owned(),
        // Errors name the node of the file.
        name: format!("{} (sampling)", if node.name.is_empty() { &node.output[0] } else { &node.name }),
        input: [data, filters.clone(), offsets].into_iter().chain(mask).collect(),
        output: vec![sampled.clone()],
        attribute: node.attribute.clone(),
        ..NodeProto::default()
    });
    let filters = nodes.reshaped(&filters, Some(vec![0, -1, 1, 1]));
    "Conv".clone_into(&mut node.op_type);
    node.input = [sampled, filters].into_iter().chain(bias).collect();
    node.attribute.retain(|attribute| attribute.name == "group");
    nodes.add(node);
    Ok(())
}

/// The attributes of a node, each with two values; the shapes of its inputs give the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attributes {
    /// The description of the node in messages.
    node: String,
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Begins, then ends.
    pads: [usize; 4],
    kernel: Option<[usize; 2]>,
    groups: usize,
    offset_groups: usize,
}

/// The parser for tract's operator register.
///
/// # Errors
/// For attributes without meaning.
pub(super) fn parse(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let described = node.name.strip_suffix(" (sampling)").unwrap_or(&node.name);
    let described = format!("{NAME} node {described}");
    let number = |name: &str| -> TractResult<usize> {
        match attribute(node, name).map_or(1, |a| a.i) {
            value @ 1.. => Ok(usize::try_from(value)?),
            value => bail!("{described}: attribute {name} is {value}: it has to be at least 1"),
        }
    };
    let attributes = Attributes {
        stride: list(node, &described, "strides", 1)?.unwrap_or([1; 2]),
        dilation: list(node, &described, "dilations", 1)?.unwrap_or([1; 2]),
        pads: list(node, &described, "pads", 0)?.unwrap_or([0; 4]),
        kernel: list(node, &described, "kernel_shape", 1)?,
        groups: number("group")?,
        offset_groups: number("offset_group")?,
        node: described.clone(),
    };
    Ok((expand(Parsed { attributes }), vec![]))
}

/// The values of an attribute, of which none is below `least`; `None` where there are none.
fn list<const COUNT: usize>(
    node: &NodeProto,
    described: &str,
    name: &str,
    least: usize,
) -> TractResult<Option<[usize; COUNT]>> {
    let values = attribute(node, name).map_or(&[][..], |a| a.ints.as_slice());
    if values.is_empty() {
        return Ok(None);
    }
    let sizes = values.iter().map(|value| usize::try_from(*value).ok().filter(|value| *value >= least));
    match sizes.collect::<Option<Vec<_>>>().and_then(|sizes| sizes.try_into().ok()) {
        Some(sizes) => Ok(Some(sizes)),
        None => bail!(
            "{described}: attribute {name} is {values:?} where {COUNT} values of at least {least} are expected: only \
             two spatial axes are supported"
        ),
    }
}

impl Attributes {
    /// The sampling for data `[N, C, H, W]`, filters `[O, C/groups, kernel]` and the other inputs.
    fn sampling(
        &self,
        data: &[usize],
        filters: &[usize],
        offsets: &[usize],
        mask: Option<&[usize]>,
    ) -> TractResult<Sampling> {
        let node = &self.node;
        let (&[batch, channels, height, width], &[_, of_group, rows, columns]) = (data, filters) else {
            bail!(
                "{node}: its input is {data:?} and its filters are {filters:?}: only two spatial axes are supported"
            );
        };
        if self.kernel.is_some_and(|kernel| kernel != [rows, columns]) {
            bail!(
                "{node}: attribute kernel_shape is {:?} where the filters have {:?}: make them agree",
                self.kernel.unwrap_or_default(),
                [rows, columns]
            );
        }
        if of_group.checked_mul(self.groups) != Some(channels) || !channels.is_multiple_of(self.offset_groups)
        {
            bail!(
                "{node}: {channels} channels do not fit {} groups of filters with {of_group} channels and {} groups of \
                 offsets: make them agree",
                self.groups,
                self.offset_groups
            );
        }
        let mut output = [0; 2];
        for (axis, (size, kernel)) in [(height, rows), (width, columns)].into_iter().enumerate() {
            let padded = size.saturating_add(self.pads[axis]).saturating_add(self.pads[axis + 2]);
            let reach = kernel.saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1);
            if kernel == 0 || reach > padded {
                bail!(
                    "{node}: its kernel reaches over {reach} elements where the padded input has {padded} on spatial \
                     axis {axis}, so it has no output: use smaller filters or more padding"
                );
            }
            output[axis] = (padded - reach) / self.stride[axis] + 1;
        }
        let moved = self.offset_groups.saturating_mul(rows).saturating_mul(columns);
        let expected = |each: usize| [batch, moved.saturating_mul(each), output[0], output[1]];
        for (what, shape, expected) in [("offsets", Some(offsets), expected(2)), ("mask", mask, expected(1))]
        {
            if let Some(shape) = shape.filter(|shape| *shape != expected) {
                bail!(
                    "{node}: its {what} have shape {shape:?} where {expected:?} is expected: make them agree"
                );
            }
        }
        Ok(Sampling {
            channels,
            input: [height, width],
            output,
            kernel: [rows, columns],
            stride: self.stride,
            dilation: self.dilation,
            pad: [self.pads[0], self.pads[1]],
            groups: self.offset_groups,
        })
    }
}

/// A parsed node; its inputs are the data, the filters, the offsets and perhaps the mask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parsed {
    attributes: Attributes,
}

impl Expansion for Parsed {
    fn name(&self) -> StaticName {
        SAMPLING.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        for input in inputs {
            solver.equals(&input.datum_type, &outputs[0].datum_type)?;
            solver.equals(&input.rank, 4)?;
        }
        solver.equals(&outputs[0].rank, 4)?;
        solver.equals(&inputs[0].shape[0], &outputs[0].shape[0])?;
        solver.equals(&inputs[2].shape[2], &outputs[0].shape[2])?;
        solver.equals(&inputs[2].shape[3], &outputs[0].shape[3])?;
        solver.given_2(&inputs[0].shape[1], &inputs[1].shape, move |solver, channels, filters| {
            solver.equals(&outputs[0].shape[1], channels * &filters[2] * &filters[3])
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?;
        if ![f32::datum_type(), f64::datum_type()].contains(&fact.datum_type) {
            bail!("{}: its input is {:?}: use floats", self.attributes.node, fact.datum_type);
        }
        let filters = &model.outlet_fact(inputs[1])?.shape;
        let Some(filters) = filters.as_concrete().map(<[usize]>::to_vec) else {
            bail!("{}: the shape of its filters depends on data: make them constant", self.attributes.node);
        };
        let wires: TVec<OutletId> =
            inputs.iter().enumerate().filter(|(slot, _)| *slot != 1).map(|(_, wire)| *wire).collect();
        let op = SamplingOp { attributes: self.attributes.clone(), filters };
        let shapes: Vec<_> = wires.iter().map(|wire| model.outlet_fact(*wire)).collect::<TractResult<_>>()?;
        let shapes: Option<Vec<_>> = shapes.iter().map(|fact| fact.shape.as_concrete()).collect();
        if let Some(shapes) = shapes {
            op.attributes.sampling(shapes[0], &op.filters, shapes[1], shapes.get(2).copied())?;
        }
        model.wire_node(prefix, op, &wires)
    }
}

/// Inputs are the data `[N, C, H, W]`, the offsets and perhaps the mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SamplingOp {
    attributes: Attributes,
    /// The shape of the filters.
    filters: Vec<usize>,
}

impl SamplingOp {
    fn compute<T: Element + Datum>(&self, inputs: &[TValue]) -> TractResult<Tensor> {
        let [data, offsets, mask @ ..] = inputs else {
            bail!("{}: inputs are missing", self.attributes.node)
        };
        let shape = mask.first().map(|mask| mask.shape());
        let sampling = self.attributes.sampling(data.shape(), &self.filters, offsets.shape(), shape)?;
        let [rows, columns] = sampling.output;
        let channels = sampling.channels * sampling.kernel[0] * sampling.kernel[1];
        let shape = vec![data.shape()[0], channels, rows, columns];
        let mut output = vec![T::default(); shape.iter().product()];
        let mask = mask.first().map(|mask| mask.try_as_plain_ram()).transpose()?;
        let mask = mask.as_ref().map(PlainView::as_slice::<T>).transpose()?;
        let (data, offsets) = (data.try_as_plain_ram()?, offsets.try_as_plain_ram()?);
        sampling.run(data.as_slice::<T>()?, offsets.as_slice::<T>()?, mask, &mut output);
        Ok(ndarray::ArrayD::from_shape_vec(shape, output)?.into_tensor())
    }
}

impl Op for SamplingOp {
    fn name(&self) -> StaticName {
        SAMPLING.into()
    }

    op_as_typed_op!();
}

impl EvalOp for SamplingOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let output = match inputs.first().map(|data| data.datum_type()) {
            Some(DatumType::F64) => self.compute::<f64>(&inputs)?,
            _ => self.compute::<f32>(&inputs)?,
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for SamplingOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let ([data, offsets, ..], [_, _, rows, columns]) = (inputs, self.filters.as_slice()) else {
            bail!("{}: inputs are missing", self.attributes.node)
        };
        let channels = data.shape[1].clone() * rows.to_dim() * columns.to_dim();
        let shape = [data.shape[0].clone(), channels, offsets.shape[2].clone(), offsets.shape[3].clone()];
        Ok(tvec!(data.datum_type.fact(&shape)))
    }

    as_op!();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        Attributes {
            node: "DeformConv node y".to_owned(),
            stride: [1, 2],
            dilation: [1, 1],
            pads: [1, 0, 1, 0],
            kernel: None,
            groups: 2,
            offset_groups: 1,
        }
    }

    #[test]
    fn shapes_that_disagree_are_refused_with_both_sides() {
        let (data, filters) = ([2, 4, 5, 7], [6, 2, 3, 3]);
        let (offsets, mask) = ([2, 18, 5, 3], [2, 9, 5, 3]);
        let given = attributes();
        let sampling = given.sampling(&data, &filters, &offsets, Some(&mask)).unwrap();
        assert_eq!((sampling.output, sampling.kernel, sampling.pad), ([5, 3], [3, 3], [1, 0]));
        let why =
            |given: &Attributes, data: &[usize], filters: &[usize], offsets: &[usize], mask: &[usize]| {
                given.sampling(data, filters, offsets, Some(mask)).unwrap_err().to_string()
            };
        for (message, parts) in [
            (why(&given, &data[..3], &filters, &offsets, &mask), vec!["[2, 4, 5]", "two spatial axes"]),
            (why(&given, &[2, 5, 5, 7], &filters, &offsets, &mask), vec!["5 channels", "2 groups"]),
            (
                why(&given, &data, &filters, &[2, 18, 5, 4], &mask),
                vec!["offsets", "[2, 18, 5, 4]", "[2, 18, 5, 3]"],
            ),
            (why(&given, &data, &filters, &offsets, &[2, 18, 5, 3]), vec!["mask", "[2, 9, 5, 3]"]),
            (why(&given, &[2, 4, 5, 2], &filters, &offsets, &mask), vec!["reaches over 3", "has 2"]),
            (
                why(&Attributes { kernel: Some([1, 3]), ..given.clone() }, &data, &filters, &offsets, &mask),
                vec!["kernel_shape", "[1, 3]", "[3, 3]"],
            ),
            (
                why(&Attributes { offset_groups: 3, ..given.clone() }, &data, &filters, &offsets, &mask),
                vec!["3 groups of offsets"],
            ),
        ] {
            assert!(message.starts_with("DeformConv node y: "), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
