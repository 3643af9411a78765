//! Sliding maxima: the largest magnitude that each window of a convolution sees.

use crate::array::Element;
use crate::conv::AXES;

/// The windows of a convolution along its canonical axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// Size of the plane.
    pub(super) input: [usize; AXES],
    /// Number of windows on each axis.
    pub(super) output: [usize; AXES],
    pub(super) kernel: [usize; AXES],
    pub(super) stride: [usize; AXES],
    pub(super) dilation: [usize; AXES],
    /// Zeros before the first element of each axis. Windows see zeros beyond the plane.
    pub(super) pad: [usize; AXES],
}

impl Windows {
    /// Writes the maximum of each window of `plane`, whose elements are magnitudes, to `to`; `room` is scratch memory.
    pub(super) fn maxima<T: Element>(&self, plane: &[T], to: &mut Vec<T>, room: &mut Vec<T>) {
        to.clear();
        to.extend_from_slice(plane);
        let mut size = self.input;
        // The innermost axis first: the other axes then have fewer elements to visit.
        for axis in (0..AXES).rev() {
            if self.keeps(axis) {
                continue;
            }
            let (outer, inner) =
                (size[..axis].iter().product::<usize>(), size[axis + 1..].iter().product::<usize>());
            let length = size[axis];
            size[axis] = self.output[axis];
            room.clear();
            room.resize(outer * size[axis] * inner, T::default());
            let pass = Pass { windows: self, axis, length, inner, from: to, to: room };
            pulp::Arch::new().dispatch(pass);
            std::mem::swap(to, room);
        }
    }

    /// Whether each window of an axis is a single element.
    fn keeps(&self, axis: usize) -> bool {
        self.kernel[axis] == 1
            && self.stride[axis] == 1
            && self.pad[axis] == 0
            && self.input[axis] == self.output[axis]
    }
}

/// A pass that computes maxima along one axis.
struct Pass<'a, T> {
    windows: &'a Windows,
    axis: usize,
    /// Number of elements along the axis.
    length: usize,
    /// Number of elements of the axes after it.
    inner: usize,
    from: &'a [T],
    /// Must be zeros.
    to: &'a mut [T],
}

impl<T: Element> pulp::WithSimd for Pass<'_, T> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { windows, axis, length, inner, from, to } = self;
        let (count, stride) = (windows.output[axis], windows.stride[axis]);
        for (from, to) in from.chunks_exact(length * inner).zip(to.chunks_exact_mut(count * inner)) {
            for tap in 0..windows.kernel[axis] {
                // Window o contains element o * stride + shift - pad.
                let (shift, pad) = (tap * windows.dilation[axis], windows.pad[axis]);
                let first = pad.saturating_sub(shift).div_ceil(stride);
                let last = (length + pad).saturating_sub(shift).div_ceil(stride).min(count);
                if first >= last {
                    continue;
                }
                let start = first * stride + shift - pad;
                if stride == 1 {
                    let run = (last - first) * inner;
                    larger(&mut to[first * inner..][..run], &from[start * inner..][..run]);
                } else if inner == 1 {
                    for (to, from) in to[first..last].iter_mut().zip(from[start..].iter().step_by(stride)) {
                        *to = if *from > *to { *from } else { *to };
                    }
                } else {
                    for (to, at) in to.chunks_exact_mut(inner).take(last).skip(first).zip(0..) {
                        larger(to, &from[(start + at * stride) * inner..][..inner]);
                    }
                }
            }
        }
    }
}

/// `to = max(to, from)`, element by element.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn larger<T: Element>(to: &mut [T], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = if *from > *to { *from } else { *to };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maxima_are_those_of_the_definition() {
        let cases = [
            ([1, 7, 9], [1, 3, 3], [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 7, 9]),
            // More windows than the padded plane has: the last windows contain nothing.
            ([1, 7, 9], [1, 3, 2], [1, 2, 3], [1, 2, 1], [0, 2, 0], [1, 6, 3]),
            ([4, 3, 5], [2, 1, 4], [1, 1, 1], [2, 1, 1], [1, 0, 3], [4, 3, 8]),
            ([1, 1, 6], [1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 6]),
            ([1, 1, 6], [1, 1, 1], [1, 1, 2], [1, 1, 1], [0, 0, 0], [1, 1, 3]),
            ([2, 2, 2], [5, 5, 5], [1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2]),
        ];
        for (input, kernel, stride, dilation, pad, output) in cases {
            let windows = Windows { input, output, kernel, stride, dilation, pad };
            let elems: usize = input.iter().product();
            let plane: Vec<f32> = (0..elems).map(|i| (i * 37 % 23) as f32).collect();
            let (mut got, mut room) = (vec![9.0; 3], Vec::new());
            windows.maxima(&plane, &mut got, &mut room);
            let mut want = Vec::new();
            for z in 0..output[0] {
                for y in 0..output[1] {
                    for x in 0..output[2] {
                        let mut largest = 0.0_f32;
                        for k in 0..kernel.iter().product() {
                            let taps =
                                [k / (kernel[1] * kernel[2]), k / kernel[2] % kernel[1], k % kernel[2]];
                            let seen: Vec<Option<usize>> = (0..AXES)
                                .map(|a| {
                                    let at = [z, y, x][a] * stride[a] + taps[a] * dilation[a];
                                    at.checked_sub(pad[a]).filter(|at| *at < input[a])
                                })
                                .collect();
                            if let [Some(z), Some(y), Some(x)] = seen[..] {
                                largest = largest.max(plane[(z * input[1] + y) * input[2] + x]);
                            }
                        }
                        want.push(largest);
                    }
                }
            }
            assert_eq!(got, want, "{windows:?}");
        }
    }
}
