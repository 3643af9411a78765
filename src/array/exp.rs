//! The exponential function of f32 without branches, so that loops over it are compiled to vectors.
//!
//! Relevant if you want to know how exact `exp`, `sigmoid`, `tanh` and softmax are: within 2 units in the last place,
//! denormal results included, against some 4e-7 *absolute* of the rational functions that are common in inference, which
//! for probabilities near zero leaves no digit.

#![expect(clippy::inline_always, reason = "loops over these functions are compiled for each instruction set")]

/// ln 2 in two parts: multiples of the first one by up to 2^9 are exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Adding this number rounds to an integer, which is then in the low bits.
const ROUNDING: f32 = 12_582_912.0;

/// Beyond these, results are 0 and infinity.
const LEAST: f32 = -104.0;
const MOST: f32 = 89.0;

/// `n` and `exp(r) - 1`, where `x = n ln 2 + r` and r is at most ln 2 / 2 in magnitude.
#[inline(always)]
fn reduced(x: f32) -> (i32, f32) {
    // Comparisons that are false for NaN keep it.
    let x = if x < LEAST { LEAST } else { x };
    let x = if x > MOST { MOST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let n = shifted - ROUNDING;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // The Taylor series: its ninth term is below 2^-27 of the sum.
    let mut sum = 1.0 / 40320.0;
    for factor in [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        sum = sum * r + factor;
    }
    #[expect(clippy::cast_possible_wrap, reason = "bits, of which the difference is small")]
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    (n, r + r * r * sum)
}

/// 2 to the power of `n`, a normal number.
#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "bits")]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32).wrapping_shl(23))
}

/// e to the power of `x`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let (n, rest) = reduced(x);
    // In two steps, since the first may be too large and the last one denormal.
    let half = n >> 1;
    (1.0 + rest) * power(half) * power(n.wrapping_sub(half))
}

/// `exp(x) - 1` for `x` of at least 0, exact also where it is small.
#[inline(always)]
pub(super) fn exp_m1(x: f32) -> f32 {
    let (n, rest) = reduced(x);
    let half = n >> 1;
    let (first, second) = (power(half), power(n.wrapping_sub(half)));
    // 2^n (1 + rest) - 1; halves keep 2^128 out of the way.
    (rest * first + (first - 1.0 / second)) * second
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the exact result.
    fn ulps(got: f32, exact: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
        let rounded = (exact as f32).abs();
        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn results_are_exact_to_two_units_in_the_last_place() {
        let (mut worst, mut worst_m1, mut x) = (0.0_f64, 0.0_f64, -103.5_f32);
        while x < 88.7 {
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
            if x >= 0.0 {
                worst_m1 = worst_m1.max(ulps(exp_m1(x), f64::from(x).exp_m1()));
            }
            x += 0.000_731;
        }
        let mut x = 1e-30_f32;
        while x < 1.0 {
            worst = worst.max(ulps(exp(x), f64::from(x).exp())).max(ulps(exp(-x), f64::from(-x).exp()));
            worst_m1 = worst_m1.max(ulps(exp_m1(x), f64::from(x).exp_m1()));
            x *= 1.013;
        }
        assert!(worst < 2.0 && worst_m1 < 3.0, "{worst} and {worst_m1} units in the last place");
        // A comparison that would notice: one bit more of ln 2 lost.
        assert!(ulps(exp(50.0) * (1.0 + 4.0 * f32::EPSILON), 50.0_f64.exp()) > 2.0);
    }

    #[test]
    fn ends_of_the_range_and_nan() {
        assert_eq!((exp(0.0), exp(-0.0), exp_m1(0.0)), (1.0, 1.0, 0.0));
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(-104.5)), (0.0, 0.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(88.8), exp(1e30)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert!(exp(-103.0) > 0.0 && exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan() && exp_m1(f32::NAN).is_nan());
    }
}
