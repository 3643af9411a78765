//! Folds operators after a convolution into the decoding of its output.
//!
//! Invariant: an operator is folded only if its sole input is the layer's output and it treats every element of a
//! channel alike; the first other operator ends the chain.

use std::sync::Arc;

use tract_onnx::tract_core::internal::{
    IntoArcTensor, IntoTValue, OutletId, TValue, TVec, Tensor, TractResult, TypedModel,
};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::identity::Identity;

use super::whole::WholeSums;
use crate::coding::Clamp;

/// Maximum depth to which the computation of a constant is followed.
const MOST_STEPS: usize = 16;

/// The value of an outlet that depends only on constants.
pub(super) fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    constant_within(model, outlet, MOST_STEPS)
}

fn constant_within(model: &TypedModel, outlet: OutletId, steps: usize) -> Option<Arc<Tensor>> {
    if let Some(known) = &model.outlet_fact(outlet).ok()?.konst {
        return Some(Arc::clone(known));
    }
    let node = model.node(outlet.node);
    if node.inputs.is_empty() || steps == 0 {
        return None;
    }
    let inputs: Option<TVec<TValue>> = node
        .inputs
        .iter()
        .map(|input| constant_within(model, *input, steps - 1).map(IntoTValue::into_tvalue))
        .collect();
    let mut outputs = node.op.eval_out_of_plan(inputs?).ok()??;
    (outlet.slot < outputs.len()).then(|| outputs.remove(outlet.slot).into_arc_tensor())
}

/// `clamp(scale * x + shift)` for each output channel, and the outlet that holds the result.
#[derive(Clone, Debug)]
pub(super) struct Folded {
    pub(super) scale: Vec<f64>,
    pub(super) shift: Vec<f64>,
    pub(super) clamp: Option<Clamp>,
    /// Set if data and outputs are integers.
    pub(super) integers: Option<WholeSums>,
    pub(super) last: OutletId,
}

impl Folded {
    /// Follows the graph from `outlet`, whose axis `axis` holds `channels` channels, to which `shift` has already been
    /// added.
    pub(super) fn from(
        model: &TypedModel,
        outlet: OutletId,
        axis: usize,
        channels: usize,
        shift: Vec<f64>,
    ) -> TractResult<Self> {
        let mut folded =
            Self { scale: vec![1.0; channels], shift, clamp: None, integers: None, last: outlet };
        // A graph has no cycles, so this ends.
        while let Some(next) = folded.step(model, axis)? {
            folded = next;
        }
        Ok(folded)
    }

    /// Whether the filters stay unscaled.
    pub(super) fn keeps_filters(&self) -> bool {
        self.scale.iter().all(|s| *s == 1.0)
    }

    /// The result for each channel where the layer adds nothing to its bias.
    pub(super) fn without_input(&self) -> Vec<f64> {
        let clamp = self.clamp.map(Clamp::of::<f64>);
        self.shift.iter().map(|shift| clamp.map_or(*shift, |clamp| clamp(*shift))).collect()
    }

    /// Scale and shift of `count` channels for each channel.
    pub(super) fn repeated(self, count: usize) -> Self {
        let repeat = |values: Vec<f64>| values.iter().flat_map(|v| std::iter::repeat_n(*v, count)).collect();
        Self { scale: repeat(self.scale), shift: repeat(self.shift), ..self }
    }

    fn step(&self, model: &TypedModel, axis: usize) -> TractResult<Option<Self>> {
        if self.integers.is_some() {
            return Ok(None);
        }
        let [successor] = model.outlet_successors(self.last) else { return Ok(None) };
        if model.output_outlets()?.contains(&self.last) {
            return Ok(None);
        }
        let node = model.node(successor.node);
        let (before, after) = (model.outlet_fact(self.last)?, model.outlet_fact(OutletId::new(node.id, 0))?);
        if node.outputs.len() != 1 || before.datum_type != after.datum_type || before.shape != after.shape {
            return Ok(None);
        }
        let last = OutletId::new(node.id, 0);
        if node.op_is::<Identity>() {
            return Ok(Some(Self { last, ..self.clone() }));
        }
        if let Some(sums) = node.op_as::<WholeSums>() {
            let plain = self.clamp.is_none() && self.keeps_filters() && self.shift.iter().all(|s| *s == 0.0);
            return Ok(plain.then(|| Self { integers: Some(*sums), last, ..self.clone() }));
        }
        let (Some(op), [a, b]) = (node.op_as::<TypedBinOp>(), &node.inputs[..]) else { return Ok(None) };
        let ours_first = successor.slot == 0;
        let Some(other) = constant(model, if ours_first { *b } else { *a }) else { return Ok(None) };
        let Some(values) = per_channel(&other, axis, self.scale.len())? else { return Ok(None) };
        Ok(self.with(op.0.name(), ours_first, &values).map(|next| Self { last, ..next }))
    }

