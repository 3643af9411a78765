//! The operator `BitShift`, also by amounts that are not below the width of the type.
//!
//! The standard leaves shifts by more bits than a number has, and by negative amounts, to NumPy: nothing but zeros is left,
//! or the sign where a signed number is shifted to the right. Processors take such amounts modulo the width instead.
//!
//! Invariant: no amount outside of 0 to the width less one reaches the processor's shift.

use ndarray::Zip;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{Datum, DatumType, SpecialOps, TractResult};
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, OutletId, StaticName, TValue, TVec,
    Tensor, TypedFact, TypedModel, TypedOp, as_op, bail, format_err, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::called;
use super::numbers::sizes;

/// The operator that is parsed here.
pub(super) const NAME: &str = "BitShift";

/// Inputs are the numbers and the amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BitShift {
    /// The description of the node in messages.
    node: String,
    right: bool,
}

/// The parser for tract's operator register.
///
/// # Errors
/// A direction that is neither `LEFT` nor `RIGHT`.
pub(super) fn parse(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let right = match node.get_attr::<&str>("direction")? {
        "LEFT" => false,
        "RIGHT" => true,
        other => bail!("{}: its direction is {other}: give LEFT or RIGHT", called(node)),
    };
    Ok((expand(BitShift { node: called(node), right }), vec![]))
}

impl Expansion for BitShift {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != 2 || outputs.len() != 1 {
            bail!("{}: it has {} inputs: give numbers and amounts", self.node, inputs.len());
        }
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].datum_type, &inputs[1].datum_type)?;
        solver.given_2(&inputs[0].shape, &inputs[1].shape, move |solver, numbers, amounts| {
            solver.equals(&outputs[0].shape, multi_broadcast(&[numbers, amounts])?)
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let dtype = model.outlet_fact(inputs[0])?.datum_type;
        if !dtype.is_integer() && dtype != DatumType::TDim {
            bail!("{}: its numbers are {dtype:?}: give integers", self.node);
        }
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl BitShift {
    fn compute<T: Shift>(&self, numbers: &Tensor, amounts: &Tensor) -> TractResult<Tensor> {
        let shape = multi_broadcast(&[numbers.shape(), amounts.shape()])?;
        let (numbers, amounts) = (numbers.cast_to::<T>()?, amounts.cast_to::<T>()?);
        let spread = || format_err!("{}: its inputs cannot be broadcast to {shape:?}", self.node);
        let (numbers, amounts) = (numbers.to_plain_array_view::<T>()?, amounts.to_plain_array_view::<T>()?);
        let numbers = numbers.broadcast(&*shape).ok_or_else(spread)?;
        let amounts = amounts.broadcast(&*shape).ok_or_else(spread)?;
        let shifted = Zip::from(&numbers).and(&amounts).map_collect(|n, by| n.shift(*by, self.right));
        Ok(shifted.into_tensor())
    }
}

impl Op for BitShift {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    op_as_typed_op!();
}

impl EvalOp for BitShift {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [numbers, amounts] = &*inputs else {
            bail!("{}: it has {} inputs: give numbers and amounts", self.node, inputs.len())
        };
        let shifted = match numbers.datum_type() {
            DatumType::U8 => self.compute::<u8>(numbers, amounts)?,
            DatumType::U16 => self.compute::<u16>(numbers, amounts)?,
            DatumType::U32 => self.compute::<u32>(numbers, amounts)?,
            DatumType::U64 => self.compute::<u64>(numbers, amounts)?,
            DatumType::I8 => self.compute::<i8>(numbers, amounts)?,
            DatumType::I16 => self.compute::<i16>(numbers, amounts)?,
            DatumType::I32 => self.compute::<i32>(numbers, amounts)?,
            DatumType::I64 => self.compute::<i64>(numbers, amounts)?,
            // Sizes are 64-bit numbers to ONNX.
            DatumType::TDim => sizes(&self.compute::<i64>(numbers, amounts)?)?,
            other => bail!("{}: its numbers are {other:?}: give integers", self.node),
        };
        Ok(tvec!(shifted.into_tvalue()))
    }
}

impl TypedOp for BitShift {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = multi_broadcast(&[&*inputs[0].shape, &*inputs[1].shape])?;
        Ok(tvec!(inputs[0].datum_type.fact(&*shape)))
    }

    as_op!();
}

/// Integers that can be shifted by any amount.
trait Shift: Datum + Copy {
    /// `self` shifted by `amount` bits, to the right or to the left; negative and large amounts as in the
    /// [module's documentation](self).
    fn shift(self, amount: Self, right: bool) -> Self;
}

macro_rules! shift {
    ($($integer:ty),*) => {
        $(impl Shift for $integer {
            fn shift(self, amount: Self, right: bool) -> Self {
                let inside = u32::try_from(amount).ok().filter(|amount| *amount < Self::BITS);
                match (inside, right) {
                    (Some(amount), true) => self >> amount,
                    (Some(amount), false) => self << amount,
                    // The sign in two steps, since one step of all bits is outside of the processor's range.
                    (None, true) => (self >> (Self::BITS - 1)) >> 1,
                    (None, false) => 0,
                }
            }
        })*
    };
}

shift!(u8, u16, u32, u64, i8, i16, i32, i64);

#[cfg(test)]
mod tests {
    use super::*;

    /// What NumPy computes for an integer of `bits`, in wider integers.
    fn expected(number: i128, amount: i128, right: bool, bits: u32, signed: bool) -> i128 {
        let inside = (0..i128::from(bits)).contains(&amount);
        match (right, inside) {
            (true, true) => number >> amount,
            (true, false) => -i128::from(number < 0),
            (false, false) => 0,
            (false, true) => {
                let wrapped = (number << amount).rem_euclid(1 << bits);
                if signed && wrapped >= 1 << (bits - 1) { wrapped - (1 << bits) } else { wrapped }
            }
        }
    }

    macro_rules! check {
        ($($integer:ident),*) => {
            $({
                let signed = $integer::MIN != 0;
                for number in [$integer::MIN, $integer::MAX, $integer::MAX / 3, 0, 1, 5, 100, $integer::MIN / 7] {
                    let below = [$integer::MIN as i128, -(signed as i128)];
                    let amounts = (0..=$integer::BITS as i128 + 3).chain([100]).chain(below);
                    for amount in amounts {
                        for right in [true, false] {
                            let found = number.shift(amount as $integer, right) as i128;
                            let expected = expected(number as i128, amount, right, $integer::BITS, signed);
                            assert_eq!(found, expected, "{number} by {amount}, right: {right}");
                        }
                    }
                }
            })*
        };
    }

    #[test]
    #[allow(
        trivial_numeric_casts,
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "every type is compared in the widest one"
    )]
    fn every_type_and_amount_gives_what_numpy_gives() {
        check!(u8, u16, u32, u64, i8, i16, i32, i64);
    }
}
