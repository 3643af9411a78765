//! The position of each decoded part in the output, and the division of the output into runs for writing.

use super::{FilterPartition, InputPartition};
use crate::conv::ConvShape;

/// The map from (part a, part b, element of a part) to the output.
///
/// A part is `[N * g * per_group, rows * inner]`: its channel planes one after the other. Part (a, b) covers the rows
/// from `a * rows` on of an output plane and the channels from `b * per_group` on of each group; elements beyond the
/// output are cropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTiling {
    /// k_A.
    pub k_a: usize,
    /// k_B.
    pub k_b: usize,
    groups: usize,
    group_out: usize,
    per_group: usize,
    batch: usize,
    part_plane: usize,
    output_plane: usize,
}

impl OutputTiling {
    /// The tiling of the output of `shape` by the products of `input` and `filters`.
    #[must_use]
    pub fn new(shape: &ConvShape, input: &InputPartition, filters: &FilterPartition) -> Self {
        let inner: usize = shape.output[shape.split_axis() + 1..].iter().product();
        Self {
            k_a: input.parts,
            k_b: filters.parts,
            groups: shape.groups,
            group_out: shape.out_channels / shape.groups,
            per_group: filters.per_group,
            batch: shape.batch,
            part_plane: input.rows * inner,
            output_plane: shape.output_plane(),
        }
    }

    /// Elements of one part.
    #[must_use]
    pub fn part_elems(&self) -> usize {
        self.batch * self.groups * self.per_group * self.part_plane
    }

    /// Elements of the output.
    #[must_use]
    pub fn output_elems(&self) -> usize {
        self.batch * self.groups * self.group_out * self.output_plane
    }

    /// Output channels O of the layer.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.groups * self.group_out
    }

    /// Channel planes of one part.
    #[must_use]
    pub fn part_planes(&self) -> usize {
        self.batch * self.groups * self.per_group
    }

    /// Number of groups over all images.
    #[must_use]
    pub fn image_groups(&self) -> usize {
        self.batch * self.groups
    }

    /// Elements of one channel plane of a part.
    #[must_use]
    pub fn part_plane(&self) -> usize {
        self.part_plane
    }

    /// The output channel of the layer (for the bias) of plane `plane` of the parts with filters `b`; `None` for a
    /// padding plane.
    #[must_use]
    pub fn channel(&self, plane: usize, b: usize) -> Option<usize> {
        let (group, filter) = (plane / self.per_group % self.groups, plane % self.per_group);
        let in_group = b * self.per_group + filter;
        (in_group < self.group_out).then_some(group * self.group_out + in_group)
    }

    /// The image and group that plane `plane` of the parts belongs to: `image * groups + group`.
    #[must_use]
    pub fn group(&self, plane: usize) -> usize {
        plane / self.per_group
    }

    /// Splits the output into runs of at most `columns` columns: run (plane, block, part) has index
    /// `(plane * blocks + block) * k_A k_B + part`, where a plane of a part has `part_plane().div_ceil(columns)` blocks
    /// and part (a, b) is `a * k_B + b`. Every output element is in exactly one run; runs omit cropped elements.
    pub fn runs<'a, T>(&self, output: &'a mut [T], columns: usize) -> Vec<&'a mut [T]> {
        let columns = columns.max(1);
        let (blocks, parts) = (self.part_plane.div_ceil(columns), self.k_a * self.k_b);
        let mut runs: Vec<&'a mut [T]> = Vec::new();
        runs.resize_with(self.part_planes() * blocks * parts, Default::default);
        for (plane, rows) in output.chunks_mut(self.output_plane).enumerate() {
            let (image_group, in_group) = (plane / self.group_out, plane % self.group_out);
            let (b, filter) = (in_group / self.per_group, in_group % self.per_group);
            let first = (image_group * self.per_group + filter) * blocks;
            for (a, rows) in rows.chunks_mut(self.part_plane).enumerate() {
                for (block, run) in rows.chunks_mut(columns).enumerate() {
                    runs[(first + block) * parts + a * self.k_b + b] = run;
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    /// Every output element is covered once, by the part and column the definition names.
    #[test]
    fn pieces_cover_the_output_exactly_once() {
        for (input, weight, groups, k_a, k_b) in [
            (vec![2, 4, 7, 3], vec![10, 2, 2, 2], 2, 4, 2),
            (vec![1, 1, 1, 1], vec![9, 1, 1, 1], 1, 1, 4),
            (vec![1, 2, 11], vec![4, 1, 3], 2, 6, 2),
            (vec![1, 1, 5, 4, 3], vec![3, 1, 2, 1, 1], 1, 4, 2),
        ] {
            let shape = ConvShape::new(&input, &weight, &ConvParams::default().groups(groups)).unwrap();
            let (x, k) =
                (InputPartition::new(&shape, k_a).unwrap(), FilterPartition::new(&shape, k_b).unwrap());
            let tiling = OutputTiling::new(&shape, &x, &k);
            let inner: usize = shape.output[shape.split_axis() + 1..].iter().product();
            for columns in [1, 2, 5, 64, 1000] {
                let mut output = vec![None; shape.output_elems()];
                let (blocks, parts) = (tiling.part_plane().div_ceil(columns), k_a * k_b);
                for (at, run) in tiling.runs(&mut output, columns).into_iter().enumerate() {
                    assert!(run.len() <= columns);
                    let (part, block, plane) = (at % parts, at / parts % blocks, at / parts / blocks);
                    let channel = tiling.channel(plane, part % k_b);
                    assert_eq!(tiling.group(plane) % groups, plane / k.per_group % groups);
                    assert!(channel.is_some() || run.is_empty());
                    let start = plane * tiling.part_plane() + block * columns;
                    for (i, slot) in run.iter_mut().enumerate() {
                        assert!(slot.is_none());
                        *slot = Some((part, start + i, channel.unwrap()));
                    }
                }
                for (i, slot) in output.iter().enumerate() {
                    let (plane, at) = (i / shape.output_plane(), i % shape.output_plane());
                    let (n, o) = (plane / shape.out_channels, plane % shape.out_channels);
                    let group_out = shape.out_channels / groups;
                    let (g, o_in) = (o / group_out, o % group_out);
                    let (row, col) = (at / inner, at % inner);
                    let part = row / x.rows * k_b + o_in / k.per_group;
                    let part_plane = (n * groups + g) * k.per_group + o_in % k.per_group;
                    let column = (part_plane * x.rows + row % x.rows) * inner + col;
                    assert_eq!(*slot, Some((part, column, o)), "output element {i}");
                }
            }
        }
    }
}
