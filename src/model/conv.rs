//! The convolution of a graph as an operator of this crate, before coding or for the host.
//!
//! Invariant: no rewrite changes it. Nothing else in a graph knows that the operator is a convolution, so no constant
//! is moved into its filters, no stride out of it and no axis through it. Only [`fold`](super::fold) folds operators
//! into a layer.

use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_core::internal::{
    Datum, DatumTypeExt, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, StaticName, TValue, TVec, Tensor,
    TypedFact, TypedModel, TypedOp, args_3, as_op, bail, format_err, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;

use crate::array::Element;
use crate::conv::{AXES, ConvParams, ConvShape, conv_uncoded, reference};
use crate::error::Result;
use crate::share::threads;

/// The method for a convolution that stays on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The CPU kernel, on all threads.
    Kernel,
    /// By definition, with every sum in f64: the reference for other methods.
    Definition,
}

/// Inputs are the data `[N, C, spatial...]`, the filters `[O, C/groups, kernel...]` and the bias, `[O]` or one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConvOp {
    /// The name of its node.
    name: String,
    pool: PoolSpec,
    groups: usize,
    pub(super) way: Way,
}

impl ConvOp {
    /// Converts `conv` if it is a convolution of floats in the layout of ONNX; quantised ones give `None`.
    pub(super) fn of(name: &str, conv: &Conv) -> Option<Self> {
        let plain = conv.q_params.is_none()
            && conv.pool_spec.data_format == DataFormat::NCHW
            && conv.kernel_fmt == KernelFormat::OIHW;
        plain.then(|| Self {
            name: name.to_owned(),
            pool: conv.pool_spec.clone(),
            groups: conv.group,
            way: Way::Kernel,
        })
    }

    /// A convolution of this shape.
    pub(super) fn of_shape(name: &str, shape: &ConvShape) -> Self {
        let own = |axes: &[usize; AXES]| axes[AXES - shape.rank..].into();
        let pool = PoolSpec::new(
            DataFormat::NCHW,
            own(&shape.kernel),
            PaddingSpec::Explicit(own(&shape.pad_begin), own(&shape.pad_end)),
            Some(own(&shape.dilation)),
            Some(own(&shape.stride)),
            shape.in_channels,
            shape.out_channels,
        );
        Self { name: name.to_owned(), pool, groups: shape.groups, way: Way::Kernel }
    }

    /// The name of its node in the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same for a node of another name.
    pub(super) fn called(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// The number of filters, and so of output channels.
    pub(super) fn out_channels(&self) -> usize {
        self.pool.output_channels
    }

    /// The shape of the convolution on `data`, with resolved padding.
    pub(super) fn shape(&self, data: &[usize], weight: &[usize]) -> Result<ConvShape> {
        let pads = if data.len() == self.pool.rank() + 2 {
            self.pool.computed_padding(&data[2..])
        } else {
            // `ConvShape` reports the error.
            tvec!()
        };
        let params = ConvParams {
            stride: self.pool.strides().to_vec(),
            dilation: self.pool.dilations().to_vec(),
            padding: pads.iter().map(|p| p.pad_before).chain(pads.iter().map(|p| p.pad_after)).collect(),
            groups: self.groups,
        };
        ConvShape::new(data, weight, &params)
    }

    /// As [`ConvOp::shape`], for callers inside tract.
    fn own_shape(&self, data: &[usize], weight: &[usize]) -> TractResult<ConvShape> {
        self.shape(data, weight).map_err(|error| format_err!("Conv node {}: {error}", self.name))
    }

    fn compute<T: Element + Datum>(
        &self,
        data: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> TractResult<Tensor> {
        let shape = self.own_shape(data.shape(), weight.shape())?;
        let (data, weight, bias) =
            (data.try_as_plain_ram()?, weight.try_as_plain_ram()?, bias.try_as_plain_ram()?);
        let (data, weight, bias) = (data.as_slice::<T>()?, weight.as_slice::<T>()?, bias.as_slice::<T>()?);
        let bias = each_channel(bias, shape.out_channels);
        let output = match self.way {
            Way::Kernel => conv_uncoded(&shape, data, weight, Some(&bias), threads(), &|| false)?,
            Way::Definition => reference(&shape, data, weight, Some(&bias))?,
        };
        Ok(ndarray::ArrayD::from_shape_vec(shape.output_shape(), output)?.into_tensor())
    }
}

/// One bias for each of `channels` channels, from as many or from one for all.
pub(super) fn each_channel<T: Element>(bias: &[T], channels: usize) -> Vec<T> {
    if let [one] = bias { vec![*one; channels] } else { bias.to_vec() }
}

/// Computes on data, filters and bias in their type. Half floats are computed in f32, and rounded once.
pub(super) fn in_floats(
    inputs: TVec<TValue>,
    single: impl Fn(&Tensor, &Tensor, &Tensor) -> TractResult<Tensor>,
    double: impl Fn(&Tensor, &Tensor, &Tensor) -> TractResult<Tensor>,
) -> TractResult<TVec<TValue>> {
    let (data, weight, bias) = args_3!(inputs);
    let output = match data.datum_type() {
        DatumType::F32 => single(&data, &weight, &bias)?,
        DatumType::F64 => double(&data, &weight, &bias)?,
        half => {
            let wide = |tensor: &Tensor| TractResult::Ok(tensor.cast_to::<f32>()?.into_owned());
            let output = single(&wide(&data)?, &wide(&weight)?, &wide(&bias)?)?;
            output.cast_to_dt(half)?.into_owned()
        }
    };
    Ok(tvec!(output.into_tvalue()))
}

impl Op for ConvOp {
    fn name(&self) -> StaticName {
        "Conv".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ConvOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let single = |data: &_, weight: &_, bias: &_| self.compute::<f32>(data, weight, bias);
        let double = |data: &_, weight: &_, bias: &_| self.compute::<f64>(data, weight, bias);
        in_floats(inputs, single, double)
    }
}

impl TypedOp for ConvOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [data, weight, _] = inputs else { bail!("a convolution has three inputs, not {}", inputs.len()) };
        if let (Some(data), Some(weight)) = (data.shape.as_concrete(), weight.shape.as_concrete()) {
            let shape = self.own_shape(data, weight)?;
            return Ok(tvec!(inputs[0].datum_type.fact(shape.output_shape())));
        }
        self.pool.output_facts(inputs)
    }

    as_op!();
}

/// Sets the method of every convolution of `graph`.
pub(super) fn compute_by(graph: &mut TypedModel, way: Way) {
    for node in graph.nodes_mut() {
        if let Some(conv) = node.op_as_mut::<ConvOp>() {
            conv.way = way;
        }
    }
}
