//! Finds the layers of a model that can be coded: Conv and ConvTranspose nodes, and matrix products with constant
//! weights.

use std::collections::HashSet;
use std::sync::Arc;

use tract_onnx::tract_core::axes::Axis;
use tract_onnx::tract_core::internal::{
    DatumType, OutletId, TVec, Tensor, TractResult, TypedModel, TypedNode, bail,
};
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::scan::Scan;

use super::branch_op::BranchOp;
use super::conv::ConvOp;
use super::deform;
use super::fold::{Folded, constant};
use super::guard::guarded;
use super::loop_run::LoopOp;
use super::transpose::{InterleaveOp, NAME, TransposeOp};
use crate::conv::{ConvParams, ConvShape, Phases};
use crate::error::Result;

/// The operator of a layer in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerOp {
    Conv,
    ConvTranspose,
    Gemm,
}

impl LayerOp {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Conv => "Conv",
            Self::ConvTranspose => NAME,
            Self::Gemm => "Gemm",
        }
    }

    /// The convolution that an operator of a file is.
    pub(super) fn of_convolution(operator: &str) -> Option<Self> {
        if operator == deform::NAME {
            return Some(Self::Conv);
        }
        [Self::Conv, Self::ConvTranspose].into_iter().find(|op| op.name() == operator)
    }
}

/// A layer of the file: one that can be coded, or the reason why it stays on the host.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) op: LayerOp,
    pub(super) found: Result<Found, String>,
}

/// A layer that can be coded: `clamp(conv(x, weight * scale) + shift)`.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) node: usize,
    /// The index of the node's data input.
    pub(super) data: usize,
    /// The layer as a convolution of the data, with the data viewed as `[N, C, spatial...]`.
    pub(super) shape: ConvShape,
    pub(super) dtype: DatumType,
    /// The filters in the order of the file.
    pub(super) weight: Arc<Tensor>,
    pub(super) order: FilterOrder,
    /// Scale and shift for each output channel of `shape`.
    pub(super) folded: Folded,
    /// What makes the output of the node from that of the convolution, if they differ.
    pub(super) interleave: Option<InterleaveOp>,
}

/// The order of the filters of a layer.
#[derive(Debug)]
pub(super) enum FilterOrder {
    /// `[O, C/groups, kernel...]`.
    ByOutputs,
    /// `[C, O]`.
    ByInputs,
    /// `[C, O/groups, kernel...]` of a transposed convolution with these phases.
    OfPhases(Box<Phases>),
}

impl FilterOrder {
    /// The order of a matrix of weights.
    fn of_matrix(by_inputs: bool) -> Self {
        if by_inputs { Self::ByInputs } else { Self::ByOutputs }
    }

    /// The index in the filters of the file of term `term` of filter `filter`; `None` for a zero. `sizes` are the numbers
    /// of filters and terms.
    pub(super) fn source(&self, sizes: (usize, usize), filter: usize, term: usize) -> Option<usize> {
        match self {
            Self::ByOutputs => Some(filter * sizes.1 + term),
            Self::ByInputs => Some(term * sizes.0 + filter),
            Self::OfPhases(phases) => phases.source(filter, term),
        }
    }
}

/// All layers of a typed graph, each after the layers it depends on.
pub(super) fn layers(model_name: &str, model: &TypedModel) -> Result<Vec<Layer>> {
    guarded(model_name, || {
        let order = model.eval_order()?;
        let used: HashSet<usize> = order.iter().copied().collect();
        let unused = (0..model.nodes().len()).filter(|id| !used.contains(id));
        let mut layers = Vec::new();
        for id in order.iter().copied().chain(unused) {
            let node = model.node(id);
            let op = match () {
                () if node.op_is::<ConvOp>() || node.op_is::<Conv>() => LayerOp::Conv,
                () if node.op_is::<TransposeOp>() => LayerOp::ConvTranspose,
                () if node.op_is::<EinSum>() => LayerOp::Gemm,
                () => {
                    layers.extend(inside(node));
                    continue;
                }
            };
            let found = match op {
                _ if !used.contains(&id) => Err("nothing uses its output".to_owned()),
                LayerOp::Conv => conv(model, node)?,
                LayerOp::ConvTranspose => transposed(model, node)?,
                LayerOp::Gemm => match gemm(model, node)? {
                    Some(found) => found,
                    None => continue,
                },
            };
            // tract gives the product of a Gemm node this suffix, and names the sum with its bias like the node.
            let own = node.name.strip_suffix(".ab").unwrap_or(&node.name);
            let name = node.op_as::<ConvOp>().map(ConvOp::name);
            let name = name.or_else(|| node.op_as::<TransposeOp>().map(TransposeOp::name)).unwrap_or(own);
            layers.push(Layer { name: name.to_owned(), op, found });
        }
        Ok(layers)
    })
}

