//! Conversions between 64-bit integers and what tract computes as sizes.
//!
//! tract has a type of its own for sizes, which may be symbols, and casts to 64-bit integers give it. Some of its operators
//! take numbers only; [`rewrite`](super::rewrite) puts [`NAME`] before them. Its cast to sizes goes through 32 bits, so casts to
//! 64-bit integers become [`SIZES`], [`lower`](super::lower()) replaces those that tract adds, and constants that do not fit into
//! 32 bits are cast before tract may do it ([`widen`]).
//!
//! Invariant: values stay as they are.

use std::collections::HashSet;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};
use tract_onnx::prelude::{DatumType, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    AxisOp, DatumTypeExt, EvalContext, EvalOp, IntoArcTensor, IntoTValue, IntoTensor, Op, OutletId,
    StaticName, TDim, TValue, TVec, Tensor, TypedFact, TypedModel, TypedOp, args_1, as_op, bail, format_err,
    op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_core::ops::cast::{Cast, cast};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::{attribute, constants, is_standard};
use super::nodes::{I64, Nodes};

/// The operator that makes numbers; the names of these operators cannot occur in a file.
pub(super) const NAME: &str = "Plain numbers";

/// The operator that a cast to 64-bit integers becomes.
pub(super) const SIZES: &str = "Exact cast to int64";

/// The operator that drops the axis of a value of one element, where tract expects a value without axes.
pub(super) const SCALAR: &str = "Value without axes";

/// An operator of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversion {
    Numbers,
    Sizes,
    Scalar,
}

impl Conversion {
    const ALL: [Self; 3] = [Self::Numbers, Self::Sizes, Self::Scalar];

    fn operator(self) -> &'static str {
        match self {
            Self::Numbers => NAME,
            Self::Sizes => SIZES,
            Self::Scalar => SCALAR,
        }
    }
}

/// Adds the operators of this file to tract's register.
pub(super) fn register(known: &mut OnnxOpRegister) {
    for conversion in Conversion::ALL {
        known.insert(conversion.operator(), parse);
    }
}

/// The parser for tract's operator register.
///
/// # Errors
/// For a node of another operator.
fn parse(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let own = Conversion::ALL.into_iter().find(|own| own.operator() == node.op_type);
    let own = own.ok_or_else(|| format_err!("operator {} converts no numbers", node.op_type))?;
    Ok((expand(own), vec![]))
}

/// Operators that bring their inputs to one type, in which constants become sizes where another input is one.
const UNITING: &[&str] = &[
    "Add",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Concat",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Pow",
    "Sub",
    "Sum",
    "Where",
];

/// The values of a tensor of 64-bit integers; `None` for others and for data in other files.
fn each_value(tensor: &TensorProto) -> Option<impl Iterator<Item = i64>> {
    let is_here = tensor.data_type == I64 && tensor.data_location.unwrap_or(0) == 0;
    // A tensor has one or the other.
    let raw = if tensor.int64_data.is_empty() { tensor.raw_data.as_slice() } else { &[] };
    let raw = raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    is_here.then(|| tensor.int64_data.iter().copied().chain(raw))
}

/// As [`each_value`], in a list.
pub(super) fn values(tensor: &TensorProto) -> Option<Vec<i64>> {
    each_value(tensor).map(Iterator::collect)
}

/// The constants of a graph that hold 64-bit integers beyond 32 bits.
pub(super) fn large(graph: &GraphProto) -> HashSet<String> {
    let is_large = |value: i64| i32::try_from(value).is_err();
    let known = constants(graph).into_iter();
    let known = known.filter(|(_, tensor)| each_value(tensor).is_some_and(|mut values| values.any(is_large)));
    let single = graph.node.iter().filter(|node| node.op_type == "Constant").filter(|node| {
        let one = attribute(node, "value_int").is_some_and(|value| is_large(value.i));
        one || attribute(node, "value_ints").is_some_and(|values| values.ints.iter().copied().any(is_large))
    });
    let single = single.filter_map(|node| node.output.first().cloned());
    known.map(|(name, _)| name.to_owned()).chain(single).collect()
}

