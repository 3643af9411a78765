//! Vector arithmetic of the two element types, for loops that are compiled once for each instruction set.
//!
//! Who only calls the library can skip this. `inline(always)` carries the choice of the instruction set inwards, from
//! [`pulp::WithSimd::with_simd`] on: a function of its own would be compiled for the oldest processor.

use pulp::Simd;

/// The vectors of an element type.
pub trait Lanes: Copy {
    /// As many elements as the instruction set computes at once.
    type Vector<S: Simd>: Copy + bytemuck::Pod;

    /// `value` in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// a + b
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a - b
    fn minus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b + c, fused where the processor can.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// The bits that both have: a where those of `mask` are all set, zero where none is, whatever a is.
    fn keep<S: Simd>(simd: S, mask: Self::Vector<S>, a: Self::Vector<S>) -> Self::Vector<S>;
    /// `low` where a < `low`, `high` where a > `high`, else a: a NaN stays one.
    fn clamp<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        low: Self::Vector<S>,
        high: Self::Vector<S>,
    ) -> Self::Vector<S>;
}

macro_rules! lanes {
    ($element:ty, $vector:ident, $splat:ident, $add:ident, $sub:ident, $mul_add:ident, $and:ident, $less:ident, $select:ident) => {
        impl Lanes for $element {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn minus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$sub(a, b)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn keep<S: Simd>(simd: S, mask: S::$vector, a: S::$vector) -> S::$vector {
                simd.$and(mask, a)
            }
            #[inline(always)]
            fn clamp<S: Simd>(simd: S, a: S::$vector, low: S::$vector, high: S::$vector) -> S::$vector {
                let a = simd.$select(simd.$less(a, low), low, a);
                simd.$select(simd.$less(high, a), high, a)
            }
        }
    };
}

lanes!(f32, f32s, splat_f32s, add_f32s, sub_f32s, mul_add_e_f32s, and_f32s, less_than_f32s, select_f32s);
lanes!(f64, f64s, splat_f64s, add_f64s, sub_f64s, mul_add_e_f64s, and_f64s, less_than_f64s, select_f64s);

/// `N` vectors of `run` from element `at` on.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]
pub(crate) fn load<S: Simd, A: Lanes + bytemuck::Pod, const N: usize>(
    simd: S,
    run: &[A],
    at: usize,
) -> [A::Vector<S>; N] {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    let run = &run[at..at + N * lanes];
    let mut values = [A::splat(simd, A::zeroed()); N];
    for (value, run) in values.iter_mut().zip(run.chunks_exact(lanes)) {
        *value = bytemuck::pod_read_unaligned(bytemuck::cast_slice(run));
    }
    values
}
