//! The steps of a schedule, and what they are before values have places.
//!
//! Relevant if you want to add a kind of step.
//!
//! Invariant: a step writes at most one value to a slot.

use tract_onnx::tract_core::internal::TypedNode;

use super::op::CodedOp;
use super::operators::Operator;
use super::value::Operand;
use crate::array::DType;

/// What a step computes, and where to.
#[derive(Debug)]
pub(super) enum Work {
    Coded {
        op: CodedOp,
        output: Target,
    },
    Operator {
        operator: Operator,
        output: Target,
    },
    /// By tract, into values that are kept from index `first` on.
    Tract {
        node: Box<TypedNode>,
        first: usize,
    },
}

/// The place of an output in a slot. The data of a chain may be there already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) slot: usize,
    pub(super) offset: usize,
    pub(super) dtype: DType,
    pub(super) elems: usize,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) work: Work,
    pub(super) inputs: Vec<Operand>,
    /// Kept values that no later step reads.
    pub(super) ends: Vec<usize>,
}

/// A step before slots are assigned: [`Place::Slot`] holds the number of a value.
pub(super) struct Draft {
    pub(super) work: DraftWork,
    pub(super) inputs: Vec<Operand>,
}

pub(super) enum DraftWork {
    Coded(CodedOp, usize),
    Operator(Operator, usize),
    Tract(Box<TypedNode>, usize),
}

impl DraftWork {
    /// The value that is written to a slot.
    pub(super) fn value(&self) -> Option<usize> {
        match self {
            Self::Coded(_, value) | Self::Operator(_, value) => Some(*value),
            Self::Tract(..) => None,
        }
    }
}
