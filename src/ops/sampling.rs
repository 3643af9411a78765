//! The elements that a deformable convolution multiplies: the input at positions that are data themselves.

use super::share::share;
use crate::array::Element;

/// Copies of one element that the interpolation of one is worth.
const COST: usize = 16;

/// A grid of kernel positions over pictures, each moved by an offset of its own.
///
/// Element `(c, i, j, y, x)` of the output is the input of channel `c` at row `y * stride + i * dilation - pad + dy` and
/// the column alike, interpolated linearly between the four elements around that position. Elements outside of the
/// picture are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Number of channels.
    pub channels: usize,
    /// Rows and columns of the input.
    pub input: [usize; 2],
    /// Rows and columns of the output.
    pub output: [usize; 2],
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub stride: [usize; 2],
    /// Steps between elements of the kernel.
    pub dilation: [usize; 2],
    /// Zeros before the first row and column.
    pub pad: [usize; 2],
    /// Number of groups of successive channels that share offsets.
    pub groups: usize,
}

impl Sampling {
    /// Elements of the output for one channel of one picture.
    fn unit(&self) -> usize {
        self.kernel.iter().chain(&self.output).product()
    }

    /// Samples `data` `[N, channels, input]` into `output` `[N, channels * kernel, output]`.
    ///
    /// `offsets` `[N, groups, kernel, 2, output]` hold rows, then columns; `mask` `[N, groups, kernel, output]` is
    /// multiplied with the results. An offset that is NaN makes NaN.
    pub fn run<T: Element>(&self, data: &[T], offsets: &[T], mask: Option<&[T]>, output: &mut [T]) {
        let unit = self.unit();
        if output.is_empty() || unit == 0 {
            return;
        }
        let planes = output.len() / unit;
        let moved = planes / self.channels * self.groups * unit;
        assert_eq!(data.len(), planes * self.input[0] * self.input[1], "input of a sampling");
        assert_eq!(offsets.len(), 2 * moved, "offsets of a sampling");
        assert!(mask.is_none_or(|mask| mask.len() == moved), "mask of a sampling");
        let of_plane = self.input[0] * self.input[1];
        share(output, unit, COST, |first, units| {
            for (index, to) in units.chunks_exact_mut(unit).enumerate() {
                let at = first + index;
                let (image, channel) = (at / self.channels, at % self.channels);
                let group = image * self.groups + channel / (self.channels / self.groups);
                let offsets = &offsets[2 * group * unit..2 * (group + 1) * unit];
                self.plane(&data[at * of_plane..(at + 1) * of_plane], offsets, to);
                if let Some(mask) = mask {
                    for (y, factor) in to.iter_mut().zip(&mask[group * unit..]) {
                        *y = *y * *factor;
                    }
                }
            }
        });
    }

    /// Samples one channel of one picture.
    fn plane<T: Element>(&self, plane: &[T], offsets: &[T], to: &mut [T]) {
        let [rows, columns] = self.output;
        let points = rows * columns;
        let begin = |axis: usize, step: usize, element: usize| {
            let place = step * self.stride[axis] + element * self.dilation[axis];
            T::from_f64(place as f64 - self.pad[axis] as f64)
        };
        for (element, to) in to.chunks_exact_mut(points).enumerate() {
            let (i, j) = (element / self.kernel[1], element % self.kernel[1]);
            let (down, right) = offsets[2 * element * points..2 * (element + 1) * points].split_at(points);
            for (point, ((to, dy), dx)) in to.iter_mut().zip(down).zip(right).enumerate() {
                let (y, x) = (point / columns, point % columns);
                *to = self.between(plane, begin(0, y, i) + *dy, begin(1, x, j) + *dx);
            }
        }
    }

    /// The plane at a position between its elements.
    fn between<T: Element>(&self, plane: &[T], y: T, x: T) -> T {
        let [rows, columns] = self.input;
        let (Some((top, below)), Some((left, right))) = (parts(y, rows), parts(x, columns)) else {
            // No part of the picture is near, or the position is not a number.
            return T::from_f64(if y.to_f64().is_nan() || x.to_f64().is_nan() { f64::NAN } else { 0.0 });
        };
        let one = T::from_f64(1.0);
        let element = |row: Option<usize>, column: Option<usize>| match (row, column) {
            (Some(row), Some(column)) => plane[row * columns + column],
            _ => T::default(),
        };
        let (first, second) = (before(top), after(top, rows));
        let (start, end) = (before(left), after(left, columns));
        let upper = (one - below) * (one - right) * element(first, start)
            + (one - below) * right * element(first, end);
        upper + below * (one - right) * element(second, start) + below * right * element(second, end)
    }
}

