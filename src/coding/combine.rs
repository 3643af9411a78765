//! The inner loop of filter encoding: a linear combination of slices, compiled for the available vector units.

use crate::array::Element;

/// Elements accumulated in registers before they are written.
const WIDTH: usize = 32;

/// Computes `dst = sum of coefficient * source` over `terms`; every source is as long as `dst`. Sources that many
/// combinations share are best given as f64, because widening them is a third of the work.
///
/// Accumulates in f64 and rounds once, because the decoder multiplies rounding errors by its condition number.
/// Multiplication and addition are separate, so the bits do not depend on the CPU. A single coefficient 1 copies. If
/// terms of coefficient 0 are left out, as [`nonzero`] does, a selection passes NaN through untouched.
pub(super) fn combine<T: Element, S: Element>(dst: &mut [T], terms: &[(f64, &[S])]) {
    for (_, source) in terms {
        assert_eq!(source.len(), dst.len(), "sources of a combination are as long as its destination");
    }
    match terms {
        [] => dst.fill(T::default()),
        [(1.0, source)] => {
            for (to, from) in dst.iter_mut().zip(*source) {
                // The conversion to f64 and back is exact.
                *to = T::from_f64(from.to_f64());
            }
        }
        terms => dispatch(dst, terms),
    }
}

/// The terms that contribute: a zero coefficient times NaN would be NaN.
pub(super) fn nonzero<'a, T: 'a>(
    terms: impl Iterator<Item = (f64, &'a [T])>,
) -> impl Iterator<Item = (f64, &'a [T])> {
    terms.filter(|(coefficient, _)| *coefficient != 0.0)
}

fn dispatch<T: Element, S: Element>(dst: &mut [T], terms: &[(f64, &[S])]) {
    pulp::Arch::new().dispatch(Combine { dst, terms });
}

/// [`body`] as something that can be compiled once for each instruction set.
struct Combine<'a, T, S> {
    dst: &'a mut [T],
    terms: &'a [(f64, &'a [S])],
}

impl<T: Element, E: Element> pulp::WithSimd for Combine<'_, T, E> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        body(self.dst, self.terms);
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
fn body<T: Element, S: Element>(dst: &mut [T], terms: &[(f64, &[S])]) {
    let mut at = 0;
    let mut chunks = dst.chunks_exact_mut(WIDTH);
    for chunk in &mut chunks {
        let mut sum = [0.0_f64; WIDTH];
        for (c, source) in terms {
            let source = &source[at..at + WIDTH];
            for lane in 0..WIDTH {
                sum[lane] += *c * source[lane].to_f64();
            }
        }
        for (out, sum) in chunk.iter_mut().zip(sum) {
            *out = T::from_f64(sum);
        }
        at += WIDTH;
    }
    for (lane, out) in chunks.into_remainder().iter_mut().enumerate() {
        let mut sum = 0.0;
        for (c, source) in terms {
            sum += *c * source[at + lane].to_f64();
        }
        *out = T::from_f64(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let sources: Vec<Vec<f32>> =
                (0..5).map(|s| (0..len).map(|i| ((s * len + i) as f32 * 0.7).sin()).collect()).collect();
            let terms: Vec<(f64, &[f32])> =
                sources.iter().enumerate().map(|(s, v)| (0.3 - s as f64, v.as_slice())).collect();
            let (mut plain, mut dispatched) = (vec![f32::NAN; len], vec![f32::NAN; len]);
            body(&mut plain, &terms);
            dispatch(&mut dispatched, &terms);
            assert_eq!(plain, dispatched);
            let naive: Vec<f32> = (0..len)
                .map(|i| f32::from_f64(terms.iter().fold(0.0, |sum, (c, v)| sum + c * f64::from(v[i]))))
                .collect();
            assert_eq!(plain, naive);
        }
    }

    #[test]
    fn selections_copy_and_zero_terms_do_not_touch_their_source() {
        let (nan, one) = (vec![f64::NAN; 70], vec![1.0; 70]);
        let mut dst = vec![0.0; 70];
        let mut combine = |terms: &[(f64, &[f64])]| {
            combine(&mut dst, &nonzero(terms.iter().copied()).collect::<Vec<_>>());
            dst.clone()
        };
        assert_eq!(combine(&[(0.0, &nan), (1.0, &one)]), one);
        assert_eq!(combine(&[(0.0, &nan)]), vec![0.0; 70]);
        let dst = combine(&[(2.0, &one), (0.0, &nan), (0.5, &one)]);
        assert_eq!(dst, vec![2.5; 70]);
    }
}
