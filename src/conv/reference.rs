//! The naive definition of the convolution: slow, obvious, public, and what everything else is tested against.

use super::params::{AXES, ConvShape};
use crate::array::{Element, check_elems};
use crate::error::Result;

/// Computes the convolution straight from its definition, one output element at a time, accumulating in f64.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]`, `bias` `[O]`, all row-major; the
/// result is `[N, O, spatial...]`. Accumulating in f64 makes it the more exact side of every f32 comparison.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) when a slice does not have the number of elements `shape` requires.
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
    let mut output = Vec::with_capacity(shape.output_elems());
    for n in 0..shape.batch {
        for o in 0..shape.out_channels {
            let first_channel = o / group_out * group_in;
            for at in points(shape.output) {
                let mut sum = bias.map_or(0.0, |b| b[o].to_f64());
                for c in 0..group_in {
                    for tap in points(shape.kernel) {
                        if let Some(x) = input_index(shape, n, first_channel + c, at, tap) {
                            let k = flat(tap, shape.kernel)
                                + (o * group_in + c) * shape.kernel.iter().product::<usize>();
                            sum += input[x].to_f64() * weight[k].to_f64();
                        }
                    }
                }
                output.push(T::from_f64(sum));
            }
        }
    }
    Ok(output)
}

/// Flat index of the input element under a kernel tap, or `None` where the tap lies on padding.
fn input_index(
    shape: &ConvShape,
    n: usize,
    c: usize,
    at: [usize; AXES],
    tap: [usize; AXES],
) -> Option<usize> {
    let mut inside = [0; AXES];
    for axis in 0..AXES {
        let position = at[axis] * shape.stride[axis] + tap[axis] * shape.dilation[axis];
        inside[axis] = position.checked_sub(shape.pad_begin[axis]).filter(|p| *p < shape.input[axis])?;
    }
    Some((n * shape.in_channels + c) * shape.input_plane() + flat(inside, shape.input))
}

fn flat(at: [usize; AXES], size: [usize; AXES]) -> usize {
    (at[0] * size[1] + at[1]) * size[2] + at[2]
}

/// All index triples of a box, row-major.
fn points(size: [usize; AXES]) -> impl Iterator<Item = [usize; AXES]> {
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