/// The convolutions inside a node with graphs of its own.
fn inside(node: &TypedNode) -> Vec<Layer> {
    let operator = node.op.name();
    let why = format!("it is inside {operator} node {}, which runs on this machine as a whole", node.name);
    let layer = |(name, op)| Layer { name, op, found: Err(why.clone()) };
    convolutions_in(node).into_iter().map(layer).collect()
}

/// Names and operators of the convolutions in the graphs of a node.
fn convolutions_in(node: &TypedNode) -> Vec<(String, LayerOp)> {
    if let Some(own) = node.op_as::<LoopOp>() {
        let named = own.spec.nodes.iter();
        let named = named.filter_map(|(name, op)| LayerOp::of_convolution(op).map(|op| (name.clone(), op)));
        return named.collect();
    }
    let graphs = match (node.op_as::<Scan>(), node.op_as::<BranchOp>()) {
        (Some(scan), _) => vec![&scan.body],
        (_, Some(branches)) => branches.graphs().to_vec(),
        _ => Vec::new(),
    };
    let of = |node: &TypedNode| match (node.op_as::<ConvOp>(), node.op_as::<TransposeOp>()) {
        (Some(conv), _) => vec![(conv.name().to_owned(), LayerOp::Conv)],
        (_, Some(transposed)) => vec![(transposed.name().to_owned(), LayerOp::ConvTranspose)],
        _ if node.op_is::<Conv>() => vec![(node.name.clone(), LayerOp::Conv)],
        _ => convolutions_in(node),
    };
    graphs.into_iter().flat_map(|graph| graph.nodes().iter().flat_map(of).collect::<Vec<_>>()).collect()
}

