//! Convolution of one output channel by adding up shifted input planes: for groups with few output channels.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. A block of output elements stays in vector
//! registers while every term of its sum is added; because staged planes turn every stride into 1
//! ([`Geometry`]), a term is one scalar times one contiguous run, whatever the shape.
//!
//! Invariant: every element of the output channel is written, none is read.

use super::geometry::Geometry;
use crate::array::{DType, Element};

/// Vectors summed at once: hides the latency of the additions and leaves registers for the inputs.
const VECTORS: usize = 8;

/// Convolves the staged channels of one group with the filter of one output channel.
///
/// `wide` is scratch of [`Geometry::wide`] elements; `output` is the channel, row-major.
pub(super) fn channel<T: Element>(
    geometry: &Geometry,
    group: &[T],
    filter: &[T],
    wide: &mut [T],
    output: &mut [T],
) {
    if wide.len() == output.len() {
        flat_channel(geometry, group, filter, output);
    } else {
        flat_channel(geometry, group, filter, wide);
        geometry.crop(wide, output);
    }
}

fn flat_channel<T: Element>(geometry: &Geometry, group: &[T], filter: &[T], sums: &mut [T]) {
    use bytemuck::{cast_slice, cast_slice_mut};
    let arch = pulp::Arch::new();
    // Of T itself nothing vectorises; each branch casts to the type T is.
    match T::DTYPE {
        DType::F32 => arch.dispatch(Channel32 {
            geometry,
            group: cast_slice(group),
            filter: cast_slice(filter),
            sums: cast_slice_mut(sums),
        }),
        DType::F64 => arch.dispatch(Channel64 {
            geometry,
            group: cast_slice(group),
            filter: cast_slice(filter),
            sums: cast_slice_mut(sums),
        }),
    }
}

/// The loop for one element type, compiled for each instruction set and chosen at run time. `inline(always)`
/// carries the choice inwards: a function of its own would be compiled for the oldest processor.
macro_rules! channel_of {
    ($name:ident, $element:ty, $vector:ident, $splat:ident, $mul_add:ident) => {
        struct $name<'a> {
            geometry: &'a Geometry,
            group: &'a [$element],
            filter: &'a [$element],
            sums: &'a mut [$element],
        }

        impl pulp::WithSimd for $name<'_> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: pulp::Simd>(mut self, simd: S) {
                let lanes = size_of::<S::$vector>() / size_of::<$element>();
                let len = self.sums.len();
                let mut done = 0;
                while len - done >= VECTORS * lanes {
                    self.block::<S, VECTORS>(simd, done);
                    done += VECTORS * lanes;
                }
                if len < lanes {
                    (done..len).for_each(|at| self.single(at));
                    return;
                }
                while done < len {
                    // The last block overlaps the one before it instead of being cut: the values are the same.
                    self.block::<S, 1>(simd, done.min(len - lanes));
                    done += lanes;
                }
            }
        }

        impl $name<'_> {
            #[inline(always)]
            fn block<S: pulp::Simd, const N: usize>(&mut self, simd: S, begin: usize) {
                let lanes = size_of::<S::$vector>() / size_of::<$element>();
                let taps = self.geometry.offsets.len();
                let mut sum = [simd.$splat(0.0); N];
                let planes = self.group.chunks_exact(self.geometry.plane);
                for (plane, filter) in planes.zip(self.filter.chunks_exact(taps)) {
                    for (weight, offset) in filter.iter().zip(&self.geometry.offsets) {
                        let weight = simd.$splat(*weight);
                        let run = &plane[offset + begin..][..N * lanes];
                        for i in 0..N {
                            let values = bytemuck::cast_slice(&run[i * lanes..(i + 1) * lanes]);
                            sum[i] = simd.$mul_add(weight, bytemuck::pod_read_unaligned(values), sum[i]);
                        }
                    }
                }
                for (sum, to) in sum.iter().zip(self.sums[begin..].chunks_exact_mut(lanes)) {
                    to.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(sum)));
                }
            }

            /// One output element, for channels shorter than a vector.
            fn single(&mut self, at: usize) {
                let taps = self.geometry.offsets.len();
                let planes = self.group.chunks_exact(self.geometry.plane);
                self.sums[at] = planes
                    .zip(self.filter.chunks_exact(taps))
                    .flat_map(|(plane, filter)| {
                        filter.iter().zip(&self.geometry.offsets).map(|(w, offset)| w * plane[offset + at])
                    })
                    .sum();
            }
        }
    };
}

channel_of!(Channel32, f32, f32s, splat_f32s, mul_add_e_f32s);
channel_of!(Channel64, f64, f64s, splat_f64s, mul_add_e_f64s);
