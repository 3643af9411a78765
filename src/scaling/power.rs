//! Powers of two that scale numbers to a size near 1.

/// Largest magnitude of an exponent for `f64` elements: the product of two scales and its inverse stay normal numbers.
const MOST_F64: i32 = 510;

/// Largest magnitude of an exponent for `f32` elements: a scale and its inverse are normal numbers of that type.
const MOST_F32: i32 = 126;

/// The power of two that brings `size` into `[1, 2)`; 1 if `size` is zero or not finite.
///
/// The exponent is limited to what the element type can hold (`single`: f32), so that data near the ends of its range may
/// stay outside that interval.
#[must_use]
pub fn power_of_two(size: f64, single: bool) -> f64 {
    if !(size > 0.0 && size.is_finite()) {
        return 1.0;
    }
    let most = if single { MOST_F32 } else { MOST_F64 };
    exp2(-exponent(size).clamp(-most, most))
}

/// The exponent e of a positive finite number in `[2^e, 2^(e + 1))`.
pub(super) fn exponent(value: f64) -> i32 {
    // Denormal numbers have no exponent of their own.
    if value < f64::MIN_POSITIVE {
        return exponent(value * exp2(64)) - 64;
    }
    let biased = ((value.to_bits() >> 52) & 0x7ff) as i32;
    biased - 1023
}

/// 2 to the power of `e`; the result must be a normal number.
pub(super) fn exp2(e: i32) -> f64 {
    f64::from_bits(u64::from((1023 + e).unsigned_abs()) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_between_one_and_two_unless_the_type_forbids_it() {
        for single in [false, true] {
            for size in [1.0, 1.999, 2.0, 0.3, 1e-30, 1e30, 3.7e-5, f64::from(f32::MAX) / 4.0] {
                let scaled = size * power_of_two(size, single);
                assert!((1.0..2.0).contains(&scaled), "{size:e}: {scaled}");
            }
            for none in [0.0, f64::NAN, f64::INFINITY] {
                assert_eq!(power_of_two(none, single), 1.0);
            }
        }
        assert_eq!(power_of_two(1e-45, true), 2.0_f64.powi(126));
        assert_eq!(power_of_two(f64::from(f32::MAX), true), 2.0_f64.powi(-126));
        assert_eq!(power_of_two(5e-324, false), 2.0_f64.powi(510));
        assert_eq!(power_of_two(f64::MAX, false), 2.0_f64.powi(-510));
    }

    #[test]
    fn exponents_are_those_of_the_definition() {
        for e in [-1074, -1060, -1022, -1, 0, 1, 52, 1023] {
            let least = 2.0_f64.powi(e);
            assert_eq!(exponent(least), e);
            assert_eq!(exponent(least * 1.5), if e == -1074 { -1073 } else { e });
        }
    }
}