/// A position as a whole number and a fraction; `None` where all elements around it are outside.
#[expect(clippy::cast_possible_truncation, reason = "a whole number between -1 and a size")]
fn parts<T: Element>(position: T, size: usize) -> Option<(isize, T)> {
    let position = position.to_f64();
    if !(position > -1.0 && position < size as f64) {
        return None;
    }
    let whole = position.floor();
    Some((whole as isize, T::from_f64(position - whole)))
}

fn before(whole: isize) -> Option<usize> {
    usize::try_from(whole).ok()
}

fn after(whole: isize, size: usize) -> Option<usize> {
    usize::try_from(whole + 1).ok().filter(|next| *next < size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(input: [usize; 2]) -> Sampling {
        let one = [1, 1];
        Sampling {
            channels: 1,
            input,
            output: one,
            kernel: one,
            stride: one,
            dilation: one,
            pad: [0, 0],
            groups: 1,
        }
    }

    fn at(data: &[f64], input: [usize; 2], y: f64, x: f64) -> f64 {
        let mut output = [f64::MAX];
        single(input).run(data, &[y, x], None, &mut output);
        output[0]
    }

    #[test]
    fn positions_between_elements_are_interpolated() {
        let data = [1.0, 2.0, 3.0, 5.0, 7.0, 11.0];
        let size = [2, 3];
        assert_eq!(at(&data, size, 0.0, 0.0), 1.0);
        assert_eq!(at(&data, size, 1.0, 2.0), 11.0);
        assert_eq!(at(&data, size, 0.0, 0.5), 1.5);
        assert_eq!(at(&data, size, 0.5, 1.0), 4.5);
        assert_eq!(at(&data, size, 0.25, 0.5), 0.75 * 1.5 + 0.25 * 6.0);
        // Half of what is outside is zero; from one step outside everything is.
        assert_eq!(at(&data, size, -0.5, 0.0), 0.5);
        assert_eq!(at(&data, size, 1.5, 2.5), 2.75);
        for (y, x) in [(-1.0, 0.0), (0.0, 3.0), (2.0, 0.0), (f64::INFINITY, 0.0), (0.0, -1e300)] {
            assert_eq!(at(&data, size, y, x), 0.0, "{y}, {x}");
        }
        assert!(at(&data, size, f64::NAN, 0.0).is_nan() && at(&data, size, 0.0, f64::NAN).is_nan());
    }

    /// Without offsets the result is the ordinary arrangement of a convolution's input in columns.
    #[test]
    fn without_offsets_elements_are_copied() {
        let sampling = Sampling {
            channels: 4,
            input: [5, 6],
            output: [3, 2],
            kernel: [3, 2],
            stride: [2, 3],
            dilation: [1, 2],
            pad: [1, 1],
            groups: 2,
        };
        let data: Vec<f32> = (1..=2 * 4 * 30).map(|value| value as f32).collect();
        let (unit, batch) = (36, 2);
        let mask: Vec<f32> = (0..batch * 2 * unit).map(|value| (value % 7) as f32).collect();
        let mut output = vec![f32::NAN; batch * 4 * unit];
        sampling.run(&data, &vec![0.0; 2 * mask.len()], Some(&mask), &mut output);
        for (index, value) in output.iter().enumerate() {
            let (plane, rest) = (index / unit, index % unit);
            let (element, point) = (rest / 6, rest % 6);
            let row = (point / 2 * 2 + element / 2).checked_sub(1).filter(|row| *row < 5);
            let column = (point % 2 * 3 + element % 2 * 2).checked_sub(1).filter(|column| *column < 6);
            let found = match (row, column) {
                (Some(row), Some(column)) => data[plane * 30 + row * 6 + column],
                _ => 0.0,
            };
            let factor = mask[(plane / 4 * 2 + plane % 4 / 2) * unit + rest];
            assert_eq!(*value, found * factor, "element {index}");
        }
    }
}
