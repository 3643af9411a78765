//! What the CPU can do at best: fused multiply-adds in registers, and reading arrays of several sizes.
//!
//! Both are the best of several short bursts: a ceiling, which what else runs on the machine lowers only if it never
//! pauses.

use std::hint::black_box;
use std::sync::Barrier;

use pulp::{Arch, Simd, WithSimd};

use crate::engine::Clock;
use crate::layers::Layer;

/// Independent sums: more than two pipes of latency four need, few enough for 16 registers.
const SUMS: usize = 12;
/// Vectors that are read at a time.
const STREAMS: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Seconds of one burst, and how many there are.
const BURST: f64 = 4e-3;
const BURSTS: usize = 100;
/// Working sets that are read, in bytes; the last one is four times the largest cache.
const SMALL_SETS: [usize; 5] = [16 << 10, 128 << 10, 1 << 20, 4 << 20, 16 << 20];

/// The ceilings of one machine with some number of threads, or of one adapter.
#[derive(Clone, Debug)]
pub(crate) struct Ceilings {
    /// Floating-point operations a second.
    pub(crate) peak: f64,
    /// Bytes a second for working sets up to some number of bytes, ascending.
    pub(crate) bandwidth: Vec<(usize, f64)>,
}

impl Ceilings {
    /// Those of this machine. Bandwidths are of reading alone.
    pub(crate) fn measure(threads: usize, clock: Clock) -> Self {
        let peak = best(threads, clock, || (), |()| Arch::new().dispatch(MultiplyAdd { steps: 4096 }));
        let sets = SMALL_SETS.into_iter().chain([4 * largest_cache().max(16 << 20)]);
        let bandwidth = sets
            .map(|set| {
                let elems = set / size_of::<f32>() / threads;
                let passes = (1 << 20) / (set / threads).min(1 << 20);
                let array = || vec![1.0_f32; elems + LINE / size_of::<f32>()];
                let read = |array: &mut Vec<f32>| {
                    // Vectors that cross lines would cost twice.
                    let array = &array[array.as_ptr().align_offset(LINE)..][..elems];
                    Arch::new().dispatch(Sum { array, passes });
                    (size_of_val(array) * passes) as f64
                };
                (set, best(threads, clock, array, read))
            })
            .collect();
        Self { peak, bandwidth }
    }

    /// Bytes a second from where the `bytes` of a layer lie when it is computed again and again.
    pub(crate) fn bandwidth_of(&self, bytes: f64) -> f64 {
        let fits = self.bandwidth.iter().find(|(set, _)| bytes <= *set as f64);
        fits.or(self.bandwidth.last()).map_or(f64::INFINITY, |(_, rate)| *rate)
    }

    /// What the roofline allows a layer, in operations a second.
    pub(crate) fn bound(&self, layer: &Layer) -> f64 {
        self.peak.min(layer.intensity() * self.bandwidth_of(layer.bytes()))
    }
}

/// The highest rate at which `threads` threads do `work`, which says how much it did, together.
fn best<T>(
    threads: usize,
    clock: Clock,
    prepare: impl Fn() -> T + Sync,
    work: impl Fn(&mut T) -> f64 + Sync,
) -> f64 {
    // As many calls for everybody, so that all bursts are equally long.
    let mut state = prepare();
    work(&mut state);
    let begin = clock.now();
    work(&mut state);
    let calls = (BURST / (clock.now() - begin).max(1e-9)).clamp(1.0, 1e6) as usize;
    drop(state);
    let barrier = Barrier::new(threads);
    let one_thread = || {
        let mut state = prepare();
        work(&mut state);
        let burst = |_| {
            barrier.wait();
            let begin = clock.now();
            let done: f64 = (0..calls).map(|_| work(&mut state)).sum();
            (done, clock.now() - begin)
        };
        (0..BURSTS).map(burst).collect()
    };
    let all: Vec<Vec<(f64, f64)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        // A thread panics only where `work` does, and then there is no ceiling.
        handles.into_iter().map(|handle| handle.join().unwrap_or_default()).collect()
    });
    let rate = |burst: usize| {
        let bursts = || all.iter().filter_map(|thread| thread.get(burst));
        let seconds = bursts().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        bursts().map(|(done, _)| done).sum::<f64>() / seconds
    };
    (0..BURSTS).map(rate).fold(0.0, f64::max)
}

/// Fused multiply-adds that depend on nothing but themselves; answers the number of operations.
struct MultiplyAdd {
    steps: usize,
}

impl WithSimd for MultiplyAdd {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        // Converges to 2, far from numbers that are slow.
        let (half, one) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(1.0)));
        let mut sums = [one; SUMS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, half, one);
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        (2 * self.steps * SUMS * lanes) as f64
    }
}

/// The sum of an array, several times: a stream of reads.
struct Sum<'a> {
    array: &'a [f32],
    passes: usize,
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut sums = [simd.splat_f32s(0.0); STREAMS];
        for _ in 0..self.passes {
            // A set is many blocks: what does not fill the last one is not worth reading.
            let (vectors, _) = S::as_simd_f32s(black_box(self.array));
            let (blocks, _) = vectors.as_chunks::<STREAMS>();
            for block in blocks {
                for (sum, vector) in sums.iter_mut().zip(block) {
                    *sum = simd.add_f32s(*sum, *vector);
                }
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
    }
}

/// Bytes of the largest cache, as Linux tells; 32 MiB where nobody does.
fn largest_cache() -> usize {
    (0..8)
        .filter_map(|index| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
            let text = std::fs::read_to_string(path).ok()?;
            let text = text.trim();
            let (number, unit) = match text.strip_suffix('M') {
                Some(number) => (number, 1 << 20),
                None => (text.strip_suffix('K')?, 1 << 10),
            };
            Some(number.parse::<usize>().ok()? * unit)
        })
        .max()
        .unwrap_or(32 << 20)
}
