//! The inner kernel of the CPU convolution: a few output channels over a run of wide output points, in registers.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. Because staged planes turn every stride into 1
//! ([`Geometry`](super::geometry::Geometry)), a term of the sum is one weight times one contiguous run of the input,
//! whatever the shape: nothing is gathered into columns first. A tile of channels x vectors of points stays in
//! registers while its terms are added, so each vector read from the input serves all channels of the tile, and each
//! weight all of its vectors.
//!
//! Invariant: every element of the channels in hand is written, from the terms in their order: what it becomes
//! depends neither on its place in a tile nor on its neighbours.

use crate::array::{DType, Element, F32_RUN};

/// Elements that a vector has at most, of either type: what a run of points must have to be computed in place.
pub(super) const MOST_LANES: usize = 16;

/// Points that the widest tiles hold, on the largest vectors: runs of a multiple of this leave no narrow tile.
pub(super) const TILE_POINTS: usize = 3 * MOST_LANES;

/// Output channels that share a vector of the input, at most: filters are packed in blocks of so many.
pub(super) const CHANNELS: usize = 8;

/// What one call sums.
pub(super) struct Sums<'a, T> {
    /// The staged channels of a group, beginning with the first output point under a tap without steps.
    pub(super) source: &'a [T],
    /// Where each term lies in `source`, relative to the output point.
    pub(super) offsets: &'a [usize],
    /// `[terms, width]`: the weights of a block of output channels.
    pub(super) weights: &'a [T],
    pub(super) width: usize,
    /// Output channels of the block that there are, at most `width`.
    pub(super) channels: usize,
    /// Output points.
    pub(super) points: usize,
    /// Channel c, point p goes to `c * pitch + p`.
    pub(super) output: &'a mut [T],
    pub(super) pitch: usize,
}

/// Computes `sums`. If `room` says so, source and output go on beyond the last point, up to whole vectors, and hold
/// nothing of use there; else there must be at least [`MOST_LANES`] points.
pub(super) fn sum<T: Element>(sums: Sums<'_, T>, room: bool) {
    use bytemuck::{cast_slice, cast_slice_mut};
    let Sums { offsets, width, channels, points, pitch, .. } = sums;
    let arch = pulp::Arch::new();
    // Of T itself nothing vectorises; each branch casts to the type T is.
    match T::DTYPE {
        DType::F32 => arch.dispatch(Sums32 {
            sums: Sums {
                source: cast_slice(sums.source),
                weights: cast_slice(sums.weights),
                output: cast_slice_mut(sums.output),
                offsets,
                width,
                channels,
                points,
                pitch,
            },
            room,
        }),
        DType::F64 => arch.dispatch(Sums64 {
            sums: Sums {
                source: cast_slice(sums.source),
                weights: cast_slice(sums.weights),
                output: cast_slice_mut(sums.output),
                offsets,
                width,
                channels,
                points,
                pitch,
            },
            room,
        }),
    }
}

