//! Convolution of one output channel by adding up shifted input planes: for groups with few output channels.
//!
//! Who only calls [`ConvKernel`](super::ConvKernel) can skip this. A block of output elements stays in vector
//! registers while every term of its sum is added; because staged planes turn every stride into 1
//! ([`Geometry`]), a term is one scalar times one contiguous run, whatever the shape.
//!
//! Invariant: every element of the output channel is written, none is read.

use super::geometry::Geometry;
use crate::array::Element;

/// Output elements summed at once: eight 512-bit registers of f32.
const WIDE_BLOCK: usize = 128;
/// Block for what is left over, and for small planes.
const BLOCK: usize = 32;

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
    // Compiled for each instruction set and chosen at run time; `inline(always)` carries the choice inwards.
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut done = 0;
            while sums.len() - done >= WIDE_BLOCK {
                block::<T, WIDE_BLOCK>(geometry, group, filter, done, sums);
                done += WIDE_BLOCK;
            }
            while done < sums.len() {
                // The last block overlaps the one before it instead of being cut: the values are the same.
                if sums.len() >= BLOCK {
                    block::<T, BLOCK>(geometry, group, filter, done.min(sums.len() - BLOCK), sums);
                    done += BLOCK;
                } else {
                    block::<T, 1>(geometry, group, filter, done, sums);
                    done += 1;
                }
            }
        },
    );
}

#[inline(always)]
fn block<T: Element, const N: usize>(
    geometry: &Geometry,
    group: &[T],
    filter: &[T],
    begin: usize,
    sums: &mut [T],
) {
    let mut sum = [T::default(); N];
    let channels = group.chunks_exact(geometry.plane).zip(filter.chunks_exact(geometry.offsets.len()));
    for (plane, taps) in channels {
        for (weight, offset) in taps.iter().zip(&geometry.offsets) {
            let run = &plane[offset + begin..offset + begin + N];
            for (sum, value) in sum.iter_mut().zip(run) {
                *sum += *weight * *value;
            }
        }
    }
    sums[begin..begin + N].copy_from_slice(&sum);
}
