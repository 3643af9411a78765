//! Subtasks with data for the checks.
//!
//! Relevant if you want the checks to cover another shape. Invariant: all data are exact in f32, so that the same expected
//! results serve both element types.

use crate::array::{DType, Values};
use crate::conv::{ConvParams, ConvShape, reference};
use crate::worker::{SubtaskShape, numbers, values};

/// A subtask and its data.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) shape: SubtaskShape,
    slabs: Vec<f64>,
    banks: Vec<f64>,
}

impl Case {
    fn new(
        (input, weight): (&[usize], &[usize]),
        params: &ConvParams,
        (slabs, banks): (usize, usize),
        seed: u64,
    ) -> Self {
        let conv = ConvShape::new(input, weight, params).expect("the shapes of the checks are valid");
        let shape = SubtaskShape { conv, slabs, banks, plain: false };
        let (slabs, banks) = (numbers(shape.upload_elems(), seed), numbers(shape.filter_elems(), seed + 1));
        Self { shape, slabs, banks }
    }

    /// Two slabs and two banks in two dimensions; all lengths differ. Other seeds give other data.
    pub(super) fn small(seed: u64) -> Self {
        Self::new((&[1, 3, 7, 6], &[4, 3, 3, 3]), &ConvParams::default(), (2, 2), seed)
    }

    /// The filters of [`Self::small`] for larger inputs.
    pub(super) fn larger(seed: u64) -> Self {
        Self::new((&[2, 3, 9, 8], &[4, 3, 3, 3]), &ConvParams::default(), (3, 2), seed)
    }

    /// Another shape than [`Self::small`].
    pub(super) fn other() -> Self {
        Self::new((&[2, 2, 8, 5], &[3, 2, 2, 3]), &ConvParams::default(), (1, 3), 90)
    }

    /// 64 sub-results of 1.7 million multiply-adds: long enough to be cancelled in the middle, also over a network.
    pub(super) fn long() -> Self {
        Self::new((&[1, 16, 30, 30], &[15, 16, 3, 3]), &ConvParams::default(), (8, 8), 50)
    }

    /// Shapes to compare with the definition; a worker may refuse all but the first.
    pub(super) fn shapes() -> Vec<Self> {
        let p = ConvParams::default;
        let plain = |mut case: Self| {
            case.shape.plain = true;
            case
        };
        vec![
            Self::small(10),
            plain(Self::small(20)),
            Self::new((&[2, 4, 17], &[6, 2, 5]), &p().groups(2).stride([2]), (1, 2), 30),
            Self::new((&[1, 2, 5, 6, 7], &[3, 2, 2, 3, 2]), &p().dilation([1, 2, 1]), (2, 1), 40),
            Self::new((&[1, 4, 9, 11], &[4, 1, 3, 3]), &p().groups(4).stride([2, 1]), (1, 1), 60),
            Self::new((&[2, 9, 5, 4], &[6, 9, 1, 1]), &p(), (2, 2), 70),
        ]
    }

    pub(super) fn slabs(&self, dtype: DType) -> Values {
        values(&self.slabs, dtype)
    }

    pub(super) fn banks(&self, dtype: DType) -> Values {
        values(&self.banks, dtype)
    }

    /// Filters with one element less than the shape demands.
    pub(super) fn too_few_banks(&self, dtype: DType) -> Values {
        values(&self.banks[1..], dtype)
    }

    /// Slabs with one element less than the shape demands.
    pub(super) fn too_few_slabs(&self, dtype: DType) -> Values {
        values(&self.slabs[1..], dtype)
    }

    /// Sub-result `index` by definition.
    pub(super) fn truth(&self, index: usize) -> Vec<f64> {
        let (slab, bank) = (index / self.shape.banks, index % self.shape.banks);
        let (inputs, weights) = (self.shape.conv.input_elems(), self.shape.conv.weight_elems());
        let (slab, bank) = (&self.slabs[slab * inputs..][..inputs], &self.banks[bank * weights..][..weights]);
        reference(&self.shape.conv, slab, bank, None).expect("the lengths are those of the shape")
    }

    /// The shape, for messages.
    pub(super) fn name(&self, dtype: DType) -> String {
        let conv = &self.shape.conv;
        format!(
            "{dtype}, {} slabs {:?}, {} banks {:?}, groups {}, stride {:?}, dilation {:?}{}",
            self.shape.slabs,
            conv.input_shape(),
            self.shape.banks,
            conv.weight_shape(),
            conv.groups,
            conv.stride,
            conv.dilation,
            if self.shape.plain { ", plain" } else { "" }
        )
    }
}
