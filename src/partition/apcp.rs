//! APCP, adaptive-padding coded partitioning of the input along its first spatial axis (paper, section IV-A).

use crate::array::Element;
use crate::conv::{AXES, ConvShape};
use crate::error::{Error, Result};

/// The input of a layer as k_A equally shaped slabs that overlap by their halo.
///
/// Slab a holds the padded input rows behind output rows `a*rows .. (a+1)*rows` of the split axis; zero rows are
/// appended at the bottom until the last slab is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputPartition {
    /// k_A.
    pub parts: usize,
    /// Output rows (of the split axis) behind each slab: ceil(H' / k_A).
    pub rows: usize,
    /// Spatial size of one slab, padding included.
    pub slab: [usize; AXES],
    /// Rows of the padded and extended input that the slabs cover together.
    pub covered_rows: usize,
    /// Input rows between the starts of neighbouring slabs.
    pub step_rows: usize,
    shape: ConvShape,
}

impl InputPartition {
    /// Cuts the input of `shape` into `k_a` slabs.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] when `k_a` is zero or above the number of output rows.
    pub fn new(shape: &ConvShape, k_a: usize) -> Result<Self> {
        let axis = shape.split_axis();
        let output_rows = shape.output[axis];
        if k_a == 0 || k_a > output_rows {
            return Err(Error::invalid(
                "input partitions k_A",
                k_a,
                format!(
                    "the output has {output_rows} rows on its first spatial axis: use 1 to {output_rows}"
                ),
            ));
        }
        let (stride, extent) = (shape.stride[axis], shape.kernel_extent(axis));
        let rows = output_rows.div_ceil(k_a);
        let mut slab = shape.padded();
        slab[axis] = (rows - 1) * stride + extent;
        Ok(Self {
            parts: k_a,
            rows,
            slab,
            covered_rows: (k_a * rows - 1) * stride + extent,
            step_rows: rows * stride,
            shape: shape.clone(),
        })
    }

    /// Elements of one row of the split axis: the padded axes after it.
    #[must_use]
    pub fn row_elems(&self) -> usize {
        self.slab[self.shape.split_axis() + 1..].iter().product()
    }

    /// Elements of one channel of one slab.
    #[must_use]
    pub fn slab_plane(&self) -> usize {
        self.slab.iter().product()
    }

    /// Elements of one channel of the padded, extended input.
    #[must_use]
    pub fn covered_plane(&self) -> usize {
        self.covered_rows * self.row_elems()
    }

    /// Elements from the start of a slab to the start of its neighbour, within one channel.
    #[must_use]
    pub fn step_elems(&self) -> usize {
        self.step_rows * self.row_elems()
    }

