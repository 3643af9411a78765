//! Softmax and its logarithm along one run of axes.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::Element;

/// Work for an element, in copies of one.
const COST: usize = 8;

/// Lanes of sums and maxima.
const LANES: usize = 16;

/// `exp(x) / sum(exp(x))` over rows, or its logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax {
    /// Elements of a sum.
    pub length: usize,
    /// Elements between two of a sum: 1 for rows.
    pub inner: usize,
    /// Whether the logarithm is computed.
    pub logarithm: bool,
}

impl Softmax {
    /// Computes `data` `[outer, length, inner]` into `output`. A sum with NaN or of minus infinities alone gives NaN.
    pub fn run<T: Element>(&self, data: &[T], output: &mut [T]) {
        assert_eq!(data.len(), output.len(), "data and output of a softmax differ in length");
        let unit = self.length * self.inner;
        if unit == 0 {
            return;
        }
        share(output, unit, COST, |first, to| {
            let from = &data[first * unit..first * unit + to.len()];
            for (from, to) in from.chunks_exact(unit).zip(to.chunks_exact_mut(unit)) {
                if self.inner == 1 {
                    vectorized(Row { from, to, logarithm: self.logarithm });
                    continue;
                }
                let mut begin = 0;
                while begin < self.inner {
                    let count = LANES.min(self.inner - begin);
                    vectorized(Columns { softmax: self, from, to: &mut *to, begin, count });
                    begin += count;
                }
            }
        });
    }
}

/// One sum whose elements lie together.
struct Row<'a, T> {
    from: &'a [T],
    to: &'a mut [T],
    logarithm: bool,
}

impl<T: Element> Vectorized for Row<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { from, to, logarithm } = self;
        let larger = |a: T, b: T| if b > a { b } else { a };
        let blocks = from.chunks_exact(LANES);
        let mut most = [from[0]; LANES];
        for (lane, x) in blocks.remainder().iter().enumerate() {
            most[lane] = larger(most[lane], *x);
        }
        for block in blocks {
            for lane in 0..LANES {
                most[lane] = larger(most[lane], block[lane]);
            }
        }
        let most = most.into_iter().fold(from[0], larger);
        for (y, x) in to.iter_mut().zip(from) {
            *y = (*x - most).exp();
        }
        let blocks = to.chunks_exact(LANES);
        let mut sums = [T::default(); LANES];
        for (lane, y) in blocks.remainder().iter().enumerate() {
            sums[lane] = *y;
        }
        for block in blocks {
            for lane in 0..LANES {
                sums[lane] += block[lane];
            }
        }
        let sum: f64 = sums.iter().map(|sum| sum.to_f64()).sum();
        if logarithm {
            let below = T::from_f64(sum.ln());
            for (y, x) in to.iter_mut().zip(from) {
                *y = (*x - most) - below;
            }
        } else {
            let sum = T::from_f64(sum);
            for y in to.iter_mut() {
                *y = *y / sum;
            }
        }
    }
}

/// Successive sums whose elements are `inner` apart.
struct Columns<'a, T> {
    softmax: &'a Softmax,
    from: &'a [T],
    to: &'a mut [T],
    begin: usize,
    count: usize,
}

impl<T: Element> Vectorized for Columns<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { softmax: Softmax { inner, logarithm, .. }, from, to, begin, count } = self;
        let (mut most, mut sums) = ([T::default(); LANES], [T::default(); LANES]);
        most[..count].copy_from_slice(&from[begin..begin + count]);
        for row in from.chunks_exact(*inner) {
            for (most, x) in most.iter_mut().zip(&row[begin..begin + count]) {
                *most = if *x > *most { *x } else { *most };
            }
        }
        for (from, to) in from.chunks_exact(*inner).zip(to.chunks_exact_mut(*inner)) {
            let (from, to) = (&from[begin..begin + count], &mut to[begin..begin + count]);
            for (((y, x), most), sum) in to.iter_mut().zip(from).zip(&most).zip(&mut sums) {
                *y = (*x - *most).exp();
                *sum += *y;
            }
        }
        if *logarithm {
            let below = sums.map(|sum| T::from_f64(sum.to_f64().ln()));
            for (from, to) in from.chunks_exact(*inner).zip(to.chunks_exact_mut(*inner)) {
                let (from, to) = (&from[begin..begin + count], &mut to[begin..begin + count]);
                for (((y, x), most), below) in to.iter_mut().zip(from).zip(&most).zip(&below) {
                    *y = (*x - *most) - *below;
                }
            }
        } else {
            for to in to.chunks_exact_mut(*inner) {
                for (y, sum) in to[begin..begin + count].iter_mut().zip(&sums) {
                    *y = *y / *sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_definition(softmax: &Softmax, data: &[f64]) -> Vec<f64> {
        let Softmax { length, inner, logarithm } = *softmax;
        let sum_of = |at: usize| {
            let start = at / (length * inner) * length * inner + at % inner;
            let row = (0..length).map(|i| data[start + i * inner]);
            let most = row.clone().fold(f64::NEG_INFINITY, f64::max);
            (most, row.map(|x| (x - most).exp()).sum::<f64>())
        };
        let one = |(at, x): (usize, &f64)| {
            let (most, sum) = sum_of(at);
            if logarithm { x - most - sum.ln() } else { (x - most).exp() / sum }
        };
        data.iter().enumerate().map(one).collect()
    }

    #[test]
    fn rows_and_columns_are_those_of_the_definition() {
        for (outer, length, inner) in
            [(1, 1, 1), (3, 1000, 1), (50, 37, 1), (2, 21, 53), (3, 5, 16), (1, 2, 4000)]
        {
            let data: Vec<f64> = (0..outer * length * inner)
                .map(|i| f64::from(u32::try_from(i * 7919 % 1009).unwrap()) / 20.0 - 30.0)
                .collect();
            let single: Vec<f32> = data.iter().map(|x| f32::from_f64(*x)).collect();
            for logarithm in [false, true] {
                let softmax = Softmax { length, inner, logarithm };
                let want = by_definition(&softmax, &data);
                let (mut double, mut got) = (vec![f64::NAN; data.len()], vec![f32::NAN; data.len()]);
                softmax.run(&data, &mut double);
                softmax.run(&single, &mut got);
                for ((want, double), got) in want.iter().zip(&double).zip(&got) {
                    assert!((double - want).abs() <= 1e-13 * want.abs().max(1e-13), "{softmax:?}");
                    // Differences of f32 data are rounded before the exponential.
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= 1e-5 * want.abs() + 1e-30 + 1e-5 * f64::from(u8::from(logarithm)),
                        "{softmax:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn large_and_infinite_elements() {
        let softmax = Softmax { length: 3, inner: 1, logarithm: false };
        let mut y = [0.0_f32; 9];
        let far = f32::NEG_INFINITY;
        softmax.run(&[1e30, 1e30, far, 3.0, f32::NAN, 1.0, far, far, far], &mut y);
        assert_eq!(y[..3], [0.5, 0.5, 0.0]);
        assert!(y[3..].iter().all(|y| y.is_nan()), "{y:?}");
    }
}
