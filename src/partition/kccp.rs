//! KCCP, kernel-channel coded partitioning of the filters along their output channels (paper, section IV-B).

use std::borrow::Cow;

use crate::array::Element;
use crate::conv::ConvShape;
use crate::error::{Error, Result};

/// The filters of a layer as k_B equally shaped banks.
///
/// Every group's output channels are padded with zero filters to a multiple of k_B and split; a bank keeps the
/// group structure, so it is an ordinary grouped filter bank of `groups * per_group` filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPartition {
    /// k_B.
    pub parts: usize,
    /// Filters of one group in one bank: ceil((O/g) / k_B).
    pub per_group: usize,
    groups: usize,
    group_out: usize,
    filter_elems: usize,
}

impl FilterPartition {
    /// Splits the filters of `shape` into `k_b` banks.
    ///
    /// More banks than a group has channels are allowed but wasteful, since the surplus banks are zero filters; the
    /// planner never chooses them.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] when `k_b` is zero.
    pub fn new(shape: &ConvShape, k_b: usize) -> Result<Self> {
        let group_out = shape.out_channels / shape.groups;
        if k_b == 0 {
            return Err(Error::invalid(
                "filter partitions k_B",
                k_b,
                format!("each group has {group_out} output channels: use 1 to {group_out}"),
            ));
        }
        Ok(Self {
            parts: k_b,
            per_group: group_out.div_ceil(k_b),
            groups: shape.groups,
            group_out,
            filter_elems: shape.reduction(),
        })
    }

    /// Output channels of one bank.
    #[must_use]
    pub fn bank_channels(&self) -> usize {
        self.groups * self.per_group
    }

    /// Elements of one bank.
    #[must_use]
    pub fn bank_elems(&self) -> usize {
        self.bank_channels() * self.filter_elems
    }

    /// Elements of one filter.
    #[must_use]
    pub fn filter_elems(&self) -> usize {
        self.filter_elems
    }

    /// The output channel of the layer for filter `filter` of bank `bank`; `None` for a padding filter.
    #[must_use]
    pub fn channel(&self, bank: usize, filter: usize) -> Option<usize> {
        let (group, of_group) = (filter / self.per_group, bank * self.per_group + filter % self.per_group);
        (of_group < self.group_out).then_some(group * self.group_out + of_group)
    }

    /// The banks one after the other, `[k_B, g * per_group, C/g, kernel...]`, from `[O, C/g, kernel...]`: borrows the
    /// weight itself if the banks are its consecutive parts.
    #[must_use]
    pub fn split<'a, T: Element>(&self, weight: &'a [T]) -> Cow<'a, [T]> {
        if (self.groups == 1 || self.parts == 1) && self.parts * self.per_group == self.group_out {
            return Cow::Borrowed(weight);
        }
        let mut banks = vec![T::default(); self.parts * self.bank_elems()];
        for (bank, filters) in banks.chunks_mut(self.bank_elems()).enumerate() {
            for group in 0..self.groups {
                let first = bank * self.per_group;
                let own = self.group_out.saturating_sub(first).min(self.per_group);
                let from = (group * self.group_out + first.min(self.group_out)) * self.filter_elems;
                let to = group * self.per_group * self.filter_elems;
                filters[to..to + own * self.filter_elems]
                    .copy_from_slice(&weight[from..from + own * self.filter_elems]);
            }
        }
        Cow::Owned(banks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    #[test]
    fn banks_keep_their_groups_and_are_filled_with_zero_filters() {
        let params = ConvParams::default().groups(2);
        let shape = ConvShape::new(&[1, 2, 1], &[6, 1, 1], &params).unwrap();
        let p = FilterPartition::new(&shape, 2).unwrap();
        assert_eq!((p.per_group, p.bank_channels()), (2, 4));
        let banks = p.split(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
        assert_eq!(*banks, [1.0, 2.0, 10.0, 20.0, 3.0, 0.0, 30.0, 0.0]);
        let channels = |bank| (0..4).map(|filter| p.channel(bank, filter)).collect::<Vec<_>>();
        assert_eq!(channels(0), [Some(0), Some(1), Some(3), Some(4)]);
        assert_eq!(channels(1), [Some(2), None, Some(5), None]);
    }

    #[test]
    fn banks_that_lie_one_after_the_other_are_not_copied() {
        let shape = ConvShape::new(&[1, 1, 1], &[6, 1, 1], &ConvParams::default()).unwrap();
        let weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let borrowed = |parts| {
            let banks = FilterPartition::new(&shape, parts).unwrap();
            matches!(banks.split(&weight), Cow::Borrowed(all) if all == weight)
        };
        assert!(borrowed(2) && borrowed(3));
        assert!(!borrowed(4), "six filters are not four equal banks");
    }

    #[test]
    fn a_bank_may_be_pure_padding() {
        // Five filters in four banks of two: the last bank is empty.
        let shape = ConvShape::new(&[1, 1, 1], &[5, 1, 1], &ConvParams::default()).unwrap();
        let p = FilterPartition::new(&shape, 4).unwrap();
        assert_eq!(*p.split(&[1.0, 2.0, 3.0, 4.0, 5.0]), [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn more_banks_than_channels_are_zero_filters_and_none_is_refused() {
        let params = ConvParams::default().groups(2);
        let shape = ConvShape::new(&[1, 2, 1], &[2, 1, 1], &params).unwrap();
        assert_eq!(*FilterPartition::new(&shape, 2).unwrap().split(&[5.0, 7.0]), [5.0, 7.0, 0.0, 0.0]);
        assert!(FilterPartition::new(&shape, 0).unwrap_err().to_string().contains("k_B is 0"));
    }
}