    /// Whether the input as it lies in memory already is its own padded and extended form.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let axis = self.shape.split_axis();
        self.shape.pad_begin == [0; AXES]
            && self.shape.pad_end == [0; AXES]
            && self.covered_rows <= self.shape.input[axis]
    }

    /// Writes one channel of the input, padded and extended, to `covered` (all of it is overwritten).
    ///
    /// `plane` holds [`ConvShape::input_plane`] elements, `covered` [`Self::covered_plane`].
    pub fn cover<T: Element>(&self, plane: &[T], covered: &mut [T]) {
        covered.fill(T::default());
        let (shape, axis) = (&self.shape, self.shape.split_axis());
        let mut size = shape.padded();
        size[axis] = self.covered_rows;
        let width = shape.input[2];
        for z in 0..shape.input[0] {
            for y in 0..shape.input[1] {
                let mut at = [z + shape.pad_begin[0], y + shape.pad_begin[1], shape.pad_begin[2]];
                // The stride may leave rows (or, with one spatial axis, elements) at the end unused.
                if axis < 2 && at[axis] >= self.covered_rows {
                    continue;
                }
                let copied =
                    if axis == 2 { width.min(self.covered_rows.saturating_sub(at[2])) } else { width };
                at[2] = at[2].min(size[2]);
                let to = (at[0] * size[1] + at[1]) * size[2] + at[2];
                let from = (z * shape.input[1] + y) * width;
                covered[to..to + copied].copy_from_slice(&plane[from..from + copied]);
            }
        }
    }

    /// The convolution of one slab with filters of `out_channels` channels: no padding, same stride and dilation.
    #[must_use]
    pub fn slab_conv(&self, out_channels: usize) -> ConvShape {
        let mut conv = self.shape.clone();
        conv.out_channels = out_channels;
        conv.input = self.slab;
        conv.pad_begin = [0; AXES];
        conv.pad_end = [0; AXES];
        conv.output[conv.split_axis()] = self.rows;
        conv
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn partition(input: &[usize], weight: &[usize], params: ConvParams, k_a: usize) -> InputPartition {
        InputPartition::new(&ConvShape::new(input, weight, &params).unwrap(), k_a).unwrap()
    }

    #[test]
    fn sizes_follow_the_formulas() {
        // AlexNet conv1 in eight slabs: ceil(55/8) = 7 rows of output, (7-1)*4 + 11 = 35 rows of input.
        let p = partition(&[1, 3, 227, 227], &[96, 3, 11, 11], ConvParams::default().stride([4]), 8);
        assert_eq!((p.rows, p.slab, p.step_rows), (7, [1, 35, 227], 28));
        assert_eq!(p.covered_rows, 55 * 4 + 11);
        assert!(!p.is_in_place());
        // Six rows in four parts: two rows each, the last part pure padding.
        let p = partition(&[1, 1, 6, 4], &[1, 1, 1, 1], ConvParams::default(), 4);
        assert_eq!((p.rows, p.covered_rows), (2, 8));
        // Nothing to pad and nothing to extend: slabs lie in the input itself.
        assert!(partition(&[1, 1, 8, 4], &[1, 1, 1, 1], ConvParams::default(), 4).is_in_place());
    }

    #[test]
    fn covering_pads_in_front_and_fills_up_behind_for_every_rank() {
        let p = partition(&[1, 1, 3], &[1, 1, 2], ConvParams::default().padding([1, 0]), 2);
        let mut covered = vec![9.0; p.covered_plane()];
        p.cover(&[1.0, 2.0, 3.0], &mut covered);
        assert_eq!(covered, [0.0, 1.0, 2.0, 3.0, 0.0]);

        let p = partition(&[1, 1, 2, 2], &[1, 1, 2, 2], ConvParams::default().padding([1, 0, 0, 1]), 2);
        let mut covered = vec![9.0; p.covered_plane()];
        p.cover(&[1.0, 2.0, 3.0, 4.0], &mut covered);
        assert_eq!(covered, [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 0.0]);

        let p = partition(
            &[1, 1, 2, 1, 1],
            &[1, 1, 1, 1, 1],
            ConvParams::default().padding([1, 0, 1, 0, 0, 0]),
            1,
        );
        let mut covered = vec![9.0; p.covered_plane()];
        p.cover(&[1.0, 2.0], &mut covered);
        assert_eq!(covered, [0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn rows_that_the_stride_never_reaches_are_left_out() {
        for (rank, input) in [(1, vec![1, 1, 6]), (2, vec![1, 1, 6, 1])] {
            let weight = vec![1; rank + 2];
            let p = partition(&input, &weight, ConvParams::default().stride([4]), 2);
            assert_eq!(p.covered_rows, 5, "rows 0 and 4 are used");
            let mut covered = vec![9.0; p.covered_plane()];
            p.cover(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut covered);
            assert_eq!(covered, [1.0, 2.0, 3.0, 4.0, 5.0]);
        }
    }

    #[test]
    fn more_parts_than_rows_are_refused_with_both_numbers() {
        let shape = ConvShape::new(&[1, 1, 5, 5], &[1, 1, 3, 3], &ConvParams::default()).unwrap();
        for k_a in [0, 4] {
            let error = InputPartition::new(&shape, k_a).unwrap_err().to_string();
            assert!(error.contains(&k_a.to_string()) && error.contains("3 rows"), "{error}");
        }
    }
}
