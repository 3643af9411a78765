//! APCP, adaptive-padding coded partitioning of the input along its first spatial axis (paper, section IV-A).

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use crate::array::Element;
use crate::conv::{AXES, ConvShape};
use crate::error::{Error, Result};

/// The input of a layer as k_A equally shaped slabs that overlap by their halo.
///
/// Slab a holds the padded input rows needed for output rows `a*rows .. (a+1)*rows` of the split axis; zero rows are
/// appended at the bottom until the last slab is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputPartition {
    /// k_A.
    pub parts: usize,
    /// Output rows (of the split axis) for each slab: ceil(H' / k_A).
    pub rows: usize,
    /// Spatial size of one slab, padding included.
    pub slab: [usize; AXES],
    /// Rows of the padded and extended input that the slabs cover together.
    pub covered_rows: usize,
    /// Input rows between the starts of neighbouring slabs.
    pub step_rows: usize,
    /// Size of the padded and extended input.
    size: [usize; AXES],
    /// Whether the input in memory already has that form.
    in_place: bool,
    shape: ConvShape,
}

/// `to = from * scale`, converted. Both have the same length.
#[inline(always)]
fn convert<T: Element, A: Element>(from: &[T], scale: f64, to: &mut [A]) {
    if scale == 1.0 {
        each_block(from, to, |from| A::from_f64(from.to_f64()));
    } else {
        each_block(from, to, |from| A::from_f64(from.to_f64() * scale));
    }
}

/// `to = change(from)`, in blocks of constant size, the last of which overlaps the one before: rows are short, and loops
/// over the rest of a row take longer than the blocks.
#[inline(always)]
fn each_block<T: Copy, A: Copy>(from: &[T], to: &mut [A], change: impl Fn(T) -> A) {
    #[inline(always)]
    fn blocks<T: Copy, A: Copy, const N: usize>(from: &[T], to: &mut [A], change: impl Fn(T) -> A) -> bool {
        let length = from.len().min(to.len());
        if length < N {
            return false;
        }
        for at in (0..length).step_by(N) {
            let at = at.min(length - N);
            let (Some(from), Some(to)) = (from[at..].first_chunk::<N>(), to[at..].first_chunk_mut::<N>())
            else {
                return false;
            };
            *to = from.map(&change);
        }
        true
    }
    if !(blocks::<T, A, 16>(from, to, &change) || blocks::<T, A, 4>(from, to, &change)) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = change(*from);
        }
    }
}

