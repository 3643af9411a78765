//! Recognises the operators of a graph that [`ops`](crate::ops) and [`conv`](crate::conv) compute.
//!
//! Invariant: an operator that is recognised computes the same function as tract's, apart from the order of additions.

use std::sync::Arc;

use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_core::internal::{AxisOp, Tensor, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::array::TypedConcat;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::nn::{DataFormat, Reduce, Reducer, Softmax as TractSoftmax, SoftmaxKind};
use tract_onnx_opl::lrn::Lrn as TractLrn;

use super::conv::{ConvOp, each_channel};
use super::find::{FilterOrder, gemm};
use super::transpose::InterleaveOp;
use super::unary::Exact;
use super::value::{Operand, Place, planned};
use crate::array::Element;
use crate::conv::{ConvKernel, Filters};
use crate::ops::{BinaryOp, Dense, Interleave, Lrn, Permutation, PoolKind, Pooling, Softmax, Unary};

/// An operator of this crate, with the sizes that it was compiled for.
pub(super) enum Operator {
    /// Steps over the first input; each has the next input as its operand.
    Chain(Vec<ChainStep>),
    Conv(Box<LocalConv>),
    Pool(Pooling),
    Lrn {
        lrn: Lrn,
        channels: usize,
        plane: usize,
    },
    /// Rows of all inputs, one after the other.
    Concat {
        outer: usize,
    },
    Permute(Permutation),
    /// The value for each channel where there is no phase.
    Interleave(Box<Interleave>, Vec<f64>),
    /// Sums of rows of this length.
    SumRows(usize),
    /// The data, then the weights.
    Dense(Dense),
    Unary(Unary),
    Softmax(Softmax),
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chain(steps) => f.debug_tuple("Chain").field(steps).finish(),
            Self::Conv(conv) => f.debug_tuple("Conv").field(conv.kernel.shape()).finish(),
            Self::Pool(pooling) => f.debug_tuple("Pool").field(pooling).finish(),
            Self::Lrn { lrn, .. } => f.debug_tuple("Lrn").field(lrn).finish(),
            Self::Concat { outer } => f.debug_tuple("Concat").field(outer).finish(),
            Self::Permute(permutation) => f.debug_tuple("Permute").field(permutation).finish(),
            Self::Interleave(interleave, _) => {
                f.debug_tuple("Interleave").field(&interleave.plane()).finish()
            }
            Self::SumRows(length) => f.debug_tuple("SumRows").field(length).finish(),
            Self::Dense(dense) => f.debug_tuple("Dense").field(dense).finish(),
            Self::Unary(function) => f.debug_tuple("Unary").field(function).finish(),
            Self::Softmax(softmax) => f.debug_tuple("Softmax").field(softmax).finish(),
        }
    }
}

/// A step of a chain, without the values of its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainStep {
    pub(super) op: BinaryOp,
    /// The number of successive elements that share a value of the operand.
    pub(super) inner: usize,
    /// Whether the operand has as many elements as the data.
    pub(super) swappable: bool,
}

impl ChainStep {
    /// The step with data and operand exchanged.
    pub(super) fn swapped(self) -> Self {
        let op = match self.op {
            BinaryOp::Sub => BinaryOp::ReverseSub,
            BinaryOp::ReverseSub => BinaryOp::Sub,
            BinaryOp::Div => BinaryOp::ReverseDiv,
            BinaryOp::ReverseDiv => BinaryOp::Div,
            same @ (BinaryOp::Add | BinaryOp::Mul | BinaryOp::Max | BinaryOp::Min) => same,
        };
        Self { op, ..self }
    }
}

/// A convolution on this machine, with packed filters.
pub(super) struct LocalConv {
    pub(super) kernel: ConvKernel,
    pub(super) filters: Packed,
}

/// Filters and bias in the type of the data.
pub(super) enum Packed {
    F32(Filters<f32>, Vec<f32>),
    F64(Filters<f64>, Vec<f64>),
}

/// Whether an operator only gives the same elements in the same order another shape.
pub(super) fn only_renames(node: &TypedNode) -> bool {
    node.op_is::<Identity>()
        || matches!(node.op_as::<AxisOp>(), Some(AxisOp::Add(_) | AxisOp::Rm(_) | AxisOp::Reshape(..)))
}

