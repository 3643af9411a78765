//! Copies that put arrays together or reorder their axes.

use super::share::share;
use crate::array::Element;

/// Concatenates arrays: each input has `outer` rows of the length given beside it, and so has the output, of the lengths
/// together.
pub fn concat<T: Element>(inputs: &[(&[T], usize)], outer: usize, output: &mut [T]) {
    let row: usize = inputs.iter().map(|(_, length)| length).sum();
    assert_eq!(outer * row, output.len(), "inputs and output of a concatenation differ in length");
    share(output, 1, 1, |first, piece| {
        let mut at = first;
        let mut rest = piece;
        while !rest.is_empty() {
            let (index, mut column) = (at / row, at % row);
            let mut part = inputs.iter();
            // The input that holds this column; the lengths add up to the row.
            let (values, length) = loop {
                let (values, length) = part.next().expect("a column within the row");
                if column < *length {
                    break (*values, *length);
                }
                column -= length;
            };
            let (now, later) = rest.split_at_mut(rest.len().min(length - column));
            now.copy_from_slice(&values[index * length + column..][..now.len()]);
            at += now.len();
            rest = later;
        }
    });
}

/// A reordering of axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    /// Size of each axis of the output but those at the end that stay where they are, and its distance in the input in
    /// blocks.
    axes: Vec<(usize, usize)>,
    /// Elements of a block: the axes at the end that stay where they are.
    block: usize,
}

impl Permutation {
    /// Axis `i` of the output is axis `order[i]` of the input, whose sizes are `shape`.
    #[must_use]
    pub fn new(shape: &[usize], order: &[usize]) -> Self {
        let kept = order.iter().enumerate().rev().take_while(|(to, from)| to == *from).count();
        let moved = shape.len() - kept;
        let distance = |axis: usize| shape[axis + 1..moved].iter().product();
        let axes = order[..moved].iter().map(|axis| (shape[*axis], distance(*axis))).collect();
        Self { axes, block: shape[moved..].iter().product() }
    }

    /// Reorders `input` into `output`.
    pub fn run<T: Element>(&self, input: &[T], output: &mut [T]) {
        assert_eq!(input.len(), output.len(), "input and output of a permutation differ in length");
        share(output, self.block, 2, |first, piece| {
            for (index, block) in piece.chunks_exact_mut(self.block.max(1)).enumerate() {
                let mut rest = first + index;
                let mut from = 0;
                for (size, distance) in self.axes.iter().rev() {
                    from += rest % size * distance;
                    rest /= size;
                }
                block.copy_from_slice(&input[from * self.block..][..self.block]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, Axis};

    use super::*;

    fn array(shape: &[usize]) -> ArrayD<f32> {
        let count = shape.iter().product::<usize>();
        ArrayD::from_shape_vec(shape, (0..u16::try_from(count).unwrap()).map(f32::from).collect()).unwrap()
    }

    #[test]
    fn axes_are_reordered_as_by_ndarray() {
        let shape = [3, 4, 5, 6];
        let data = array(&shape);
        for order in [[0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 0, 2], [1, 0, 2, 3], [2, 3, 0, 1], [0, 1, 3, 2]] {
            let want = data.clone().permuted_axes(order.to_vec()).as_standard_layout().into_owned();
            let mut got = vec![f32::NAN; data.len()];
            Permutation::new(&shape, &order).run(data.as_slice().unwrap(), &mut got);
            assert_eq!(got, want.as_slice().unwrap(), "{order:?}");
        }
    }

    #[test]
    fn arrays_are_put_together_along_any_axis() {
        for axis in 0..3 {
            let shapes = [2, 1, 40].map(|size| {
                let mut shape = [7, 9, 11];
                shape[axis] = size;
                shape
            });
            let parts = shapes.map(|shape| array(&shape));
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            let want = ndarray::concatenate(Axis(axis), &views).unwrap();
            let outer: usize = shapes[0][..axis].iter().product();
            let inputs = parts.each_ref().map(|part| (part.as_slice().unwrap(), part.len() / outer));
            let mut got = vec![f32::NAN; want.len()];
            concat(&inputs, outer, &mut got);
            assert_eq!(got, want.as_standard_layout().as_slice().unwrap(), "axis {axis}");
        }
    }
}