impl InputPartition {
    /// Splits the input of `shape` into `k_a` slabs.
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
        let covered_rows = (k_a * rows - 1) * stride + extent;
        let mut size = shape.padded();
        size[axis] = covered_rows;
        let unpadded = shape.pad_begin == [0; AXES] && shape.pad_end == [0; AXES];
        Ok(Self {
            parts: k_a,
            rows,
            slab,
            covered_rows,
            size,
            in_place: unpadded && covered_rows <= shape.input[axis],
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

    /// Whether the input in memory already is its padded and extended form.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// Writes elements `from..from + to.len()` of one channel of the padded, extended input, times `scale`, to `to`,
    /// converted.
    ///
    /// `plane` holds the [`ConvShape::input_plane`] elements of the channel; the run lies within
    /// [`Self::covered_plane`].
    #[inline(always)]
    pub(crate) fn read<T: Element, A: Element>(&self, plane: &[T], from: usize, scale: f64, to: &mut [A]) {
        if self.in_place {
            return convert(&plane[from..from + to.len()], scale, to);
        }
        let (shape, width) = (&self.shape, self.size[2]);
        let (mut row, mut x) = (from / width, from % width);
        let mut rest = to;
        while !rest.is_empty() {
            let (run, after) = rest.split_at_mut((width - x).min(rest.len()));
            rest = after;
            // Rows of padding before and after the input wrap around or exceed its end.
            let z = (row / self.size[1]).wrapping_sub(shape.pad_begin[0]);
            let y = (row % self.size[1]).wrapping_sub(shape.pad_begin[1]);
            if z < shape.input[0] && y < shape.input[1] {
                let source = &plane[(z * shape.input[1] + y) * shape.input[2]..][..shape.input[2]];
                let inside = |column: usize| column.clamp(x, x + run.len()) - x;
                let begin = inside(shape.pad_begin[2]);
                let end = inside(shape.pad_begin[2] + shape.input[2]);
                run[..begin].fill(A::default());
                if begin < end {
                    let inside = &source[x + begin - shape.pad_begin[2]..][..end - begin];
                    convert(inside, scale, &mut run[begin..end]);
                }
                run[end..].fill(A::default());
            } else {
                run.fill(A::default());
            }
            (row, x) = (row + 1, 0);
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

    /// The whole padded and extended channel; every run of it must be the same, whatever its length.
    fn covered(p: &InputPartition, plane: &[f32]) -> Vec<f64> {
        let mut covered = vec![9.0; p.covered_plane()];
        p.read(plane, 0, 1.0, &mut covered);
        for from in 0..covered.len() {
            for to in from..covered.len() {
                let mut run = vec![9.0; to - from];
                p.read(plane, from, 1.0, &mut run);
                assert_eq!(run, covered[from..to]);
                p.read(plane, from, 0.5, &mut run);
                assert!(run.iter().zip(&covered[from..to]).all(|(half, whole)| *half == whole / 2.0));
            }
        }
        covered
    }

    #[test]
    fn sizes_follow_the_formulas() {
        // AlexNet conv1 in eight slabs: ceil(55/8) = 7 rows of output, (7-1)*4 + 11 = 35 rows of input.
        let p = partition(&[1, 3, 227, 227], &[96, 3, 11, 11], ConvParams::default().stride([4]), 8);
        assert_eq!((p.rows, p.slab, p.step_rows), (7, [1, 35, 227], 28));
        assert_eq!(p.covered_rows, 55 * 4 + 11);
        assert!(!p.is_in_place());
        // Six rows in four parts: two rows each, so the last part is pure padding.
        let p = partition(&[1, 1, 6, 4], &[1, 1, 1, 1], ConvParams::default(), 4);
        assert_eq!((p.rows, p.covered_rows), (2, 8));
        // No padding and no extension: slabs are read from the input in place.
        assert!(partition(&[1, 1, 8, 4], &[1, 1, 1, 1], ConvParams::default(), 4).is_in_place());
    }

    #[test]
    fn covering_pads_in_front_and_fills_up_behind_for_every_rank() {
        let p = partition(&[1, 1, 3], &[1, 1, 2], ConvParams::default().padding([1, 0]), 2);
        let got = covered(&p, &[1.0, 2.0, 3.0]);
        assert_eq!(got, [0.0, 1.0, 2.0, 3.0, 0.0]);

        let p = partition(&[1, 1, 2, 2], &[1, 1, 2, 2], ConvParams::default().padding([1, 0, 0, 1]), 2);
        let got = covered(&p, &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(got, [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 0.0]);

        let p = partition(
            &[1, 1, 2, 1, 1],
            &[1, 1, 1, 1, 1],
            ConvParams::default().padding([1, 0, 1, 0, 0, 0]),
            1,
        );
        let got = covered(&p, &[1.0, 2.0]);
        assert_eq!(got, [0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn rows_that_the_stride_never_reaches_are_left_out() {
        for (rank, input) in [(1, vec![1, 1, 6]), (2, vec![1, 1, 6, 1])] {
            let weight = vec![1; rank + 2];
            let p = partition(&input, &weight, ConvParams::default().stride([4]), 2);
            assert_eq!(p.covered_rows, 5, "rows 0 and 4 are used");
            let got = covered(&p, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(got, [1.0, 2.0, 3.0, 4.0, 5.0]);
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

    #[test]
    fn rows_of_every_length_are_converted_element_by_element() {
        for length in 0..70 {
            let from: Vec<f32> = (0..length).map(|i| i as f32 - 20.5).collect();
            for scale in [1.0, 0.5] {
                let mut to = vec![f64::NAN; length];
                convert(&from, scale, &mut to);
                assert!(to.iter().zip(&from).all(|(to, from)| *to == f64::from(*from) * scale), "{length}");
            }
        }
    }
}