/// The loops for one element type, compiled for each instruction set and chosen at run time. `inline(always)`
/// carries the choice inwards: a function of its own would be compiled for the oldest processor.
macro_rules! sums_of {
    ($name:ident, $element:ty, $run:expr, $vector:ident, $splat:ident, $mul_add:ident, $add:ident) => {
        struct $name<'a> {
            sums: Sums<'a, $element>,
            room: bool,
        }

        impl pulp::WithSimd for $name<'_> {
            type Output = ();

            /// Blocks of channels as large as the registers allow: tiles of 8 x 3, 4 x 6 or (with half of the
            /// registers) 4 x 3 vectors; one or two channels read more than they compute, whatever the tile.
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(mut self, simd: S) {
                let many = S::REGISTER_COUNT >= 32;
                let mut first = 0;
                while first < self.sums.channels {
                    let left = self.sums.channels - first;
                    first += if many && left >= 8 {
                        self.rows::<S, 8, 3>(simd, first)
                    } else if many && left >= 4 {
                        self.rows::<S, 4, 6>(simd, first)
                    } else if left >= 4 {
                        self.rows::<S, 4, 3>(simd, first)
                    } else if left >= 2 {
                        self.rows::<S, 2, 4>(simd, first)
                    } else {
                        self.rows::<S, 1, 8>(simd, first)
                    };
                }
            }
        }

        impl $name<'_> {
            /// All points of the channels from `first` on, in tiles of M channels x N vectors; answers M.
            #[inline(always)]
            fn rows<S: pulp::Simd, const M: usize, const N: usize>(
                &mut self,
                simd: S,
                first: usize,
            ) -> usize {
                let lanes = size_of::<S::$vector>() / size_of::<$element>();
                // With room the last vector may as well be full.
                let points = self.sums.points.next_multiple_of(if self.room { lanes } else { 1 });
                let mut at = 0;
                while at < points {
                    // What is left is a whole tile, nearly one, or a few vectors. A tile that would reach beyond the last
                    // point begins earlier instead: the values are the same.
                    let left = (points - at).div_ceil(lanes);
                    let begin = |vectors: usize| at.min(points - vectors * lanes);
                    let fits = |vectors: usize| points >= vectors * lanes;
                    at += lanes
                        * if left > N - N / 4 - 1 && fits(N) {
                            self.tile::<S, M, N>(simd, first, begin(N));
                            N
                        } else if N > 4 && left >= 4 && fits(4) {
                            self.tile::<S, M, 4>(simd, first, begin(4));
                            4
                        } else if N > 2 && left >= 2 && fits(2) {
                            self.tile::<S, M, 2>(simd, first, begin(2));
                            2
                        } else {
                            self.tile::<S, M, 1>(simd, first, begin(1));
                            1
                        };
                }
                M
            }

            #[inline(always)]
            fn tile<S: pulp::Simd, const M: usize, const N: usize>(
                &mut self,
                simd: S,
                first: usize,
                at: usize,
            ) {
                let width = self.sums.width;
                let runs = self.sums.offsets.chunks($run).zip(self.sums.weights.chunks($run * width));
                for (index, (offsets, weights)) in runs.enumerate() {
                    let source = &self.sums.source[at..];
                    let output = &mut self.sums.output[first * self.sums.pitch + at..];
                    let pitch = self.sums.pitch;
                    Self::run::<S, M, N>(
                        simd,
                        source,
                        offsets,
                        &weights[first..],
                        width,
                        output,
                        pitch,
                        index > 0,
                    );
                }
            }

            /// One run of terms: written, or added to what the runs before have written.
            #[inline(always)]
            #[expect(clippy::too_many_arguments, reason = "plain values that stay in registers")]
            fn run<S: pulp::Simd, const M: usize, const N: usize>(
                simd: S,
                source: &[$element],
                offsets: &[usize],
                weights: &[$element],
                width: usize,
                output: &mut [$element],
                pitch: usize,
                more: bool,
            ) {
                let lanes = size_of::<S::$vector>() / size_of::<$element>();
                let mut sums = [[simd.$splat(0.0); N]; M];
                for (offset, weights) in offsets.iter().zip(weights.chunks(width)) {
                    let weights = &weights[..M];
                    let run = &source[*offset..][..N * lanes];
                    let mut values = [simd.$splat(0.0); N];
                    for i in 0..N {
                        let value = bytemuck::cast_slice(&run[i * lanes..(i + 1) * lanes]);
                        values[i] = bytemuck::pod_read_unaligned(value);
                    }
                    for m in 0..M {
                        let weight = simd.$splat(weights[m]);
                        for i in 0..N {
                            sums[m][i] = simd.$mul_add(weight, values[i], sums[m][i]);
                        }
                    }
                }
                for m in 0..M {
                    let row = &mut output[m * pitch..][..N * lanes];
                    for i in 0..N {
                        let to = &mut row[i * lanes..(i + 1) * lanes];
                        let mut sum = sums[m][i];
                        if more {
                            sum = simd.$add(sum, bytemuck::pod_read_unaligned(bytemuck::cast_slice(to)));
                        }
                        to.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&sum)));
                    }
                }
            }
        }
    };
}

sums_of!(Sums32, f32, F32_RUN, f32s, splat_f32s, mul_add_e_f32s, add_f32s);
sums_of!(Sums64, f64, usize::MAX / CHANNELS, f64s, splat_f64s, mul_add_e_f64s, add_f64s);