/// Casts the inputs of a node that are in `large` to sizes, if the node might have tract do it.
pub(super) fn widen(node: &mut NodeProto, large: &HashSet<String>, nodes: &mut Nodes) {
    if !is_standard(node) || !UNITING.contains(&node.op_type.as_str()) {
        return;
    }
    for input in node.input.iter_mut().filter(|input| large.contains(*input)) {
        *input = nodes.op(SIZES, &[input]);
    }
}

impl Expansion for Conversion {
    fn name(&self) -> StaticName {
        self.operator().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let ([input], [output]) = (inputs, outputs) else {
            bail!("{} has one input and one output", self.operator())
        };
        match self {
            Self::Numbers => {
                solver.equals(&input.shape, &output.shape)?;
                solver.given(&input.datum_type, move |solver, own| {
                    let plain = if own == DatumType::TDim { DatumType::I64 } else { own };
                    solver.equals(&output.datum_type, plain)
                })
            }
            Self::Sizes => {
                solver.equals(&output.datum_type, DatumType::TDim)?;
                solver.equals(&input.shape, &output.shape)
            }
            Self::Scalar => {
                solver.equals(&input.datum_type, &output.datum_type)?;
                solver.equals(&output.rank, 0)?;
                solver.given(&input.rank, move |solver, rank| match rank {
                    0 => solver.equals(&input.value, &output.value),
                    1 => solver.equals(&input.shape[0], TDim::Val(1)),
                    _ => bail!("a value has {rank} axes where none is expected"),
                })
            }
        }
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?;
        let (is_size, rank) = (fact.datum_type == DatumType::TDim, fact.rank());
        match self {
            Self::Numbers if is_size => model.wire_node(prefix, cast(DatumType::I64), inputs),
            Self::Sizes if !is_size => model.wire_node(prefix, SizesOp, inputs),
            Self::Scalar if rank > 0 => model.wire_node(prefix, AxisOp::Rm(0), inputs),
            Self::Numbers | Self::Sizes | Self::Scalar => Ok(tvec!(inputs[0])),
        }
    }
}

/// The cast of numbers to sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SizesOp;

impl SizesOp {
    /// The operator in place of tract's; `None` for other casts.
    pub(super) fn of(op: &dyn TypedOp, inputs: &[&TypedFact]) -> Option<Self> {
        let cast = op.downcast_ref::<Cast>()?;
        let from_numbers = inputs.first().is_some_and(|input| input.datum_type != DatumType::TDim);
        (cast.to == DatumType::TDim && from_numbers).then_some(Self)
    }
}

/// The numbers as sizes.
///
/// # Errors
/// For a type that holds no numbers.
pub(super) fn sizes(numbers: &Tensor) -> TractResult<Tensor> {
    let numbers = numbers.cast_to::<i64>()?;
    Ok(numbers.to_plain_array_view::<i64>()?.mapv(TDim::Val).into_tensor())
}

impl Op for SizesOp {
    fn name(&self) -> StaticName {
        SIZES.into()
    }

    op_as_typed_op!();
}

impl EvalOp for SizesOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let numbers = args_1!(inputs);
        Ok(tvec!(sizes(&numbers)?.into_tvalue()))
    }
}

impl TypedOp for SizesOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut fact = DatumType::TDim.fact(inputs[0].shape.clone());
        fact.uniform_tdim.clone_from(&inputs[0].uniform_tdim);
        fact.uniform = inputs[0]
            .uniform
            .as_ref()
            .map(|known| sizes(known))
            .transpose()?
            .map(IntoArcTensor::into_arc_tensor);
        Ok(tvec!(fact))
    }

    as_op!();
}
