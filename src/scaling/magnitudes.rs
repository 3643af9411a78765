//! Largest and smallest magnitudes, compiled for each instruction set.
//!
//! Relevant if you want to know what a scan spends its time on.
//!
//! Invariant: every function reads an element at most once. Those that read all of them do not branch on an element.

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

/// The extent of the elements of some runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Extent {
    /// The largest magnitude.
    pub(super) largest: f64,
    /// The smallest magnitude that is not zero; infinite if there is none.
    pub(super) smallest: f64,
    /// Sum of squares.
    pub(super) squares: f64,
}

/// Finds the extent of a run of each channel.
pub(super) struct Extents<'a, T> {
    /// Starts at the first element of the run; channels are `plane_elems` apart.
    pub(super) channels: &'a [T],
    pub(super) plane_elems: usize,
    /// Elements of a run.
    pub(super) run: usize,
}

impl<T: Element> pulp::WithSimd for Extents<'_, T> {
    type Output = Extent;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Extent {
        let unset = T::from_f64(f64::INFINITY);
        let mut sums = [0.0_f64; LANES];
        let (mut most, mut least) = ([T::default(); LANES], [unset; LANES]);
        for channel in self.channels.chunks(self.plane_elems) {
            let blocks = channel[..self.run].chunks_exact(LANES);
            let rest = blocks.remainder();
            for block in blocks {
                for lane in 0..LANES {
                    let (value, size) = (block[lane].to_f64(), block[lane].abs());
                    sums[lane] += value * value;
                    most[lane] = if size > most[lane] { size } else { most[lane] };
                    let size = if size > T::default() { size } else { unset };
                    least[lane] = if size < least[lane] { size } else { least[lane] };
                }
            }
            for (lane, value) in rest.iter().enumerate() {
                let (value, size) = (value.to_f64(), value.abs());
                sums[lane] += value * value;
                most[lane] = if size > most[lane] { size } else { most[lane] };
                least[lane] = if size > T::default() && size < least[lane] { size } else { least[lane] };
            }
        }
        let largest = most.iter().fold(0.0_f64, |largest, size| largest.max(size.to_f64()));
        let smallest = least.iter().fold(f64::INFINITY, |smallest, size| smallest.min(size.to_f64()));
        Extent { largest, smallest, squares: sums.iter().sum() }
    }
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
pub(super) fn typical<T: Element>(windows: &[T], sampled: usize, sample: &mut Vec<f64>) -> f64 {
    let step = windows.len().div_ceil(sampled).max(1);
    // An odd step does not divide widths that are powers of two.
    let step = if step > 1 { step | 1 } else { step };
    let nonzero = windows.iter().step_by(step).map(|window| window.to_f64()).filter(|window| *window > 0.0);
    sample.clear();
    sample.extend(nonzero);
    if sample.is_empty() {
        return largest(windows);
    }
    let at = sample.len() * 3 / 4;
    *sample.select_nth_unstable_by(at, f64::total_cmp).1
}
