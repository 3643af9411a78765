//! The largest or the smallest element along axes, for all floats, and for truth values.
//!
//! tract begins with the largest finite number, so that the largest of elements which are all minus infinity is finite.
//! Models that mask attention compare with infinity.
//!
//! Invariant: a NaN among the elements makes NaN, as in NumPy.

use ndarray::{ArrayD, ArrayViewD, IxDyn};
use tract_onnx::prelude::{Datum, DatumType, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, StaticName, TDim, TValue, TVec, Tensor,
    ToDim, TypedFact, TypedOp, args_1, as_op, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};

use crate::array::Element;

/// The largest or smallest elements along axes, which keep a size of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extremes {
    axes: TVec<usize>,
    largest: bool,
}

impl Extremes {
    /// The operator in place of tract's; `None` for others and for integers.
    pub(super) fn of(op: &dyn TypedOp, inputs: &[&TypedFact]) -> Option<Self> {
        let Reduce { axes, reducer } = op.downcast_ref::<Reduce>()?;
        let largest = match reducer {
            Reducer::Max => true,
            Reducer::Min => false,
            _ => return None,
        };
        let dtype = inputs.first()?.datum_type;
        matches!(dtype, DatumType::F32 | DatumType::F64 | DatumType::Bool)
            .then(|| Self { axes: axes.clone(), largest })
    }

    /// Whether the elements along an axis are kept.
    pub(super) fn keeps(&self, axis: usize) -> bool {
        !self.axes.contains(&axis)
    }

    fn compute<T: Element + Datum>(&self, input: &Tensor) -> TractResult<Tensor> {
        let input = input.to_plain_array_view::<T>()?;
        let shape: Vec<usize> = (0..input.ndim())
            .map(|axis| if self.axes.contains(&axis) { 1 } else { input.shape()[axis] })
            .collect();
        let output =
            if self.largest { self.folded(input, |x, y| x < y) } else { self.folded(input, |x, y| y < x) };
        Ok(ArrayD::from_shape_vec(IxDyn(&shape), output)?.into_tensor())
    }

    /// The element of each output that is `better` than the others of it.
    fn folded<T: Element>(&self, input: ArrayViewD<'_, T>, is_better: impl Fn(T, T) -> bool) -> Vec<T> {
        // The axes that remain, then the others.
        let mut order: Vec<usize> = (0..input.ndim()).filter(|axis| !self.axes.contains(axis)).collect();
        order.extend(&self.axes);
        let length: usize = self.axes.iter().map(|axis| input.shape()[*axis]).product();
        let ordered = input.permuted_axes(order);
        let ordered = ordered.as_standard_layout();
        let is_nan = |x: T| x.partial_cmp(&x).is_none();
        let best = |x: T, y: T| if is_better(x, y) || (is_nan(y) && !is_nan(x)) { y } else { x };
        let elements = ordered.as_slice().unwrap_or_default();
        elements
            .chunks_exact(length.max(1))
            .map(|row| row[1..].iter().fold(row[0], |x, y| best(x, *y)))
            .collect()
    }
}

impl Op for Extremes {
    fn name(&self) -> StaticName {
        if self.largest { "ReduceMax" } else { "ReduceMin" }.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Extremes {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let output = match input.datum_type() {
            DatumType::F64 => self.compute::<f64>(&input)?,
            // Whether any, or all, are true.
            DatumType::Bool => {
                let floats = input.cast_to::<f32>()?;
                self.compute::<f32>(&floats)?.cast_to::<bool>()?.into_owned()
            }
            _ => self.compute::<f32>(&input)?,
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Extremes {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape: TVec<TDim> = (inputs[0].shape.iter().enumerate())
            .map(|(axis, size)| if self.axes.contains(&axis) { 1.to_dim() } else { size.clone() })
            .collect();
        Ok(tvec!(inputs[0].datum_type.fact(&shape)))
    }

    as_op!();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#[allow(clippy::cast_possible_truncation, reason = "the values are small or infinite")]
mod tests {
    use super::*;

    #[test]
    fn infinities_and_nan_are_kept() {
        let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
        for (row, largest, smallest) in [
            ([low, low, low], low, low),
            ([high, high, high], high, high),
            ([low, -3.0, 7.0], 7.0, low),
            ([1.0, high, -2.0], high, -2.0),
            ([0.0, f64::NAN, low], f64::NAN, f64::NAN),
            ([f64::NAN, 0.0, high], f64::NAN, f64::NAN),
        ] {
            for (is_largest, expected) in [(true, largest), (false, smallest)] {
                let op = Extremes { axes: tvec!(0, 2), largest: is_largest };
                let array = ArrayD::from_shape_vec(vec![1, 1, 3], row.to_vec()).unwrap();
                let found = op.compute::<f64>(&array.clone().into_tensor()).unwrap();
                let found = found.to_plain_array_view::<f64>().unwrap()[[0, 0, 0].as_slice()];
                assert!(found == expected || found.is_nan() && expected.is_nan(), "{row:?}: {found}");
                let found = op.compute::<f32>(&array.mapv(|x| x as f32).into_tensor()).unwrap();
                let found = f64::from(found.to_plain_array_view::<f32>().unwrap()[[0, 0, 0].as_slice()]);
                assert!(found == expected || found.is_nan() && expected.is_nan(), "{row:?}: {found}");
            }
        }
    }

    #[test]
    fn every_choice_of_axes_gives_what_a_loop_gives() {
        let shape = [2, 3, 1, 4];
        let array =
            ArrayD::from_shape_fn(shape.to_vec(), |at| ((at[0] * 7 + at[1] * 5 + at[3] * 11) % 13) as f64);
        for mask in 0..16usize {
            let axes: TVec<usize> = (0..4).filter(|axis| mask >> axis & 1 == 1).collect();
            let mut expected = array.clone();
            for axis in &axes {
                let reduced = expected.fold_axis(ndarray::Axis(*axis), f64::MIN, |x, y| x.max(*y));
                expected = reduced.insert_axis(ndarray::Axis(*axis));
            }
            let op = Extremes { axes, largest: true };
            let found = op.compute::<f64>(&array.clone().into_tensor()).unwrap();
            assert_eq!(found.to_plain_array_view::<f64>().unwrap(), expected, "{:?}", op.axes);
        }
    }
}
