//! Largest and smallest magnitudes, compiled for each instruction set.
//!
//! Relevant if you want to know what a scan spends its time on.
//!
//! Invariant: every function reads an element at most once. Those that read all of them do not branch on an element.

use std::ops::Range;

use crate::array::Element;

/// Writes to `most[p]` the largest of `floor` and the scaled windows at place p of all slabs.
pub(super) fn largest_scaled<T: Element>(
    seen: &[T],
    scales: &[f64],
    floor: T,
    part: usize,
    most: &mut Vec<T>,
) {
    most.clear();
    most.resize(part, floor);
    pulp::Arch::new().dispatch(LargestScaled { seen, scales, part, most });
}

struct LargestScaled<'a, T> {
    seen: &'a [T],
    scales: &'a [f64],
    part: usize,
    most: &'a mut [T],
}

impl<T: Element> pulp::WithSimd for LargestScaled<'_, T> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for (slab, scale) in self.seen.chunks_exact(self.part).zip(self.scales) {
            let scale = T::from_f64(*scale);
            for (most, seen) in self.most.iter_mut().zip(slab) {
                let scaled = *seen * scale;
                *most = if scaled > *most { scaled } else { *most };
            }
        }
    }
}

/// The largest magnitudes over the channels, and their sum of squares.
pub(super) struct Magnitudes<'a, T> {
    /// Starts at the first element of the run; channels are `plane_elems` apart.
    pub(super) channels: &'a [T],
    pub(super) plane_elems: usize,
    pub(super) most: &'a mut [T],
}

/// Number of independent accumulators.
const LANES: usize = 16;

impl<T: Element> pulp::WithSimd for Magnitudes<'_, T> {
    type Output = f64;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        let Self { channels, plane_elems, most } = self;
        let mut sums = [0.0_f64; LANES];
        let mut rest = 0.0;
        for channel in channels.chunks(plane_elems) {
            let run = &channel[..most.len()];
            let mut blocks = run.chunks_exact(LANES);
            let mut targets = most.chunks_exact_mut(LANES);
            for (run, most) in (&mut blocks).zip(&mut targets) {
                for lane in 0..LANES {
                    let value = run[lane].to_f64();
                    sums[lane] += value * value;
                    let size = run[lane].abs();
                    most[lane] = if size > most[lane] { size } else { most[lane] };
                }
            }
            for (value, most) in blocks.remainder().iter().zip(targets.into_remainder()) {
                rest += value.to_f64() * value.to_f64();
                let size = value.abs();
                *most = if size > *most { size } else { *most };
            }
        }
        sums.iter().sum::<f64>() + rest
    }
}

/// The extent of the elements of some bands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Extent {
    /// The largest magnitude.
    pub(super) largest: f64,
    /// The smallest magnitude that is not zero; infinite if there is none.
    pub(super) smallest: f64,
}

/// Finds the extent of some bands of the channels, and writes the sum of squares of each band. A sum is not finite if an
/// element is not. Squares are rounded to the element type, so that those of very large or small elements are wrong.
pub(super) struct Extents<'a, T> {
    pub(super) channels: &'a [T],
    pub(super) plane_elems: usize,
    /// Ranges of rows.
    pub(super) bands: &'a [Range<usize>],
    pub(super) row_elems: usize,
    /// One for each band.
    pub(super) squares: &'a mut [f64],
}

impl<T: Element> pulp::WithSimd for Extents<'_, T> {
    type Output = Extent;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> Extent {
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        let zero = T::splat(simd, T::default());
        let (mut most, mut least) = (zero, T::splat(simd, T::from_f64(f64::INFINITY)));
        for (band, squares) in self.bands.iter().zip(self.squares) {
            *squares = 0.0;
            for channel in self.channels.chunks(self.plane_elems) {
                let run = &channel[band.start * self.row_elems..band.end * self.row_elems];
                let blocks = run.chunks_exact(lanes);
                let rest = blocks.remainder();
                // A channel's squares are added up in the element type, the channels' sums in f64.
                let mut sums = zero;
                let mut take = |block: T::Vector<S>| {
                    let size = T::size(simd, block);
                    sums = T::mul_add(simd, block, block, sums);
                    most = T::larger(simd, size, most);
                    least = T::least_above_zero(simd, size, least);
                };
                // Vectors are aligned like their elements.
                blocks.for_each(|block| take(bytemuck::cast_slice(block)[0]));
                if !rest.is_empty() {
                    take(T::first(simd, rest));
                }
                *squares += elements(&mut sums).iter().map(|sum: &T| sum.to_f64()).sum::<f64>();
            }
        }
        let larger = |largest: f64, size: &T| largest.max(size.to_f64());
        let smaller = |smallest: f64, size: &T| smallest.min(size.to_f64());
        Extent {
            largest: elements(&mut most).iter().fold(0.0, larger),
            smallest: elements(&mut least).iter().fold(f64::INFINITY, smaller),
        }
    }
}