    /// Folds one more operator with a constant, if possible.
    fn with(&self, op: &str, ours_first: bool, values: &[f64]) -> Option<Self> {
        if !values.iter().all(|v| v.is_finite()) {
            return None;
        }
        let mut next = self.clone();
        let uniform = values.iter().all(|v| v == &values[0]).then_some(values[0]);
        if let (Some(bound), "Max" | "Min") = (uniform, op) {
            let mut clamp = self.clamp.unwrap_or(Clamp { low: f64::NEG_INFINITY, high: f64::INFINITY });
            match op {
                "Max" if bound <= clamp.high => clamp.low = clamp.low.max(bound),
                "Min" if bound >= clamp.low => clamp.high = clamp.high.min(bound),
                _ => return None,
            }
            next.clamp = Some(clamp);
            return Some(next);
        }
        if self.clamp.is_some() {
            return None;
        }
        for ((scale, shift), value) in next.scale.iter_mut().zip(&mut next.shift).zip(values) {
            match (op, ours_first) {
                ("Add", _) => *shift += value,
                ("Sub", true) => *shift -= value,
                ("Sub", false) => (*scale, *shift) = (-*scale, value - *shift),
                ("Mul", _) => (*scale, *shift) = (*scale * value, *shift * value),
                ("Div", true) if *value != 0.0 => (*scale, *shift) = (*scale / value, *shift / value),
                _ => return None,
            }
        }
        Some(next)
    }
}

/// One value for each channel, from a constant that is the same along all other axes.
fn per_channel(tensor: &Tensor, axis: usize, channels: usize) -> TractResult<Option<Vec<f64>>> {
    let fits = |(at, size): (usize, &usize)| *size == 1 || (at == axis && *size == channels);
    if !tensor.datum_type().is_float() || !tensor.shape().iter().enumerate().all(fits) {
        return Ok(None);
    }
    let wide = tensor.cast_to::<f64>()?;
    let values = wide.try_as_plain_ram()?.as_slice::<f64>()?;
    Ok(Some(if values.len() == 1 { vec![values[0]; channels] } else { values.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Folded {
        Folded {
            scale: vec![1.0; 2],
            shift: vec![1.0, -1.0],
            clamp: None,
            integers: None,
            last: OutletId::new(0, 0),
        }
    }

    /// The value of the fold at x.
    fn at(folded: &Folded, x: f64) -> Vec<f64> {
        let clamp = folded.clamp.map(Clamp::of::<f64>);
        let affine = folded.scale.iter().zip(&folded.shift).map(|(scale, shift)| scale * x + shift);
        affine.map(|y| clamp.map_or(y, |c| c(y))).collect()
    }

    #[test]
    fn affine_operators_compose_in_order() {
        let ops: [(&str, bool, [f64; 2]); 5] = [
            ("Mul", true, [2.0, -3.0]),
            ("Sub", false, [10.0, 20.0]),
            ("Div", true, [4.0, 5.0]),
            ("Sub", true, [0.5, 0.25]),
            ("Add", false, [7.0, 8.0]),
        ];
        let folded = ops.iter().fold(start(), |f, (op, first, values)| f.with(op, *first, values).unwrap());
        for x in [-2.0, 0.0, 3.5] {
            let expected =
                [(10.0 - (x + 1.0) * 2.0) / 4.0 - 0.5 + 7.0, (20.0 - (x - 1.0) * -3.0) / 5.0 - 0.25 + 8.0];
            for (got, want) in at(&folded, x).iter().zip(expected) {
                assert!((got - want).abs() < 1e-12, "{got} {want}");
            }
        }
    }

    #[test]
    fn nothing_affine_is_folded_behind_an_activation() {
        let relu = start().with("Max", true, &[0.0, 0.0]).unwrap();
        assert_eq!(relu.clamp, Some(Clamp::RELU));
        assert!(relu.with("Add", true, &[1.0, 1.0]).is_none());
        let six = relu.with("Min", false, &[6.0, 6.0]).unwrap();
        assert_eq!(at(&six, 100.0), [6.0, 6.0]);
        assert_eq!(at(&six, -100.0), [0.0, 0.0]);
    }

    #[test]
    fn what_is_no_scale_shift_or_clamp_ends_the_chain() {
        let none =
            |op: &str, first, values: &[f64]| assert!(start().with(op, first, values).is_none(), "{op}");
        none("Max", true, &[0.0, 1.0]);
        none("Div", false, &[1.0, 1.0]);
        none("Div", true, &[1.0, 0.0]);
        none("Pow", true, &[1.0, 1.0]);
        none("Mul", true, &[1.0, f64::INFINITY]);
        // A lower bound above the upper one gives a constant, not a clamp.
        let six = start().with("Min", true, &[6.0, 6.0]).unwrap();
        assert!(six.with("Max", true, &[7.0, 7.0]).is_none());
    }
}
