//! Filters in the layout that the CPU kernel reads.
//!
//! Relevant if you want to change that layout; callers need only [`ConvKernel::pack`](super::ConvKernel::pack). The
//! output channels of a group are divided into blocks of up to eight. A block holds, for each term of the sum, the
//! weights of its channels side by side, so that a tile reads them sequentially. Where all blocks are multiplied with a
//! run of terms before the next run, the weights of a run lie together, block by block. The last block of a group is
//! padded with zeros.
//!
//! Invariant: the length matches the shape that the filters were packed for.

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
    /// Terms of a run.
    run: usize,
}

/// The weights of up to `width` output channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a, T> {
    /// The weights of all blocks of the group.
    group: &'a [T],
    layout: Layout,
    index: usize,
    /// The first channel.
    pub(super) first: usize,
    /// Output channels from the first one on, without padding.
    pub(super) channels: usize,
}

impl<'a, T> Block<'a, T> {
    /// Up to `count` of its output channels, from `first` on.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        Self { first: self.first + first, channels: count.min(self.channels - first), ..self }
    }

    /// The weights `[count, width]` of the run of `count` terms that begins with term `begin`, for all channels of the
    /// block.
    pub(super) fn run(&self, begin: usize, count: usize) -> &'a [T] {
        let Layout { width, .. } = self.layout;
        &self.group[(begin * self.layout.blocks() + self.index * count) * width..][..count * width]
    }
}

impl Layout {
    /// The layout of filters in blocks of `width` channels and runs of at most `run` terms; a width of 0 leaves them
    /// unpacked.
    pub(super) fn new(shape: &ConvShape, width: usize, run: usize) -> Self {
        let (group_out, terms) = (shape.out_channels / shape.groups, shape.reduction());
        Self { groups: shape.groups, group_out, terms, width, run: run.min(terms) }
    }

    /// The layout of filters transformed for `products` products each, `[products, O, C/g]`.
    pub(super) fn of_products(shape: &ConvShape, products: usize, width: usize, run: usize) -> Self {
        let (group_out, terms) = (shape.out_channels / shape.groups, shape.in_channels / shape.groups);
        Self { groups: products * shape.groups, group_out, terms, width, run: run.min(terms) }
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
        let Layout { groups, group_out, terms, width, run } = layout;
        if width == 0 {
            return Self { packed: weights.to_vec(), layout };
        }
        let blocks = layout.blocks();
        let mut packed = vec![T::default(); groups * blocks * terms * width];
        let groups = packed.chunks_exact_mut(blocks * terms * width);
        for (to, from) in groups.zip(weights.chunks_exact(group_out * terms)) {
            for (to, begin) in to.chunks_mut(blocks * run * width).zip((0..).step_by(run)) {
                let count = run.min(terms - begin);
                for (to, filters) in to.chunks_exact_mut(count * width).zip(from.chunks(width * terms)) {
                    for (channel, filter) in filters.chunks_exact(terms).enumerate() {
                        let column = to[channel..].iter_mut().step_by(width);
                        column.zip(&filter[begin..]).for_each(|(to, from)| *to = *from);
                    }
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
        let elems = self.layout.blocks() * terms * width;
        Block {
            group: &self.packed[group * elems..][..elems],
            layout: self.layout,
            index: block,
            first: 0,
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
            // Six terms in one run, in equal ones, and in one of four and one of two.
            for (width, run) in [(8, 100), (6, 2), (8, 3), (4, 4), (1, 6)] {
                let layout = Layout::new(&shape, width, run);
                let filters = Filters::new(layout, &weights);
                let group_out = out / groups;
                for o in 0..out {
                    let (group, channel) = (o / group_out, o % group_out);
                    let block = filters.block(group, channel / width);
                    let within = channel % width;
                    assert!(within < block.channels);
                    assert_eq!(block.part(within, 1).first, within);
                    for k in 0..6 {
                        let begin = k / run * run;
                        let of_run = block.run(begin, run.min(6 - begin));
                        assert_eq!(of_run[(k - begin) * width + within], weights[o * 6 + k]);
                    }
                }
                let zeros = filters.packed.iter().filter(|w| **w == 0.0).count();
                assert_eq!(zeros, filters.packed.len() - weights.len());
            }
            assert_eq!(Filters::new(Layout::new(&shape, 0, 6), &weights).plain(), weights);
        }
    }
}