fn conv(model: &TypedModel, node: &TypedNode) -> TractResult<Result<Found, String>> {
    let (input, output) = (model.outlet_fact(node.inputs[0])?, &node.outputs[0].fact);
    let conv = match node.op_as::<ConvOp>() {
        Some(conv) if matches!(output.datum_type, DatumType::F32 | DatumType::F64) => conv,
        _ => return Ok(Err(format!("its elements are {:?}, not f32 or f64", input.datum_type))),
    };
    let (Some(data), Some(result)) = (input.shape.as_concrete(), output.shape.as_concrete()) else {
        return Ok(Err("its shape depends on data".to_owned()));
    };
    let Some(weight) = constant(model, node.inputs[1]) else {
        return Ok(Err("its filters are not constant".to_owned()));
    };
    let channels = conv.out_channels();
    let Some(bias) = known_bias(model, node, channels)? else {
        return Ok(Err("its bias is not constant".to_owned()));
    };
    if weight.datum_type() != output.datum_type || bias.len() != channels {
        return Ok(Err("filters, bias and data do not agree".to_owned()));
    }
    let shape = match conv.shape(data, weight.shape()) {
        Ok(shape) if shape.output_shape() == result => shape,
        Ok(shape) => {
            return Ok(Err(format!("its output is {result:?} where {:?} follows", shape.output_shape())));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    let folded = Folded::from(model, OutletId::new(node.id, 0), 1, channels, bias)?;
    let dtype = output.datum_type;
    let order = FilterOrder::ByOutputs;
    Ok(Ok(Found { node: node.id, data: 0, shape, dtype, weight, order, folded, interleave: None }))
}

/// The bias of each of `channels` channels, if it is constant.
fn known_bias(model: &TypedModel, node: &TypedNode, channels: usize) -> TractResult<Option<Vec<f64>>> {
    let Some(bias) = constant(model, node.inputs[2]) else { return Ok(None) };
    let bias = bias.cast_to::<f64>()?.try_as_plain_ram()?.as_slice::<f64>()?.to_vec();
    Ok(Some(if bias.len() == 1 { vec![bias[0]; channels] } else { bias }))
}

/// A transposed convolution, as the convolution of its phases.
fn transposed(model: &TypedModel, node: &TypedNode) -> TractResult<Result<Found, String>> {
    let (input, output) = (model.outlet_fact(node.inputs[0])?, &node.outputs[0].fact);
    let op = match node.op_as::<TransposeOp>() {
        Some(op) if matches!(output.datum_type, DatumType::F32 | DatumType::F64) => op,
        _ => return Ok(Err(format!("its elements are {:?}, not f32 or f64", input.datum_type))),
    };
    let (Some(data), Some(result)) = (input.shape.as_concrete(), output.shape.as_concrete()) else {
        return Ok(Err("its shape depends on data".to_owned()));
    };
    let Some(weight) = constant(model, node.inputs[1]) else {
        return Ok(Err("its filters are not constant".to_owned()));
    };
    let shape = op.shape(data, weight.shape())?;
    let Some(bias) = known_bias(model, node, shape.out_channels)? else {
        return Ok(Err("its bias is not constant".to_owned()));
    };
    if weight.datum_type() != output.datum_type
        || bias.len() != shape.out_channels
        || shape.output_shape() != result
    {
        return Ok(Err("filters, bias and data do not agree".to_owned()));
    }
    let phases = match shape.phases() {
        Ok(phases) => phases,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let folded = Folded::from(model, OutletId::new(node.id, 0), 1, shape.out_channels, bias)?;
    let interleave = InterleaveOp::of(&shape, &phases, folded.without_input());
    let (folded, conv) = (folded.repeated(phases.count()), phases.conv().clone());
    let (dtype, order) = (output.datum_type, FilterOrder::OfPhases(Box::new(phases)));
    Ok(Ok(Found { node: node.id, data: 0, shape: conv, dtype, weight, order, folded, interleave }))
}

/// A matrix product of data and constant weights, as a convolution with kernels of one element; `None` for other
/// products.
pub(super) fn gemm(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Result<Found, String>>> {
    let Some(product) = node.op_as::<EinSum>() else { bail!("{} is no product", node.name) };
    let not = |why: &str| Ok(Some(Err(why.to_owned())));
    if product.q_params.is_some() || node.inputs.len() != 2 {
        return Ok(None);
    }
    let output = &node.outputs[0].fact;
    if !matches!(output.datum_type, DatumType::F32 | DatumType::F64)
        || product.operating_dt != output.datum_type
    {
        return not("its elements are not f32 or f64");
    }
    let constants = [constant(model, node.inputs[0]), constant(model, node.inputs[1])];
    let (data, weight) = match constants {
        [None, Some(weight)] => (0, weight),
        [Some(weight), None] => (1, weight),
        _ => return Ok(None),
    };
    let input = model.outlet_fact(node.inputs[data])?;
    let (Some(from), Some(to)) = (input.shape.as_concrete(), output.shape.as_concrete()) else {
        return not("its shape depends on data");
    };
    let at = |positions: &TVec<usize>| match &positions[..] {
        [] => Some(None),
        [one] => Some(Some(*one)),
        _ => None,
    };
    // The position of each axis in data, weights and output.
    let place =
        |axis: &Axis| Some((at(&axis.inputs[data])?, at(&axis.inputs[1 - data])?, at(&axis.outputs[0])?));
    let Some(axes) = product.axes.iter_all_axes().map(place).collect::<Option<Vec<_>>>() else {
        return not("it takes a diagonal");
    };
    let summed: Vec<_> = axes
        .iter()
        .filter_map(|a| if let (Some(d), Some(w), None) = *a { Some((d, w)) } else { None })
        .collect();
    let made: Vec<_> = axes
        .iter()
        .filter_map(|a| if let (None, Some(w), Some(o)) = *a { Some((w, o)) } else { None })
        .collect();
    let kept: Vec<_> = axes
        .iter()
        .filter_map(|a| if let (Some(d), None, Some(o)) = *a { Some((d, o)) } else { None })
        .collect();
    let ([(c_data, c_weight)], [(o_weight, o_out)]) = (&summed[..], &made[..]) else {
        return not("it is no product with a matrix of weights");
    };
    if summed.len() + made.len() + kept.len() != axes.len() || weight.rank() != 2 {
        return not("it is no product with a matrix of weights");
    }
    let (c_in, c_out) = (from[*c_data], weight.shape()[*o_weight]);
    // The remaining axes must have the same order on both sides of the channel axis, so that no data has to be moved.
    if c_data != o_out || kept.iter().any(|(d, o)| d != o) {
        return not("its data would have to be transposed");
    }
    let outer: usize = from[..*c_data].iter().product();
    let inner: usize = from[c_data + 1..].iter().product();
    let shape = ConvShape::new(&[outer, c_in, inner], &[c_out, c_in, 1], &ConvParams::default());
    let shape = match shape {
        Ok(shape) if shape.output_elems() == to.iter().product::<usize>() => shape,
        Ok(_) => return not("its sizes do not agree"),
        Err(error) => return not(&error.to_string()),
    };
    if weight.datum_type() != output.datum_type {
        return not("weights and data do not agree");
    }
    let folded = Folded::from(model, OutletId::new(node.id, 0), *o_out, c_out, vec![0.0; c_out])?;
    let (dtype, order) = (output.datum_type, FilterOrder::of_matrix(c_weight < o_weight));
    Ok(Some(Ok(Found { node: node.id, data, shape, dtype, weight, order, folded, interleave: None })))
}
