//! Filters in the layout that the CPU kernel reads.
//!
//! Relevant if you want to change that layout; callers need only [`ConvKernel::pack`](super::ConvKernel::pack). The
//! output channels of a group are divided into blocks of up to eight. A block holds, for each term of the sum, the
//! weights of its channels side by side, so that a tile reads them sequentially. The last block of a group is padded
//! with zeros.
//!
//! Invariant: the length matches the shape that the filters were packed for.

use super::micro::CHANNELS;
use super::params::ConvShape;
use crate::array::Element;

/// One filter bank of a convolution, packed for the CPU kernel that was planned for its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters<T> {
    packed: Vec<T>,
    /// The layout they are packed in.
    layout: Layout,
}

/// The layout of the packed filters of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    groups: usize,
    group_out: usize,
    terms: usize,
    /// Output channels of a block; 0 for filters that stay unpacked, `[O, terms]`.
    width: usize,
}

/// The weights of up to `width` output channels, `[terms, width]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a, T> {
    pub(super) weights: &'a [T],
    pub(super) width: usize,
    /// Output channels in the block, without padding.
    pub(super) channels: usize,
}

impl<T> Block<'_, T> {
    /// Up to `count` of its output channels, from `first` on.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        Self {
            weights: &self.weights[first..],
            width: self.width,
            channels: count.min(self.channels - first),
        }
    }
}

impl Layout {
    /// The layout of filters in blocks, or unpacked.
    pub(super) fn new(shape: &ConvShape, in_blocks: bool) -> Self {
        let group_out = shape.out_channels / shape.groups;
        let width = if in_blocks { CHANNELS.min(group_out.next_power_of_two()) } else { 0 };
        Self { groups: shape.groups, group_out, terms: shape.reduction(), width }
    }

    /// Blocks of a group.
    pub(super) fn blocks(&self) -> usize {
        if self.width == 0 { 1 } else { self.group_out.div_ceil(self.width) }
    }

    /// Output channels of a block.
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl<T: Element> Filters<T> {
    /// Packs `[O, C/g, kernel...]`; its length has been checked.
    pub(super) fn new(layout: Layout, weights: &[T]) -> Self {
        let Layout { groups, group_out, terms, width } = layout;
        if width == 0 {
            return Self { packed: weights.to_vec(), layout };
        }
        let mut packed = vec![T::default(); groups * layout.blocks() * terms * width];
        let mut blocks = packed.chunks_exact_mut(terms * width);
        for group in weights.chunks_exact(group_out * terms) {
            for (filters, block) in group.chunks(width * terms).zip(&mut blocks) {
                for (channel, filter) in filters.chunks_exact(terms).enumerate() {
                    let column = block[channel..].iter_mut().step_by(width);
                    column.zip(filter).for_each(|(to, from)| *to = *from);
                }
            }
        }
        Self { packed, layout }
    }

    /// The layout.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// All weights of unpacked filters.
    pub(super) fn plain(&self) -> &[T] {
        &self.packed
    }

    /// Block `block` of group `group`.
    pub(super) fn block(&self, group: usize, block: usize) -> Block<'_, T> {
        let Layout { group_out, terms, width, .. } = self.layout;
        let elems = terms * width;
        Block {
            weights: &self.packed[(group * self.layout.blocks() + block) * elems..][..elems],
            width,
            channels: width.min(group_out - block * width),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    #[test]
    fn every_weight_lies_where_its_block_is_read() {
        for (out, groups) in [(1, 1), (3, 1), (8, 1), (13, 1), (6, 3), (22, 2)] {
            let params = ConvParams::default().groups(groups);
            let shape = ConvShape::new(&[1, 2 * groups, 5], &[out, 2, 3], &params).unwrap();
            let weights: Vec<f64> = (0..shape.weight_elems()).map(|i| i as f64 + 1.0).collect();
            let layout = Layout::new(&shape, true);
            let filters = Filters::new(layout, &weights);
            let group_out = out / groups;
            for o in 0..out {
                let (group, channel) = (o / group_out, o % group_out);
                let block = filters.block(group, channel / layout.width());
                let within = channel % layout.width();
                assert!(within < block.channels);
                for k in 0..6 {
                    assert_eq!(block.weights[k * block.width + within], weights[o * 6 + k]);
                }
            }
            let zeros = filters.packed.iter().filter(|w| **w == 0.0).count();
            assert_eq!(zeros, filters.packed.len() - weights.len());
            assert_eq!(Filters::new(Layout::new(&shape, false), &weights).plain(), weights);
        }
    }
}
