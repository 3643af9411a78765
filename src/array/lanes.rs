//! Vector arithmetic of the two element types, for loops that are compiled once for each instruction set.
//!
//! Relevant if you want to write a vectorized loop. Functions are `inline(always)` so that they are compiled for the
//! instruction set of the caller, [`pulp::WithSimd::with_simd`]; a separate function would be compiled for the oldest
//! processor.

use pulp::Simd;

/// The vectors of an element type.
pub trait Lanes: Copy {
    /// A vector of the instruction set.
    type Vector<S: Simd>: Copy + bytemuck::Pod;

    /// `value` in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// The first elements of a vector, as many as there are; zeros behind them.
    fn first<S: Simd>(simd: S, elements: &[Self]) -> Self::Vector<S>;
    /// a + b
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a - b
    fn minus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b + c, fused if the processor supports it.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// Bitwise and: a where all bits of `mask` are set, zero where none is, for any a.
    fn keep<S: Simd>(simd: S, mask: Self::Vector<S>, a: Self::Vector<S>) -> Self::Vector<S>;
    /// |a|
    fn size<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;
    /// a where a > b, else b.
    fn larger<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a where 0 < a < b, else b.
    fn least_above_zero<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `low` where a < `low`, `high` where a > `high`, else a; NaN stays NaN.
    fn clamp<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        low: Self::Vector<S>,
        high: Self::Vector<S>,
    ) -> Self::Vector<S>;
}

macro_rules! lanes {
    ($element:ty, $vector:ident, $splat:ident, $partial:ident, $add:ident, $sub:ident, $mul_add:ident, $and:ident, $abs:ident, $less:ident, $select:ident) => {
        impl Lanes for $element {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn first<S: Simd>(simd: S, elements: &[Self]) -> S::$vector {
                simd.$partial(elements)
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
            fn size<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                simd.$abs(a)
            }
            #[inline(always)]
            fn larger<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$select(simd.$less(b, a), a, b)
            }
            #[inline(always)]
            fn least_above_zero<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                let a = simd.$select(simd.$less(simd.$splat(0.0), a), a, b);
                simd.$select(simd.$less(a, b), a, b)
            }
            #[inline(always)]
            fn clamp<S: Simd>(simd: S, a: S::$vector, low: S::$vector, high: S::$vector) -> S::$vector {
                let a = simd.$select(simd.$less(a, low), low, a);
                simd.$select(simd.$less(high, a), high, a)
            }
        }
    };
}

lanes!(
    f32,
    f32s,
    splat_f32s,
    partial_load_f32s,
    add_f32s,
    sub_f32s,
    mul_add_e_f32s,
    and_f32s,
    abs_f32s,
    less_than_f32s,
    select_f32s
);
lanes!(
    f64,
    f64s,
    splat_f64s,
    partial_load_f64s,
    add_f64s,
    sub_f64s,
    mul_add_e_f64s,
    and_f64s,
    abs_f64s,
    less_than_f64s,
    select_f64s
);

/// `N` vectors of `run` from element `at` on.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]
#[expect(clippy::manual_memcpy, reason = "vectors that are copied as bytes do not stay in registers")]
pub(crate) fn load<S: Simd, A: Lanes + bytemuck::Pod, const N: usize>(
    simd: S,
    run: &[A],
    at: usize,
) -> [A::Vector<S>; N] {
    let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
    // Vectors are aligned like their elements.
    let vectors: &[A::Vector<S>] = bytemuck::cast_slice(&run[at..at + N * lanes]);
    let mut values = [A::splat(simd, A::zeroed()); N];
    for n in 0..N {
        values[n] = vectors[n];
    }
    values
}