/// The operator of this crate for a node with these inputs, and the inputs in its order; `None` if there is none.
pub(super) fn operator(
    graph: &TypedModel,
    node: &TypedNode,
    inputs: &[Operand],
) -> TractResult<Option<(Operator, Vec<Operand>)>> {
    let [output] = &node.outputs[..] else { return Ok(None) };
    let (dtype, shape) = (output.fact.datum_type, output.fact.shape.as_concrete().unwrap_or_default());
    if planned(dtype).is_none() || inputs.is_empty() || inputs.iter().any(|input| input.dtype != dtype) {
        return Ok(None);
    }
    let with_all = |operator: Operator| Ok(Some((operator, inputs.to_vec())));
    let from = &inputs[0].shape;
    if let Some(op) = node.op_as::<TypedBinOp>() {
        return Ok(chain(op, dtype, shape, inputs));
    }
    if let Some(conv) = node.op_as::<ConvOp>() {
        let Some(local) = local_conv(conv, dtype, inputs)? else { return Ok(None) };
        return Ok(Some((Operator::Conv(Box::new(local)), inputs[..1].to_vec())));
    }
    if let Some(pool) = node.op_as::<MaxPool>() {
        if pool.with_index_outputs.is_none()
            && let Some(pooling) = pooling(PoolKind::Max, &pool.pool_spec, from, shape)
        {
            return with_all(Operator::Pool(pooling));
        }
    } else if let Some(pool) = node.op_as::<SumPool>() {
        let average = PoolKind::Average { include_pad: pool.count_include_pad };
        let kind = if pool.normalize { average } else { PoolKind::Sum };
        if let Some(pooling) = pooling(kind, &pool.pool_spec, from, shape) {
            return with_all(Operator::Pool(pooling));
        }
    } else if let Some(lrn) = node.op_as::<TractLrn>() {
        if from.len() >= 2 && lrn.size > 0 {
            let lrn = Lrn {
                alpha: f64::from(lrn.alpha),
                beta: f64::from(lrn.beta),
                bias: f64::from(lrn.bias),
                size: lrn.size,
            };
            return with_all(Operator::Lrn { lrn, channels: from[1], plane: from[2..].iter().product() });
        }
    } else if let Some(concat) = node.op_as::<TypedConcat>() {
        return with_all(Operator::Concat { outer: shape[..concat.axis].iter().product() });
    } else if let Some(AxisOp::Move(away, to)) = node.op_as::<AxisOp>() {
        let mut order: Vec<usize> = (0..from.len()).collect();
        let axis = order.remove(*away);
        order.insert(*to, axis);
        return with_all(Operator::Permute(Permutation::new(from, &order)));
    } else if let Some(op) = node.op_as::<InterleaveOp>() {
        return with_all(Operator::Interleave(Box::new(op.interleave.clone()), op.fill.clone()));
    } else if let Some(reduce) = node.op_as::<Reduce>() {
        let first = from.len().saturating_sub(reduce.axes.len());
        if reduce.reducer == Reducer::Sum && (first..from.len()).all(|axis| reduce.axes.contains(&axis)) {
            return with_all(Operator::SumRows(from[first..].iter().product()));
        }
    } else if let Some(function) = node.op_as::<ElementWiseOp>().and_then(Exact::function) {
        return with_all(Operator::Unary(function));
    } else if let Some(softmax) = node.op_as::<TractSoftmax>().and_then(|op| softmax(op, from)) {
        return with_all(Operator::Softmax(softmax));
    } else if let Some((dense, data, weight)) = dense(graph, node)? {
        let weights = Operand { place: Place::Constant(weight), ..inputs[1 - data].clone() };
        return Ok(Some((Operator::Dense(dense), vec![inputs[data].clone(), weights])));
    }
    Ok(None)
}

