//! The naive definition of the convolution, slow and simple: the public reference that all other paths are tested
//! against.

use rayon::prelude::*;

use super::params::{AXES, ConvShape};
use crate::array::{Element, check_elems};
use crate::error::Result;

/// Computes the convolution by definition, one output element at a time, accumulating in f64.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]`, `bias` `[O]`, all row-major; the result is
/// `[N, O, spatial...]`. Accumulation in f64 makes it the more exact side of every f32 comparison.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) when the length of a slice does not match `shape`.
pub fn reference<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> Result<Vec<T>> {
    check_elems("elements of the input", input.len(), shape.input_elems())?;
    check_elems("elements of the weight", weight.len(), shape.weight_elems())?;
    if let Some(bias) = bias {
        check_elems("elements of the bias", bias.len(), shape.out_channels)?;
    }
    let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let (plane, taps) = (shape.input_plane(), shape.kernel.iter().product::<usize>());
    let mut output = vec![T::default(); shape.output_elems()];
    // Planes are independent; the order of each sum is fixed.
    output.par_chunks_mut(shape.output_plane()).enumerate().for_each(|(index, output)| {
        let (n, o) = (index / shape.out_channels, index % shape.out_channels);
        let first = n * shape.in_channels + o / group_out * group_in;
        for (at, value) in points(shape.output).zip(output) {
            let mut sum = bias.map_or(0.0, |b| b[o].to_f64());
            for c in 0..group_in {
                let input = &input[(first + c) * plane..][..plane];
                let weight = &weight[(o * group_in + c) * taps..][..taps];
                sum = add_taps(shape, input, weight, at, sum);
            }
            *value = T::from_f64(sum);
        }
    });
    Ok(output)
}

/// Adds to `sum` the contribution of the taps of one filter on one input plane at an output point.
fn add_taps<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    at: [usize; AXES],
    mut sum: f64,
) -> f64 {
    // The position of a tap on an axis, or `None` on padding.
    let inside = |axis: usize, tap: usize| {
        let position = at[axis] * shape.stride[axis] + tap * shape.dilation[axis];
        position.checked_sub(shape.pad_begin[axis]).filter(|p| *p < shape.input[axis])
    };
    let [layers, rows, columns] = shape.kernel;
    for layer in 0..layers {
        let Some(z) = inside(0, layer) else { continue };
        for row in 0..rows {
            let Some(y) = inside(1, row) else { continue };
            let weight = &weight[(layer * rows + row) * columns..][..columns];
            let input = &input[(z * shape.input[1] + y) * shape.input[2]..][..shape.input[2]];
            for (column, weight) in weight.iter().enumerate() {
                if let Some(x) = inside(2, column) {
                    sum += input[x].to_f64() * weight.to_f64();
                }
            }
        }
    }
    sum
}

/// All index triples of a box, row-major.
pub(super) fn points(size: [usize; AXES]) -> impl Iterator<Item = [usize; AXES]> {
    (0..size.iter().product::<usize>())
        .map(move |i| [i / (size[1] * size[2]), i / size[2] % size[1], i % size[2]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    #[test]
    fn a_worked_example_with_padding_stride_and_bias() {
        // 1 2 3     1 0      all four corners of the padded 5x5 input, stride 2
        // 4 5 6  *  0 -1
        // 7 8 9
        let x: Vec<f64> = (1..=9).map(f64::from).collect();
        let shape =
            ConvShape::new(&[1, 1, 3, 3], &[1, 1, 2, 2], &ConvParams::default().stride([2]).padding([1]))
                .unwrap();
        let y = reference(&shape, &x, &[1.0, 0.0, 0.0, -1.0], Some(&[10.0])).unwrap();
        assert_eq!(y, [9.0, 7.0, 3.0, 6.0]);
    }

    #[test]
    fn groups_do_not_see_each_other() {
        let shape = ConvShape::new(&[1, 4, 2], &[2, 2, 1], &ConvParams::default().groups(2)).unwrap();
        let x = [1.0_f32, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0];
        let y = reference(&shape, &x, &[1.0, 1.0, 1.0, -1.0], None).unwrap();
        assert_eq!(y, [11.0, 22.0, -900.0, -1800.0]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let shape = ConvShape::new(&[1, 1, 3], &[1, 1, 2], &ConvParams::default()).unwrap();
        assert!(
            reference(&shape, &[0.0_f32; 2], &[0.0; 2], None).unwrap_err().to_string().contains("2 where 3")
        );
        assert!(reference(&shape, &[0.0_f32; 3], &[0.0; 2], Some(&[0.0; 2])).is_err());
    }
}
