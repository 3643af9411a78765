//! Where each decoded part lies in the output, and how the work of writing it is shared out.

use super::{FilterPartition, InputPartition};
use crate::conv::ConvShape;

/// The map from (part a, part b, element of a part) to the output.
///
/// A part is `[N * g * per_group, rows * inner]`: its channel planes one after the other. With `a` it fills the
/// rows from `a * rows` of an output plane, with `b` the channels from `b * per_group` of each group; what lies
/// beyond the output is cropped.
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

/// A run of output elements that one decoded part fills.
#[derive(Debug)]
pub struct Piece<'a, T> {
    /// Which part, `a * k_B + b`.
    pub part: usize,
    /// First column within the job's columns.
    pub column: usize,
    /// Output channel, for the bias.
    pub channel: usize,
    /// The elements to write.
    pub output: &'a mut [T],
}

/// Columns (flat elements of a part) that are decoded together, and the output they fill.
#[derive(Debug)]
pub struct TilingJob<'a, T> {
    /// First column of the job in the flat part.
    pub start: usize,
    /// Number of columns.
    pub columns: usize,
    /// Where their decoded values go.
    pub pieces: Vec<Piece<'a, T>>,
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

    /// O, output channels of the layer.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.groups * self.group_out
    }

    /// Shares the output out to jobs of about `columns` columns; every output element is in exactly one piece.
    ///
    /// Planes longer than that are cut, shorter ones are taken several at a time.
    pub fn jobs<'a, T>(&self, output: &'a mut [T], columns: usize) -> Vec<TilingJob<'a, T>> {
        let columns = columns.max(1);
        let planes = self.batch * self.groups * self.per_group;
        let blocks_per_plane = self.part_plane.div_ceil(columns);
        let block = self.part_plane.div_ceil(blocks_per_plane);
        let planes_per_job = if blocks_per_plane == 1 { (columns / self.part_plane).max(1) } else { 1 };
        let mut jobs: Vec<TilingJob<'a, T>> = (0..planes.div_ceil(planes_per_job))
            .flat_map(|group| {
                let first_plane = group * planes_per_job;
                let held = planes_per_job.min(planes - first_plane);
                (0..blocks_per_plane).map(move |b| {
                    let begin = b * block;
                    let end = ((b + 1) * block).min(self.part_plane);
                    TilingJob {
                        start: first_plane * self.part_plane + begin,
                        columns: if held == 1 { end - begin } else { held * self.part_plane },
                        pieces: Vec::new(),
                    }
                })
            })
            .collect();
        for (plane, mut rest) in output.chunks_mut(self.output_plane).enumerate() {
            let (image, channel) =
                (plane / (self.groups * self.group_out), plane % (self.groups * self.group_out));
            let (group, in_group) = (channel / self.group_out, channel % self.group_out);
            let (b, filter) = (in_group / self.per_group, in_group % self.per_group);
            let part_plane = (image * self.groups + group) * self.per_group + filter;
            for a in 0..self.k_a {
                let take = rest.len().min(self.part_plane);
                let (rows, after) = rest.split_at_mut(take);
                rest = after;
                for (at, piece) in rows.chunks_mut(block).enumerate() {
                    let job = &mut jobs[part_plane / planes_per_job * blocks_per_plane + at];
                    let column = part_plane * self.part_plane + at * block - job.start;
                    job.pieces.push(Piece { part: a * self.k_b + b, column, channel, output: piece });
                }
            }
        }
        jobs.retain(|job| !job.pieces.is_empty());
        jobs
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
                for job in tiling.jobs(&mut output, columns) {
                    assert!(job.columns <= columns.max(inner * x.rows));
                    for piece in job.pieces {
                        assert!(piece.column + piece.output.len() <= job.columns);
                        for (i, slot) in piece.output.iter_mut().enumerate() {
                            assert!(slot.is_none());
                            *slot = Some((piece.part, job.start + piece.column + i, piece.channel));
                        }
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