/// A product of rows of data with constant weights that [`Dense`] computes: the index of the data among the inputs, and
/// the weights.
pub(super) fn dense(
    graph: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<(Dense, usize, Arc<Tensor>)>> {
    if !node.op_is::<tract_onnx::tract_core::ops::einsum::EinSum>() {
        return Ok(None);
    }
    let Some(Ok(found)) = gemm(graph, node)? else { return Ok(None) };
    if found.shape.input_plane() != 1 {
        return Ok(None);
    }
    let (inputs, outputs) = (found.shape.reduction(), found.shape.out_channels);
    let by_inputs = matches!(found.order, FilterOrder::ByInputs);
    Ok(Some((Dense { inputs, outputs, by_inputs }, found.data, found.weight)))
}

fn chain(
    op: &TypedBinOp,
    dtype: DatumType,
    shape: &[usize],
    inputs: &[Operand],
) -> Option<(Operator, Vec<Operand>)> {
    let [a, b] = inputs else { return None };
    if op.1.is_some_and(|own| own != dtype) {
        return None;
    }
    let op = match op.0.name() {
        "Add" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        "Div" => BinaryOp::Div,
        "Max" => BinaryOp::Max,
        "Min" => BinaryOp::Min,
        _ => return None,
    };
    let step = |data: &Operand, other: &Operand| {
        let inner = inner(&other.shape, shape).filter(|_| data.shape == shape)?;
        Some(ChainStep { op, inner, swappable: other.shape == shape })
    };
    let is_constant = |operand: &Operand| matches!(operand.place, Place::Constant(_));
    match (step(a, b), step(b, a)) {
        (Some(step), other) if other.is_none() || !is_constant(a) => {
            Some((Operator::Chain(vec![step]), vec![a.clone(), b.clone()]))
        }
        (_, Some(step)) => Some((Operator::Chain(vec![step.swapped()]), vec![b.clone(), a.clone()])),
        _ => None,
    }
}

/// The number of successive elements of an array of `shape` that share a value of an operand; `None` for an operand
/// whose axes are repeated in another way.
fn inner(operand: &[usize], shape: &[usize]) -> Option<usize> {
    let wide = |size: &usize| *size != 1;
    let Some(first) = operand.iter().position(wide) else { return Some(1) };
    let end = operand.iter().rposition(wide)? + 1;
    let same = operand.len() == shape.len() && operand[first..end] == shape[first..end];
    same.then(|| shape[end..].iter().product())
}

/// A softmax over successive axes.
fn softmax(op: &TractSoftmax, from: &[usize]) -> Option<Softmax> {
    let (first, last) = (*op.axes.iter().min()?, *op.axes.iter().max()?);
    if last >= from.len()
        || !(first..=last).all(|axis| op.axes.contains(&axis))
        || op.quant_output_dt.is_some()
    {
        return None;
    }
    Some(Softmax {
        length: from[first..=last].iter().product(),
        inner: from[last + 1..].iter().product(),
        logarithm: op.kind == SoftmaxKind::LogSoftmax,
    })
}

fn pooling(kind: PoolKind, spec: &PoolSpec, from: &[usize], to: &[usize]) -> Option<Pooling> {
    let rank = spec.rank();
    if spec.data_format != DataFormat::NCHW || !(1..=2).contains(&rank) || from.len() != rank + 2 {
        return None;
    }
    let pads = spec.computed_padding(&from[2..]);
    let both = |values: &[usize], height: usize| match values {
        [width] => Some([height, *width]),
        [height, width] => Some([*height, *width]),
        _ => None,
    };
    let padded: Vec<usize> = match &spec.padding {
        PaddingSpec::ExplicitOnnxPool(before, after, true) => {
            (0..rank).map(|axis| before[axis] + from[axis + 2] + after[axis]).collect()
        }
        // No window reaches beyond the padding.
        _ => vec![usize::MAX / 2; rank],
    };
    let before: Vec<usize> = pads.iter().map(|pad| pad.pad_before).collect();
    Some(Pooling {
        kind,
        input: both(&from[2..], 1)?,
        output: both(&to[2..], 1)?,
        kernel: both(&spec.kernel_shape, 1)?,
        stride: both(&spec.strides(), 1)?,
        dilation: both(&spec.dilations(), 1)?,
        pad_before: both(&before, 0)?,
        padded: both(&padded, usize::MAX / 2)?,
    })
}

fn local_conv(conv: &ConvOp, dtype: DatumType, inputs: &[Operand]) -> TractResult<Option<LocalConv>> {
    let [data, weight, bias] = inputs else { return Ok(None) };
    let (Place::Constant(filters), Place::Constant(bias)) = (&weight.place, &bias.place) else {
        return Ok(None);
    };
    let shape = conv.shape(&data.shape, &weight.shape)?;
    let kernel = ConvKernel::new(&shape);
    let filters = match dtype {
        DatumType::F32 => packed(&kernel, filters, bias, Packed::F32)?,
        DatumType::F64 => packed(&kernel, filters, bias, Packed::F64)?,
        _ => return Ok(None),
    };
    Ok(Some(LocalConv { kernel, filters }))
}

fn packed<T: Element + tract_onnx::prelude::Datum>(
    kernel: &ConvKernel,
    filters: &Tensor,
    bias: &Tensor,
    wrap: impl Fn(Filters<T>, Vec<T>) -> Packed,
) -> TractResult<Packed> {
    let filters = kernel.pack(filters.try_as_plain_ram()?.as_slice::<T>()?)?;
    let bias = each_channel(bias.try_as_plain_ram()?.as_slice::<T>()?, kernel.shape().out_channels);
    Ok(wrap(filters, bias))
}
