//! Values between the steps of a schedule.

use std::sync::Arc;

use tract_onnx::prelude::DatumType;
use tract_onnx::tract_core::internal::Tensor;

use crate::array::DType;

/// Where a step finds a value.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// An input of the model.
    Input(usize),
    Constant(Arc<Tensor>),
    /// The elements of a slot from an offset on.
    Slot(usize, usize),
    /// A value that tract made.
    Kept(usize),
}

/// A value that a step reads.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) place: Place,
    pub(super) dtype: DatumType,
    pub(super) shape: Vec<usize>,
}

impl Operand {
    pub(super) fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The element type of slots for values of `dtype`, if there are such.
pub(super) fn planned(dtype: DatumType) -> Option<DType> {
    match dtype {
        DatumType::F32 => Some(DType::F32),
        DatumType::F64 => Some(DType::F64),
        _ => None,
    }
}
