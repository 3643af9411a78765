//! Functions of single elements, exact relative to the size of every element, in place of tract's.
//!
//! tract computes sigmoid, tanh and the error function of f32 by rational approximations with an absolute error of some
//! 4e-7: a probability of 1e-9 becomes 4e-7. The functions of [`Unary`] have a relative error of a few units in the last
//! place.
//!
//! Invariant: the operator keeps its name, so that everything that looks for elementwise operators finds it.

use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_core::internal::{Tensor, TypedFact, TypedOp, bail};
use tract_onnx::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};

use crate::ops::Unary;

/// The function of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Exact(Unary);

impl Exact {
    /// The function that an operator is, for these inputs; `None` if it is none or its elements are no floats.
    pub(super) fn of(op: &dyn TypedOp, inputs: &[&TypedFact]) -> Option<ElementWiseOp> {
        let op = op.downcast_ref::<ElementWiseOp>()?;
        let [input] = inputs else { return None };
        if op.1.is_some() || !matches!(input.datum_type, DatumType::F32 | DatumType::F64) {
            return None;
        }
        let function = match op.0.name().as_str() {
            "Sigmoid" => Unary::Sigmoid,
            "Tanh" => Unary::Tanh,
            "Exp" => Unary::Exp,
            "Erf" => Unary::Erf,
            _ => return None,
        };
        Some(ElementWiseOp(Box::new(Self(function)), None))
    }

    /// The function of a node that [`Exact::of`] made.
    pub(super) fn function(op: &ElementWiseOp) -> Option<Unary> {
        op.0.downcast_ref::<Self>().map(|exact| exact.0)
    }
}

impl ElementWiseMiniOp for Exact {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        *tensor = self.eval_out_of_place(tensor, None)?;
        Ok(())
    }

    fn eval_out_of_place(&self, tensor: &Tensor, _: Option<DatumType>) -> TractResult<Tensor> {
        let mut output = Tensor::zero_dt(tensor.datum_type(), tensor.shape())?;
        let (from, mut to) = (tensor.try_as_plain_ram()?, output.try_as_plain_ram_mut()?);
        match tensor.datum_type() {
            DatumType::F32 => self.0.run(from.as_slice::<f32>()?, to.as_slice_mut::<f32>()?),
            DatumType::F64 => self.0.run(from.as_slice::<f64>()?, to.as_slice_mut::<f64>()?),
            other => bail!("{:?} of elements of {other:?}: use floats", self.0),
        }
        Ok(output)
    }
}