/// The elements of a vector.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is compiled for each instruction set, where its caller is")]
fn elements<V: bytemuck::Pod, T: bytemuck::Pod>(vector: &mut V) -> &mut [T] {
    bytemuck::cast_slice_mut(std::slice::from_mut(vector))
}

/// The largest of `values`, 0 if there are none.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is compiled for each instruction set, where its caller is")]
pub(super) fn largest<T: Element>(values: &[T]) -> f64 {
    let mut lanes = [T::default(); LANES];
    let blocks = values.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    let larger = |most: T, value: &T| if *value > most { *value } else { most };
    lanes.iter().chain(rest).fold(T::default(), larger).to_f64()
}

/// The largest of `values`, and the smallest that is not zero.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is compiled for each instruction set, where its caller is")]
pub(super) fn extremes<T: Element>(values: &[T]) -> (f64, f64) {
    let unset = T::from_f64(f64::INFINITY);
    let mut lanes = [unset; LANES];
    let blocks = values.chunks_exact(LANES);
    let rest = blocks.remainder();
    let smaller = |least: T, value: T| if value > T::default() && value < least { value } else { least };
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = smaller(lanes[lane], block[lane]);
        }
    }
    let smallest = lanes.iter().chain(rest).fold(unset, |least, value| smaller(least, *value));
    (largest(values), smallest.to_f64())
}

/// The typical size of the `windows` of a slab: larger than three quarters of the nonzero samples. For even windows the
/// largest would do as well. Where a few stand out, those had better stay large than make all others small. About
/// `sampled` windows are looked at; `sample` is scratch memory.
pub(super) fn typical<T: Element>(windows: &[T], sampled: usize, sample: &mut Vec<u64>) -> f64 {
    let step = windows.len().div_ceil(sampled).max(1);
    // An odd step does not divide widths that are powers of two.
    let step = if step > 1 { step | 1 } else { step };
    sample.clear();
    let mut at = 0;
    while let Some(window) = windows.get(at) {
        if *window > T::default() {
            // The bits of positive numbers are in the same order, and faster to compare.
            sample.push(window.to_f64().to_bits());
        }
        at += step;
    }
    if sample.is_empty() {
        return largest(windows);
    }
    let quartile = sample.len() * 3 / 4;
    f64::from_bits(*sample.select_nth_unstable(quartile).1)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one band")]
mod tests {
    use super::*;

    /// Whether the extent and the sums of squares are those of the definition, where the elements from `spoilt` on are read
    /// as twice their value.
    fn is_naive<T: Element>(
        plane_elems: usize,
        bands: &[Range<usize>],
        row_elems: usize,
        spoilt: usize,
    ) -> bool {
        let value = |i: usize| if i % 5 == 2 { 0.0 } else { ((i * 37 % 101) as f64 - 50.0) / 8.0 };
        let channels: Vec<T> = (0..3 * plane_elems).map(|i| T::from_f64(value(i))).collect();
        let mut squares = vec![f64::NAN; bands.len()];
        let found = Extents { channels: &channels, plane_elems, bands, row_elems, squares: &mut squares };
        let extent = pulp::Arch::new().dispatch(found);
        let mut want = Extent { largest: 0.0, smallest: f64::INFINITY };
        let mut same = true;
        for (band, squares) in bands.iter().zip(squares) {
            let mut sum = 0.0;
            for channel in 0..3 {
                for at in band.start * row_elems..band.end * row_elems {
                    let at = channel * plane_elems + at;
                    let value = value(at).abs() * if at >= spoilt { 2.0 } else { 1.0 };
                    sum += value * value;
                    want.largest = want.largest.max(value);
                    want.smallest = if value > 0.0 { want.smallest.min(value) } else { want.smallest };
                }
            }
            same &= (squares - sum).abs() <= 1e-6 * sum;
        }
        same && extent == want
    }

    #[test]
    fn extents_are_those_of_the_definition() {
        for row_elems in [1, 3, 14, 16, 33] {
            for rows in [1, 4, 9] {
                let plane = rows * row_elems;
                for bands in [vec![0..rows], vec![0..rows / 2, rows / 2..rows], vec![rows..rows]] {
                    assert!(is_naive::<f32>(plane, &bands, row_elems, usize::MAX), "{rows} {row_elems}");
                    assert!(is_naive::<f64>(plane, &bands, row_elems, usize::MAX), "{rows} {row_elems}");
                }
            }
        }
        // Negative control.
        assert!(!is_naive::<f32>(99, &[0..3], 33, 3 * 99 - 1));
    }

    #[test]
    fn sums_show_elements_that_are_not_finite() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 39] {
                let mut channels = vec![1.0_f32; 40];
                channels[at] = value;
                let mut squares = [0.0; 2];
                let bands = [0..2, 2..4];
                let found = Extents {
                    channels: &channels,
                    plane_elems: 40,
                    bands: &bands,
                    row_elems: 10,
                    squares: &mut squares,
                };
                pulp::Arch::new().dispatch(found);
                assert_eq!([0, 1].map(|band| squares[band].is_finite()), [at >= 20, at < 20]);
            }
        }
    }
}
